// Package session keeps XMPP sessions: over WebSocket for clients (RFC 7395) and over TCP for bridges,
// Jicofo, Jibri and Jigasi (RFC 6120), with logging in, binding and stream management (XEP-0198).
// What a stanza means is not its business: a Handler gets each one, in order, with the sender's address
// already put in. Package signaling is its only user.
//
//	          socket 1            socket 2 (resumption)
//	         ┌────────┐          ┌────────┐
//	reader ──┤ conn   │  writer  │ conn   │     one goroutine reads, for a burst one writes; the reader's owns
//	         └───┬────┘    ▲     └───┬────┘     the session and hands it on when a new socket resumes it
//	    Handler  │         │ queue   │
//	             ▼         │         ▼
//	         Session ──────┴───────────────     outlives a dead socket for Config.Hibernation
//
// A session ends at once on <close/>, </stream:stream>, a WebSocket close frame with a code, an error of
// its peer or Close; a socket that merely dies leaves it hibernating, if the client enabled resumption.
package session

import (
	"crypto/tls"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"plenum/signaling/auth"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// A Handler is told what sessions do. Calls for one session come one after the other, each from the
// goroutine that reads its socket at that time: a call that takes long holds up that one client's input,
// and nothing else. Calls for different sessions come at the same time.
type Handler interface {
	// Opened is called before the client is told its address: what is sent to it here arrives first.
	Opened(*Session)
	// Stanza takes an iq, message or presence; from is the session's full address. The element belongs
	// to the handler.
	Stanza(*Session, *xmpp.Element)
	// Resumed is called when a new socket has taken the session over, before anything is read from it.
	// For a session with Revived this is the first call, in the place of Opened.
	Resumed(*Session)
	// Closed is the last call: the session is gone for good and no longer in the table.
	Closed(*Session)
}

// Config says how sessions behave. The zero value of every field but Domain and Handler is usable.
type Config struct {
	// Domain is where guests log in without a password.
	Domain string
	// AccountDomains are where accounts log in: services, recorders.
	AccountDomains []string
	// Accounts are those that may log in.
	Accounts *auth.Accounts
	// Handler gets the stanzas.
	Handler Handler
	// Away, if set, is told of the session of an account that has lost its socket and waits for its client to come back.
	Away func(*Session)
	// TLS is offered to TCP peers as STARTTLS, and demanded of those that are not on loopback. nil: none.
	TLS *tls.Config
	// Edges are the addresses whose X-Forwarded-For and X-Proxy-Region are believed.
	Edges []netip.Prefix

	// Hibernation is how long a guest's session outlives its socket: 60 s. The client assumes that
	// nothing lives longer than 65 s.
	Hibernation time.Duration
	// AccountHibernation is the same for accounts: 15 s. A bridge that is gone must be seen gone.
	AccountHibernation time.Duration
	// Negotiation is the time from connecting to an address: 15 s.
	Negotiation time.Duration
	// Silence is how long a peer may be silent before it is asked for a sign of life: 15 s (the stock
	// client pings every 10 s). After twice that time its socket counts as dead.
	Silence time.Duration
	// WriteTimeout is how long a socket may refuse to take one batch before it counts as dead: 15 s.
	WriteTimeout time.Duration

	// HalfOpen bounds the sockets that have no address yet: 8192. When they are full, one that has taken
	// more than three seconds makes way for a new one; else the new one is refused.
	HalfOpen int
	// HalfOpenPerAddress is the same per remote address: 1024, so that a school behind one address gets
	// in at once. Sessions that are bound are never counted.
	HalfOpenPerAddress int
	// StanzaBytes is the longest element taken from a WebSocket: 64 KiB.
	StanzaBytes int
	// AccountStanzaBytes is the longest element taken from TCP: 256 KiB.
	AccountStanzaBytes int
	// Rate is what one guest may send per second: 32 KiB, burst 256 KiB; every element counts for at
	// least 256 bytes. More is not refused but read later. Accounts may send 64 times as much.
	Rate int
	// QueueFrames and QueueBytes bound what waits for one receiver, sent and unacknowledged stanzas
	// included: 8192 and 4 MiB. A broadcast stanza is one buffer, however many receivers wait for it.
	// A session whose queue overflows has lost a stanza and cannot be resumed: it is ended.
	QueueFrames, QueueBytes int

	// ResumeKey is a secret that all shards that a client may come to have, and the same one after a
	// restart: a guest's session can then be resumed by one that never knew it (Session.Revived). When the
	// server closes, guests are then not told that this is the end. Empty: sessions end with the process.
	ResumeKey []byte

	// Gate returns a number that changes when all that guests were told before is void, and 0 while nothing may
	// be said to them. It is asked before each write to a guest; a session of another number ends without a
	// word. nil: nothing is ever void.
	Gate func() uint64

	// Log gets a line when a session opens, resumes, hibernates or ends: at level info for accounts, debug
	// for guests. nil: none.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	def(&c.Hibernation, 60*time.Second)
	def(&c.AccountHibernation, 15*time.Second)
	def(&c.Negotiation, 15*time.Second)
	def(&c.Silence, 15*time.Second)
	def(&c.WriteTimeout, 15*time.Second)
	def(&c.HalfOpen, 8192)
	def(&c.HalfOpenPerAddress, 1024)
	def(&c.StanzaBytes, 64<<10)
	def(&c.AccountStanzaBytes, 256<<10)
	def(&c.Rate, 32<<10)
	def(&c.QueueFrames, 8192)
	def(&c.QueueBytes, 4<<20)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Identity is what does not change about a session.
type Identity struct {
	JID     jid.JID    // full address
	Account string     // bare address of the account; empty for a guest
	Room    string     // ?room= of the WebSocket's URL
	Prefix  string     // ?prefix= of it: the tenant
	Region  string     // from the edge's header; empty when there was none
	Remote  netip.Addr // the peer's address, as the edge saw it
}

// A Session is one client or service with an address. All methods may be called from any goroutine.
type Session struct {
	id   Identity
	srv  *Server
	sink func(*xmpp.Frame) bool // set: a local session, nothing below is used

	handing sync.Mutex    // held while a socket takes the session over
	done    chan struct{} // closed when the session has ended and Closed has returned
	revived bool
	life    uint64 // what Config.Gate said when it began

	mu     sync.Mutex
	out    queue
	in     uint32 // stanzas handled since stream management began
	conn   *conn  // nil while hibernating
	owner  *conn  // whose goroutine owns the session
	next   *conn  // is about to own it
	taken  bool   // has been resumed at least once
	token  string // its id in resumption tokens; empty: not resumable
	ending bool   // no more input, no resumption
	reason string // why, for the log
}

// Local returns a session without socket, for components of this process and for tests: what is sent to
// it goes to sink.
func Local(id Identity, sink func(*xmpp.Frame) bool) *Session { return &Session{id: id, sink: sink} }

// JID returns the full address.
func (s *Session) JID() jid.JID { return s.id.JID }

// Account returns the bare address of the account that logged in, or the empty string for a guest.
func (s *Session) Account() string { return s.id.Account }

// Room returns the room that the client named when it connected, as it wrote it.
func (s *Session) Room() string { return s.id.Room }

// Prefix returns the tenant that the client named when it connected.
func (s *Session) Prefix() string { return s.id.Prefix }

// Region returns the region that the edge saw the client in, or the empty string.
func (s *Session) Region() string { return s.id.Region }

// Remote returns the peer's address.
func (s *Session) Remote() netip.Addr { return s.id.Remote }

// Revived reports whether the session began in another process, which is gone: the client believes that it
// is in its room, and no room knows it.
func (s *Session) Revived() bool { return s.revived }

// Hibernating reports whether the session waits for its client to come back.
func (s *Session) Hibernating() bool {
	if s.sink != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn == nil
}

// Send queues f, which may be shared with other receivers. It never blocks. It reports false when the
// session has ended, or ends because its queue is full.
func (s *Session) Send(f *xmpp.Frame) bool {
	if s.sink != nil {
		return s.sink(f)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	if !s.out.push(f) {
		s.srv.overflows.Add(1)
		s.endLocked("", "queue overflow")
		return false
	}
	s.wakeLocked()
	return true
}

// Close ends the session; condition, if not empty, is the stream error that the client gets to see
// (RFC 6120, section 4.9.3). It does not wait; see Handler.Closed.
func (s *Session) Close(condition string) {
	if s.sink != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(condition, "closed: "+condition)
}

// endLocked makes the owning goroutine end the session. With a condition the writer gets a moment to say
// so; without one the socket is closed at once.
func (s *Session) endLocked(condition, reason string) {
	if s.ending {
		return
	}
	s.ending, s.reason = true, reason
	switch {
	case s.conn == nil: // hibernating, or not yet told its address
	case condition == "":
		s.conn.kill()
	default:
		s.out.finish(s.conn.sock.farewell(nil, condition))
		s.conn.hurry()
		s.wakeLocked()
	}
	if s.owner != nil {
		s.owner.call()
	}
}
