// Package count is clients that do not parse: each logs in over WebSocket as Jitsi's client does, joins a
// room, acknowledges what it is asked to, and counts the frames that come, telling a presence and whose it
// is from where the bytes are. So a few hundred of them cost less than the server that they measure, and
// twenty thousand fit beside it. It speaks to any XMPP server with a MUC, for comparison.
//
// It is for load and abuse tests; what a call is like is package client's business.
package count

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Config describes one client. URL is required; Room too, for Join.
type Config struct {
	// URL of the XMPP WebSocket, ws://HOST:PORT/PATH, or wss:// with TLS.
	URL string
	TLS *tls.Config
	// Domain to log in to. Default: "localhost". MUC and Focus default to "conference." and "focus." in
	// front of it.
	Domain, MUC, Focus string
	// Room is the local part of the room's address.
	Room string
	// Nick is the client's number in the room: its nick is the number in eight hexadecimal digits, and a
	// roster is counted by these numbers.
	Nick uint32
	// Crowd is how many clients a complete roster has; their numbers are 1 to Crowd.
	Crowd int
	// NoConference leaves the conference request out: a plain MUC.
	NoConference bool
	// NoManagement leaves stream management out.
	NoManagement bool
	// From, if valid, is the local address to connect from.
	From net.Addr
	// Header is added to the request, for what an edge would say.
	Header http.Header
}

func (c *Config) defaults() {
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&c.Domain, "localhost")
	def(&c.MUC, "conference."+c.Domain)
	def(&c.Focus, "focus."+c.Domain)
}

// ErrRefused says that the server answered a step of the login with something else than what it has to.
var ErrRefused = errors.New("count: refused")

// A Client is one connection. One goroutine at a time may use it; Counts and Close may be called from any.
type Client struct {
	cfg     Config
	conn    net.Conn
	jid     string
	managed bool

	// the reader's
	buf        []byte // what has been read and not looked at; starts small, grows with the traffic
	start, end int
	handled    uint32
	seen       []uint64 // the numbers whose presence has come, a bit each

	stanzas, presences, roster atomic.Int64
	bytes                      atomic.Int64
}

// Counts is what has come.
type Counts struct {
	Stanzas   int64 // messages, presences and IQs
	Presences int64
	Roster    int64 // different clients of the crowd, this one included, whose presence has come
	Bytes     int64
}

// Counts returns what has come so far.
func (c *Client) Counts() Counts {
	return Counts{c.stanzas.Load(), c.presences.Load(), c.roster.Load(), c.bytes.Load()}
}

// JID returns the full address that the server gave.
func (c *Client) JID() string { return c.jid }

// Dial connects, logs in and asks for the conference; ctx bounds all of it.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	cfg.defaults()
	c, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Now()) })
	err = c.login()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("client %d: %w", cfg.Nick, err)
	}
	return c, nil
}

// Open makes the WebSocket and nothing more: a half-open connection.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	cfg.defaults()
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "ws" && (u.Scheme != "wss" || cfg.TLS == nil) {
		return nil, fmt.Errorf("count: URL %q is not ws://HOST:PORT/PATH, nor wss with a configuration of TLS", cfg.URL)
	}
	d := net.Dialer{LocalAddr: cfg.From}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if until, ok := ctx.Deadline(); ok {
		conn.SetDeadline(until)
	}
	if u.Scheme == "wss" {
		secure := cfg.TLS.Clone()
		secure.ServerName = cmp.Or(secure.ServerName, u.Hostname())
		conn = tls.Client(conn, secure)
	}
	q := u.Query()
	if cfg.Room != "" {
		q.Set("room", cfg.Room)
	}
	u.RawQuery = q.Encode()
	var b bytes.Buffer
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: xmpp\r\n", u.RequestURI(), u.Host)
	cfg.Header.Write(&b)
	b.WriteString("\r\n")
	if _, err := conn.Write(b.Bytes()); err != nil {
		conn.Close()
		return nil, err
	}
	r := bufio.NewReaderSize(conn, 1<<10)
	answer, err := http.ReadResponse(r, nil)
	if err == nil && answer.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("%w: HTTP %s", ErrRefused, answer.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{cfg: cfg, conn: conn, buf: make([]byte, 1<<10), seen: make([]uint64, cfg.Crowd/64+1)}
	c.end, _ = r.Read(c.buf[:r.Buffered()]) // no server speaks first, so mostly nothing
	return c, nil
}

// login is what Jitsi's client says, in the same order.
func (c *Client) login() error {
	open := `<open to="` + c.cfg.Domain + `" version="1.0" xmlns="urn:ietf:params:xml:ns:xmpp-framing"/>`
	steps := []struct{ say, want, hear string }{
		{open, "ANONYMOUS", "features"},
		{`<auth mechanism="ANONYMOUS" xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>`, "<success", "<"},
		{open, "xmpp-bind", "features"},
		{`<iq id="_bind_auth_2" type="set" xmlns="jabber:client"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq>`, "<jid", "_bind_auth_2"},
	}
	if !c.cfg.NoManagement {
		steps = append(steps, struct{ say, want, hear string }{`<enable resume="true" xmlns="urn:xmpp:sm:3"/>`, "<enabled", "urn:xmpp:sm:3"})
	}
	for _, s := range steps {
		answer, err := c.Ask(s.say, s.hear)
		if err != nil {
			return err
		}
		if !bytes.Contains(answer, []byte(s.want)) {
			return fmt.Errorf("%w: %s", ErrRefused, answer)
		}
		if _, jid, ok := strings.Cut(string(answer), "<jid"); ok {
			_, jid, _ = strings.Cut(jid, ">")
			c.jid, _, _ = strings.Cut(jid, "<")
		}
	}
	c.managed = !c.cfg.NoManagement
	c.handled = 0
	if c.cfg.NoConference {
		return nil
	}
	return c.Conference(c.cfg.Room)
}

// Conference asks for a conference, which opens the room.
func (c *Client) Conference(room string) error {
	answer, err := c.Ask(`<iq id="conference" to="`+c.cfg.Focus+`" type="set" xmlns="jabber:client"><conference machine-uid="`+
		fmt.Sprintf("%032x", c.cfg.Nick)+`" room="`+room+`@`+c.cfg.MUC+`" xmlns="http://jitsi.org/protocol/focus"/></iq>`, "='conference'")
	if err == nil && !bytes.Contains(answer, []byte("ready='true'")) {
		err = fmt.Errorf("%w: %s", ErrRefused, answer)
	}
	return err
}

// Ask says something, if it is not empty, and returns the first frame with this in it; it is valid until the
// next call.
func (c *Client) Ask(say, hear string) ([]byte, error) {
	if say != "" {
		if err := c.Say(say); err != nil {
			return nil, err
		}
	}
	for {
		f, err := c.next()
		if err != nil {
			return nil, fmt.Errorf("waiting for %s: %w", hear, err)
		}
		if bytes.Contains(f, []byte(hear)) {
			return f, nil
		}
	}
}

// nick in the room.
func nick(n uint32) string { return fmt.Sprintf("%08x", n) }

// Join enters the room with the presence that the stock client sends. It does not wait.
func (c *Client) Join() error { return c.Presence(true) }

// Presence sends the presence, to join or as an update.
func (c *Client) Presence(join bool) error {
	x := ""
	if join {
		x = `<x xmlns="http://jabber.org/protocol/muc"/>`
	}
	return c.Say(`<presence to="` + c.cfg.Room + `@` + c.cfg.MUC + `/` + nick(c.cfg.Nick) + `" xmlns="jabber:client">` + x +
		`<stats-id>Aliyah-4WI</stats-id><c hash="sha-1" node="https://jitsi.org/jitsi-meet" ver="dtzK/3xhISaXUMVg59IpXxdvKyQ=" xmlns="http://jabber.org/protocol/caps"/>` +
		`<SourceInfo>{}</SourceInfo><jitsi_participant_codecList>av1,vp9,vp8,h264</jitsi_participant_codecList>` +
		`<nick xmlns="http://jabber.org/protocol/nick">Participant ` + strconv.Itoa(int(c.cfg.Nick)) + `</nick></presence>`)
}

// Say sends one text frame.
func (c *Client) Say(s string) error { return c.frame(1, []byte(s)) }

// frame masks with zero, which changes nothing.
func (c *Client) frame(opcode byte, payload []byte) error {
	b := make([]byte, 0, len(payload)+14)
	b = append(b, 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = append(b, 0x80|126)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b = append(b, 0x80|127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = append(b, 0, 0, 0, 0)
	_, err := c.conn.Write(append(b, payload...))
	return err
}

// SetDeadline bounds what follows; the zero time is no bound.
func (c *Client) SetDeadline(t time.Time) { c.conn.SetDeadline(t) }

// Until reads until f holds, which is asked whenever the socket has been read, or ctx is done.
func (c *Client) Until(ctx context.Context, f func(Counts) bool) error {
	c.conn.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Now()) })
	defer stop()
	for !f(c.Counts()) {
		if _, err := c.next(); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("client %d, %+v: %w", c.cfg.Nick, c.Counts(), err)
		}
		for c.buffered() {
			if _, err := c.next(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Complete holds for a client that has seen everybody.
func (c *Client) Complete(n Counts) bool { return n.Roster >= int64(c.cfg.Crowd) }

// Leave says goodbye, so that the server forgets the session at once, and closes the connection.
func (c *Client) Leave() {
	c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	c.Say(`<close xmlns="urn:ietf:params:xml:ns:xmpp-framing"/>`)
	c.conn.Close()
}

// Close closes the connection without a word, with a reset; the server keeps the session for a while.
func (c *Client) Close() {
	if t, ok := c.conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.conn.Close()
}

const (
	opText  = 1
	opClose = 8
	opPing  = 9
)

var errClosed = errors.New("closed by the server")

// header returns opcode, header length and payload length of the frame at the front of b; ok is false
// when the header is not complete.
func header(b []byte) (op byte, head, n int, ok bool) {
	if len(b) < 2 {
		return 0, 0, 0, false
	}
	op, head, n = b[0]&0x0f, 2, int(b[1]&0x7f)
	switch n {
	case 126:
		head = 4
	case 127:
		head = 10
	}
	if len(b) < head {
		return 0, 0, 0, false
	}
	switch n {
	case 126:
		n = int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		n = int(binary.BigEndian.Uint64(b[2:]) & (1<<30 - 1))
	}
	return op, head, n, true
}

// buffered reports whether a whole frame waits.
func (c *Client) buffered() bool {
	_, head, n, ok := header(c.buf[c.start:c.end])
	return ok && c.end-c.start >= head+n
}

// next returns the payload of the next text frame; it is valid until the next call.
func (c *Client) next() ([]byte, error) {
	for {
		b := c.buf[c.start:c.end]
		op, head, n, ok := header(b)
		if !ok || len(b) < head+n {
			if err := c.fill(head + n); err != nil {
				return nil, err
			}
			continue
		}
		c.start += head + n
		payload := b[head : head+n]
		switch op {
		case opText:
			return payload, c.take(payload)
		case opClose:
			return nil, errClosed
		case opPing:
			if err := c.frame(10, payload); err != nil {
				return nil, err
			}
		}
	}
}

// fill reads more, after making room for a frame of need bytes.
func (c *Client) fill(need int) error {
	if c.start > 0 {
		copy(c.buf, c.buf[c.start:c.end])
		c.start, c.end = 0, c.end-c.start
	}
	if c.end == len(c.buf) || need > len(c.buf) {
		c.buf = append(make([]byte, 0, max(4*len(c.buf), need)), c.buf[:c.end]...)
		c.buf = c.buf[:cap(c.buf)]
	}
	n, err := c.conn.Read(c.buf[c.end:])
	c.end += n
	c.bytes.Add(int64(n))
	if n > 0 {
		return nil
	}
	return err
}

// take counts one frame.
func (c *Client) take(f []byte) error {
	switch {
	case bytes.HasPrefix(f, []byte("<presence")):
		c.handled++
		c.stanzas.Add(1)
		c.presences.Add(1)
		c.meet(f)
	case bytes.HasPrefix(f, []byte("<iq")), bytes.HasPrefix(f, []byte("<message")):
		c.handled++
		c.stanzas.Add(1)
	case c.managed && bytes.HasPrefix(f, []byte("<r ")):
		return c.Say(`<a h="` + strconv.FormatUint(uint64(c.handled), 10) + `" xmlns="urn:xmpp:sm:3"/>`)
	}
	return nil
}

// meet notes whose presence f is.
func (c *Client) meet(f []byte) {
	_, rest, _ := bytes.Cut(f[:min(len(f), 512)], []byte("from='"))
	end := bytes.IndexByte(rest, '\'')
	if end < 9 || rest[end-9] != '/' {
		return
	}
	var n uint32
	for _, d := range rest[end-8 : end] {
		switch {
		case '0' <= d && d <= '9':
			n = n<<4 | uint32(d-'0')
		case 'a' <= d && d <= 'f':
			n = n<<4 | uint32(d-'a'+10)
		default:
			return
		}
	}
	if n == 0 || int(n) > c.cfg.Crowd {
		return
	}
	word, bit := n/64, uint64(1)<<(n%64)
	if c.seen[word]&bit == 0 {
		c.seen[word] |= bit
		c.roster.Add(1)
	}
}
