// Package estimate is how much one receiver's path can carry, in bits per second, found out from what the receiver says
// of when our packets arrived (transport-wide feedback) or of its own estimate (REMB). It is pure: packets sent, feedback
// bytes and times go in, a bitrate and how much padding to send come out. It has no clock and no goroutine; the core that
// owns the receiver owns its Estimator.
//
//	        ┌─ queue: how much later than at best ─► grows: cut to what arrives, then let it drain
//	arrivals┼─ rate that arrives
//	        ├─ loss ─► more than usual: try less; did the loss go away? else it is the path's own
//	        └─ probes ─► padding at a higher rate: did it arrive at that rate? then that is the estimate
//
// Unlike the estimators that it learned from it believes in congestion only where it sees a queue or where sending less
// helps: loss at a constant delay, as on radio, costs no picture.
package estimate

import (
	"math"
	"time"
)

// firstWant is what is wanted before anybody has said so.
const firstWant = 3_500_000

const (
	// Min is the least that is ever assumed, in bits per second: sound.
	Min = 60_000
	// Max bounds what is believed.
	Max = 50_000_000
	// Overhead is what a clear RTP packet grows by on its way: SRTP's tag, UDP and IP.
	Overhead = 16 + 8 + 20

	initial  = 1_000_000
	backoff  = 0.85 // of what arrives, while a queue builds up
	growth   = 0.08 // per second
	headroom = 1.5  // the most that an estimate may exceed what arrives, unless a probe has shown it

	silentAfter = 3 * time.Second // without feedback to what was sent an estimate is nothing any more
)

// Unlimited is the estimate while nothing is known.
const Unlimited = math.MaxInt64

// micros is a time in microseconds since the estimator began.
type micros = int64

// A Kind tells the packets apart that some receivers leave out of their feedback.
type Kind uint8

const (
	Audio Kind = iota
	Video
	Padding // and whatever else is sent to probe
)

// Stats is the state of an estimate, for people.
type Stats struct {
	Bitrate  int64         // bits per second; Unlimited while nothing is known
	Budget   int64         // what may be sent now
	Arriving int64         // bits per second that arrived lately
	Burst    int64         // bits per second at which packets that left together arrive; 0 unknown
	Queue    time.Duration // how long packets wait on the path now
	RTT      time.Duration // from sending to its feedback, the receiver's pause included
	Loss     float64       // share of packets lately
	OwnLoss  float64       // of it, what the path loses whatever is sent
	Source   string        // "", "transport-cc" or "remb"
	Cuts     uint64        // because of a queue
	Regrets  uint64        // of them, taken back
	LossCuts uint64        // because of loss
	Probes   uint64
	Found    uint64 // probes that raised the estimate
	Bogus    uint64 // feedback that was none, or was about what was never sent
}

// An Estimator belongs to one receiver. Make it with New.
type Estimator struct {
	// Sent touches these for every packet; they stand together for the cache's sake.
	sentAt     time.Time
	sentMicros micros // likewise
	start      time.Time
	bitrate    float64
	backlog    int64 // of ours in a hop that carries perByte, in 1/256 µs
	perByte    int64 // what a byte takes at the bitrate, likewise
	backlogAt  micros
	oldest     micros // when the first packet since the last feedback was sent; 0 none
	history    history
	deaf       [2]int32 // packets of a kind since the last that feedback mentioned as received
	probing    bool     // a cluster is being sent
	heard      bool     // feedback came

	seen   [3]bool // kinds of packets that feedback has mentioned as received
	at     micros  // of the last feedback
	rtt    micros
	want   int64
	proven bool // the bitrate is more than a guess

	clock   arrivalClock
	arrived rate
	trains  trains
	delay   delay
	loss    loss
	probes  probes

	capacity   float64 // what arrived when a queue last built up
	capacityAt micros
	cutAt      micros
	soft       bool    // the last cut was a careful one
	before     float64 // bitrate before a cut that may be taken back; 0 none
	cutNext    int64   // packets from this one on were sent after the last cut
	raised     micros

	fresh  int64   // packets from this one on went the way that packets go now
	silent float64 // bitrate when the last feedback came, once that is too long ago; else 0

	remb   int64
	rembAt micros
	stats  Stats
}

// New begins at now.
func New(now time.Time) *Estimator {
	e := &Estimator{start: now, want: firstWant}
	e.set(initial)
	e.probes.begin()
	return e
}

func (e *Estimator) micros(now time.Time) micros { return now.Sub(e.start).Microseconds() + 1 }

// Sent notes a packet of n bytes of clear RTP and returns its transport-wide number. It does not allocate once the
// history has grown.
func (e *Estimator) Sent(n int, kind Kind, now time.Time) uint16 {
	if now != e.sentAt { // once per batch
		e.sentAt, e.sentMicros = now, e.micros(now)
	}
	at := e.sentMicros
	if e.oldest == 0 {
		e.oldest = at
	}
	if kind < Padding {
		e.deaf[kind]++
	}
	n += Overhead
	if e.probing {
		e.probing = e.probes.sent(e.history.next, n, at)
	}
	return e.history.add(n, kind, e.behind(n, at), at, e.heard)
}

// behind is how long a packet waits behind what we sent before it if the path carries what we think. What our own
// bursts explain is no sign of congestion.
func (e *Estimator) behind(n int, at micros) uint8 {
	e.backlog = max(e.backlog-(at-e.backlogAt)<<8, 0)
	e.backlogAt = at
	wait := e.backlog
	e.backlog += int64(n) * e.perByte
	return uint8(min(wait>>(8+burstShift), maxBurst))
}

const (
	burstShift = 10 // a burst is kept in units of 1024 µs
	maxBurst   = 80 // the most that is forgiven as our own, in those
)

// Mentions reports whether the receiver's feedback is to be expected to mention packets of a kind: some know the
// transport-wide number in video only, and would seem to lose all audio.
func (e *Estimator) Mentions(kind Kind) bool {
	return kind >= Padding || e.deaf[kind] < deafAfter || e.deaf[1-kind] >= deafAfter
}

// deafAfter is how many packets of a kind in a row a receiver may leave unmentioned while it mentions others.
const deafAfter = 250

// Want says how much could be used, in bits per second: beyond it nothing is probed for.
func (e *Estimator) Want(bps int64) { e.want = min(bps, Max) }

// Known reports whether there is an estimate.
func (e *Estimator) Known() bool { return e.heard || e.remb > 0 }

// Bitrate is what the path carries, in bits per second, sound and everything else included; Unlimited while nothing is
// known.
func (e *Estimator) Bitrate() int64 {
	switch {
	case e.heard:
		return int64(max(e.bitrate, e.before))
	case e.remb > 0:
		return e.remb
	}
	return Unlimited
}

// Budget is what may be sent now: Bitrate, and less while a queue that we made is draining.
func (e *Estimator) Budget() int64 {
	if !e.heard {
		return e.Bitrate()
	}
	b := max(e.bitrate, e.before)
	if q := e.delay.queue - drainFrom; q > 0 && e.cutAt > 0 && e.at-e.cutAt < drainFor {
		b *= max(1-float64(q)/drainIn, 0.35)
	}
	return int64(max(b, Min))
}

const (
	drainFrom = 60_000    // µs of queue
	drainIn   = 700_000.0 // µs
	drainFor  = 5_000_000 // µs
)

// Congested reports whether a queue of ours is on the path now.
func (e *Estimator) Congested() bool { return e.over() || e.Budget() < e.Bitrate() }

// Calm reports whether no queue of ours has been seen for a while: a burst does little harm then.
func (e *Estimator) Calm() bool { return !e.over() && (e.cutAt == 0 || e.at-e.cutAt > calmAfter) }

const calmAfter = 30_000_000 // µs

// Burst is how fast packets that leave together arrive, in bits per second, and so what the path carries for a moment; 0
// while that is unknown.
func (e *Estimator) Burst() int64 { return int64(e.trains.rate) }

// Loss is the share of packets that were lost lately, 0 to 1.
func (e *Estimator) Loss() float64 { return e.loss.recent }

// OwnLoss is what of it the path loses whatever is sent.
func (e *Estimator) OwnLoss() float64 { return e.loss.own }

// RTT is the time from sending to hearing of it, 0 while unknown.
func (e *Estimator) RTT() time.Duration { return time.Duration(e.rtt) * time.Microsecond }

// Stats describes the estimate.
func (e *Estimator) Stats() Stats {
	s := e.stats
	s.Bitrate, s.Budget, s.Arriving = e.Bitrate(), e.Budget(), int64(e.arrived.over(400_000))
	s.Burst = e.Burst()
	s.Queue = time.Duration(e.delay.queue) * time.Microsecond
	s.RTT, s.Loss, s.OwnLoss = e.RTT(), e.loss.recent, e.loss.own
	s.Probes, s.Found = e.probes.count, e.probes.found
	switch {
	case e.heard:
		s.Source = "transport-cc"
	case e.remb > 0:
		s.Source = "remb"
	}
	return s
}

// REMB takes the receiver's own estimate (draft-alvestrand-rmcat-remb), in bits per second. It counts only while there
// is no transport-wide feedback. Zero is as little as we believe.
func (e *Estimator) REMB(bps uint64, now time.Time) {
	e.remb, e.rembAt = int64(min(max(bps, Min), Max)), e.micros(now)
}

// Tick forgets an estimate of which nothing is heard any more.
func (e *Estimator) Tick(now time.Time) {
	at := e.micros(now)
	if e.heard && e.oldest != 0 && at-e.oldest > silentAfter.Microseconds() {
		// Nothing comes back: be careful, whatever it was.
		if e.silent == 0 {
			e.silent = max(e.bitrate, e.before)
		}
		e.before = 0
		e.set(e.bitrate / 2)
		e.oldest = at
	}
	if e.remb > 0 && at-e.rembAt > 30_000_000 {
		e.remb = 0
	}
}

// Silent reports whether nothing has come back for so long that the estimate is being given up.
func (e *Estimator) Silent() bool { return e.silent > 0 }

// returned begins again after a silence, on what may be another path: with half of what the last one carried, but no more than
// is tried on a new one, and finds out at once whether all of it is there.
func (e *Estimator) returned(now time.Time) {
	was := e.silent
	e.silent = 0
	e.Moved(now)
	e.set(max(e.bitrate, min(was/2, initial)))
	e.proven = false
	e.probes.rate = was
}

// Moved says that packets go another way from now on. How long that way is, what it loses and where it is full is yet to be
// seen; a longer one is no queue.
func (e *Estimator) Moved(now time.Time) {
	e.fresh = e.history.next
	e.delay, e.arrived, e.loss, e.trains = delay{}, rate{}, loss{}, trains{}
	e.before, e.capacity, e.cutAt, e.probing = 0, 0, 0, false
	e.probes.anew(e.micros(now))
}

// learned concludes from one feedback.
func (e *Estimator) learned(at micros) {
	elapsed := at - e.at
	e.at = at
	over := e.over()
	if arriving := e.arrived.over(200_000); arriving > 0.85*e.bitrate && arriving > e.floor() {
		e.delay.ours = true // the path is full, perhaps of ours
	}
	e.regret()
	if over && (e.history.reported > e.cutNext || e.soft && e.delay.queue >= bigQueue) {
		e.cut(at)
	}
	e.judgeLoss(at)
	e.judgeProbes(at)
	if !over && e.cutAt+e.rtt < at {
		e.grow(min(elapsed, 500_000))
	}
	e.set(e.bitrate)
}

func (e *Estimator) set(bps float64) {
	e.bitrate = min(max(bps, Min), Max)
	e.perByte = int64(8e6 * 256 / e.bitrate)
}

// floor is what the path carries whatever its delay does, in bits per second; 0 when that is unknown. Where bursts pass at
// several times our rate the queue is not ours: packets are held up by a busy machine, by a radio or by others.
func (e *Estimator) floor() float64 {
	if d := &e.delay; d.sent-d.shortAt > stuck {
		return 0 // whosever it is, it does not go
	}
	return e.trains.rate / floorShare
}

const (
	floorShare = 4
	stuck      = 3_000_000 // µs
)

// over reports whether we make a queue.
func (e *Estimator) over() bool { return e.delay.over && e.bitrate > e.floor() }

// cut goes below what arrives while a queue builds up.
func (e *Estimator) cut(at micros) {
	// A moment in which nothing comes is no reason to stop: what came before it counts as well.
	arriving := max(e.arrived.over(200_000), 0.6*e.arrived.over(475_000))
	if arriving == 0 {
		return
	}
	to := backoff * arriving
	e.soft = e.delay.queue < bigQueue && arriving < 0.6*e.bitrate
	if e.soft {
		to = max(to, backoff*e.bitrate) // we send little: it may be somebody else's queue, or pass by itself
	}
	to = max(to, e.floor())
	e.capacity, e.capacityAt = arriving, at
	if to >= e.bitrate {
		return
	}
	e.stats.Cuts++
	if e.raised != 0 && at-e.raised < 5_000_000 {
		e.probes.failed()
	}
	e.before = max(e.before, e.bitrate)
	e.delay.ours = true
	e.bitrate, e.proven = to, true
	e.cutAt, e.cutNext = at, e.history.next
	e.loss.disturbed(at)
	e.probes.cut(at)
	e.probing = false
}

const bigQueue = 120_000 // µs

// regret takes a cut back when the queue is gone before less was sent: it was a moment of the machine's or of the radio's.
// Until that is clear a short queue changes nothing for those who follow the estimate.
func (e *Estimator) regret() {
	switch {
	case e.before == 0:
	case e.history.reported > e.cutNext || e.delay.queue >= bigQueue:
		e.before = 0
	case e.delay.queue < goneQueue && !e.delay.over:
		e.bitrate = max(e.bitrate, e.before)
		e.before, e.cutAt = 0, 0
		e.delay.ours = false
		e.stats.Regrets++
	}
}

// grow raises the estimate a little when what is sent proves it.
func (e *Estimator) grow(elapsed micros) {
	arriving := e.arrived.over(400_000)
	if elapsed <= 0 || arriving < 0.8*e.bitrate || e.delay.queue > holdQueue && e.bitrate > e.floor() {
		return
	}
	limit := max(e.bitrate, headroom*arriving)
	dt := float64(elapsed) / 1e6
	if e.capacity > 0 && e.at-e.capacityAt < 30_000_000 && e.bitrate > 0.8*e.capacity {
		// Near where it went wrong: a packet for each time that its effect could be seen.
		e.bitrate += 9600 * dt / (float64(max(e.rtt, 50_000)) / 1e6)
	} else {
		e.bitrate *= 1 + growth*dt
	}
	e.bitrate = min(e.bitrate, limit)
}

const holdQueue = 40_000 // µs
