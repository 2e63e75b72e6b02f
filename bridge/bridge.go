// Package bridge is one media bridge: it forwards the audio and video of conferences between their
// participants, told what to do by a focus in colibri2. It speaks to clients by RTP and by the bridge
// channel, to shards by XMPP, and to operators by a private HTTP interface. It knows nothing of rooms,
// users or clusters, and works the same under plenum's own shard and under a stock Jicofo.
//
// The packages below it hold the media; this one binds sockets, owns goroutines and translates the wire.
//
//	bridge.go    Config, Bridge, Run, Drain
//	xmpp.go      a client in each shard's brewery        http.go     the private interface
//	control.go   colibri2 → conferences                  channel.go  the bridge channel ↔ conferences
//	core.go, route.go, peer.go: sockets, cores, transports   metrics.go  what is counted and published
package bridge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Config of a bridge. The zero value runs on a laptop: all addresses, port 10000, no shard.
type Config struct {
	// Media is HOST:PORT for media over UDP. The default ":10000" takes every address of the host that
	// clients may reach; port 0 picks one.
	Media string
	// Loopback adds 127.0.0.1 to the host's addresses, for browsers on the same machine.
	Loopback bool
	// Advertise are public addresses PUBLIC[:PORT] in front of this host (NAT), told to clients as well.
	Advertise []string
	// HTTP is the address of the private interface. The default is 127.0.0.1:8080; "off" is none. It has
	// no authentication: never bind it to a public address.
	HTTP string
	// Channel is an address for colibri WebSockets of its own; empty is none. ChannelHandler serves the
	// same on somebody else's listener.
	Channel string
	// ChannelURL is where clients reach the WebSockets, as ws://HOST[:PORT] or wss://HOST[:PORT]. Empty
	// offers those on Channel, if there is one, and none otherwise.
	ChannelURL string
	// Shards are the signaling servers to report to; none is allowed, and the private HTTP alone drives then.
	Shards []Shard
	// Region of this bridge, as focuses choose by; may be empty.
	Region string
	// RelayID names this bridge to focuses, other bridges and in the URLs of the bridge channel. It is
	// unique in the cluster; the default is random.
	RelayID string
	// Version is what is told to focuses, which do not mix versions in one conference. It is prefixed with
	// "plenum-", so that it never equals that of a Java bridge. The default is "dev".
	Version string
	// Cores is how many goroutines carry media; 0 is one for each CPU.
	Cores int
	// Uplink is what this bridge may send, in bit/s as the network counts them; 0 is no limit. Near it the bridge tells
	// focuses that it is full, and sends less video.
	Uplink uint64
	// NoSCTP turns data channels off; the bridge channel is a WebSocket then.
	NoSCTP bool
	// Draining begins with the drain flag set: focuses prefer other bridges.
	Draining bool
	// ClearNames logs room names as they are instead of as a keyed hash.
	ClearNames bool

	// Metrics gets the bridge's metrics besides its own /metrics; may be nil.
	Metrics prometheus.Registerer
	// Log may be nil.
	Log *slog.Logger

	// What follows is for tests; the defaults are those of the Java bridge where it has one.

	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// PresenceInterval is the time between two presences with statistics: 5 s.
	PresenceInterval time.Duration
	// PingInterval is the time between two XMPP pings, and as long is waited for the answer: 30 s.
	PingInterval time.Duration
	// ReconnectDelay is the pause before a lost XMPP stream is opened again: 1 s.
	ReconnectDelay time.Duration
	// EmptyTimeout is how long a conference may have no endpoint: 20 s.
	EmptyTimeout time.Duration
	// SilenceTimeout is how long an endpoint may be silent: 60 s.
	SilenceTimeout time.Duration
	// UnheardTimeout is how long after its creation an endpoint may not have been heard at all: 2 min.
	UnheardTimeout time.Duration
	// SweepInterval is how often the last three are looked at: 10 s.
	SweepInterval time.Duration
	// ShutdownDelay is the time from "shutting down" in presence, on which focuses move everybody, to the
	// end of Run: 1 min.
	ShutdownDelay time.Duration
}

// A Shard is one signaling server with its brewery, the room where bridges report.
type Shard struct {
	// Addr is HOST:PORT of XMPP over TCP.
	Addr string
	// Domain, User and Password are of the bridge's account: auth.DOMAIN, jvb.
	Domain, User, Password string
	// Brewery is the bare address of the room: jvbbrewery@internal.auth.DOMAIN.
	Brewery string
	// Nick in the room; the default is the bridge's RelayID.
	Nick string
	// InsecureTLS accepts any certificate of a server that wants TLS. Servers that do not offer it are
	// spoken to in the clear: the control overlay encrypts.
	InsecureTLS bool
}

// ErrConfig is wrapped by errors about a Config that contradicts itself.
var ErrConfig = errors.New("bridge configuration")

var errMediaStopped = errors.New("media stopped")

func (c *Config) validate() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.PresenceInterval, 5*time.Second)
	def(&c.PingInterval, 30*time.Second)
	def(&c.ReconnectDelay, time.Second)
	def(&c.EmptyTimeout, 20*time.Second)
	def(&c.SilenceTimeout, time.Minute)
	def(&c.UnheardTimeout, 2*time.Minute)
	def(&c.SweepInterval, 10*time.Second)
	def(&c.ShutdownDelay, time.Minute)
	if c.Media == "" {
		c.Media = ":10000"
	}
	if c.HTTP == "" {
		c.HTTP = "127.0.0.1:8080"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if !strings.HasPrefix(c.Version, "plenum-") {
		c.Version = "plenum-" + c.Version
	}
	if c.RelayID == "" {
		var b [4]byte
		rand.Read(b[:])
		c.RelayID = "bridge-" + hex.EncodeToString(b[:])
	}
	if strings.ContainsAny(c.RelayID, "/?# \t") {
		return fmt.Errorf("%w: relay id %q is part of URLs: use letters, digits, - and _", ErrConfig, c.RelayID)
	}
	c.ChannelURL = strings.TrimSuffix(c.ChannelURL, "/")
	return nil
}

// mediaConfig translates what concerns media.
func (b *Bridge) mediaConfig() (mediaConfig, error) {
	m := mediaConfig{Loopback: b.cfg.Loopback, Cores: b.cfg.Cores, Log: b.log, OnPanic: b.control.crashed, OnDelay: func(d time.Duration) { b.metrics.delay.Observe(d.Seconds()) }}
	host, port, err := net.SplitHostPort(b.cfg.Media)
	if err != nil {
		return m, fmt.Errorf("%w: media address %q: use ADDR:PORT", ErrConfig, b.cfg.Media)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return m, fmt.Errorf("%w: media port %q is not a number up to 65535", ErrConfig, port)
	}
	m.Port = uint16(n)
	if host != "" {
		addr, err := netip.ParseAddr(host)
		if err != nil {
			return m, fmt.Errorf("%w: media address %q is not an IP address", ErrConfig, host)
		}
		if !addr.IsUnspecified() { // a wildcard socket would answer from the wrong address
			m.Addresses = []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), m.Port)}
		}
	}
	for _, a := range b.cfg.Advertise {
		addr, err := netip.ParseAddr(a)
		public := netip.AddrPortFrom(addr, 0)
		if err != nil {
			public, err = netip.ParseAddrPort(a)
		}
		if err != nil {
			return m, fmt.Errorf("%w: advertised address %q: use IP or IP:PORT", ErrConfig, a)
		}
		m.Advertise = append(m.Advertise, public)
	}
	return m, nil
}

// MediaAddrs are the bound addresses for media.
func (b *Bridge) MediaAddrs() []netip.AddrPort { return b.media.local }

// A Bridge is bound to its sockets from New on, and works while Run runs.
type Bridge struct {
	cfg     Config
	log     *slog.Logger
	key     [32]byte // of hash
	media   *media
	control *control
	metrics *metrics
	state   lifecycle
	sockets group

	listing sync.Mutex // held to change the list
	clients atomic.Pointer[[]*shardClient]
	listed  chan struct{} // holds a value when the list has changed

	http, ws net.Listener // nil: off
}

// New binds all sockets. Close releases them if Run is never called.
func New(cfg Config) (*Bridge, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &Bridge{cfg: cfg, log: cfg.Log.With("bridge", cfg.RelayID), listed: make(chan struct{}, 1)}
	rand.Read(b.key[:])
	b.state.init(cfg.Draining)
	b.metrics = newMetrics(b)
	b.control = newControl(b)
	if err := b.SetShards(cfg.Shards); err != nil {
		return nil, err
	}

	m, err := b.mediaConfig()
	if err != nil {
		return nil, err
	}
	if b.media, err = newMedia(m); err != nil {
		return nil, err
	}
	if cfg.HTTP != "off" {
		if b.http, err = listenTCP("bridge-http", cfg.HTTP); err != nil {
			b.Close()
			return nil, err
		}
	}
	if cfg.Channel != "" {
		if b.ws, err = listenTCP("bridge-ws", cfg.Channel); err != nil {
			b.Close()
			return nil, err
		}
	}
	if err := b.metrics.register(cfg.Metrics); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func listenTCP(what, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, addr, err)
	}
	return l, nil
}

// Close releases what New bound. It is for a bridge that does not run; Run releases everything itself.
func (b *Bridge) Close() error {
	for _, l := range [2]net.Listener{b.http, b.ws} {
		if l != nil {
			l.Close()
		}
	}
	b.metrics.unregister()
	b.media.close()
	return nil
}

// Run serves until ctx is cancelled or a shutdown that was asked for over HTTP is complete, and returns nil
// then. It owns every goroutine of the bridge.
func (b *Bridge) Run(ctx context.Context) error {
	mediaCtx, stopMedia := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMedia()
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	var servers []*http.Server
	serve := func(l net.Listener, h http.Handler) {
		if l == nil {
			return
		}
		s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
		servers = append(servers, s)
		g.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	mediaDone := make(chan error, 1)
	go func() { mediaDone <- b.media.Run(mediaCtx) }()
	serve(b.http, b.private())
	serve(b.ws, b.ChannelHandler())
	g.Go(func() error { b.tick(ctx); return nil })
	g.Go(func() error { b.keepShards(ctx); return nil })
	g.Go(func() error {
		ending := b.state.ending
		var over <-chan time.Time
		for {
			select {
			case <-ctx.Done():
				return nil
			case err := <-mediaDone:
				mediaDone <- err
				return errors.Join(errMediaStopped, err)
			case <-ending:
				ending, over = nil, time.After(b.cfg.ShutdownDelay)
			case <-over:
				b.log.Info("shutdown complete")
				stop()
				return nil
			}
		}
	})
	g.Go(func() error {
		<-ctx.Done()
		b.state.shutDown() // no new conferences
		b.control.close()  // ends conferences and with them their WebSockets (1001)
		b.sockets.close()  // their handlers may run on somebody else's server
		limit, done := context.WithTimeout(context.Background(), time.Second)
		defer done()
		for _, s := range servers { // the last answers may still go out
			s.Shutdown(limit)
			s.Close()
		}
		return nil
	})
	b.log.Info("bridge up", "media", b.MediaAddrs(), "version", b.cfg.Version)
	err := g.Wait()
	stopMedia() // last: conferences end on the cores
	if mediaErr := <-mediaDone; err == nil {
		err = mediaErr
	}
	b.metrics.unregister()
	return err
}

// tick does what is due by time alone.
func (b *Bridge) tick(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	b.metrics.publish(b.cfg.Now())
	swept := b.cfg.Now()
	var uplink uplink
	for {
		select {
		case <-ctx.Done():
			return
		case <-second.C:
		}
		now := b.cfg.Now()
		b.metrics.publish(now)
		conferences := b.control.conferences()
		endpoints := 0
		for _, l := range conferences {
			l.mu.RLock()
			endpoints += len(l.endpoints)
			for _, e := range l.endpoints {
				e.channel.repair()
			}
			l.mu.RUnlock()
		}
		b.state.count(endpoints)
		b.limit(&uplink, conferences, endpoints)
		if now.Sub(swept) >= b.cfg.SweepInterval {
			swept = now
			b.control.sweep(now)
		}
	}
}

// Drain refuses new conferences and waits until the last endpoint has left. If ctx ends before, it returns
// its error, and new conferences are taken again. The bridge keeps running in either case.
func (b *Bridge) Drain(ctx context.Context) error {
	empty := b.state.begin()
	b.report()
	select {
	case <-ctx.Done():
		b.state.cancel()
		b.report()
		return ctx.Err()
	case <-empty:
		return nil
	}
}

// Undrain ends a drain, finished or not: new conferences are taken again.
func (b *Bridge) Undrain() {
	b.state.cancel()
	b.report()
}

// report has presence tell of a change at once.
func (b *Bridge) report() {
	for _, c := range b.shards() {
		c.poke()
	}
}

// SetDraining sets or lifts the drain flag: focuses prefer other bridges while it is set.
func (b *Bridge) SetDraining(on bool) {
	b.state.setDrain(on)
	b.report()
}

// ID is the bridge's relay id.
func (b *Bridge) ID() string { return b.cfg.RelayID }

// HTTPAddr is the bound address of the private interface; nil when it is off.
func (b *Bridge) HTTPAddr() net.Addr { return addrOf(b.http) }

// ChannelAddr is the bound address of the bridge's own WebSocket server; nil when there is none.
func (b *Bridge) ChannelAddr() net.Addr { return addrOf(b.ws) }

func addrOf(l net.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// channelURL is the beginning of the URLs of WebSockets; empty: none are offered.
func (b *Bridge) channelURL() string {
	if b.cfg.ChannelURL == "" && b.ws != nil {
		return "ws://" + b.ws.Addr().String()
	}
	return b.cfg.ChannelURL
}

// hash names a room in logs, without saying which one it is to who does not know this process's key.
func (b *Bridge) hash(name string) string {
	if b.cfg.ClearNames || name == "" {
		return name
	}
	h := hmac.New(sha256.New, b.key[:])
	h.Write([]byte(name))
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// A lifecycle is what the bridge says of its own end:
//
//	running ──graceful──► no new conferences ──last endpoint left──► shutting down ──1 min──► over
//	   └──────────────────────────at once────────────────────────────────▲
//
// The drain flag is independent of it.
type lifecycle struct {
	mu       sync.Mutex
	drain    bool
	graceful bool
	shutdown bool // asked for over HTTP: go on to the end
	shutting bool
	empty    chan struct{} // closed when graceful and nobody is left
	ending   chan struct{} // closed when shutting down was asked for
}

func (s *lifecycle) init(drain bool) {
	s.drain, s.ending = drain, make(chan struct{})
}

func (s *lifecycle) get() (drain, graceful, shutting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain, s.graceful, s.shutting
}

// closing reports whether new conferences are refused.
func (s *lifecycle) closing() bool {
	_, graceful, shutting := s.get()
	return graceful || shutting
}

func (s *lifecycle) setDrain(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain = on
}

// begin refuses new conferences. What it returns is closed when nobody is left.
func (s *lifecycle) begin() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.graceful = true
	if s.empty == nil {
		s.empty = make(chan struct{})
	}
	return s.empty
}

// cancel takes new conferences again, unless a shutdown was asked for meanwhile.
func (s *lifecycle) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.graceful = s.shutdown
}

// request begins a shutdown that ends Run: when the last endpoint has left, or at once.
func (s *lifecycle) request(graceful bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.graceful, s.shutdown = s.graceful || graceful, true
	if !graceful {
		s.beginLocked()
	}
}

func (s *lifecycle) shutDown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shutting = true
}

// count tells how many endpoints there are; the next step of a graceful end happens here.
func (s *lifecycle) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.graceful || n > 0 {
		return
	}
	if s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
	if s.shutdown {
		s.beginLocked()
	}
}

func (s *lifecycle) beginLocked() {
	if s.shutting {
		return
	}
	s.shutting = true
	close(s.ending)
}

// A group counts handlers that run on servers of others.
type group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (g *group) add() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Add(1)
	}
	return !g.closed
}

func (g *group) done() { g.wg.Done() }

// close refuses new ones and waits for all.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
