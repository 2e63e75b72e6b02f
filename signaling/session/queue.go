package session

import (
	"errors"
	"strconv"

	"plenum/wire/xmpp"
)

// errHandled is returned for an acknowledgement of stanzas that were never sent (XEP-0198, section 4).
var errHandled = errors.New("handled count too high")

const (
	batchBytes = 32 << 10 // how much is gathered for one write
	askAfter   = 5        // stanzas sent without asking for an acknowledgement
)

// A queue is what waits for one receiver: stanzas, and the elements that belong to one socket only.
// With stream management stanzas stay until they are acknowledged:
//
//	frames:  head ........ head+sent ........ end
//	         │ written, not  │ not written on  │
//	         │ acknowledged  │ this socket     │
//
// It belongs to whoever holds the session's lock.
type queue struct {
	maxFrames, maxBytes int

	frames []*xmpp.Frame
	head   int // index of the oldest frame
	sent   int // frames from head on that this socket was given
	bytes  int // of the frames from head on

	managed bool
	renew   func() []byte // the element that goes before an acknowledgement; nil: none
	acked   uint32        // stanzas acknowledged, modulo 2^32
	asked   bool          // an <r/> is out
	unasked int           // stanzas sent since the last <r/>

	// of this socket only
	control  [][]byte // elements that go before any stanza
	pong     []byte   // a WebSocket control frame, as it is; only the newest counts
	ackDue   bool     // the peer asked
	probe    bool     // ask the peer for a sign of life
	last     []byte   // goes last; then the socket is closed
	finished bool
}

func (q *queue) len() int { return len(q.frames) - q.head }

// push adds a stanza and reports whether there was room. Elements that stream management does not count
// would disturb the bookkeeping and go by way of control.
func (q *queue) push(f *xmpp.Frame) bool {
	if !f.Counted {
		if len(q.control) >= 64 {
			return false
		}
		q.control = append(q.control, f.Bytes)
		return true
	}
	if q.len() >= q.maxFrames || q.bytes+len(f.Bytes) > q.maxBytes {
		return false
	}
	q.frames = append(q.frames, f)
	q.bytes += len(f.Bytes)
	return true
}

// finish makes b the last bytes of this socket.
func (q *queue) finish(b []byte) { q.last, q.finished = b, true }

// idle reports whether there is nothing to write.
func (q *queue) idle() bool {
	return len(q.control) == 0 && q.pong == nil && !q.ackDue && !q.probe && !q.finished &&
		q.head+q.sent == len(q.frames) && !q.wantsAck()
}

func (q *queue) wantsAck() bool { return q.managed && !q.asked && q.unasked >= askAfter }

// take appends the next batch to dst as s frames it; last reports that nothing comes after it. in is the
// count of stanzas handled.
func (q *queue) take(dst []byte, s socket, in uint32) (out []byte, last bool) {
	dst = append(dst, q.pong...)
	q.pong = nil
	for _, b := range q.control {
		dst = s.frame(dst, b)
	}
	q.control = nil
	if q.ackDue {
		q.ackDue = false
		if q.renew != nil {
			dst = s.frame(dst, q.renew())
		}
		dst = s.frame(dst, []byte("<a xmlns='"+xmpp.NSSM+"' h='"+strconv.FormatUint(uint64(in), 10)+"'/>"))
	}
	for len(dst) < batchBytes && q.head+q.sent < len(q.frames) {
		f := q.frames[q.head+q.sent]
		dst = s.frame(dst, f.Bytes)
		if !q.managed {
			q.drop(1)
			continue
		}
		q.sent++
		q.unasked++
	}
	if q.wantsAck() || q.probe && q.managed && !s.probes() {
		q.asked, q.unasked = true, 0
		dst = s.frame(dst, []byte("<r xmlns='"+xmpp.NSSM+"'/>"))
	}
	if q.probe {
		q.probe = false
		dst = s.probe(dst)
	}
	if q.finished && q.head+q.sent == len(q.frames) {
		return append(dst, q.last...), true
	}
	return dst, false
}

// drop forgets the n oldest frames.
func (q *queue) drop(n int) {
	for _, f := range q.frames[q.head : q.head+n] {
		q.bytes -= len(f.Bytes)
	}
	clear(q.frames[q.head : q.head+n])
	q.head += n
	if q.head == len(q.frames) {
		q.head = 0
		if cap(q.frames) > 256 {
			q.frames = nil
		}
		q.frames = q.frames[:0]
	} else if q.head > 64 && q.head > len(q.frames)/2 {
		n := copy(q.frames, q.frames[q.head:])
		clear(q.frames[n:])
		q.frames, q.head = q.frames[:n], 0
	}
}

// ack takes the peer's count of handled stanzas. It counts modulo 2^32; one that was acknowledged before
// is no error.
func (q *queue) ack(h uint32) error {
	n := h - q.acked
	if n > 1<<31 {
		return nil // older than what we know
	}
	if n > uint32(q.sent) {
		return errHandled
	}
	q.acked, q.asked = h, false
	q.sent -= int(n)
	q.drop(int(n))
	return nil
}

// resume takes the peer's count and makes ready to send the rest again, on a new socket.
func (q *queue) resume(h uint32) error {
	if err := q.ack(h); err != nil {
		return err
	}
	q.reset()
	q.sent = 0
	return nil
}

// reset forgets what belonged to the last socket.
func (q *queue) reset() {
	q.control, q.pong, q.last = nil, nil, nil
	q.ackDue, q.probe, q.finished = false, false, false
	q.asked, q.unasked = false, 0
}
