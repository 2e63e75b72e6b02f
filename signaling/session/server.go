package session

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// A Server holds the sessions of this shard and delivers to them.
type Server struct {
	cfg    Config
	half   halfOpen
	sealer *sealer
	wg     sync.WaitGroup // one for each conn's goroutine

	overflows, throttled, resumed, revived, refused atomic.Int64

	mu      sync.RWMutex
	closed  bool
	byJID   map[jid.JID]*Session // by full address
	byToken map[string]*Session  // by the id in its resumption token
}

// New returns a Server without sessions. It starts nothing.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	return &Server{
		cfg:     cfg,
		half:    halfOpen{max: cfg.HalfOpen, maxPerAddress: cfg.HalfOpenPerAddress},
		sealer:  newSealer(cfg.ResumeKey),
		byJID:   make(map[jid.JID]*Session),
		byToken: make(map[string]*Session),
	}
}

// Deliver sends f to the session with the full address to. It reports whether there was one to take it.
func (srv *Server) Deliver(to jid.JID, f *xmpp.Frame) bool {
	s := srv.Session(to)
	return s != nil && s.Send(f)
}

// Session returns the session with a full address, or nil.
func (srv *Server) Session(j jid.JID) *Session {
	srv.mu.RLock()
	defer srv.mu.RUnlock()
	return srv.byJID[j]
}

// Stats are counts since the start, and of now.
type Stats struct {
	Sessions  int   // with an address, hibernating ones included
	HalfOpen  int   // sockets without an address
	Resumed   int64 // resumptions
	Revived   int64 // sessions of another process that went on here
	Refused   int64 // sockets refused because too many were half open
	Overflows int64 // sessions ended because their queue was full
	Throttled int64 // reads put off because of the rate
}

// Stats returns the counts.
func (srv *Server) Stats() Stats {
	srv.mu.RLock()
	n := len(srv.byJID)
	srv.mu.RUnlock()
	return Stats{n, srv.half.count(), srv.resumed.Load(), srv.revived.Load(), srv.refused.Load(), srv.overflows.Load(), srv.throttled.Load()}
}

// Close ends all sessions, tells their clients with the stream error system-shutdown (those that could go on
// elsewhere just lose their sockets, see Config.ResumeKey), and waits until the last Handler.Closed has returned, at most until ctx is done; then it closes what is left and waits.
func (srv *Server) Close(ctx context.Context) {
	srv.mu.Lock()
	srv.closed = true
	all := make([]*Session, 0, len(srv.byJID))
	for _, s := range srv.byJID {
		all = append(all, s)
	}
	srv.mu.Unlock()
	srv.half.clear()
	for _, s := range all {
		if srv.sealer != nil && s.id.Account == "" {
			s.Close("") // told that it is the end, the client would not come back
			continue
		}
		s.Close("system-shutdown")
	}
	done := make(chan struct{})
	go func() { srv.wg.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	for _, s := range all {
		s.mu.Lock()
		if s.conn != nil {
			s.conn.kill()
		}
		s.mu.Unlock()
	}
	<-done
}

// enter gives a new socket a place among the half-open ones; nil when there are too many. serve takes it
// back, or abandon does when there will be no serve.
func (srv *Server) enter(remote netip.Addr) *entrant {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.closed {
		return nil
	}
	e := srv.half.enter(remote, time.Now())
	if e == nil {
		srv.refused.Add(1)
		return nil
	}
	srv.wg.Add(1)
	return e
}

func (srv *Server) abandon(e *entrant) {
	srv.half.leave(e)
	srv.wg.Done()
}

// ServeHTTP takes a WebSocket. It does not wait for its end: a request with all that belongs to it would
// cost an idle session more than the session itself.
func (srv *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := srv.identity(r)
	if !strings.Contains(strings.ToLower(r.Header.Get("Sec-WebSocket-Protocol")), "xmpp") {
		http.Error(w, "this is XMPP over WebSocket: ask for the subprotocol xmpp", http.StatusBadRequest)
		return
	}
	place := srv.enter(id.Remote)
	if place == nil {
		// At a time of everybody's own, and by way of the door again.
		w.Header().Set("Retry-After", strconv.Itoa(2+rand.IntN(9)))
		w.Header().Set("Connection", "close")
		http.Error(w, "too many connections that have not logged in", http.StatusServiceUnavailable)
		return
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		srv.abandon(place)
		return // the upgrader has answered
	}
	sock := newWSSocket(ws, srv.cfg.StanzaBytes)
	c := newConn(srv, sock)
	c.id, c.previd = id, clip(r.URL.Query().Get("previd"))
	sock.heard = func() { c.heard.Store(time.Now().UnixNano()) }
	go srv.serve(c, place)
}

// identity takes what a request says about its sender. Region and address come from headers only when an
// edge wrote them (contracts, section 4).
func (srv *Server) identity(r *http.Request) Identity {
	q := r.URL.Query()
	id := Identity{Room: clip(q.Get("room")), Prefix: clip(q.Get("prefix"))}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		id.Remote = ap.Addr().Unmap()
	}
	if srv.Edge(id.Remote) {
		id.Region = clip(r.Header.Get("X-Proxy-Region"))
		hops := strings.Split(r.Header.Get("X-Forwarded-For"), ",")
		if a, err := netip.ParseAddr(strings.TrimSpace(hops[len(hops)-1])); err == nil {
			id.Remote = a.Unmap()
		}
	}
	return id
}

// Origin returns the address and the region that r comes from, both as identity has them.
func (srv *Server) Origin(r *http.Request) (remote netip.Addr, region string) {
	id := srv.identity(r)
	return id.Remote, id.Region
}

// Remote returns the address that r comes from: its peer's, or what a trusted edge says.
func (srv *Server) Remote(r *http.Request) netip.Addr { return srv.identity(r).Remote }

// FromEdge reports whether r comes from a trusted edge, so that its headers may be believed.
func (srv *Server) FromEdge(r *http.Request) bool {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && srv.Edge(ap.Addr().Unmap())
}

// Edge reports whether a is the address of a trusted edge.
func (srv *Server) Edge(a netip.Addr) bool {
	for _, p := range srv.cfg.Edges {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clip returns a copy of s, so that nothing keeps the request that it came with.
func clip(s string) string { return strings.Clone(s[:min(len(s), 1023)]) }

func allowAll(*http.Request) bool { return true }

// serve is the goroutine of one socket: it logs in, then owns a session until that has ended or another
// socket has taken it.
func (srv *Server) serve(c *conn, place *entrant) {
	defer srv.wg.Done()
	defer close(c.left)
	defer c.kill()
	s, err := srv.negotiate(c, place)
	if err != nil {
		srv.cfg.Log.Debug("not logged in", "err", err)
		return
	}
	s.own(c)
}

// negotiate logs in, within the time that there is for it.
func (srv *Server) negotiate(c *conn, place *entrant) (*Session, error) {
	defer srv.half.leave(place)
	if !srv.half.admit(place, c.kill) {
		return nil, net.ErrClosed
	}
	c.bucket = bucket{rate: float64(srv.cfg.Rate), burst: 8 * float64(srv.cfg.Rate)}
	c.heard.Store(time.Now().UnixNano())
	deadline := time.Now().Add(srv.cfg.Negotiation)
	c.sock.net().SetDeadline(deadline)
	n := negotiation{srv: srv, c: c}
	s, err := n.run()
	if err != nil {
		n.fail(err)
		return nil, err
	}
	if s.id.Account != "" {
		c.bucket.rate *= 64
		c.bucket.burst *= 64
		c.bucket.level = c.bucket.burst
	}
	return s, nil
}

// bind makes a session with an address. An older one with the same address is ended first: a bridge that
// comes back under its name is the same bridge.
func (srv *Server) bind(c *conn, id Identity) (*Session, error) {
	s := &Session{id: id, srv: srv, owner: c, done: make(chan struct{}), life: srv.life()}
	s.out.maxFrames, s.out.maxBytes = srv.cfg.QueueFrames, srv.cfg.QueueBytes
	for {
		srv.mu.Lock()
		if srv.closed {
			srv.mu.Unlock()
			return nil, streamError("system-shutdown")
		}
		old := srv.byJID[id.JID]
		if old == nil {
			srv.byJID[id.JID] = s
			srv.mu.Unlock()
			break
		}
		srv.mu.Unlock()
		old.Close("conflict")
		select {
		case <-old.done:
		case <-c.dead:
			return nil, net.ErrClosed
		}
	}
	s.log("session opened")
	srv.cfg.Handler.Opened(s)
	return s, nil
}

// own reads c until it ends, then keeps s until it ends or is taken over.
func (s *Session) own(c *conn) {
	c.sock.net().SetDeadline(time.Time{})
	s.mu.Lock()
	s.conn = c
	if s.ending {
		c.kill()
	}
	s.wakeLocked()
	s.mu.Unlock()
	watch := s.watch(c)
	if s.taken {
		s.srv.cfg.Handler.Resumed(s)
	}
	err := s.read(c)
	var cond streamError
	s.mu.Lock()
	switch {
	case errors.As(err, &cond):
		s.endLocked(string(cond), err.Error())
	case errors.Is(err, errBye):
		if !s.ending && s.next == nil {
			s.ending, s.reason = true, err.Error()
			s.out.finish(c.sock.farewell(nil, ""))
			c.hurry()
			s.wakeLocked()
		}
	default:
		c.kill() // dead, or killed by whoever ends the session or takes it over
	}
	c.closed = true
	s.mu.Unlock()
	watch.Stop()
	c.writers.Wait()

	s.mu.Lock()
	s.conn = nil
	s.out.reset()
	s.mu.Unlock()
	var late <-chan time.Time
	for {
		s.mu.Lock()
		switch {
		case s.next != nil && !s.ending:
			s.mu.Unlock()
			return // the other goroutine waits for c.left
		case s.ending || s.token == "":
			if !s.ending {
				s.ending, s.reason = true, "connection lost"
			}
			s.mu.Unlock()
			s.end()
			return
		}
		s.mu.Unlock()
		if late == nil {
			t := time.NewTimer(s.hibernation())
			defer t.Stop()
			late = t.C
			s.log("session hibernates", "err", err)
			if srv := s.srv; srv.cfg.Away != nil && s.id.Account != "" {
				srv.cfg.Away(s)
			}
		}
		select {
		case <-late:
			s.mu.Lock()
			if s.next == nil && !s.ending {
				s.ending, s.reason = true, "not resumed"
			}
			s.mu.Unlock()
		case <-c.called:
		}
	}
}

// end is the last thing that happens to a session.
func (s *Session) end() {
	srv := s.srv
	srv.mu.Lock()
	delete(srv.byJID, s.id.JID)
	delete(srv.byToken, s.token)
	srv.mu.Unlock()
	s.mu.Lock()
	s.out = queue{}
	reason := s.reason
	s.mu.Unlock()
	s.log("session closed", "reason", reason)
	srv.cfg.Handler.Closed(s)
	close(s.done)
}

// log tells operators of services, and of guests only when they look for something.
func (s *Session) log(msg string, args ...any) {
	level := slog.LevelInfo
	if s.id.Account == "" {
		level = slog.LevelDebug
	}
	s.srv.cfg.Log.Log(context.Background(), level, msg, append(args, "jid", s.id.JID.String())...)
}

func (s *Session) hibernation() time.Duration {
	if s.id.Account != "" {
		return s.srv.cfg.AccountHibernation
	}
	return s.srv.cfg.Hibernation
}

// take gives s a new socket: the old one is closed, what it had read is handled, and what the client has
// not seen is sent again on c. h is the client's count.
func (s *Session) take(c *conn, h uint32, previd string) error {
	s.handing.Lock()
	defer s.handing.Unlock()
	s.mu.Lock()
	if s.ending || s.token == "" || s.token != sessionID(previd) {
		s.mu.Unlock()
		return errGone
	}
	old := s.owner
	s.next = c
	if s.conn != nil {
		s.conn.kill()
	}
	old.call()
	s.mu.Unlock()
	<-old.left

	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.owner, s.taken = nil, c, true
	err := s.out.resume(h)
	if err != nil && !s.ending {
		// The client says that it has seen what was never sent: it is not the client that we knew.
		s.ending, s.reason = true, err.Error()
	}
	if !s.ending {
		s.out.control = append(s.out.control, resumed(previd, s.in))
		return nil
	}
	select {
	case <-s.done:
	default: // ended while it had no owner: ending it is left to us
		s.mu.Unlock()
		s.end()
		s.mu.Lock()
	}
	return errGone
}
