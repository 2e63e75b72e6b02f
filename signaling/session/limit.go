package session

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// minCost is what the smallest element costs of a peer's rate, in bytes: handling it is more than reading.
const minCost = 256

// A bucket lets rate bytes through per second after burst at once.
type bucket struct {
	rate, burst float64
	level       float64
	last        time.Time
}

// take takes n bytes at now and returns how long to wait before the next. The level may go below zero:
// an element larger than burst passes, and the next one waits for it.
func (b *bucket) take(now time.Time, n int) time.Duration {
	if b.last.IsZero() {
		b.level = b.burst
	} else {
		b.level = min(b.burst, b.level+b.rate*now.Sub(b.last).Seconds())
	}
	b.last = now
	b.level -= float64(n)
	if b.level >= 0 {
		return 0
	}
	return time.Duration(-b.level / b.rate * float64(time.Second))
}

// halfOpen holds the sockets that have no address yet, oldest first, all together and by peer. When there
// is no room, one that has been at it for longer than an honest login takes makes way for a new one: who
// connects and says nothing keeps nobody out, and a crowd that comes at once is not thrown out half-way.
type halfOpen struct {
	max, maxPerAddress int

	mu  sync.Mutex
	all list.List // of *entrant
	by  map[netip.Addr]*list.List
}

// patience is how long a login may take before its place can be given to another.
const patience = 3 * time.Second

// An entrant is one half-open socket.
type entrant struct {
	from     netip.Addr
	since    time.Time
	kill     func() // set by own
	out      bool
	all, own *list.Element
}

// enter returns a place for one more socket of a, or nil.
func (h *halfOpen) enter(a netip.Addr, now time.Time) *entrant {
	a = network(a)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = make(map[netip.Addr]*list.List)
	}
	if l := h.by[a]; l != nil && l.Len() >= h.maxPerAddress && !h.makeWayLocked(l, now) {
		return nil
	}
	if h.all.Len() >= h.max && !h.makeWayLocked(&h.all, now) {
		return nil
	}
	l := h.by[a]
	if l == nil {
		l = new(list.List)
		h.by[a] = l
	}
	e := &entrant{from: a, since: now}
	e.all, e.own = h.all.PushBack(e), l.PushBack(e)
	return e
}

// makeWayLocked throws out the oldest of l if it has had its time.
func (h *halfOpen) makeWayLocked(l *list.List, now time.Time) bool {
	e := l.Front().Value.(*entrant)
	if now.Sub(e.since) < patience {
		return false
	}
	h.leaveLocked(e)
	if e.kill != nil {
		e.kill()
	}
	return true
}

// admit says how e is thrown out; it reports false when that should have happened already.
func (h *halfOpen) admit(e *entrant, kill func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.kill = kill
	return !e.out
}

// leave gives the place of e back. Doing it twice changes nothing.
func (h *halfOpen) leave(e *entrant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaveLocked(e)
}

func (h *halfOpen) leaveLocked(e *entrant) {
	if e.out {
		return
	}
	e.out = true
	h.all.Remove(e.all)
	l := h.by[e.from]
	if l.Remove(e.own); l.Len() == 0 {
		delete(h.by, e.from)
	}
}

// clear throws everybody out.
func (h *halfOpen) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.all.Len() > 0 {
		e := h.all.Front().Value.(*entrant)
		h.leaveLocked(e)
		if e.kill != nil {
			e.kill()
		}
	}
}

func (h *halfOpen) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all.Len()
}

// network is what one customer is given: an IPv4 address, or a /64.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() || !a.IsValid() {
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}
