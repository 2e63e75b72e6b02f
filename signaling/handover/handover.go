// Package handover takes what comes for a room to the shard that owns it: here, or proxied over the control
// network. A request is handed over once at most: who gets one that was handed over serves or refuses it, so
// shards that disagree for a moment cannot send it in circles. It knows nothing of what the request is.
package handover

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"plenum/signaling/rooms"
	"plenum/wire/jid"
)

// Header marks a request that was handed over; its value is the shard that did it. Who sends it from elsewhere
// only forgoes being handed over.
const Header = "X-Plenum-Handover"

// A request for a room whose shard does not answer is held for so long, and looked at so often. Locks of a shard
// that was lost are free after twice the lease and the lock-delay.
const (
	holdTime   = 15 * time.Second
	holdRetry  = 300 * time.Millisecond
	answerTime = time.Second
)

// Owners say which shard has a room; *rooms.Consul is one.
type Owners interface {
	// Find returns the owner; without an address it is this shard. With take, a room that nobody has becomes
	// this shard's.
	Find(ctx context.Context, room jid.JID, take bool) (rooms.Shard, error)
}

// Config of a Proxy. Self and Owners are required.
type Config struct {
	Self   rooms.Shard
	Owners Owners

	Metrics prometheus.Registerer // may be nil
	Log     *slog.Logger          // may be nil
}

// A Proxy hands requests over. Its methods may be called from any goroutine.
type Proxy struct {
	cfg    Config
	proxy  *httputil.ReverseProxy
	handed *prometheus.CounterVec
	failed prometheus.Counter

	life context.Context // of what is handed over; ended by Close
	stop context.CancelFunc
	open sync.WaitGroup
}

// dialer makes connections that end when the other shard's host has been silent for 12 s, whether there is something to say
// or not: after 10 s without a control network all is to be as before, and after 12 s another shard has the room. Clients
// would wait for half a minute.
var dialer = net.Dialer{
	Timeout:         2 * time.Second,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 4 * time.Second, Interval: 2 * time.Second, Count: 4},
	Control:         silent(12 * time.Second),
}

// New returns a Proxy. Close ends what it has handed over.
func New(cfg Config) *Proxy {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		cfg: cfg,
		handed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "plenum_shard_handovers_total",
			Help: "Requests that were taken to the shard that owns their room."}, []string{"kind"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_shard_handovers_failed_total",
			Help: "Requests whose room's shard did not answer."}),
	}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(p.handed, p.failed)
	}
	p.life, p.stop = context.WithCancel(context.Background())
	p.proxy = &httputil.ReverseProxy{
		Rewrite:       p.rewrite,
		FlushInterval: -1,
		Transport: &http.Transport{
			DialContext:           dialer.DialContext,
			ResponseHeaderTimeout: 15 * time.Second, // a conference request may wait 10 s
			MaxIdleConnsPerHost:   64, IdleConnTimeout: time.Minute,
		},
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.failed.Inc()
			cfg.Log.Warn("a room's shard does not answer", "shard", ticketOf(r).to.Name, "err", err)
			Refuse(w, "the shard of this room does not answer")
		},
	}
	return p
}

// Close ends all that was handed over and waits for it.
func (p *Proxy) Close() {
	p.stop()
	p.open.Wait()
	p.proxy.Transport.(*http.Transport).CloseIdleConnections()
}

// A Client is who sent a request, as this shard knows it: the owner believes a shard as it believes an edge.
type Client struct {
	Remote netip.Addr
	Region string
	Secure bool // by TLS
}

// A ticket is where a request goes.
type ticket struct {
	to     rooms.Shard
	client Client
}

type ticketKey struct{}

func ticketOf(r *http.Request) ticket { t, _ := r.Context().Value(ticketKey{}).(ticket); return t }

// Owner returns the name of the shard that has a room, empty when nobody has it or nobody knows.
func (p *Proxy) Owner(ctx context.Context, room jid.JID) string {
	s, err := p.cfg.Owners.Find(ctx, room, false)
	if err != nil {
		return ""
	}
	return s.Name
}

// Take serves a request for a room if another shard owns that, or nobody can say who does, and reports whether
// it has. Otherwise the room is this shard's, and the request is for the caller to serve. Stay keeps a request
// here when nobody can say: that of somebody who is here already.
func (p *Proxy) Take(w http.ResponseWriter, r *http.Request, room jid.JID, c Client, stay bool) bool {
	owner, err := p.find(r, room)
	switch {
	case err == nil && owner.Addr == "":
		return false
	case errors.Is(err, rooms.ErrIsolated) && stay:
		return false
	case err != nil:
		p.cfg.Log.Debug("room refused", "err", err)
		Refuse(w, "nobody knows which shard this room is on")
		return true
	case r.Header.Get(Header) != "":
		Refuse(w, "this room is on its way to another shard")
		return true
	}
	if !p.enter() {
		Refuse(w, "this shard stops")
		return true
	}
	defer p.open.Done()
	kind := "request"
	if r.Header.Get("Upgrade") != "" {
		kind = "socket"
	}
	p.handed.WithLabelValues(kind).Inc()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), ticketKey{}, ticket{owner, c}))
	defer cancel()
	defer context.AfterFunc(p.life, cancel)()
	p.proxy.ServeHTTP(w, r.WithContext(ctx))
	return true
}

// find returns the owner of a room, and holds the request while that one does not answer: it is back in a moment,
// or somebody else can have the room then. A client that is refused comes back much later.
func (p *Proxy) find(r *http.Request, room jid.JID) (rooms.Shard, error) {
	for end := time.Now().Add(holdTime); ; {
		owner, err := p.cfg.Owners.Find(r.Context(), room, true)
		switch {
		case time.Now().After(end):
			return owner, err
		case errors.Is(err, rooms.ErrLocked): // nobody can have it yet
		case err != nil, owner.Addr == "", r.Header.Get(Header) != "", p.answers(r.Context(), owner):
			return owner, err
		}
		select {
		case <-time.After(holdRetry):
		case <-p.life.Done():
			return owner, context.Canceled
		case <-r.Context().Done():
			return owner, r.Context().Err()
		}
	}
}

// answers reports whether a shard says anything: a frozen one takes connections, too.
func (p *Proxy) answers(ctx context.Context, s rooms.Shard) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+"/about/health", nil)
	if err != nil {
		return false
	}
	res, err := p.proxy.Transport.RoundTrip(r)
	if err != nil {
		return false
	}
	io.Copy(io.Discard, io.LimitReader(res.Body, 1<<10))
	res.Body.Close()
	return true
}

// enter counts one more, unless Close was called.
func (p *Proxy) enter() bool {
	if p.life.Err() != nil {
		return false
	}
	p.open.Add(1)
	return true
}

func (p *Proxy) rewrite(r *httputil.ProxyRequest) {
	t := ticketOf(r.In)
	r.SetURL(&url.URL{Scheme: "http", Host: t.to.Addr})
	r.Out.Host = r.In.Host // what the client called us is in what it is told
	h := r.Out.Header
	h.Set(Header, p.cfg.Self.Name)
	h.Del("X-Proxy-Region")
	if t.client.Region != "" {
		h.Set("X-Proxy-Region", t.client.Region)
	}
	if t.client.Remote.IsValid() {
		h.Set("X-Forwarded-For", t.client.Remote.String())
	}
	if t.client.Secure {
		h.Set("X-Forwarded-Proto", "https")
	}
}

// Refuse answers that somebody should come again soon.
func Refuse(w http.ResponseWriter, why string) {
	w.Header().Set("Retry-After", "1")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	http.Error(w, why, http.StatusServiceUnavailable)
}
