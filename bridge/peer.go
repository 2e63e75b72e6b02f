package bridge

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"time"

	"plenum/bridge/ice"
	"plenum/bridge/packet"
	"plenum/bridge/transport"
)

// maxPaths bounds the addresses under which one peer is routed at a time.
const maxPaths = 32

// heardEvery is how often an endpoint is told that its peer is alive, at most.
const heardEvery = 100 * time.Millisecond

var errStopped = errors.New("media has stopped")

// remote is what the other side signalled of its transport; parts may come one after the other.
type remote = transport.Remote

// A description is our side of a peer's transport, for signaling.
type description struct {
	Ufrag, Pwd  string
	Candidates  []candidate
	Generation  int // restarts of ICE so far
	Fingerprint transport.Fingerprint
	Setup       string // "actpass" until the role is fixed, then that
}

// peerConfig says how a peer is served. Callbacks may be nil.
type peerConfig struct {
	// Controlling is our ICE role to begin with: true towards clients.
	Controlling bool
	// SCTP says whether the peer may open a data channel.
	SCTP bool
	// Conference is the one that the peer's endpoint belongs to: flushed after each batch that had packets of
	// the peer. Required.
	Conference room
	// OnMessage and OnChannel come from a goroutine of the peer's transport and must not block.
	OnMessage func(text []byte)
	OnChannel func(open bool)
	// OnState comes on the core's goroutine. err is the reason of transport.Failed.
	OnState func(s transport.State, err error)
	Log     *slog.Logger
}

// A receiver takes a peer's media; *conference.Endpoint is one. Calls come on the core's goroutine.
type receiver interface {
	ReceiveRTP(b *packet.Buf, now time.Time)
	ReceiveRTCP(compound []byte, now time.Time)
	Heard(now time.Time)
	Connected(now time.Time)
	Moved(now time.Time)
}

// A peer is one client or bridge as the media side sees it: a transport, and the endpoint behind it. It is the
// endpoint's Leg.
type peer struct {
	m    *media
	core *core
	cfg  peerConfig
	t    *transport.Transport
	tag  uint32
	name string // with which all its local ufrags begin

	mu         sync.Mutex // guards what is to be described, which is changed before the core knows
	local      ice.Credentials
	generation int

	// The core's goroutine owns what follows.
	endpoint  receiver
	room      *hosted
	paths     []packet.Path // under which it is routed, oldest first
	due       time.Time     // of the next Tick
	heard     time.Time
	connected bool
	closed    bool
}

// newPeer makes a peer whose packets are handled on c, and from now on answers its checks.
func (m *media) newPeer(c *core, cfg peerConfig) (*peer, error) {
	if cfg.Conference == nil {
		return nil, errors.New("peer without a conference: nothing would forward what it sends")
	}
	id, err := m.identity(time.Now())
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = m.log
	}
	if cfg.OnMessage == nil {
		cfg.OnMessage = func([]byte) {}
	}
	if cfg.OnChannel == nil {
		cfg.OnChannel = func(bool) {}
	}
	for range 4 { // a collision of names, of which there are 2^60, or of tags, 2^32
		p := &peer{m: m, core: c, cfg: cfg}
		var tag [4]byte
		if _, err := rand.Read(tag[:]); err != nil {
			return nil, err
		}
		p.tag = binary.BigEndian.Uint32(tag[:])
		p.t, err = transport.New(transport.Config{
			Controlling: cfg.Controlling, SCTP: cfg.SCTP, Identity: id, Sockets: m.local, Tag: p.tag,
			Outbox: &c.out, Send: c.send, Post: p.do, OnState: p.stateChanged, OnPath: p.moved,
			OnMessage: cfg.OnMessage, OnChannel: cfg.OnChannel,
		})
		if err != nil {
			return nil, err
		}
		p.local = p.t.Credentials()
		p.name = p.local.Ufrag
		if !m.routes.add(p) {
			continue
		}
		c.load.Add(1)
		if !p.do(func(time.Time) { c.peers[p] = struct{}{} }) {
			m.routes.remove(p)
			c.load.Add(-1)
			return nil, errStopped
		}
		return p, nil
	}
	return nil, errors.New("no free ice name")
}

// describe is what the other side is to be told. Any goroutine may call it.
func (p *peer) describe() description {
	p.mu.Lock()
	defer p.mu.Unlock()
	return description{
		Ufrag: p.local.Ufrag, Pwd: p.local.Pwd, Generation: p.generation, Candidates: p.m.localCandidates(),
		Fingerprint: p.t.Fingerprint(), Setup: p.t.Setup(),
	}
}

// restartICE begins ICE anew and returns what the other side is to be told. Media goes on over the old path
// until the other side has answered with setRemote and is found on a new one. Any goroutine may call it.
func (p *peer) restartICE() (description, error) {
	p.mu.Lock()
	generation := p.generation + 1
	local, err := p.local.Next(generation, nil)
	if err == nil && !p.do(func(now time.Time) {
		if !p.closed {
			p.t.RestartICE(local, now)
			p.tick(now)
		}
	}) {
		err = errStopped
	}
	if err == nil {
		p.local, p.generation = local, generation
	}
	p.mu.Unlock()
	return p.describe(), err
}

// setRemote takes what the other side signalled. A description that cannot be used is an error at once.
// Any goroutine may call it.
func (p *peer) setRemote(r remote) error {
	if err := r.Check(); err != nil {
		return err
	}
	if !p.do(func(now time.Time) {
		if p.closed {
			return
		}
		if err := p.t.SetRemote(r, now); err != nil {
			p.cfg.Log.Warn("transport description refused", "err", err)
			return
		}
		p.tick(now)
	}) {
		return errStopped
	}
	return nil
}

// attach makes e the receiver of what the peer sends; nil ends that. Any goroutine may call it; it happens in
// order with core.do.
func (p *peer) attach(e receiver) {
	p.do(func(now time.Time) {
		if p.closed {
			return
		}
		p.endpoint = e
		p.room = p.core.host(p.cfg.Conference, now)
		if e != nil && p.connected {
			p.core.guard(p.room, func() { e.Connected(now) })
			p.late()
		}
	})
}

// sendMessage queues one text message on the peer's data channel. It never blocks; the error says why the
// message was not taken. Any goroutine may call it.
func (p *peer) sendMessage(text []byte) error { return p.t.SendMessage(text) }

// close ends the peer. Any goroutine may call it, also repeatedly.
func (p *peer) close() { p.do(func(time.Time) { p.core.drop(p) }) }

// do runs f on the core, as work on the peer's conference.
func (p *peer) do(f func(now time.Time)) bool { return p.core.doIn(p.cfg.Conference, f) }

// SendRTP implements conference.Leg.
func (p *peer) SendRTP(header, payload []byte) {
	p.t.SendRTP(header, payload)
	if p.core.out.Len() >= flushAt {
		p.core.flush()
	}
}

// SendRTCP implements conference.Leg.
func (p *peer) SendRTCP(compound []byte) { p.t.SendRTCP(compound) }

// receive takes one datagram on the core's goroutine.
func (p *peer) receive(b *packet.Buf, now time.Time) {
	if p.closed {
		return
	}
	switch kind := p.t.Receive(b, now); kind {
	case transport.RTP:
		if p.endpoint == nil {
			return
		}
		p.core.touch(p.room, now)
		p.hear(now)
		p.endpoint.ReceiveRTP(b, now)
	case transport.RTCP:
		if p.endpoint == nil {
			return
		}
		p.core.touch(p.room, now)
		p.hear(now)
		p.endpoint.ReceiveRTCP(b.Data, now)
	case transport.Authentic, transport.Proven:
		p.routed(b.Path, kind == transport.Proven)
		p.hear(now)
		p.tick(now)
	}
}

// late receives what came before there were keys.
func (p *peer) late() {
	for _, b := range p.t.TakeEarly() {
		p.core.guard(p.room, func() { p.receive(b, p.core.now) })
	}
}

// routed has packets from path brought to p.
func (p *peer) routed(path packet.Path, proven bool) {
	for _, q := range p.paths {
		if q == path && !proven {
			return
		}
	}
	if !p.m.routes.claim(path, p, proven) {
		p.core.Contested++
		return
	}
	for _, q := range p.paths {
		if q == path {
			return
		}
	}
	if len(p.paths) >= maxPaths {
		i := 0
		if used, ok := p.t.Path(); ok && p.paths[0] == used {
			i = 1
		}
		p.m.routes.release(p.paths[i], p)
		p.paths = append(p.paths[:i], p.paths[i+1:]...)
	}
	p.paths = append(p.paths, path)
}

func (p *peer) hear(now time.Time) {
	if p.endpoint != nil && now.Sub(p.heard) >= heardEvery {
		p.heard = now
		p.endpoint.Heard(now)
	}
}

func (p *peer) tick(now time.Time) {
	p.due = p.t.Tick(now)
	p.core.wakeAt(p.due)
}

// moved is called by the transport on the core's goroutine.
func (p *peer) moved() {
	if p.endpoint != nil {
		p.core.guard(p.room, func() { p.endpoint.Moved(p.core.now) })
	}
}

// stateChanged is called by the transport on the core's goroutine.
func (p *peer) stateChanged(s transport.State) {
	err := p.t.Err()
	switch s {
	case transport.Failed:
		p.cfg.Log.Warn("transport failed", "err", err)
	case transport.Connected:
		p.connected = true
		if p.endpoint != nil {
			p.core.guard(p.room, func() { p.endpoint.Connected(p.core.now) })
			p.late()
		}
	}
	if p.cfg.OnState != nil {
		p.cfg.OnState(s, err)
	}
}
