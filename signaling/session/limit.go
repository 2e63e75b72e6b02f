package session

import (
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

// halfOpen counts sockets that have no address yet, together and by peer.
type halfOpen struct {
	max, maxPerAddress int

	mu    sync.Mutex
	total int
	by    map[netip.Addr]int
}

// enter reports whether there is room for one more socket of a.
func (h *halfOpen) enter(a netip.Addr) bool {
	a = network(a)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.total >= h.max || h.by[a] >= h.maxPerAddress {
		return false
	}
	if h.by == nil {
		h.by = make(map[netip.Addr]int)
	}
	h.total++
	h.by[a]++
	return true
}

func (h *halfOpen) leave(a netip.Addr) {
	a = network(a)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total--
	if h.by[a]--; h.by[a] <= 0 {
		delete(h.by, a)
	}
}

func (h *halfOpen) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
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
