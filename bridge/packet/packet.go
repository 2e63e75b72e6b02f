// Package packet holds datagrams on their way through the bridge: buffers with room for growth, batches
// as they come from recvmmsg, an outbox as it goes to sendmmsg, and views of RTP and RTCP headers.
// It knows no conference, key or socket, and nothing in it allocates once it is warm.
package packet

import (
	"net/netip"
	"time"
)

const (
	// MaxBytes is the largest datagram that is read; longer ones are truncated by the kernel and dropped.
	MaxBytes = 1500
	// BatchSize is how many datagrams one recvmmsg takes.
	BatchSize = 64
	// MaxOverhead is what SRTP or SRTCP adds at most to a clear packet: a GCM tag, or an HMAC, and an SRTCP index.
	MaxOverhead = 20
)

// A Path is the 5-tuple of a datagram as far as the bridge tells them apart: which of its own sockets,
// by index in the bridge's list, and the remote address (IPv4 unmapped).
type Path struct {
	Socket int
	Remote netip.AddrPort
}

// A Buf is one received datagram. Its owner at any moment is the reader that filled it, or the core that
// processes its batch; it is not to be kept after the batch has been processed.
type Buf struct {
	Path Path
	Data []byte // what is left of the datagram; views into array, unprotected in place

	array [MaxBytes]byte
}

// Space returns the whole array, for a reader to fill; the reader then sets Data.
func (b *Buf) Space() []byte { return b.array[:] }

// A Batch is what one read brought, all with one time of arrival.
type Batch struct {
	Arrival time.Time
	Bufs    [BatchSize]Buf
	N       int
}

// Release says that the datagrams have been handled: what they were is gone.
func (b *Batch) Release() {
	for i := range b.N {
		Scribble(b.Bufs[i].array[:])
	}
}

// An Outbox collects sealed datagrams until they are flushed to the sockets, in order. Neighbours of the
// same size for the same path become one GSO send. One goroutine owns it.
type Outbox struct {
	Datagrams []Datagram
	arena     []byte
	full      [][]byte // arenas that Datagrams still point into
	spare     [][]byte
}

// A Datagram is one packet to send; Data is valid until the outbox is reset.
type Datagram struct {
	Path Path
	Data []byte
}

const arenaBytes = 256 << 10

// Reserve returns an empty slice with room for n bytes, to be appended to and handed to Commit.
func (o *Outbox) Reserve(n int) []byte {
	if cap(o.arena)-len(o.arena) < n {
		if o.arena != nil {
			o.full = append(o.full, o.arena)
		}
		if k := len(o.spare); k > 0 {
			o.arena, o.spare = o.spare[k-1], o.spare[:k-1]
		} else {
			o.arena = make([]byte, 0, max(arenaBytes, n))
		}
	}
	end := len(o.arena)
	return o.arena[end:end:min(end+n, cap(o.arena))]
}

// Commit queues data, which must have grown from the last Reserve without reallocation.
func (o *Outbox) Commit(p Path, data []byte) {
	o.arena = o.arena[:len(o.arena)+len(data)]
	o.Datagrams = append(o.Datagrams, Datagram{p, data})
}

// Len is the number of datagrams that wait.
func (o *Outbox) Len() int { return len(o.Datagrams) }

// Reset forgets all datagrams and keeps the memory for the next round.
func (o *Outbox) Reset() {
	for _, d := range o.Datagrams {
		Scribble(d.Data)
	}
	o.Datagrams = o.Datagrams[:0]
	for _, a := range o.full {
		if len(o.spare) < 8 {
			o.spare = append(o.spare, a[:0])
		}
	}
	o.full = o.full[:0]
	o.arena = o.arena[:0]
}
