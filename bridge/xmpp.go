package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

const (
	nsMUC      = "http://jabber.org/protocol/muc"
	nsMUCUser  = "http://jabber.org/protocol/muc#user"
	nsMUCOwner = "http://jabber.org/protocol/muc#owner"
	nsData     = "jabber:x:data"

	// negotiationTimeout is for everything from dialling to the join.
	negotiationTimeout = 15 * time.Second
	// A server that does not read for so long is given up.
	xmppWriteTimeout = 10 * time.Second
)

var (
	errNoPong  = errors.New("no answer to a ping")
	errRemoved = errors.New("removed from the brewery")
)

// validate fills defaults, and brings the brewery's address into canonical form.
func (s *Shard) validate(relayID string) error {
	if s.Addr == "" || s.Domain == "" || s.User == "" {
		return errors.New("needs an address, a domain and a user")
	}
	if s.Nick == "" {
		s.Nick = relayID
	}
	room, err := jid.Parse(s.Brewery)
	if err != nil || !room.IsBare() || room.Local() == "" {
		return fmt.Errorf("brewery %q is not the address of a room", s.Brewery)
	}
	s.Brewery = room.String()
	if _, err := room.WithResource(s.Nick); err != nil {
		return fmt.Errorf("nickname %q: %w", s.Nick, err)
	}
	return nil
}

// A shardClient is the bridge in one shard's brewery: it reports there and takes colibri2 requests from there.
//
//	reader goroutine ──elements──► run's loop ──► control's lanes
//	                                  ▲                 │
//	                                  └────answers──────┘   all writing is in the loop
type shardClient struct {
	b     *Bridge
	cfg   Shard
	log   *slog.Logger
	room  jid.JID // the brewery, bare
	nick  jid.JID // our occupant
	poked chan struct{}

	mu                sync.Mutex
	connected, joined bool
}

func newShardClient(b *Bridge, cfg Shard) *shardClient {
	c := &shardClient{
		b: b, cfg: cfg, log: b.log.With("shard", cfg.Addr),
		room: jid.MustParse(cfg.Brewery), poked: make(chan struct{}, 1),
	}
	c.nick, _ = c.room.WithResource(cfg.Nick) // validated
	return c
}

// status says how far the client is.
func (c *shardClient) status() (connected, joined bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected, c.joined
}

func (c *shardClient) setStatus(connected, joined bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connected, c.joined = connected, joined
}

// poke has presence sent soon.
func (c *shardClient) poke() {
	select {
	case c.poked <- struct{}{}:
	default:
	}
}

// run keeps a session until ctx ends.
func (c *shardClient) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.session(ctx)
		connected, _ := c.status()
		c.setStatus(false, false)
		if ctx.Err() != nil {
			return
		}
		if connected {
			c.b.metrics.xmppDisconnect.Add(1)
		}
		level := slog.LevelWarn
		if e := (xmpp.StreamError{}); errors.As(err, &e) && e.Condition == "system-shutdown" {
			level = slog.LevelInfo // it said so
		}
		c.log.Log(ctx, level, "no session with the shard", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(c.b.cfg.ReconnectDelay):
		}
	}
}

// session connects, joins and serves until the stream or ctx ends.
func (c *shardClient) session(ctx context.Context) error {
	dialer := net.Dialer{Timeout: negotiationTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", c.cfg.Addr)
	if err != nil {
		return err
	}
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(negotiationTimeout))
	unblock := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	secure, d, early, err := c.negotiate(conn)
	conn = secure
	if !unblock() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	s := &stream{c: c, conn: conn, wake: make(chan struct{}, 1)}
	c.setStatus(true, false)
	c.log.Info("connected to the shard")
	return s.run(ctx, d, early)
}

// negotiate logs in, by TLS if the server wants that. The connection it returns is the one to close.
func (c *shardClient) negotiate(conn net.Conn) (net.Conn, *xmpp.Decoder, []*xmpp.Element, error) {
	d := xmpp.NewDecoder(conn, xmpp.Limits{})
	mechanisms := []string{"SCRAM-SHA-256", "SCRAM-SHA-1"}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		mechanisms = append(mechanisms, "PLAIN")
	}
	n := xmpp.NewNegotiation(xmpp.NegotiationConfig{
		Domain: c.cfg.Domain, Framing: xmpp.TCP, User: c.cfg.User, Password: c.cfg.Password, Mechanisms: mechanisms,
	})
	out, done := n.Start(), false
	for {
		for _, b := range out {
			if _, err := conn.Write(b); err != nil {
				return conn, nil, nil, err
			}
		}
		if done {
			return conn, d, n.Early(), nil
		}
		e, err := d.Next()
		if err != nil {
			return conn, nil, nil, err
		}
		if _, already := conn.(*tls.Conn); !already && e.Is(xmpp.NSStream, "features") && e.Child(xmpp.NSTLS, "starttls") != nil {
			secure, err := c.startTLS(conn, d)
			if err != nil {
				return conn, nil, nil, err
			}
			conn, d = secure, xmpp.NewDecoder(secure, xmpp.Limits{})
			n = xmpp.NewNegotiation(xmpp.NegotiationConfig{
				Domain: c.cfg.Domain, Framing: xmpp.TCP, User: c.cfg.User, Password: c.cfg.Password,
			})
			out = n.Start()
			continue
		}
		if out, done, err = n.Step(e); err != nil {
			return conn, nil, nil, err
		}
	}
}

// startTLS is RFC 6120, 5.4.
func (c *shardClient) startTLS(conn net.Conn, d *xmpp.Decoder) (net.Conn, error) {
	if _, err := conn.Write(xmpp.New(xmpp.NSTLS, "starttls").Append(nil)); err != nil {
		return nil, err
	}
	e, err := d.Next()
	if err != nil {
		return nil, err
	}
	if !e.Is(xmpp.NSTLS, "proceed") {
		return nil, fmt.Errorf("starttls: %s", e.Name)
	}
	secure := tls.Client(conn, &tls.Config{ServerName: c.cfg.Domain, InsecureSkipVerify: c.cfg.InsecureTLS})
	return secure, secure.Handshake()
}

// A stream is one session from the join on.
type stream struct {
	c    *shardClient
	conn net.Conn
	wake chan struct{} // something is in answers; capacity 1

	mu      sync.Mutex
	answers []*xmpp.Element // from the lanes
	over    bool            // nobody will send them

	pings  int
	ponged bool
}

func (s *stream) run(ctx context.Context, d *xmpp.Decoder, early []*xmpp.Element) error {
	elements := make(chan *xmpp.Element, 64)
	lost := make(chan error, 1)
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			e, err := d.Next()
			if err != nil {
				lost <- err
				return
			}
			select {
			case elements <- e:
			case <-stop:
				return
			}
		}
	})
	defer func() {
		s.mu.Lock()
		s.over, s.answers = true, nil
		s.mu.Unlock()
		close(stop)
		s.conn.Close()
		reader.Wait()
	}()

	presence := time.NewTicker(s.c.b.cfg.PresenceInterval)
	defer presence.Stop()
	ping := time.NewTicker(s.c.b.cfg.PingInterval)
	defer ping.Stop()
	s.ponged = true
	if err := s.send(s.presence(xmpp.New(nsMUC, "x"))); err != nil {
		return err
	}
	for _, e := range early {
		if err := s.take(e); err != nil {
			return err
		}
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			s.goodbye()
			return ctx.Err()
		case err = <-lost:
		case e := <-elements:
			err = s.take(e)
		case <-s.wake:
			err = s.flush()
		case <-presence.C:
			err = s.report()
		case <-s.c.poked:
			err = s.report()
		case <-ping.C:
			if !s.ponged {
				return errNoPong
			}
			s.pings++
			s.ponged = false
			err = s.send(xmpp.IQ("get", s.pingID(), "", s.c.cfg.Domain, xmpp.New(xmpp.NSPing, "ping")))
		}
		if err != nil {
			return err
		}
	}
}

func (s *stream) pingID() string { return "ping-" + strconv.Itoa(s.pings) }

// presence is ours with statistics. That of the join has an <x/> besides, later ones must not.
func (s *stream) presence(more ...*xmpp.Element) *xmpp.Element {
	return xmpp.Presence("", "", "", s.c.nick.String(), append(more, s.c.b.metrics.stats().wire().Element())...)
}

func (s *stream) report() error {
	if _, joined := s.c.status(); !joined {
		return nil
	}
	return s.send(s.presence())
}

// goodbye leaves in order: a focus then moves what is here at once.
func (s *stream) goodbye() {
	s.flush()
	s.send(xmpp.Presence("unavailable", "", "", s.c.nick.String()))
	s.write([]byte(xmpp.StreamEnd))
}

func (s *stream) send(e *xmpp.Element) error { return s.write(e.Append(nil)) }

func (s *stream) write(b []byte) error {
	s.conn.SetWriteDeadline(time.Now().Add(xmppWriteTimeout))
	_, err := s.conn.Write(b)
	return err
}

// answer queues e from any goroutine, in order. It is dropped if the stream is over: the focus has lost it too.
func (s *stream) answer(e *xmpp.Element) {
	s.mu.Lock()
	if !s.over {
		s.answers = append(s.answers, e)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *stream) flush() error {
	s.mu.Lock()
	answers := s.answers
	s.answers = nil
	s.mu.Unlock()
	var b []byte
	for _, e := range answers {
		b = e.Append(b)
	}
	if len(b) == 0 {
		return nil
	}
	return s.write(b)
}

// take handles one element of the server.
func (s *stream) take(e *xmpp.Element) error {
	if err, ok := xmpp.ParseStreamError(e); ok {
		return err
	}
	switch {
	case e.IsRequest():
		s.request(e)
		return nil
	case e.Is(xmpp.NSClient, "iq"):
		if e.Attr("id") == s.pingID() { // an error is an answer, too
			s.ponged = true
		}
		return nil
	case e.Is(xmpp.NSClient, "presence"):
		return s.occupant(e)
	}
	return nil
}

// occupant watches our own presence in the brewery; that of others does not matter.
func (s *stream) occupant(e *xmpp.Element) error {
	from, err := jid.Parse(e.Attr("from"))
	if err != nil || from != s.c.nick {
		return nil
	}
	switch e.Attr("type") {
	case "error":
		err, _ := xmpp.ParseError(e)
		return fmt.Errorf("brewery: %w", err)
	case "unavailable":
		return errRemoved
	}
	if _, joined := s.c.status(); joined {
		return nil
	}
	x := e.Child(nsMUCUser, "x")
	created := false
	for status := range x.Children {
		created = created || status.Name == "status" && status.Attr("code") == "201"
	}
	if created { // everybody may see real addresses, as the focus needs
		form := xmpp.New(nsData, "x", "type", "submit").Add(
			field("FORM_TYPE", "http://jabber.org/protocol/muc#roomconfig"), field("muc#roomconfig_whois", "anyone"))
		if err := s.send(xmpp.IQ("set", "room", "", s.c.room.String(), xmpp.New(nsMUCOwner, "query").Add(form))); err != nil {
			return err
		}
	}
	s.c.setStatus(true, true)
	s.c.log.Info("in the brewery")
	return s.report()
}

func field(name, value string) *xmpp.Element {
	return xmpp.New(nsData, "field", "var", name).Add(xmpp.New(nsData, "value").AddText(value))
}

// request answers an iq of type get or set, now or when it is done. Both types mean the same: Jicofo asks for
// changes by get.
func (s *stream) request(e *xmpp.Element) {
	payload := e.First()
	fail := func(err xmpp.StanzaError) {
		reply := xmpp.ErrorReply(e, err)
		if payload != nil { // as there: the element with its attributes, without what is in it
			reply.Add(&xmpp.Element{Name: payload.Name, Space: payload.Space, Attrs: payload.Attrs})
		}
		s.answer(reply)
	}
	switch {
	case payload.Is(xmpp.NSPing, "ping"):
		s.answer(xmpp.Result(e))
		return
	case payload.Is(xmpp.NSDisco, "query"):
		s.answer(xmpp.Result(e, disco()))
		return
	}
	if from, err := jid.Parse(e.Attr("from")); err != nil || from.Bare() != s.c.room {
		fail(xmpp.StanzaError{Condition: xmpp.Forbidden})
		return
	}
	b := s.c.b
	switch {
	case payload.Is(colibri.NS, "conference-modify"):
		req, err := colibri.ParseModify(payload)
		if err != nil {
			fail(stanzaError(err))
			return
		}
		b.control.submit(req, func(answer colibri.ConferenceModified, err error) {
			if err != nil {
				fail(stanzaError(err))
				return
			}
			s.answer(xmpp.Result(e, answer.Element()))
		})
	case payload.Is(colibri.NSHealth, "healthcheck"):
		if err := b.metrics.health(); err != nil {
			fail(xmpp.StanzaError{Condition: xmpp.InternalServerError, Text: err.Error()})
			return
		}
		s.answer(xmpp.Result(e))
	case payload.Is(xmpp.NSVersion, "query"):
		v := b.version()
		s.answer(xmpp.Result(e, xmpp.New(xmpp.NSVersion, "query").Add(
			xmpp.New(xmpp.NSVersion, "name").AddText(v.Name),
			xmpp.New(xmpp.NSVersion, "version").AddText(v.Version),
			xmpp.New(xmpp.NSVersion, "os").AddText(v.OS))))
	default:
		text := "Unsupported IQ request"
		if payload != nil {
			text += " " + payload.Name
		}
		fail(xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: text})
	}
}

func disco() *xmpp.Element {
	q := xmpp.New(xmpp.NSDisco, "query").Add(xmpp.New(xmpp.NSDisco, "identity", "category", "client", "type", "bot", "name", "plenum"))
	for _, f := range [...]string{
		colibri.NSHealth, "urn:xmpp:jingle:apps:dtls:0", "urn:xmpp:jingle:transports:ice-udp:1",
		xmpp.NSVersion, xmpp.NSPing, xmpp.NSDisco,
	} {
		q.Add(xmpp.New(xmpp.NSDisco, "feature", "var", f))
	}
	return q
}

// wire returns the statistics as presence carries them.
func (s stats) wire() colibri.Stats {
	out := make(colibri.Stats, len(s))
	for i, x := range s {
		v := fmt.Sprint(x.value)
		if f, ok := x.value.(float64); ok && f == float64(int64(f)) {
			v = strconv.FormatFloat(f, 'f', 1, 64)
		}
		out[i] = colibri.Stat{Name: x.name, Value: v}
	}
	return out
}
