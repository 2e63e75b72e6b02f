// Package transport is the way to one peer: ICE, DTLS 1.2, SRTP and, where wanted, one SCTP data channel over
// a path that ICE chooses. Media is protected and unprotected in place on the core that owns the Transport;
// DTLS and SCTP are set-up and messages only, and run on goroutines of their own beside it.
//
//	             core goroutine                                        goroutines of the transport
//	Receive ─┬─ STUN ──► ice.Agent ──► outbox, path ───────────┐
//	         ├─ DTLS ──► pipe ────────────────────────────────►├─► handshake ─► keys (posted to the core)
//	         ├─ RTP ───► Opener, in place ──► the caller       └─► SCTP ──► OnMessage
//	         └─ RTCP ──► Opener, in place ──► the caller
//	SendRTP, SendRTCP ─► Sealer ──► outbox                         SendMessage ─► SCTP ─► pipe ─► socket
package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"

	"plenum/bridge/ice"
	"plenum/bridge/packet"
)

// State of a Transport.
type State uint8

const (
	Waiting     State = iota // for the peer's description
	Checking                 // ICE looks for a path
	Handshaking              // there is a path; DTLS is under way
	Connected                // media flows
	Failed                   // see Err; ICE's failure may still turn into success
	Closed
)

func (s State) String() string {
	return [...]string{"waiting", "checking", "handshaking", "connected", "failed", "closed"}[s]
}

// ErrICE is the error of a transport for which ICE has found no path.
var ErrICE = errors.New("ice: no path works")

// ErrRemote is wrapped by what SetRemote and Remote.Check return.
var ErrRemote = errors.New("bad transport description")

// A Remote is what the peer signalled. Parts may come one after the other; empty ones change nothing.
type Remote struct {
	Ufrag, Pwd   string
	Generation   int // of the credentials, where the peer tells it; 0 may be any
	Candidates   []ice.Candidate
	Fingerprints []Fingerprint
	Setup        string // "active": the peer is DTLS client; "passive": we are
}

// Check reports whether r can be used.
func (r Remote) Check() error {
	if (r.Ufrag == "") != (r.Pwd == "") {
		return fmt.Errorf("%w: ufrag without pwd, or the reverse", ErrRemote)
	}
	if len(r.Ufrag) > 256 || len(r.Pwd) > 256 {
		return fmt.Errorf("%w: ice credentials longer than 256", ErrRemote)
	}
	if len(r.Fingerprints) == 0 {
		return nil
	}
	switch r.Setup {
	case "active", "passive":
	default:
		return fmt.Errorf("%w: setup %q is neither active nor passive", ErrRemote, r.Setup)
	}
	for _, f := range r.Fingerprints {
		if _, ok := hashes[strings.ToLower(f.Hash)]; ok {
			return nil
		}
	}
	return fmt.Errorf("%w: no fingerprint with a known hash", ErrRemote)
}

// Config of a Transport. All callbacks are required unless said otherwise.
type Config struct {
	// Controlling is the ICE role to begin with.
	Controlling bool
	// SCTP says whether a data channel is served.
	SCTP bool
	// Identity is our certificate.
	Identity *Identity
	// Sockets are the local addresses by index, as in packet.Path.
	Sockets []netip.AddrPort
	// Tag is in all STUN transaction ids of this transport (ice.Peek).
	Tag uint32
	// Outbox takes what the owner's goroutine sends.
	Outbox *packet.Outbox
	// Send sends one datagram at once, from any goroutine.
	Send func(packet.Path, []byte)
	// Post runs f on the owner's goroutine, later and in order; false when that has ended.
	Post func(f func(now time.Time)) bool
	// OnState is called on the owner's goroutine after each change.
	OnState func(State)
	// OnPath is called on the owner's goroutine when packets begin to go another way than before. Optional.
	OnPath func()
	// OnMessage and OnChannel come from a goroutine of the transport and must not block. Required with SCTP.
	OnMessage func(text []byte)
	OnChannel func(open bool)
	// Rand is for ICE; nil is crypto/rand.
	Rand io.Reader
}

// Counters of a Transport, owned by the goroutine that owns it.
type Counters struct {
	RTP, RTCP           uint64 // authenticated packets in
	SentRTP, SentRTCP   uint64
	Auth, Replay, Short uint64 // SRTP and SRTCP packets refused, by reason
	Early               uint64 // media before there were keys; some of it is kept
	DTLS                uint64 // datagrams taken
	PipeFull            uint64 // DTLS datagrams dropped: no room, or from an address that has not authenticated
	Unknown             uint64 // neither STUN, DTLS, RTP nor RTCP
	Unsent              uint64 // packets for the peer before it was connected
}

// A Kind is what Receive found.
type Kind uint8

const (
	None      Kind = iota // nothing for the caller
	Authentic             // STUN that the peer wrote; whether it is at that address is open
	Proven                // STUN that answers ours: the peer is at that address
	RTP                   // a clear RTP packet is in Data
	RTCP                  // a clear compound packet is in Data
)

// A Transport is the way to one peer. One goroutine owns it, except where a method says otherwise.
type Transport struct {
	Counters

	cfg    Config
	agent  *ice.Agent
	pipe   *pipe
	state  State
	err    error
	path   packet.Path
	routed bool // path is set
	remote Remote
	role   string // of the peer in DTLS, once fixed

	early   []*packet.Buf // media from before there were keys; see TakeEarly
	sealer  *Sealer
	opener  *Opener
	profile Profile

	channel channel
	ctx     context.Context // ends with Close; kept because it is the goroutines', not a caller's
	cancel  context.CancelFunc
	group   sync.WaitGroup

	mu     sync.Mutex // guards what Close and the handshake's goroutine share
	conn   *dtls.Conn
	closed bool
	setup  atomic.Pointer[string] // ours, for descriptions
}

// New returns a transport that answers the peer's checks and keeps its early DTLS.
func New(cfg Config) (*Transport, error) {
	local, err := ice.NewCredentials(cfg.Rand)
	if err != nil {
		return nil, err
	}
	agent, err := ice.New(ice.Config{
		Controlling: cfg.Controlling, Local: local, Sockets: cfg.Sockets, Tag: cfg.Tag, Rand: cfg.Rand,
	})
	if err != nil {
		return nil, err
	}
	t := &Transport{cfg: cfg, agent: agent, pipe: newPipe(cfg.Send)}
	t.channel.onMessage, t.channel.onOpen = cfg.OnMessage, cfg.OnChannel
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Credentials are our side of ICE.
func (t *Transport) Credentials() ice.Credentials { return t.agent.Local() }

// RestartICE begins another generation of ICE with new local credentials, made from the old ones. Media goes on
// over the old path until the peer, told of them, has been found on a new one. Tick comes next.
func (t *Transport) RestartICE(local ice.Credentials, now time.Time) {
	t.remote.Ufrag, t.remote.Pwd = "", ""
	t.agent.Restart(local)
	t.settle(now)
}

// Fingerprint is that of our certificate. Any goroutine may call it.
func (t *Transport) Fingerprint() Fingerprint { return t.cfg.Identity.Fingerprint }

// Setup is our DTLS role for descriptions: "actpass" until the peer's is known. Any goroutine may call it.
func (t *Transport) Setup() string {
	if s := t.setup.Load(); s != nil {
		return *s
	}
	return "actpass"
}

// State says how far the transport is, Err why it failed.
func (t *Transport) State() State { return t.state }

// Err is the reason of Failed, nil in any other state.
func (t *Transport) Err() error { return t.err }

// Profile is the SRTP profile in use; 0 before Connected.
func (t *Transport) Profile() Profile { return t.profile }

// ICE gives the counters of the agent.
func (t *Transport) ICE() ice.Counters { return t.agent.Counters }

// Path is where packets go; false before there is one.
func (t *Transport) Path() (packet.Path, bool) { return t.path, t.routed }

// Knows reports whether the peer has authenticated from a path.
func (t *Transport) Knows(p packet.Path) bool { return t.agent.Knows(p) }

// Paths calls f for each path from which the peer has authenticated.
func (t *Transport) Paths(f func(packet.Path)) { t.agent.Paths(f) }

// SetRemote takes what the peer signalled. Tick comes next.
func (t *Transport) SetRemote(r Remote, now time.Time) error {
	if err := r.Check(); err != nil {
		return err
	}
	if len(r.Fingerprints) > 0 && t.role == "" {
		t.remote.Fingerprints, t.role = r.Fingerprints, r.Setup
		ours := "passive"
		if r.Setup == "passive" {
			ours = "active"
		}
		t.setup.Store(&ours)
	}
	if r.Generation != 0 && r.Generation != t.agent.Generation() {
		r.Ufrag, r.Candidates = "", nil // of a restart that another one has replaced
	}
	if r.Ufrag != "" {
		t.remote.Ufrag, t.remote.Pwd = r.Ufrag, r.Pwd
	}
	if t.remote.Ufrag != "" {
		t.agent.SetRemote(now, ice.Credentials{Ufrag: t.remote.Ufrag, Pwd: t.remote.Pwd}, r.Candidates)
	}
	t.settle(now)
	return nil
}

// Tick does what is due and returns when it is to be called next; after SetRemote and Receive of STUN, at once.
func (t *Transport) Tick(now time.Time) (next time.Time) {
	next = t.agent.Tick(now)
	t.settle(now)
	return next
}

// settle sends what ICE wants sent and follows its state.
func (t *Transport) settle(now time.Time) {
	for _, d := range t.agent.Output() {
		t.cfg.Outbox.Commit(d.Path, append(t.cfg.Outbox.Reserve(len(d.Data)), d.Data...))
	}
	if path, ok := t.agent.Selected(); ok && (!t.routed || path != t.path) {
		moved := t.routed
		t.path, t.routed = path, true
		t.pipe.setPath(path)
		if moved && t.cfg.OnPath != nil {
			t.cfg.OnPath()
		}
	}
	switch t.state {
	case Waiting, Checking, Failed:
		if t.err != nil && t.err != ErrICE {
			return
		}
		switch {
		case t.routed && t.role != "":
			t.become(Handshaking, nil)
			t.group.Go(t.run)
		case t.agent.State() == ice.Failed:
			t.become(Failed, ErrICE)
		case t.agent.State() != ice.Waiting:
			t.become(Checking, nil)
		}
	}
}

func (t *Transport) become(s State, err error) {
	if t.state == s || t.state == Closed {
		return
	}
	t.state, t.err = s, err
	t.cfg.OnState(s)
}

// run is the transport's goroutine: handshake, then the data channel until the connection ends.
func (t *Transport) run() {
	conn, s, err := handshake(t.ctx, t.pipe, t.cfg.Identity, t.role == "passive", t.remote.Fingerprints)
	if err != nil {
		t.cfg.Post(func(time.Time) { t.become(Failed, err) })
		return
	}
	defer conn.Close()
	t.mu.Lock()
	t.conn = conn
	closed := t.closed
	t.mu.Unlock()
	if closed || !t.cfg.Post(func(time.Time) { t.install(s) }) {
		return
	}
	if t.cfg.SCTP {
		t.channel.serve(conn)
	} else {
		discard(conn)
	}
	// The peer has closed DTLS, or we have. Media goes on as long as it comes: whether the peer is gone is
	// judged by its silence.
}

// discard reads to the end: nothing but alerts is expected. What is longer than a byte is an error that passes.
func discard(conn *dtls.Conn) {
	var b [1]byte
	for {
		var passes *dtls.TemporaryError
		if _, err := conn.Read(b[:]); err != nil && !errors.As(err, &passes) {
			return
		}
	}
}

// install begins SRTP with the keys of a handshake.
func (t *Transport) install(s secret) {
	sealer, err := NewSealer(s.profile, s.localKey, s.localSalt)
	if err != nil {
		t.become(Failed, err)
		return
	}
	opener, err := NewOpener(s.profile, s.remoteKey, s.remoteSalt)
	if err != nil {
		t.become(Failed, err)
		return
	}
	t.sealer, t.opener, t.profile = sealer, opener, s.profile
	t.become(Connected, nil)
}

// Receive takes one datagram. STUN and DTLS end here; after RTP or RTCP, b.Data is the clear packet, in place.
// It does not allocate for media.
func (t *Transport) Receive(b *packet.Buf, now time.Time) Kind {
	d := b.Data
	if len(d) < 2 {
		t.Unknown++
		return None
	}
	switch first := d[0]; { // RFC 7983 §7
	case first < 4:
		v := t.agent.Handle(now, b.Path, d)
		t.settle(now)
		switch v {
		case ice.Authentic:
			return Authentic
		case ice.Proven:
			return Proven
		}
		return None
	case first >= 20 && first < 64:
		// Only from where the peer has authenticated; anything else could fill the pipe.
		if t.agent.Knows(b.Path) && t.pipe.put(d) {
			t.DTLS++
		} else {
			t.PipeFull++
		}
		return None
	case first >= 128 && first < 192:
	default:
		t.Unknown++
		return None
	}
	if t.opener == nil {
		t.Early++
		if len(t.early) < maxEarly && t.agent.Knows(b.Path) {
			kept := &packet.Buf{Path: b.Path}
			kept.Data = kept.Space()[:copy(kept.Space(), d)]
			t.early = append(t.early, kept)
		}
		return None
	}
	kind := RTP
	var err error
	if pt := d[1] & 0x7f; pt >= 64 && pt < 96 { // RFC 5761 §4
		kind = RTCP
		d, err = t.opener.RTCP(d)
	} else {
		d, err = t.opener.RTP(d)
	}
	switch err {
	case nil:
	case ErrAuth:
		t.Auth++
		return None
	case ErrReplay:
		t.Replay++
		return None
	default:
		t.Short++
		return None
	}
	b.Data = d
	if kind == RTP {
		t.RTP++
	} else {
		t.RTCP++
	}
	if t.agent.Heard(now, b.Path) {
		t.settle(now)
	}
	return kind
}

// Sends reports whether the peer has sent authenticated packets of an SSRC.
func (t *Transport) Sends(ssrc uint32) bool {
	return t.opener != nil && (t.opener.ssrcs.m[ssrc] != nil || t.opener.reports.m[ssrc] != nil)
}

// maxEarly bounds the packets that are kept for want of keys: a key frame, and the sound that comes with it.
const maxEarly = 64

// TakeEarly returns what came in the moment between the peer's last handshake message and our reading it, to be received again
// once the transport is connected. They are the caller's.
func (t *Transport) TakeEarly() []*packet.Buf {
	early := t.early
	t.early = nil
	return early
}

// SendRTP seals one RTP packet towards the peer: header, and payload that may be shared. It does not allocate.
func (t *Transport) SendRTP(header, payload []byte) {
	if t.sealer == nil || !t.routed {
		t.Unsent++
		return
	}
	dst := t.cfg.Outbox.Reserve(len(header) + len(payload) + packet.MaxOverhead)
	if dst, err := t.sealer.RTP(dst, header, payload); err == nil {
		t.cfg.Outbox.Commit(t.path, dst)
		t.SentRTP++
	}
}

// SendRTCP seals one compound packet towards the peer.
func (t *Transport) SendRTCP(compound []byte) {
	if t.sealer == nil || !t.routed {
		t.Unsent++
		return
	}
	dst := t.cfg.Outbox.Reserve(len(compound) + packet.MaxOverhead)
	if dst, err := t.sealer.RTCP(dst, compound); err == nil {
		t.cfg.Outbox.Commit(t.path, dst)
		t.SentRTCP++
	}
}

// SendMessage queues one text message on the peer's data channel. Any goroutine may call it; it does not block:
// ErrNoChannel, ErrFull and ErrTooLong say why a message was not taken.
func (t *Transport) SendMessage(text []byte) error { return t.channel.send(text) }

// Close ends the transport; Wait waits until its goroutines have ended. The peer is told by a DTLS alert.
func (t *Transport) Close() {
	if t.state == Closed {
		return
	}
	t.become(Closed, nil)
	t.mu.Lock()
	t.closed = true
	conn := t.conn
	t.mu.Unlock()
	t.cancel()
	if conn == nil {
		t.pipe.Close()
		return
	}
	t.group.Go(func() {
		conn.Close() // sends the alert, then closes the pipe
		t.pipe.Close()
	})
}

// Wait blocks until all goroutines of a closed transport have ended. Any goroutine but the owner's may call it.
func (t *Transport) Wait() { t.group.Wait() }
