package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"plenum/signaling/auth"
	"plenum/wire/xmpp"
)

// recorder is a Handler that notes what happens and answers nothing unless told to.
type recorder struct {
	mu     sync.Mutex
	events []string
	last   *Session
	open   func(*Session)
	stanza func(*Session, *xmpp.Element)
}

func (h *recorder) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, fmt.Sprintf(format, args...))
}

// take returns the events since the last call and forgets them.
func (h *recorder) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strings.Join(h.events, "; ")
	h.events = nil
	return s
}

func (h *recorder) session() *Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

func (h *recorder) Opened(s *Session) {
	h.mu.Lock()
	h.last = s
	h.mu.Unlock()
	h.note("opened")
	if h.open != nil {
		h.open(s)
	}
}

func (h *recorder) Stanza(s *Session, el *xmpp.Element) {
	if h.stanza != nil {
		h.stanza(s, el)
		return
	}
	h.note("%s %s", el.Name, el.Attr("id"))
}

func (h *recorder) Resumed(*Session) { h.note("resumed") }
func (h *recorder) Closed(*Session)  { h.note("closed") }

// bed is a Server on connections in memory: net.Pipe holds no bytes, so a client that does not read blocks
// the server at once, and in a synctest bubble time passes only when everybody waits.
type bed struct {
	*testing.T
	h     *recorder
	srv   *Server
	conns chan net.Conn
	http  *http.Server
	wg    sync.WaitGroup
}

func newBed(t *testing.T, change ...func(*Config)) *bed {
	t.Helper()
	accounts, err := auth.NewAccounts("auth.localhost", []string{"jvb:secret"})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{T: t, h: &recorder{}, conns: make(chan net.Conn)}
	cfg := Config{Domain: "localhost", AccountDomains: []string{"auth.localhost"}, Accounts: accounts, Handler: b.h}
	for _, f := range change {
		f(&cfg)
	}
	b.srv = New(cfg)
	b.http = &http.Server{Handler: b.srv}
	b.wg.Go(func() { b.http.Serve(b) })
	t.Cleanup(b.close)
	return b
}

func (b *bed) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	b.srv.Close(ctx)
	b.http.Close()
	b.wg.Wait()
}

func (b *bed) Accept() (net.Conn, error) {
	c, ok := <-b.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (b *bed) Close() error   { close(b.conns); return nil }
func (b *bed) Addr() net.Addr { return &net.TCPAddr{} }

// client is a scripted WebSocket client.
type client struct {
	*testing.T
	ws  *websocket.Conn
	raw net.Conn
}

func (b *bed) dial(query string) *client {
	b.Helper()
	c, resp, err := b.tryDial(query)
	if err != nil {
		b.Fatalf("dial: %v %v", err, resp)
	}
	return c
}

func (b *bed) tryDial(query string) (*client, *http.Response, error) {
	here, there := net.Pipe()
	d := websocket.Dialer{
		Subprotocols:   []string{"xmpp"},
		NetDialContext: func(context.Context, string, string) (net.Conn, error) { b.conns <- there; return here, nil },
	}
	ws, resp, err := d.Dial("ws://localhost/xmpp-websocket"+query, nil)
	if err != nil {
		return nil, resp, err
	}
	if ws.Subprotocol() != "xmpp" {
		b.Errorf("subprotocol %q", ws.Subprotocol())
	}
	return &client{b.T, ws, here}, resp, nil
}

func (c *client) send(s string) {
	c.Helper()
	if err := c.ws.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
		c.Fatalf("send %.100s: %v", s, err)
	}
}

func (c *client) recv() string {
	c.Helper()
	_, b, err := c.ws.ReadMessage()
	if err != nil {
		c.Fatalf("recv: %v", err)
	}
	return string(b)
}

var (
	hexadecimal = regexp.MustCompile(`[0-9a-f]{24}`)
	uuid        = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
)

// want compares the next message with want, in which TOKEN and UUID stand for random values.
func (c *client) want(want string) {
	c.Helper()
	got := uuid.ReplaceAllString(hexadecimal.ReplaceAllString(c.recv(), "TOKEN"), "UUID")
	if got != want {
		c.Fatalf("got  %s\nwant %s", got, want)
	}
}

// ended reads until the socket ends and returns the messages and the close code.
func (c *client) ended() (messages []string, code int) {
	c.Helper()
	for {
		_, b, err := c.ws.ReadMessage()
		if err == nil {
			messages = append(messages, string(b))
			continue
		}
		var ce *websocket.CloseError
		if errors.As(err, &ce) {
			code = ce.Code
		}
		return messages, code
	}
}

const (
	openIn         = `<open to="localhost" version="1.0" xmlns="urn:ietf:params:xml:ns:xmpp-framing"/>`
	openOut        = `<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='localhost' id='TOKEN' version='1.0' xml:lang='en'/>`
	anonymous      = `<auth mechanism="ANONYMOUS" xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>`
	bindIn         = `<iq id="_bind_auth_2" type="set" xmlns="jabber:client"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq>`
	enableIn       = `<enable resume="true" xmlns="urn:xmpp:sm:3"/>`
	askIn          = `<r xmlns="urn:xmpp:sm:3"/>`
	streamErrorXML = `<stream:error xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><%s xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>`
)

// login takes the client up to the second features.
func (c *client) login() {
	c.Helper()
	c.send(openIn)
	c.want(openOut)
	c.want(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>ANONYMOUS</mechanism></mechanisms></stream:features>`)
	c.send(anonymous)
	c.want(`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`)
	c.send(openIn)
	c.want(openOut)
	c.want(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/></stream:features>`)
}

// join logs in, binds and enables stream management; it returns the resumption token.
func (c *client) join() (token string) {
	c.Helper()
	c.login()
	c.send(bindIn)
	c.want(`<iq xmlns='jabber:client' type='result' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid xmlns='urn:ietf:params:xml:ns:xmpp-bind'>UUID@localhost/TOKEN</jid></bind></iq>`)
	c.send(enableIn)
	return hexadecimal.FindString(c.recv())
}

func message(id string) *xmpp.Frame {
	return xmpp.NewFrame(xmpp.Message("", id, "", ""))
}

// bubble runs f in a synctest bubble.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
