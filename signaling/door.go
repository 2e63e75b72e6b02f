package signaling

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What one address may do at the door. A school of a thousand opens its pages in a minute, at six connections each; who
// opens more is not heard, which costs a tenth of being told so.
const (
	knockBurst    = 2048.0
	knocksPerSec  = 256.0
	maxKnockers   = 100_000
	filesWarnAt   = 0.8
	filesCountAge = time.Second     // near the limit; ten times that while half of it is free
	refusalTime   = 2 * time.Second // that a connection has to hear that there is no room
)

// A door lets connections in as long as there are file descriptors, and no address too many at once. The last few
// descriptors are for those who are told to come again later (503), the very last for what the shard needs itself; then
// nobody is accepted until somebody leaves.
type door struct {
	limit, told, kept int // descriptors: all, for telling, never used here
	log               *slog.Logger
	exempt            func(netip.Addr) bool // proxies, behind which there are many

	inside  atomic.Int64 // connections
	turned  atomic.Int64 // away, by their address's rate
	refused atomic.Int64 // with 503
	leave   chan struct{}

	mu      sync.Mutex
	by      map[netip.Addr]spent
	others  int64 // descriptors that are no connections of this door, when last counted
	counted time.Time
	warned  bool
}

func newDoor(log *slog.Logger, exempt func(netip.Addr) bool) *door {
	d := &door{limit: fileLimit(), log: log, exempt: exempt, leave: make(chan struct{}, 1), by: make(map[netip.Addr]spent)}
	d.told = min(max(2, d.limit/32), 256)
	d.kept = d.told
	return d
}

// fileLimit is how many descriptors this process may have.
func fileLimit() int {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil || l.Cur > 1<<30 {
		return 1 << 30
	}
	return int(l.Cur)
}

// openFiles counts this process's descriptors; -1 where that is not known.
func openFiles() int64 {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return -1
	}
	defer dir.Close()
	names, err := dir.Readdirnames(0)
	if err != nil {
		return -1
	}
	return int64(len(names) - 1)
}

// files returns how many descriptors are open, counted not longer than a second ago.
func (d *door) files(now time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.inside.Load()
	age := filesCountAge
	if d.others+in < int64(d.limit)/2 {
		age *= 10
	}
	if now.Sub(d.counted) >= age {
		d.counted = now
		if all := openFiles(); all >= 0 {
			d.others = max(0, all-in)
		}
	}
	open := int(d.others + in)
	switch full := float64(open) / float64(d.limit); {
	case full >= filesWarnAt && !d.warned:
		d.warned = true
		d.log.Warn("file descriptors run out: raise the limit (LimitNOFILE, ulimit -n)", "open", open, "limit", d.limit)
	case full < filesWarnAt-0.1:
		d.warned = false
	}
	return open
}

// ratio is the share of descriptors in use.
func (d *door) ratio() float64 { return float64(d.files(time.Now())) / float64(d.limit) }

// knock reports whether an address may come in now.
func (d *door) knock(from netip.Addr, now time.Time) bool {
	if d.exempt(from) {
		return true
	}
	from = from.Unmap()
	if p, err := from.Prefix(64); err == nil && from.Is6() {
		from = p.Addr()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	left := func(s spent) float64 { return max(0, s.rooms-knocksPerSec*now.Sub(s.at).Seconds()) }
	used := left(d.by[from])
	if used+1 > knockBurst {
		return false
	}
	if len(d.by) >= maxKnockers {
		for a, s := range d.by {
			if left(s) == 0 {
				delete(d.by, a)
			}
		}
		if len(d.by) >= maxKnockers {
			return true // too many to keep count of
		}
	}
	d.by[from] = spent{used + 1, now}
	return true
}

// listener puts the door before l.
func (d *door) listener(l net.Listener) net.Listener {
	return &doorway{Listener: l, d: d, closed: make(chan struct{})}
}

type doorway struct {
	net.Listener
	d      *door
	once   sync.Once
	closed chan struct{}
}

func (w *doorway) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Listener.Close()
}

// Accept returns the next connection that may come in, or is to be told that it may not: isRefused.
func (w *doorway) Accept() (net.Conn, error) {
	d := w.d
	for {
		for d.files(time.Now()) >= d.limit-d.kept {
			tick := time.NewTimer(100 * time.Millisecond)
			select {
			case <-d.leave:
			case <-tick.C:
			case <-w.closed:
			}
			tick.Stop()
			select {
			case <-w.closed:
				return nil, net.ErrClosed
			default:
			}
		}
		c, err := w.Listener.Accept()
		if err != nil {
			return nil, err // the caller waits before it tries again
		}
		now := time.Now()
		if t, ok := c.(*net.TCPConn); ok && !d.knock(t.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), now) {
			d.turned.Add(1)
			t.SetLinger(0) // no word, and nothing to remember
			t.Close()
			continue
		}
		d.inside.Add(1)
		in := &visitor{Conn: c, d: d}
		if d.files(now) > d.limit-d.kept-d.told {
			d.refused.Add(1)
			in.until = now.Add(refusalTime)
			c.SetDeadline(in.until)
		}
		return in, nil
	}
}

// A visitor is a connection that came through the door.
type visitor struct {
	net.Conn
	d     *door
	gone  atomic.Bool
	until time.Time // it is only told to come again, at most until then; zero: it is in
}

func (v *visitor) Close() error {
	if !v.gone.Swap(true) {
		v.d.inside.Add(-1)
		select {
		case v.d.leave <- struct{}{}:
		default:
		}
	}
	return v.Conn.Close()
}

// Deadlines of one that is only told something are never later than its own.

func (v *visitor) SetDeadline(t time.Time) error      { return v.Conn.SetDeadline(v.bound(t)) }
func (v *visitor) SetReadDeadline(t time.Time) error  { return v.Conn.SetReadDeadline(v.bound(t)) }
func (v *visitor) SetWriteDeadline(t time.Time) error { return v.Conn.SetWriteDeadline(v.bound(t)) }

func (v *visitor) bound(t time.Time) time.Time {
	if v.until.IsZero() || !t.IsZero() && t.Before(v.until) {
		return t
	}
	return v.until
}

type refusedKey struct{}

// mark notes in a connection's context whether it is only to be told to come again.
func mark(ctx context.Context, c net.Conn) context.Context {
	if s, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = s.NetConn()
	}
	if v, ok := c.(*visitor); ok && !v.until.IsZero() {
		return context.WithValue(ctx, refusedKey{}, true)
	}
	return ctx
}

// guard answers those who are only to be told to come again, and lets next answer the others.
func (d *door) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(refusedKey{}) == nil {
			next.ServeHTTP(w, r)
			return
		}
		comeAgain(w.Header())
		http.Error(w, "too many connections", http.StatusServiceUnavailable)
	})
}

// comeAgain says when to try again: at a time of everybody's own, so that those who were sent away together do not come
// back together. The connection is closed, for the next one is counted at the door.
func comeAgain(h http.Header) {
	h.Set("Retry-After", strconv.Itoa(2+rand.IntN(9)))
	h.Set("Connection", "close")
	h.Set("Access-Control-Allow-Origin", "*")
}

// register publishes the door's numbers; reg may be nil.
func (d *door) register(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	count := func(name, help string, n *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(n.Load()) })
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "plenum_shard_open_files_ratio", Help: "Share of the file descriptors that this process may have which are open."}, d.ratio),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "plenum_shard_connections", Help: "Open connections, of clients and services."}, func() float64 { return float64(d.inside.Load()) }),
		count("plenum_shard_connections_told_total", "Connections told to come again later, for want of file descriptors.", &d.refused),
		count("plenum_shard_connections_dropped_total", "Connections closed at once because their address opened too many.", &d.turned),
	)
}
