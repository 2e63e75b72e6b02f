package estimate

import "time"

const (
	clusterSpan  = 20_000  // µs of padding at least
	clusterBytes = 5_000   // that a cluster has at least
	clusterMax   = 150_000 // µs that a slow one may take
	clusterWait  = 2_000_000

	probeEvery    = 2_000_000 // µs between attempts, doubled by failure
	probeSometime = 5_000_000 // µs: the longest pause where probes find nothing
	probeSeldom   = 9_000_000 // where they found what was not there
	probeAfterCut = 1_500_000
	maxProbe      = 20_000_000 // bits per second
	minProbe      = 400_000    // a cluster that is slower takes too long to be one
)

// A cluster is a stretch of packets that are sent at a rate above the estimate, media and padding together.
type cluster struct {
	rate        float64 // bits per second
	began, last micros
	first, end  int64 // packets; end is 0 while it is being sent
	bytes       int
	goal        int

	// what arrived
	packets, got     int
	size             int // of its first
	arrived, arrival micros
	gap              micros // the longest between two
}

// probes finds out whether more could be sent: twice the estimate, for as long as more is wanted than there is, less often
// when it fails, at once again when it succeeds.
type probes struct {
	now   cluster // being sent
	out   [2]cluster
	rate  float64 // the next one, if it is to begin at once
	once  float64 // what the last one has shown, if the next one has to show it too
	next  micros  // when another may begin
	pause micros
	count uint64
	found uint64
}

func (p *probes) begin() {
	p.rate = 2_000_000
	p.pause = probeEvery
}

// sent notes a packet of the cluster and reports whether the cluster goes on.
func (p *probes) sent(n int64, size int, at micros) bool {
	c := &p.now
	if c.first == 0 {
		c.first, c.began = n, at
	}
	c.bytes += size
	c.last = at
	if c.bytes >= c.goal {
		c.end = n + 1
		p.out[1] = p.out[0]
		p.out[0] = *c
		p.now = cluster{}
		return false
	}
	return true
}

func (p *probes) received(n int64, size int, arrival micros) {
	for i := range p.out {
		if c := &p.out[i]; c.first <= n && n < c.end {
			c.got += size
			if c.packets++; c.packets == 1 {
				c.size, c.arrived = size, arrival
			}
			c.gap = max(c.gap, arrival-max(c.arrival, c.arrived))
			c.arrival = max(c.arrival, arrival)
		}
	}
}

// failed says that the last probe promised too much.
func (p *probes) failed() { p.pause = min(2*p.pause, probeSeldom) }

func (p *probes) cut(at micros) {
	p.next = max(p.next, at+max(p.pause/2, probeAfterCut))
	p.now, p.out, p.rate, p.once = cluster{}, [2]cluster{}, 0, 0
}

// anew forgets what was being tried, and allows the next one at once.
func (p *probes) anew(at micros) {
	p.next, p.pause = at, probeEvery
	p.now, p.out, p.rate, p.once = cluster{}, [2]cluster{}, 0, 0
}

// Probing reports whether padding is to be sent now or soon: Padding is then to be asked every few milliseconds.
func (e *Estimator) Probing(now time.Time) bool {
	p := &e.probes
	if e.probing {
		return true
	}
	at := e.micros(now)
	if p.out[0].end != 0 && at-p.out[0].last < clusterWait {
		return false // waits for its result
	}
	if p.rate == 0 {
		if !e.heard || at < p.next || e.want <= int64(e.bitrate) || e.over() || e.delay.queue > holdQueue && e.bitrate > e.floor() {
			return false
		}
		p.rate = max(min(2*e.bitrate, 1.2*float64(e.want)+50_000), minProbe)
		p.next = at + p.pause
	}
	rate := min(p.rate, maxProbe)
	p.rate = 0
	if rate <= 1.05*e.bitrate && e.heard {
		return false
	}
	goal := max(rate/8e6*float64(max(clusterSpan, e.delay.usual())), clusterBytes)
	p.now, e.probing = cluster{rate: rate, goal: int(goal), began: at}, true
	p.count++
	return true
}

// Padding is how many bytes of padding are due, those of one packet or of several; 0 when none is.
func (e *Estimator) Padding(now time.Time) int {
	c := &e.probes.now
	if !e.probing {
		return 0
	}
	at := e.micros(now)
	if at-c.began > clusterMax {
		e.probes.now, e.probing = cluster{}, false // we could not
		return 0
	}
	due := int(c.rate/8e6*float64(at-c.began+5_000)) - c.bytes
	return min(max(due, 0), c.goal-c.bytes)
}

// judgeProbes looks at clusters of which everything has been told.
func (e *Estimator) judgeProbes(at micros) {
	p := &e.probes
	for i := range p.out {
		c := &p.out[i]
		if c.end == 0 || e.history.reported < c.end {
			continue
		}
		done := *c
		*c = cluster{}
		once := p.once
		p.once = 0
		if done.packets < 4 || done.got < done.bytes/2 {
			continue
		}
		sending := min(done.rate, float64(done.bytes)*8e6/float64(done.last-done.began+5_000))
		result := sending
		full := false
		if span := done.arrival - done.arrived; span > 500 {
			// One long pause is a hiccup of the receiver's: a full hop lets packets out evenly.
			if mean := span / micros(done.packets); done.gap > 4*mean && done.gap < span {
				span -= done.gap - mean
			}
			arriving := float64(done.got-done.size) * 8e6 / float64(span)
			if arriving < 0.9*sending {
				result, full = 0.92*arriving, true
			}
		}
		if full && !e.proven {
			e.bitrate, e.proven = result, true // the first guess was one too many
		}
		if result <= e.bitrate || e.over() {
			if full {
				p.pause = max(p.pause, min(2*p.pause, probeSometime))
			}
			continue
		}
		if e.proven && once == 0 && e.bitrate > e.floor() { // it may be chance: packets that were held up come at once
			p.once, p.rate = result, done.rate
			continue
		}
		if once > 0 {
			result = max(min(result, once), e.bitrate)
		}
		e.bitrate, e.proven = min(result, Max), true
		e.raised = at
		p.found++
		p.pause = probeEvery
		if !full && float64(e.want) > e.bitrate {
			p.next = at
		}
	}
}
