package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

const (
	writeTimeout = 10 * time.Second
	maxUnacked   = 1000 // stanzas kept for a resumption
	askEvery     = 5    // own stanzas between two <r/>, as the stock client
)

// A stream is the XMPP side of a participant over any number of sockets: it counts and keeps stanzas for
// resumption (XEP-0198). It belongs to the participant's goroutine.
type stream struct {
	link    *link // nil between a loss and the resumption
	jid     jid.JID
	smID    string // empty without stream management
	handled uint32 // stanzas received
	sent    uint32 // stanzas sent
	acked   uint32 // of those, acknowledged
	unacked [][]byte
	heard   time.Time // when anything came
}

// A link is one WebSocket that has logged in.
type link struct {
	ws   *websocket.Conn
	raw  *gate
	done chan struct{} // closed when its reader has ended
}

// target is where sockets are opened.
type target struct {
	ws     string // URL without query
	query  url.Values
	domain string
	dialer websocket.Dialer
	cut    *cutter
}

// dial opens a socket and logs in. A non-empty previous resumes a stream of which handled stanzas were received.
func (t *target) dial(ctx context.Context, previous string, handled uint32) (*link, *xmpp.Negotiation, error) {
	query := url.Values{}
	for k, v := range t.query {
		query[k] = v
	}
	if previous != "" {
		query.Set("previd", previous)
	}
	var raw *gate
	stop := func() bool { return true }
	dialer := t.dialer
	dialer.Subprotocols = []string{"xmpp"}
	dialer.NetDialContext = func(handshake context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(handshake, network, addr)
		if err != nil {
			return nil, err
		}
		raw = t.cut.wrap(c)
		stop = context.AfterFunc(ctx, func() { _ = raw.Close() }) // no deadline wakes a held connection
		return raw, nil
	}
	ws, _, err := dialer.DialContext(ctx, t.ws+"?"+query.Encode(), nil)
	defer func() { stop() }()
	if err != nil {
		return nil, nil, fmt.Errorf("websocket: %w", err)
	}
	if ws.Subprotocol() != "xmpp" {
		_ = ws.Close()
		return nil, nil, errors.New("websocket: subprotocol xmpp was not taken")
	}
	ws.SetReadLimit(4 << 20)
	l := &link{ws: ws, raw: raw, done: make(chan struct{})}
	n := xmpp.NewNegotiation(xmpp.NegotiationConfig{
		Domain: t.domain, Framing: xmpp.WebSocket, StreamManagement: true, PreviousID: previous, Handled: handled,
	})
	if err := l.negotiate(n); err != nil {
		_ = ws.Close()
		return nil, nil, fmt.Errorf("log in: %w", err)
	}
	return l, n, nil
}

func (l *link) negotiate(n *xmpp.Negotiation) error {
	for _, b := range n.Start() {
		if err := l.write(b); err != nil {
			return err
		}
	}
	for {
		e, err := l.read()
		if err != nil {
			return err
		}
		out, done, err := n.Step(e)
		if err != nil {
			return err
		}
		for _, b := range out {
			if err := l.write(b); err != nil {
				return err
			}
		}
		if done {
			return nil
		}
	}
}

func (l *link) read() (*xmpp.Element, error) {
	typ, b, err := l.ws.ReadMessage()
	if err != nil {
		return nil, err
	}
	if typ != websocket.TextMessage {
		return nil, errors.New("binary websocket message")
	}
	return xmpp.Parse(bytes.TrimSpace(b), xmpp.Limits{Bytes: 4 << 20, Elements: 1 << 16})
}

func (l *link) write(b []byte) error {
	_ = l.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	return l.ws.WriteMessage(websocket.TextMessage, b)
}

// reset drops the socket without a close frame.
func (l *link) reset() {
	if tcp, ok := l.raw.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = l.raw.Close()
}

// began adopts a socket on which the stream was bound.
func (s *stream) began(l *link, n *xmpp.Negotiation) {
	*s = stream{link: l, jid: n.JID(), smID: n.Managed(), heard: time.Now()}
}

// resumed adopts a socket on which the stream goes on, and sends again what the server has not got.
func (s *stream) resumed(l *link, handled uint32) error {
	s.link, s.heard = l, time.Now()
	if err := s.ack(handled); err != nil {
		return err
	}
	for _, b := range s.unacked {
		if err := l.write(b); err != nil {
			return err
		}
	}
	return nil
}

// ack drops what the server has acknowledged.
func (s *stream) ack(h uint32) error {
	n := h - s.acked
	if int(n) > len(s.unacked) {
		return fmt.Errorf("server acknowledges %d of %d stanzas", h, s.sent)
	}
	s.acked, s.unacked = h, s.unacked[n:]
	return nil
}

// send writes a stanza, or keeps it for the resumption when there is no socket now.
func (s *stream) send(e *xmpp.Element) error {
	b := e.Append(nil)
	if s.smID != "" && e.IsStanza() {
		if len(s.unacked) == maxUnacked {
			return errors.New("too many unacknowledged stanzas")
		}
		s.unacked = append(s.unacked, b)
		s.sent++
	}
	if s.link == nil {
		if s.smID == "" {
			return ErrClosed
		}
		return nil
	}
	if err := s.link.write(b); err != nil {
		return err
	}
	if s.smID != "" && s.sent%askEvery == 0 {
		return s.link.write(xmpp.New(xmpp.NSSM, "r").Append(nil))
	}
	return nil
}

// received counts what came and answers stream management; it reports whether e is a stanza for others.
func (s *stream) received(e *xmpp.Element) (stanza bool, err error) {
	s.heard = time.Now()
	switch {
	case e.IsStanza():
		s.handled++
		return true, nil
	case e.Is(xmpp.NSSM, "r"):
		return false, s.link.write(xmpp.New(xmpp.NSSM, "a").SetInt("h", int64(s.handled)).Append(nil))
	case e.Is(xmpp.NSSM, "enabled"): // a newer token
		s.smID = e.Attr("id")
	case e.Is(xmpp.NSSM, "a"):
		var h uint32
		if _, err := fmt.Sscanf(e.Attr("h"), "%d", &h); err != nil {
			return false, fmt.Errorf("acknowledgement: %w", err)
		}
		return false, s.ack(h)
	case e.Is(xmpp.NSFraming, "close"):
		return false, xmpp.ErrClosed
	}
	if err, ok := xmpp.ParseStreamError(e); ok {
		return false, err
	}
	return false, nil
}

// A cutter makes the TCP connections of a participant fall silent, as a network without a route does:
// nothing is lost, everything waits.
type cutter struct {
	mu    sync.Mutex
	cut   bool
	woken *sync.Cond
	gates map[*gate]struct{}
}

func newCutter() *cutter {
	c := &cutter{gates: map[*gate]struct{}{}}
	c.woken = sync.NewCond(&c.mu)
	return c
}

func (c *cutter) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	if !cut {
		for g := range c.gates {
			if len(g.pending) > 0 {
				b := g.pending
				g.pending = nil
				_, _ = g.Conn.Write(b) // an error comes back on the next write
			}
		}
	}
	c.woken.Broadcast()
}

// close breaks all connections.
func (c *cutter) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for g := range c.gates {
		g.closeLocked()
	}
}

func (c *cutter) wrap(conn net.Conn) *gate {
	g := &gate{Conn: conn, cutter: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gates[g] = struct{}{}
	return g
}

// A gate is a TCP connection that can be held.
type gate struct {
	net.Conn
	cutter  *cutter
	pending []byte // written while cut; guarded by cutter.mu
	closed  bool
}

func (g *gate) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	c := g.cutter
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.cut && !g.closed {
		c.woken.Wait()
	}
	if g.closed {
		return 0, net.ErrClosed
	}
	return n, err
}

func (g *gate) Write(b []byte) (int, error) {
	c := g.cutter
	c.mu.Lock()
	if c.cut && !g.closed {
		g.pending = append(g.pending, b...)
		c.mu.Unlock()
		return len(b), nil
	}
	c.mu.Unlock()
	return g.Conn.Write(b)
}

func (g *gate) Close() error {
	g.cutter.mu.Lock()
	defer g.cutter.mu.Unlock()
	return g.closeLocked()
}

func (g *gate) closeLocked() error {
	g.closed, g.pending = true, nil
	delete(g.cutter.gates, g)
	g.cutter.woken.Broadcast()
	return g.Conn.Close()
}
