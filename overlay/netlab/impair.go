package netlab

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// A Bitrate is in bits per second.
type Bitrate int64

// Common rates.
const (
	Kbit Bitrate = 1000
	Mbit         = 1000 * Kbit
	Gbit         = 1000 * Mbit
)

// An Impairment says what one direction of a path does to packets. The zero value does nothing. Its parts are
// independent of each other, and happen in this order, as they do on a path with one narrow hop:
//
//	packet ─► MTU ─► queue before Rate ─► Loss, Burst ─► Duplicate ─► Delay + Jitter, Reorder ─► out
//	          too    full: tail drop      lost, but it
//	          large                       had its turn
//
// Which packets are lost, duplicated or reordered depends only on Seed and on the packet's number, not on time or on
// the other parts; so a test that sends the same packets loses the same ones.
type Impairment struct {
	// Loss is the share of packets lost, each by itself: 0.01 is 1 %.
	Loss float64
	// Burst loses packets in runs, besides Loss.
	Burst Burst
	// Delay is how long every packet takes.
	Delay time.Duration
	// Jitter is by how much the delay varies: it wanders between Delay and Delay + Jitter as queues on a path grow and
	// shrink, so packets are bunched and spread, and never overtake each other.
	Jitter time.Duration
	// Reorder is the share of packets that are held back by up to ReorderBy, so that later ones overtake them.
	Reorder float64
	// ReorderBy is the longest such hold; zero is 20 ms.
	ReorderBy time.Duration
	// Duplicate is the share of packets that arrive twice.
	Duplicate float64
	// Rate is that of the narrowest hop, counted over IP packets; zero is no limit.
	Rate Bitrate
	// Queue is how long a packet may wait for its turn at that rate before the queue drops it; zero is 100 ms.
	Queue time.Duration
	// MTU is the largest IP packet in bytes that gets through; what is larger vanishes without an answer. Zero is no
	// limit.
	MTU int
	// Seed makes the choices repeatable.
	Seed uint64
}

// A Burst is the Gilbert–Elliott model: the path is good or bad, and changes from packet to packet.
type Burst struct {
	// Every is the mean number of packets between two bad runs; zero means there are none.
	Every float64
	// Length is the mean number of packets in a bad run; zero is 5.
	Length float64
	// Loss is the share of packets lost in a bad run; zero is all.
	Loss float64
}

// ErrImpairment says that an Impairment has a value that makes no sense.
var ErrImpairment = errors.New("impairment out of range")

// Validate reports the first field that is out of range.
func (i Impairment) Validate() error {
	share := func(name string, v float64) error {
		if !(v >= 0 && v <= 1) {
			return fmt.Errorf("%w: %s %v is not a share of 0 to 1", ErrImpairment, name, v)
		}
		return nil
	}
	positive := func(name string, v float64) error {
		if !(v >= 0) || math.IsInf(v, 0) {
			return fmt.Errorf("%w: %s %v", ErrImpairment, name, v)
		}
		return nil
	}
	return errors.Join(
		share("Loss", i.Loss), share("Burst.Loss", i.Burst.Loss), share("Reorder", i.Reorder), share("Duplicate", i.Duplicate),
		positive("Burst.Every", i.Burst.Every), positive("Burst.Length", i.Burst.Length),
		positive("Delay", float64(i.Delay)), positive("Jitter", float64(i.Jitter)), positive("ReorderBy", float64(i.ReorderBy)),
		positive("Rate", float64(i.Rate)), positive("Queue", float64(i.Queue)), positive("MTU", float64(i.MTU)))
}

// harmful reports whether it does anything at all.
func (i Impairment) harmful() bool {
	i.Seed = 0
	return i != Impairment{}
}

// Stats counts packets since an Engine was made. In + Duplicated = Out + Lost + Dropped + TooLarge + Queued, always.
type Stats struct {
	In         uint64 // pushed
	Out        uint64 // popped
	Lost       uint64 // by Loss or Burst
	Dropped    uint64 // the queue was full
	TooLarge   uint64 // for MTU
	Duplicated uint64 // copies made
	Reordered  uint64 // held back
	Queued     uint64 // still inside
	Bytes      uint64 // of Out, as IP packets
}

// maxQueued bounds what an Engine holds, whatever its delay; beyond it packets count as dropped.
const maxQueued = 1 << 16

// An Engine does to packets what an Impairment says. It is a pure machine: packets go in with the time, and come out
// when they are due. It has no clock and no goroutine, and is not safe for concurrent use.
//
// Packets are copied in, into memory that the Engine reuses: once its queues have grown it does not allocate.
type Engine struct {
	imp      Impairment
	overhead int
	epoch    time.Time     // when the Engine was made; times inside are since then
	bad      bool          // the Gilbert–Elliott state
	n        uint64        // number of the next packet
	free     time.Duration // when the narrow hop is through with what it has
	last     time.Duration // when the last packet that was not held back is due
	seq      uint64
	heap     []entry
	spare    [][]byte
	lent     []byte
	stats    Stats
}

type entry struct {
	due  time.Duration
	seq  uint64 // in order of arrival, for equal times
	tag  int
	data []byte
}

// NewEngine returns an Engine that starts at now. The overhead is added to the length of each packet where the length
// of the IP packet matters, for Rate and MTU: 28 for UDP payloads over IPv4, −14 for Ethernet frames.
func NewEngine(imp Impairment, overhead int, now time.Time) *Engine {
	return &Engine{imp: imp, overhead: overhead, epoch: now}
}

// Set changes what happens to packets pushed from now on. Those inside arrive as they were due, and later ones do not
// overtake them.
func (e *Engine) Set(imp Impairment, now time.Time) {
	t := now.Sub(e.epoch)
	if e.imp.Rate > 0 && imp.Rate > 0 && e.free > t { // what waits for the narrow hop now waits for the new one
		e.free = t + time.Duration(float64(e.free-t)*float64(e.imp.Rate)/float64(imp.Rate))
	} else if imp.Rate == 0 {
		e.free = 0
	}
	if imp.Seed != e.imp.Seed {
		e.n, e.bad = 0, false
	}
	e.imp = imp
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Queued = uint64(len(e.heap))
	return s
}

// Backlog returns how long a packet pushed now would wait for its turn at Rate.
func (e *Engine) Backlog(now time.Time) time.Duration { return max(0, e.free-now.Sub(e.epoch)) }

// Push puts a packet in. It copies data. The tag comes out with the packet.
func (e *Engine) Push(now time.Time, data []byte, tag int) {
	n := e.n
	e.n++
	lost := e.lost(n) // before anything else, so that the state follows the numbers alone
	t, ok := e.queue(now, len(data))
	if !ok {
		return
	}
	if lost {
		e.stats.Lost++
		return
	}
	due := t + e.imp.Delay + e.jitter(t)
	if e.imp.Reorder > 0 && unit(e.imp.Seed, reorderDraw, n) < e.imp.Reorder {
		e.stats.Reordered++
		by := e.imp.ReorderBy
		if by == 0 {
			by = 20 * time.Millisecond
		}
		due = max(due, e.last) + time.Duration(unit(e.imp.Seed, holdDraw, n)*float64(by))
	} else {
		due = max(due, e.last)
		e.last = due
	}
	e.add(due, data, tag)
	if e.imp.Duplicate > 0 && unit(e.imp.Seed, duplicateDraw, n) < e.imp.Duplicate {
		e.stats.Duplicated++
		e.add(due, data, tag)
	}
}

// Carry puts in a packet of the path itself, such as a question for a hardware address. It takes its turn and its time
// as others do, but chance does nothing to it, and it has no number.
func (e *Engine) Carry(now time.Time, data []byte, tag int) {
	if t, ok := e.queue(now, len(data)); ok {
		e.last = max(e.last, t+e.imp.Delay+e.jitter(t))
		e.add(e.last, data, tag)
	}
}

// queue counts a packet in and returns when it leaves the narrow hop, unless it is too large or there is no room.
func (e *Engine) queue(now time.Time, size int) (leaves time.Duration, ok bool) {
	e.stats.In++
	size += e.overhead
	if e.imp.MTU > 0 && size > e.imp.MTU {
		e.stats.TooLarge++
		return 0, false
	}
	if len(e.heap) >= maxQueued-1 {
		e.stats.Dropped++
		return 0, false
	}
	t := now.Sub(e.epoch)
	if e.imp.Rate == 0 {
		return t, true
	}
	queue := e.imp.Queue
	if queue == 0 {
		queue = 100 * time.Millisecond
	}
	e.free = max(e.free, t)
	if e.free-t > queue {
		e.stats.Dropped++
		return 0, false
	}
	e.free += transmit(size, e.imp.Rate)
	return e.free, true
}

// transmit returns how long a packet of size bytes occupies a hop, rounded up.
func transmit(size int, rate Bitrate) time.Duration {
	return time.Duration((int64(max(size, 0))*8*int64(time.Second) + int64(rate) - 1) / int64(rate))
}

// lost decides the fate of packet n.
func (e *Engine) lost(n uint64) bool {
	lost := e.imp.Loss > 0 && unit(e.imp.Seed, lossDraw, n) < e.imp.Loss
	b := e.imp.Burst
	if b.Every == 0 {
		e.bad = false
		return lost
	}
	if b.Length == 0 {
		b.Length = 5
	}
	if b.Loss == 0 {
		b.Loss = 1
	}
	if e.bad {
		e.bad = unit(e.imp.Seed, stateDraw, n) >= 1/max(b.Length, 1)
	} else {
		e.bad = unit(e.imp.Seed, stateDraw, n) < 1/max(b.Every, 1)
	}
	return lost || e.bad && unit(e.imp.Seed, burstDraw, n) < b.Loss
}

// jitter returns the extra delay at t: straight lines between random values that are two Jitters apart, so that it
// falls by at most half of what time passes, and order is kept by nature.
func (e *Engine) jitter(t time.Duration) time.Duration {
	if e.imp.Jitter == 0 {
		return 0
	}
	step := 2 * e.imp.Jitter
	k, part := uint64(t/step), float64(t%step)/float64(step)
	from, to := unit(e.imp.Seed, jitterDraw, k), unit(e.imp.Seed, jitterDraw, k+1)
	return time.Duration((from + (to-from)*part) * float64(e.imp.Jitter))
}

// Next returns when the next packet is due, and the zero time when there is none.
func (e *Engine) Next() time.Time {
	if len(e.heap) == 0 {
		return time.Time{}
	}
	return e.epoch.Add(e.heap[0].due)
}

// Pop returns the next packet that is due at now, if any. The data is borrowed until the next Pop or Push.
func (e *Engine) Pop(now time.Time) (data []byte, tag int, ok bool) {
	if e.lent != nil {
		e.spare = append(e.spare, e.lent)
		e.lent = nil
	}
	if len(e.heap) == 0 || e.heap[0].due > now.Sub(e.epoch) {
		return nil, 0, false
	}
	top := e.heap[0]
	end := len(e.heap) - 1
	e.heap[0] = e.heap[end]
	e.heap[end] = entry{}
	e.heap = e.heap[:end]
	e.sink()
	e.lent = top.data
	e.stats.Out++
	e.stats.Bytes += uint64(max(0, len(top.data)+e.overhead))
	return top.data, top.tag, true
}

func (e *Engine) add(due time.Duration, data []byte, tag int) {
	var buf []byte
	if end := len(e.spare) - 1; end >= 0 {
		buf, e.spare = e.spare[end], e.spare[:end]
	} else {
		buf = make([]byte, 0, 2048)
	}
	e.heap = append(e.heap, entry{due: due, seq: e.seq, tag: tag, data: append(buf[:0], data...)})
	e.seq++
	for i := len(e.heap) - 1; i > 0; { // rise
		parent := (i - 1) / 2
		if !e.heap[i].before(&e.heap[parent]) {
			break
		}
		e.heap[i], e.heap[parent] = e.heap[parent], e.heap[i]
		i = parent
	}
}

func (e *Engine) sink() {
	for i := 0; ; {
		first := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(e.heap); child++ {
			if e.heap[child].before(&e.heap[first]) {
				first = child
			}
		}
		if first == i {
			return
		}
		e.heap[i], e.heap[first] = e.heap[first], e.heap[i]
		i = first
	}
}

func (a *entry) before(b *entry) bool { return a.due < b.due || a.due == b.due && a.seq < b.seq }

// What a random number is drawn for.
const (
	lossDraw = iota + 1
	stateDraw
	burstDraw
	reorderDraw
	holdDraw
	duplicateDraw
	jitterDraw
)

// unit returns a number in [0, 1) that depends on its arguments alone: two rounds of SplitMix64, which pass for random
// one after the other and are as good out of order.
func unit(seed uint64, purpose, n uint64) float64 {
	x := mix(seed + purpose*0x9e3779b97f4a7c15)
	x = mix(x + (n+1)*0x9e3779b97f4a7c15)
	return float64(x>>11) / (1 << 53)
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
