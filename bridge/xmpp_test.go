package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/xmpp"
)

const (
	brewery = "jvbbrewery@internal.auth.meet.local"
	focus   = brewery + "/focus"
)

// server is a scripted XMPP server for one bridge: as much of Prosody as a bridge sees.
type server struct {
	t    *testing.T
	l    net.Listener
	conn net.Conn
	d    *xmpp.Decoder
	tls  *tls.Config // nil: not offered
	next int
}

func serve(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, l: l}
	t.Cleanup(s.close)
	return s
}

func (s *server) close() {
	s.l.Close()
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *server) shard() Shard {
	return Shard{Addr: s.l.Addr().String(), Domain: "auth.meet.local", User: "jvb", Password: "geheim", Brewery: brewery, Nick: "jvb1", InsecureTLS: true}
}

func (s *server) write(text string) {
	s.t.Helper()
	if _, err := s.conn.Write([]byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) read() *xmpp.Element {
	s.t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	e, err := s.d.Next()
	if err != nil {
		s.t.Fatalf("nothing from the bridge: %v", err)
	}
	return e
}

// answer skips presence and pings to the next iq that is not a request.
func (s *server) answer() *xmpp.Element {
	s.t.Helper()
	for {
		if e := s.read(); e.Is("", "iq") && !e.IsRequest() {
			return e
		}
	}
}

const streamHeader = `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' from='auth.meet.local' id='s' version='1.0'>`

func features(inner string) string { return `<stream:features>` + inner + `</stream:features>` }

// login takes one connection up to the join presence, which it returns.
func (s *server) login(password string) *xmpp.Element {
	s.t.Helper()
	s.l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.conn, s.d = conn, xmpp.NewDecoder(conn, xmpp.Limits{})
	const mechanisms = `<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism></mechanisms>`
	s.read()
	if s.tls != nil {
		s.write(streamHeader + features(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>`))
		if e := s.read(); !e.Is(xmpp.NSTLS, "starttls") {
			s.t.Fatalf("%s in place of starttls", e)
		}
		s.write(`<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
		secure := tls.Server(s.conn, s.tls)
		s.conn, s.d = secure, xmpp.NewDecoder(secure, xmpp.Limits{})
		s.read()
	}
	s.write(streamHeader + features(mechanisms))
	auth := s.read()
	if plain, _ := base64.StdEncoding.DecodeString(auth.Text()); string(plain) != "\x00jvb\x00"+password {
		s.write(`<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>`)
		return nil
	}
	s.write(`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`)
	s.read()
	s.write(streamHeader + features(`<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>`))
	bind := s.read()
	s.write(`<iq type='result' id='` + bind.Attr("id") + `'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>jvb@auth.meet.local/x</jid></bind></iq>`)
	return s.read()
}

// admit tells the bridge that it is in the brewery.
func (s *server) admit(more string) {
	s.t.Helper()
	s.write(`<presence from='` + brewery + `/jvb1' to='jvb@auth.meet.local/x'><x xmlns='http://jabber.org/protocol/muc#user'><status code='110'/>` + more + `</x></presence>`)
}

// ask sends an iq and returns the answer.
func (s *server) ask(typ, from, payload string) *xmpp.Element {
	s.t.Helper()
	id := s.send(typ, from, payload)
	e := s.answer()
	if e.Attr("id") != id {
		s.t.Fatalf("answer to %s: %s", id, e)
	}
	return e
}

func (s *server) send(typ, from, payload string) (id string) {
	s.t.Helper()
	s.next++
	id = fmt.Sprint("B64-", s.next)
	s.write(`<iq from='` + from + `' type='` + typ + `' id='` + id + `' to='jvb@auth.meet.local/x'>` + payload + `</iq>`)
	return id
}

func TestBrewery(t *testing.T) {
	s := serve(t)
	b := start(t, func(c *Config) {
		c.Shards = []Shard{s.shard()}
		c.PresenceInterval = 50 * time.Millisecond
	})
	joining := s.login("geheim")
	if joining.Attr("to") != brewery+"/jvb1" || joining.Child(nsMUC, "x") == nil {
		t.Fatalf("join %s", joining)
	}
	if st, err := colibri.ParseStats(joining.Child(colibri.NSStats, "stats")); err != nil || st.Value("drain") != "false" {
		t.Errorf("statistics of the join: %v", err)
	}
	s.admit(`<status code='201'/>`)
	config := s.read()
	if !config.IsRequest() || config.Attr("to") != brewery || !strings.Contains(config.String(), "<value xmlns='jabber:x:data'>anyone</value>") && !strings.Contains(config.String(), "<value>anyone</value>") {
		t.Errorf("configuration of a new brewery: %s", config)
	}
	for range 3 {
		p := s.read()
		st, err := colibri.ParseStats(p.Child(colibri.NSStats, "stats"))
		if err != nil || p.Attr("to") != brewery+"/jvb1" || p.Child(nsMUC, "x") != nil {
			t.Fatalf("presence %s: %v", p, err)
		}
		for name, want := range map[string]string{
			"drain": "false", "graceful_shutdown": "false", "shutting_down": "false", "healthy": "true", "relay_id": "jvb1", "region": "ber",
			"version": "plenum-dev", "average_participant_stress": "0.01", "conferences": "0", "incoming_loss": "0.0",
		} {
			if got := st.Value(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if st.Value("stress_level") == "" || st.Value("current_timestamp") == "" {
			t.Errorf("presence without stress or time: %s", p)
		}
	}
	eventually(t, "joined", func() bool { _, joined := b.shards()[0].status(); return joined })

	for _, typ := range []string{"get", "set"} {
		if a := s.ask(typ, focus, `<healthcheck xmlns='http://jitsi.org/protocol/healthcheck'/>`); a.Attr("type") != "result" || a.Attr("to") != focus || a.First() != nil {
			t.Errorf("health: %s", a)
		}
		if a := s.ask(typ, focus, `<query xmlns='jabber:iq:version'/>`); a.Child(xmpp.NSVersion, "query").Child(xmpp.NSVersion, "version").Text() != "plenum-dev" {
			t.Errorf("version: %s", a)
		}
		if a := s.ask(typ, "auth.meet.local", `<ping xmlns='urn:xmpp:ping'/>`); a.Attr("type") != "result" {
			t.Errorf("ping: %s", a)
		}
		a := s.ask(typ, focus, modify+`meeting-id='`+typ+`' name='r@conference.meet.local' create='true'>`+newEndpoint("aaaa1111")+`</conference-modify>`)
		answer, err := colibri.ParseModified(a.First())
		if err != nil || a.Attr("type") != "result" || answer.Endpoints[0].Transport == nil {
			t.Errorf("colibri2: %s", a)
		}
	}
	if a := s.ask("get", focus, `<query xmlns='http://jabber.org/protocol/disco#info'/>`); !strings.Contains(a.String(), "urn:xmpp:jingle:apps:dtls:0") {
		t.Errorf("disco: %s", a)
	}
	for _, from := range []string{"evil@auth.meet.local/x", "jvbbrewery@other.meet.local/focus", "", "auth.meet.local"} {
		a := s.ask("set", from, `<conference-modify xmlns='jitsi:colibri2' meeting-id='get' expire='true'/>`)
		if e, failed := xmpp.ParseError(a); !failed || e.Condition != xmpp.Forbidden {
			t.Errorf("from %q: %s", from, a)
		}
	}
	a := s.ask("get", focus, `<conference-modify xmlns='jitsi:colibri2' meeting-id='nope'><endpoint id='a'/></conference-modify>`)
	e, _ := xmpp.ParseError(a)
	if c, _ := colibri.ParseError(e); c.Reason != colibri.ConferenceNotFound || a.Child(colibri.NS, "conference-modify").Attr("meeting-id") != "nope" || a.Child(colibri.NS, "conference-modify").First() != nil {
		t.Errorf("error %s", a)
	}
	for payload, want := range map[string]string{
		`<conference-modify xmlns='jitsi:colibri2'/>`:                    xmpp.BadRequest,
		`<graceful-shutdown xmlns='http://jitsi.org/protocol/colibri'/>`: xmpp.ServiceUnavailable,
		`<foo xmlns='urn:example:foo'/>`:                                 xmpp.ServiceUnavailable,
		``:                                                               xmpp.ServiceUnavailable,
		`<conference-modify xmlns='jitsi:colibri2' meeting-id='get' create='1'/>`: xmpp.Conflict,
	} {
		if e, _ := xmpp.ParseError(s.ask("get", focus, payload)); e.Condition != want {
			t.Errorf("%s: %v", payload, e)
		}
	}
	// Messages and answers to nothing do not matter.
	s.write(`<message from='` + brewery + `' type='groupchat'><subject/></message><iq type='result' id='x' from='y'/>`)

	b.SetDraining(true)
	for {
		if st, err := colibri.ParseStats(s.read().Child(colibri.NSStats, "stats")); err == nil && st.Value("drain") == "true" {
			break
		}
	}
}

// TestBreweryOrder pipelines 200 requests on the stream.
func TestBreweryOrder(t *testing.T) {
	s := serve(t)
	start(t, func(c *Config) { c.Shards = []Shard{s.shard()} })
	s.login("geheim")
	s.admit("")
	var all strings.Builder
	fmt.Fprintf(&all, `<iq from='%s' type='get' id='0'>%smeeting-id='m1' create='true'>%s</conference-modify></iq>`, focus, modify, newEndpoint("e0"))
	for i := 1; i < 200; i++ {
		fmt.Fprintf(&all, `<iq from='%s' type='get' id='%d'>%smeeting-id='m1'>%s</conference-modify></iq>`, focus, i, modify, newEndpoint(fmt.Sprint("e", i)))
	}
	go s.conn.Write([]byte(all.String()))
	for i := range 200 {
		if a := s.answer(); a.Attr("id") != fmt.Sprint(i) || a.Attr("type") != "result" {
			t.Fatalf("answer %d: %s", i, a)
		}
	}
}

func TestReconnect(t *testing.T) {
	s := serve(t)
	b := start(t, func(c *Config) {
		c.Shards = []Shard{s.shard()}
		c.ReconnectDelay = time.Millisecond
		c.PingInterval = 20 * time.Millisecond
	})
	joined := func() bool { _, joined := b.shards()[0].status(); return joined }
	lost := func(how string, f func()) {
		t.Helper()
		if s.login("geheim") == nil {
			t.Fatal("no login")
		}
		s.admit("")
		eventually(t, "joined", joined)
		f()
		s.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		for {
			if _, err := s.d.Next(); err != nil {
				break
			}
		}
		s.conn.Close()
		eventually(t, "noticed: "+how, func() bool { return !joined() })
	}
	lost("no pong", func() {})
	lost("connection gone", func() { s.conn.Close() })
	lost("stream error", func() {
		s.write(`<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>`)
	})
	lost("end of stream", func() { s.write(`</stream:stream>`) })
	lost("broken XML", func() { s.write(`<a><b></a>`) })
	lost("removed from the brewery", func() { s.write(`<presence type='unavailable' from='` + brewery + `/jvb1'/>`) })
	if n := b.metrics.xmppDisconnect.Load(); n != 6 {
		t.Errorf("%d disconnects counted", n)
	}
	if s.login("wrong") != nil {
		t.Error("logged in")
	}
	s.conn.Close()
	s.login("geheim")
	s.write(`<presence type='error' from='` + brewery + `/jvb1'><error type='cancel'><conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>`)
	s.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		if _, err := s.d.Next(); err != nil {
			break
		}
	}
}

func TestGoodbye(t *testing.T) {
	s := serve(t)
	done := make(chan struct{})
	t.Run("bridge", func(t *testing.T) {
		start(t, func(c *Config) { c.Shards = []Shard{s.shard()} })
		s.login("geheim")
		s.admit("")
		go func() {
			defer close(done)
			for {
				e, err := s.d.Next()
				if err != nil {
					s.t.Errorf("the stream ends without a goodbye: %v", err)
					return
				}
				if e.Attr("type") == "unavailable" {
					return
				}
			}
		}()
	})
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("no goodbye")
	}
}

func TestStartTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "auth.meet.local"}, DNSNames: []string{"auth.meet.local"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	start(t, func(c *Config) { c.Shards = []Shard{s.shard()} })
	if p := s.login("geheim"); p == nil || p.Child(nsMUC, "x") == nil {
		t.Errorf("join over TLS: %v", p)
	}
}
