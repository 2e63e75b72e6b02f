// Package signaling is a shard: XMPP for Jitsi's clients and for the services behind them, the rooms, and
// the focus that puts conferences on bridges. It takes the place of Prosody and Jicofo.
//
//	HTTP ── front.go ──┬─ page, config.js, conference request
//	                   └─ WebSocket ─┐
//	TCP ─────────────────────────────┴─ session ── router.go ── hall ── actor per room: muc + focus
package signaling

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"plenum/signaling/auth"
	"plenum/signaling/fleet"
	"plenum/signaling/focus"
	"plenum/signaling/handover"
	"plenum/signaling/muc"
	"plenum/signaling/rooms"
	"plenum/signaling/session"
	"plenum/signaling/site"
	"plenum/wire/jid"
	"plenum/wire/meet"
)

// Config says what a shard is like. The zero value is a shard for one machine.
type Config struct {
	// Domain is where guests log in; all other names are made from it: conference.DOMAIN, focus.DOMAIN,
	// auth.DOMAIN (services), internal.auth.DOMAIN (breweries), metadata.DOMAIN, hidden.DOMAIN
	// (recorders). Default: localhost.
	Domain string
	// HTTP is the address for clients: pages, WebSocket, conference requests. Default: 127.0.0.1:8000;
	// port 0 picks one.
	HTTP string
	// Listener, if set, is there already and takes the place of HTTP; the shard closes it.
	Listener net.Listener
	// XMPP is the address for bridges and other services, over TCP. Default: 127.0.0.1:5222.
	XMPP string
	// TLS, if set, is spoken on HTTP and offered on XMPP.
	TLS *tls.Config
	// Accounts are the services that may log in, as NAME:PASSWORD; a NAME without domain is at
	// auth.DOMAIN. An account named focus means that a stock Jicofo drives the conferences.
	Accounts []string

	// Shard, Region and Release are told to clients, if not empty. A client whose keep-alive requests
	// reach a shard of another name leaves its call and starts anew.
	Shard, Region, Release string
	// Near are groups of regions near each other, for choosing bridges. Default: none.
	Near [][]string
	// Edges are the addresses of proxies whose X-Forwarded-For, X-Forwarded-Proto and X-Proxy-Region are
	// believed. Default: none.
	Edges []netip.Prefix
	// Services are the STUN and TURN servers that clients are told of.
	Services []Service

	// ConfigJS is merged into config.js, deeper values into deeper ones.
	ConfigJS map[string]any
	// Web serves the page of a room and /static/. nil: there are no pages.
	Web http.Handler
	// Site is a folder with an unpacked build of Jitsi Meet's web application, which then takes the place
	// of Web, with the iframe API. Default: none.
	Site string
	// BridgeChannel serves /colibri-ws/, for a bridge in this process. nil: there is none.
	BridgeChannel http.Handler

	// Sessions are limits and times of sessions; see there for the defaults. What is above wins.
	Sessions session.Config
	// Focus is what conferences are like; what belongs to one room is filled in.
	Focus focus.Config
	// Room holds the limits of rooms; what belongs to one room is filled in.
	Room muc.Config
	// Owner says which rooms may open here. Default: all.
	Owner rooms.Owner
	// Health, if set, says why nobody new can be taken just now, for /about/health.
	Health func() error
	// Handover takes sockets and requests to the shard that owns their room; the shard closes it. nil: there is
	// no other shard.
	Handover *handover.Proxy

	// Metrics is where metrics are registered. nil: nowhere.
	Metrics prometheus.Registerer
	// Log gets what operators should know. nil: nothing.
	Log *slog.Logger
}

// validate fills in what is missing and refuses what cannot work.
func (c *Config) validate() error {
	if c.Domain == "" {
		c.Domain = "localhost"
	}
	d, err := jid.Parse(c.Domain)
	if err != nil || d.Local() != "" || !d.IsBare() {
		return fmt.Errorf("domain %q is not a host name", c.Domain)
	}
	c.Domain = d.Domain()
	if c.HTTP == "" {
		c.HTTP = "127.0.0.1:8000"
	}
	if c.XMPP == "" {
		c.XMPP = "127.0.0.1:5222"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if _, err := json.Marshal(c.ConfigJS); err != nil {
		return fmt.Errorf("config.js: %w", err)
	}
	return nil
}

// A Server is one shard.
type Server struct {
	cfg      Config
	names    names
	accounts *auth.Accounts
	sessions *session.Server
	hall     *hall
	router   *router
	site     *site.Site // nil: there is none
	http     *http.Server
	httpL    net.Listener
	xmppL    net.Listener
	stop     context.CancelFunc // of router.life
	services serviceList
	draining atomic.Bool
}

// New binds the shard's addresses. Run serves them; without it Close gives them back.
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	n := newNames(cfg.Domain)
	accounts, err := auth.NewAccounts(n.auth, cfg.Accounts)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, names: n, accounts: accounts}
	if err := s.SetServices(cfg.Services); err != nil {
		return nil, err
	}
	stock := accounts.Has(meet.FocusNick + "@" + n.auth)
	s.router = &router{cfg: &s.cfg, names: n, stock: stock, services: &s.services}
	s.router.life, s.stop = context.WithCancel(context.Background())

	sc := cfg.Sessions
	sc.Domain, sc.AccountDomains = cfg.Domain, []string{n.auth, n.hidden}
	sc.Away = func(x *session.Session) { s.hall.away(x.JID()) }
	sc.Accounts, sc.Handler, sc.TLS, sc.Edges, sc.Log = accounts, s.router, cfg.TLS, cfg.Edges, cfg.Log
	s.sessions = session.New(sc)

	hc := hallConfig{
		Domain: cfg.Domain, Deliver: s.sessions.Deliver, Cut: s.cut, Owner: cfg.Owner, Fleet: fleet.New(cfg.Release, cfg.Near...), Focus: cfg.Focus, Room: cfg.Room,
		Stock: stock, Log: cfg.Log, Metrics: newMetrics(cfg.Metrics), End: s.router.end, Dial: dialMedia,
		Host: func(account jid.JID) bool { return accounts.Loaded(account.String()) },
	}
	hc.Room.Services = func(now time.Time) json.RawMessage {
		all := s.services.at(now)
		if len(all) == 0 {
			return nil
		}
		text, err := json.Marshal(all)
		if err != nil {
			panic("signaling: services: " + err.Error()) // they are texts alone
		}
		return text
	}
	s.hall = newHall(hc)
	s.router.hall, s.router.sessions = s.hall, s.sessions
	registerSessions(cfg.Metrics, s.sessions)

	if cfg.Site != "" {
		if s.site, err = site.Open(cfg.Site); err != nil {
			return nil, fmt.Errorf("web application: %w", err)
		}
	}
	if s.httpL = cfg.Listener; s.httpL == nil {
		if s.httpL, err = net.Listen("tcp", cfg.HTTP); err != nil {
			s.closeSite()
			return nil, fmt.Errorf("HTTP: %w", err)
		}
	}
	if s.xmppL, err = net.Listen("tcp", cfg.XMPP); err != nil {
		s.httpL.Close()
		s.closeSite()
		return nil, fmt.Errorf("XMPP: %w", err)
	}
	d := newDoor(cfg.Log, s.sessions.Edge)
	d.register(cfg.Metrics)
	s.httpL, s.xmppL = d.listener(s.httpL), d.listener(s.xmppL)
	if cfg.TLS != nil {
		tc := cfg.TLS.Clone()
		tc.NextProtos = []string{"http/1.1"} // WebSocket over HTTP/2 is not spoken here
		s.httpL = tls.NewListener(s.httpL, tc)
	}
	s.http = &http.Server{
		Handler:           d.guard(http.HandlerFunc(s.front)),
		ConnContext:       mark,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// HTTPAddr returns the address for clients.
func (s *Server) HTTPAddr() net.Addr { return s.httpL.Addr() }

// XMPPAddr returns the address for services.
func (s *Server) XMPPAddr() net.Addr { return s.xmppL.Addr() }

// Run serves until ctx is cancelled, then stops and returns nil. It owns every goroutine of the shard.
func (s *Server) Run(ctx context.Context) error {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	inRooms, endRooms := context.WithCancel(context.WithoutCancel(ctx))
	defer endRooms()

	ended := make(chan error, 3)
	go func() { ended <- s.hall.Run(inRooms) }()
	go func() {
		err := s.http.Serve(s.httpL)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		stop()
		ended <- err
	}()
	go func() {
		err := s.sessions.Serve(serving, s.xmppL)
		stop()
		ended <- err
	}()
	<-serving.Done()

	// Nobody new, nobody waiting, then everybody out, then the rooms, which see them go.
	s.draining.Store(true)
	s.hall.admitNoMore()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	s.stop()
	s.xmppL.Close()
	s.http.Shutdown(last)
	s.http.Close()
	if s.cfg.Handover != nil {
		s.cfg.Handover.Close()
	}
	s.closeSite()
	s.sessions.Close(last)
	endRooms()
	return errors.Join(<-ended, <-ended, <-ended)
}

// Close gives back the addresses of a shard that is not run.
func (s *Server) Close() error {
	s.stop()
	s.closeSite()
	return errors.Join(s.httpL.Close(), s.xmppL.Close())
}

func (s *Server) closeSite() {
	if s.site != nil {
		s.site.Close()
	}
}

// LoadAccounts replaces the accounts that it loaded before, as auth.Accounts.Load reads them; those of the Config stay.
// Sessions that are open stay open.
func (s *Server) LoadAccounts(text []byte) error { return s.accounts.Load(text) }

// SetServices replaces Config.Services: who joins from now on is told of these.
func (s *Server) SetServices(all []Service) error {
	all = slices.Clone(all)
	for i, x := range all {
		if x.Host == "" || x.Type != "stun" && x.Type != "turn" && x.Type != "turns" {
			return fmt.Errorf("service %d: want a host and a type of stun, turn or turns", i+1)
		}
		if x.Username != "" || x.Secret != "" {
			all[i].Restricted = "1"
		}
	}
	s.services.Store(&all)
	return nil
}

// Drain refuses new rooms, says so in /about/health, gives those that are open to other shards one by one, if
// there are any, and waits until the last one has gone. When ctx ends before, it returns an error and all is
// as before, but for the rooms that have gone.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	err := s.hall.Drain(ctx)
	if err != nil {
		s.Undrain()
	}
	return err
}

// Undrain takes new rooms again.
func (s *Server) Undrain() {
	s.hall.admit()
	s.draining.Store(false)
}

// cut drops the socket of a guest without a word: the client goes on elsewhere, as after any break.
func (s *Server) cut(who jid.JID) {
	if guest := s.sessions.Session(who); guest != nil && guest.Account() == "" {
		guest.Close("")
	}
}

// registerSessions publishes the counts of sessions; reg may be nil.
func registerSessions(reg prometheus.Registerer, sessions *session.Server) {
	if reg == nil {
		return
	}
	gauge := func(name, help string, read func(session.Stats) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return read(sessions.Stats()) }))
	}
	counter := func(name, help string, read func(session.Stats) int64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(read(sessions.Stats())) }))
	}
	gauge("plenum_shard_sessions", "Sessions, those included that wait for their client to come back.", func(s session.Stats) float64 { return float64(s.Sessions) })
	gauge("plenum_shard_half_open", "Sockets that have not logged in yet.", func(s session.Stats) float64 { return float64(s.HalfOpen) })
	counter("plenum_shard_resumptions_total", "Sessions that went on on a new socket.", func(s session.Stats) int64 { return s.Resumed })
	counter("plenum_shard_sockets_refused_total", "Sockets refused because too many had not logged in.", func(s session.Stats) int64 { return s.Refused })
	counter("plenum_shard_overflows_total", "Sessions ended because their client did not take what was sent.", func(s session.Stats) int64 { return s.Overflows })
	counter("plenum_shard_throttled_total", "Times that a client was read later because it sent too much.", func(s session.Stats) int64 { return s.Throttled })
}

// Sessions returns the counts of sessions.
func (s *Server) Sessions() session.Stats { return s.sessions.Stats() }

// DebugHandler serves /debug/ and /debug/rooms/ROOM as JSON. It names rooms and people: never on a public address.
func (s *Server) DebugHandler() http.Handler {
	mux := http.NewServeMux()
	show := func(w http.ResponseWriter, v any) {
		if v == nil {
			http.Error(w, "no such room", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.Encode(v)
	}
	mux.HandleFunc("GET /debug/{$}", func(w http.ResponseWriter, _ *http.Request) {
		show(w, map[string]any{"rooms": s.hall.Debug(""), "sessions": s.sessions.Stats()})
	})
	mux.HandleFunc("GET /debug/rooms/{room}", func(w http.ResponseWriter, r *http.Request) {
		show(w, s.hall.Debug(strings.ToLower(r.PathValue("room"))))
	})
	return mux
}
