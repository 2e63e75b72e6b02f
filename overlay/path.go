package overlay

import (
	"slices"
	"time"
)

// A path measures the way to one peer on one plane by probes: whether it is up, its round trip, loss and the
// largest packet that gets through. It is pure: Tick says what to send, Answer what came back.
//
//	           answer                      largest size answered
//	new ──────────────────► up, measuring ──────────────────────► up, measured ──┐
//	 │                       ▲     │ three probes lost              │            │ a full-size probe lost
//	 └──► down ◄─────────────┼─────┴────────────────────────────────┘            │ while small ones pass
//	           answer ───────┘◄──────────────────────────────────────────────────┘
type path struct {
	every  time.Duration // between probes of a path that is up
	widest int           // MTU of the device
	narrow int           // the least that is worth using

	waiting  map[uint64]sent
	lastID   uint64
	next     time.Time // of the next probe
	small    bool      // the next probe is a small one
	misses   int       // small probes lost in a row
	up       bool
	since    time.Time // of the last change of up
	rtt      time.Duration
	results  [64]bool // of the last small probes, newest at n-1
	n        int
	measured time.Time // when mtu was last found

	mtu      int // 0 until found
	low, top int // the search: low is known to pass, top may
	trying   int
	tries    int
}

// sent is a probe that waits for its answer.
type sent struct {
	at    time.Time
	until time.Time
	size  int // of the IP packet; 0 for a small one
}

// A ping is a probe to send: padded so that the IP packet has size bytes, 0 for as small as it gets.
type ping struct {
	id   uint64
	size int
}

const (
	retry      = time.Second            // between probes of a path that is not up
	hurry      = 200 * time.Millisecond // and just after it was lost, or at the start: a handshake is under way
	patience   = 30 * time.Second       // after which a path that is down is probed as seldom as one that is up
	lostAfter  = 3                      // probes in a row
	tellTries  = 3                      // probes of one size before it counts as too large
	precision  = 8                      // bytes between a size that passes and one that does not
	remeasure  = 10 * time.Minute       // routes change
	leastWait  = 300 * time.Millisecond
	smallProbe = 0
)

func newPath(every time.Duration, widest, narrow int, now time.Time) *path {
	return &path{every: every, widest: widest, narrow: narrow, waiting: map[uint64]sent{}, next: now, since: now, small: true}
}

// wait is how long an answer may take.
func (p *path) wait() time.Duration { return min(max(leastWait, 3*p.rtt), 2*time.Second) }

// due is when Tick has something to do at the latest, and no later than in most.
func (p *path) due(now time.Time, most time.Duration) time.Duration {
	if !p.up || p.trying > 0 {
		return 0
	}
	for _, s := range p.waiting {
		most = min(most, s.until.Sub(now))
	}
	return most
}

// Tick returns the probes to send now. It is to be called every 100 ms, or when due says.
func (p *path) Tick(now time.Time) []ping {
	for id, s := range p.waiting {
		if !now.Before(s.until) {
			delete(p.waiting, id)
			p.lost(s, now)
		}
	}
	var out []ping
	if p.up && p.trying == 0 && (p.mtu == 0 || now.Sub(p.measured) >= remeasure) {
		p.search(p.widest)
	}
	if p.trying > 0 && !p.underway() {
		out = append(out, p.send(p.trying, now))
	}
	if now.Before(p.next) {
		return out
	}
	every := p.every
	switch down := now.Sub(p.since); {
	case !p.up && down < 10*hurry:
		every = min(hurry, p.every)
	case !p.up && down < patience || p.up && p.misses > 0:
		every = min(retry, p.every)
	}
	p.next = now.Add(every)
	out = append(out, p.send(smallProbe, now))
	// Every other time the full size goes along, so that a path that became narrower is noticed.
	if p.small = !p.small; p.small && p.trying == 0 && p.mtu > 0 && p.up {
		out = append(out, p.send(p.mtu, now))
	}
	return out
}

func (p *path) send(size int, now time.Time) ping {
	p.lastID++
	p.waiting[p.lastID] = sent{now, now.Add(p.wait()), size}
	return ping{p.lastID, size}
}

// underway reports whether a probe of the search has no answer yet.
func (p *path) underway() bool {
	for _, s := range p.waiting {
		if s.size == p.trying {
			return true
		}
	}
	return false
}

// Answer takes the answer to probe id. It reports whether the path came up by it.
func (p *path) Answer(id uint64, now time.Time) (cameUp bool) {
	s, ok := p.waiting[id]
	if !ok {
		return false
	}
	delete(p.waiting, id)
	rtt := now.Sub(s.at)
	if p.rtt == 0 {
		p.rtt = rtt
	}
	p.rtt += (rtt - p.rtt) / 4
	if s.size == smallProbe {
		p.result(true)
		p.misses = 0
	} else if s.size == p.trying {
		p.low, p.tries = s.size, 0
		p.narrowDown(now)
	}
	if p.up {
		return false
	}
	p.up, p.since, p.misses = true, now, 0
	return true
}

// lost takes note that s was not answered in time.
func (p *path) lost(s sent, now time.Time) {
	switch {
	case s.size == smallProbe:
		p.result(false)
		if p.misses++; p.up && p.misses >= lostAfter {
			p.up, p.since, p.rtt, p.trying = false, now, 0, 0
		}
		if p.up {
			p.next = now // ask again at once
		}
	case s.size == p.trying:
		if p.tries++; p.tries >= tellTries {
			p.top, p.tries = s.size-1, 0
			p.narrowDown(now)
		}
	case s.size == p.mtu && p.trying == 0 && p.up && p.misses == 0:
		p.search(p.mtu)
	}
}

// search looks for the MTU anew; top is the largest that may pass, and is tried first.
func (p *path) search(top int) {
	p.low, p.top, p.trying, p.tries = p.narrow, top, top, 0
}

func (p *path) narrowDown(now time.Time) {
	if p.top-p.low < precision {
		p.mtu, p.measured, p.trying = p.low, now, 0
		return
	}
	p.trying = (p.low + p.top + 1) / 2
}

// good reports whether a small probe was answered since there were n results.
func (p *path) good(n int) bool {
	for ; n < p.n; n++ {
		if p.results[n%len(p.results)] {
			return true
		}
	}
	return false
}

func (p *path) result(ok bool) {
	p.results[p.n%len(p.results)] = ok
	p.n++
}

// Loss is the share of the last 64 small probes that had no answer.
func (p *path) Loss() float64 {
	n := min(p.n, len(p.results))
	if n == 0 {
		return 0
	}
	bad := 0
	for _, ok := range slices.All(p.results[:n]) {
		if !ok {
			bad++
		}
	}
	return float64(bad) / float64(n)
}

// MTU is what the path carries; the device's until it is measured.
func (p *path) MTU() int {
	if p.mtu == 0 {
		return p.widest
	}
	return p.mtu
}
