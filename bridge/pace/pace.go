// Package pace lets what goes to one receiver out no faster than its path can take: a token bucket, and a queue for what
// exceeds it. What fits, which is nearly everything, passes without being copied. It is pure: the owner passes the time in
// and asks for what is due.
package pace

import (
	"time"

	"plenum/bridge/packet"
)

const (
	burstSpan = 15 * time.Millisecond
	minBurst  = 8_000     // bytes: a frame of a small picture is no burst
	maxQueue  = 256 << 10 // bytes that may wait; more pushes the first ones out
	maxWait   = 400 * time.Millisecond
)

// Spare are buffers that the pacers of one goroutine share: few have something waiting at a time. The zero value is ready
// to use.
type Spare [][]byte

const (
	bufferBytes = 16 << 10
	maxSpare    = 64
)

func (s *Spare) take() []byte {
	if s == nil || len(*s) == 0 {
		return make([]byte, 0, bufferBytes)
	}
	last := len(*s) - 1
	b := (*s)[last]
	*s = (*s)[:last]
	packet.Scribble(b[:cap(b)]) // Items that were in it end with this
	return b
}

func (s *Spare) give(b []byte) {
	if s != nil && len(*s) < maxSpare && cap(b) <= 4*bufferBytes {
		*s = append(*s, b[:0])
	}
}

// A Pacer belongs to one receiver. The zero value lets everything pass.
type Pacer struct {
	// Spare is where its buffers come from and go to; nil makes new ones.
	Spare *Spare

	rate  float64 // bytes per second; 0 no limit
	burst float64
	room  float64 // bytes that may go at once; below 0 is debt
	at    time.Time

	queue []byte // packets, each behind an entry
	head  int
	count int

	// Waited counts packets that were queued, Overflowed those that left before their time.
	Waited, Overflowed uint64
}

// An Item is one packet of the queue. Its slices are valid until the next Put of any pacer with the same Spare.
type Item struct {
	Header, Payload []byte
	Tag             uint32 // as given to Put
}

const entryBytes = 8 // header and payload length, tag

// Limit sets the rate in bits per second; 0 or less is none, and lets go what waits.
func (p *Pacer) Limit(bps int64) {
	first := p.rate == 0
	p.rate = max(float64(bps)/8, 0)
	p.burst = max(p.rate*burstSpan.Seconds(), minBurst)
	if first {
		p.room = p.burst
	}
	p.room = min(p.room, p.burst)
}

// Pass reports whether n bytes may go out at now, and counts them if so. urgent ones always may.
func (p *Pacer) Pass(n int, urgent bool, now time.Time) bool {
	if p.rate == 0 {
		return true
	}
	p.fill(now)
	if !urgent && (p.count > 0 || p.room <= 0) {
		return false
	}
	p.room = max(p.room-float64(n), -p.burst) // urgent ones make no debt that others would have to wait for
	return true
}

func (p *Pacer) fill(now time.Time) {
	if d := now.Sub(p.at); d > 0 {
		p.room = min(p.room+p.rate*min(d, time.Second).Seconds(), p.burst)
		p.at = now
	}
}

// Put queues a packet that did not pass; it is copied. Next comes next: when too much waits, the first must go.
func (p *Pacer) Put(header, payload []byte, tag uint32) {
	if p.queue == nil {
		p.queue = p.Spare.take()
	}
	if p.head > len(p.queue)/2 {
		p.queue, p.head = p.queue[:copy(p.queue, p.queue[p.head:])], 0
	}
	h, n := len(header), len(payload)
	p.queue = append(p.queue, byte(h>>8), byte(h), byte(n>>8), byte(n), byte(tag>>24), byte(tag>>16), byte(tag>>8), byte(tag))
	p.queue = append(p.queue, header...)
	p.queue = append(p.queue, payload...)
	p.count++
	p.Waited++
}

// Next takes the first packet out of the queue, if it may go out at now.
func (p *Pacer) Next(now time.Time) (it Item, ok bool) {
	if p.count == 0 {
		return it, false
	}
	p.fill(now)
	if p.rate > 0 && p.room <= 0 {
		if n := len(p.queue) - p.head; n <= maxQueue && float64(n) <= p.rate*maxWait.Seconds() {
			return it, false
		}
		p.Overflowed++
	}
	b := p.queue[p.head:]
	h, n := int(b[0])<<8|int(b[1]), int(b[2])<<8|int(b[3])
	it.Tag = uint32(b[4])<<24 | uint32(b[5])<<16 | uint32(b[6])<<8 | uint32(b[7])
	b = b[entryBytes:]
	it.Header, it.Payload = b[:h:h], b[h:h+n:h+n]
	p.head += entryBytes + h + n
	p.room -= float64(h + n)
	if p.count--; p.count == 0 {
		p.Spare.give(p.queue)
		p.queue, p.head = nil, 0
	}
	return it, true
}

// Waiting reports how many packets, and bytes, wait.
func (p *Pacer) Waiting() (packets, bytes int) { return p.count, len(p.queue) - p.head }

// Delay is how long the last of them will have to wait.
func (p *Pacer) Delay() time.Duration {
	if p.rate == 0 || p.count == 0 {
		return 0
	}
	_, n := p.Waiting()
	return time.Duration((float64(n) - p.room) / p.rate * float64(time.Second))
}
