package session

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"plenum/wire/xmpp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The login of the real client, from the recorded trace (real stack, part A, 0.873 to 1.026).
func TestGuestLogin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		b.h.open = func(s *Session) {
			s.Send(xmpp.NewFrame(xmpp.Message("", "push", "localhost", s.JID().String())))
		}
		c := b.dial("?room=golden&prefix=school")
		c.login()
		c.send(bindIn)
		c.want(`<message xmlns='jabber:client' id='push' from='localhost' to='UUID@localhost/TOKEN'/>`)
		c.want(`<iq xmlns='jabber:client' type='result' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid xmlns='urn:ietf:params:xml:ns:xmpp-bind'>UUID@localhost/TOKEN</jid></bind></iq>`)
		c.send(`<iq id="_session_auth_2" type="set" xmlns="jabber:client"><session xmlns="urn:ietf:params:xml:ns:xmpp-session"/></iq>`)
		c.want(`<iq xmlns='jabber:client' type='result' id='_session_auth_2' to='UUID@localhost/TOKEN'/>`)
		c.send(enableIn)
		c.want(`<enabled xmlns='urn:xmpp:sm:3' id='TOKEN' resume='true' max='60'/>`)
		c.send(`<presence id='p' from='somebody@else/x' xmlns='jabber:client'/>`)
		c.send(askIn)
		c.want(`<a xmlns='urn:xmpp:sm:3' h='1'/>`)
		s := b.h.session()
		if s.Room() != "golden" || s.Prefix() != "school" || s.Account() != "" || s.Region() != "" {
			t.Errorf("session %+v", s.id)
		}
		if got := b.h.take(); got != "opened; presence p" {
			t.Errorf("events: %s", got)
		}
		if b.srv.Session(s.JID()) != s || !b.srv.Deliver(s.JID(), message("x")) {
			t.Error("not in the table")
		}
		c.want(`<message xmlns='jabber:client' id='x'/>`)
		c.send(`<close xmlns="urn:ietf:params:xml:ns:xmpp-framing" />`)
		if got, code := c.ended(); fmt.Sprint(got) != "["+closeFrame+"]" || code != 1000 {
			t.Errorf("at the end: %s %d", got, code)
		}
		<-s.done
		if got := b.h.take(); got != "closed" {
			t.Errorf("events: %s", got)
		}
		if b.srv.Deliver(s.JID(), message("x")) || s.Send(message("y")) {
			t.Error("delivered to a session that has ended")
		}
	})
}

func TestFromIsTheSender(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		from := make(chan string, 1)
		b.h.stanza = func(s *Session, el *xmpp.Element) { from <- el.Attr("from") }
		c := b.dial("")
		c.join()
		c.send(`<message from='somebody@else/x' xmlns='jabber:client'/>`)
		if got, want := <-from, b.h.session().JID().String(); got != want {
			t.Errorf("from %s, want %s", got, want)
		}
	})
}

// A WebSocket is cut, stanzas come meanwhile, the client resumes: each is seen once, in order.
func TestResume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		c := b.dial("?room=r")
		token := c.join()
		s := b.h.session()
		for i := range 3 {
			s.Send(message(fmt.Sprint("seen", i)))
			c.want(fmt.Sprintf(`<message xmlns='jabber:client' id='seen%d'/>`, i))
		}
		c.send(`<presence id='p1' xmlns='jabber:client'/>`)
		c.send(`<presence id='p2' xmlns='jabber:client'/>`)
		synctest.Wait()
		c.raw.Close()
		time.Sleep(50 * time.Second)
		if !s.Hibernating() || b.h.take() != "opened; presence p1; presence p2" {
			t.Fatal("does not hibernate")
		}
		for i := range 7 {
			s.Send(message(fmt.Sprint("gap", i)))
		}

		c = b.dial("?room=r&previd=" + token)
		c.login()
		c.send(`<resume h="2" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`) // of three
		c.want(`<resumed xmlns='urn:xmpp:sm:3' previd='TOKEN' h='2'/>`)
		c.want(`<message xmlns='jabber:client' id='seen2'/>`)
		for i := range 7 {
			c.want(fmt.Sprintf(`<message xmlns='jabber:client' id='gap%d'/>`, i))
		}
		c.want(`<r xmlns='urn:xmpp:sm:3'/>`)
		c.send(`<a h="10" xmlns="urn:xmpp:sm:3"/>`)
		c.send(`<message id='later' xmlns='jabber:client'/>`)
		c.send(askIn)
		c.want(`<a xmlns='urn:xmpp:sm:3' h='3'/>`)
		if got := b.h.take(); got != "resumed; message later" {
			t.Errorf("events: %s", got)
		}
		s.mu.Lock()
		if s.out.len() != 0 || s.out.bytes != 0 {
			t.Errorf("%d frames, %d bytes kept after everything was acknowledged", s.out.len(), s.out.bytes)
		}
		s.mu.Unlock()
		time.Sleep(5 * time.Minute) // the first timer must not matter any more; the client answers probes
	})
}

// A client that noticed a dead path before we did resumes while its old socket still looks alive.
func TestResumeReplacesLiveSocket(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		old := b.dial("")
		token := old.join()
		s := b.h.session()
		address := s.JID()
		c := b.dial("?previd=" + token)
		c.login()
		c.send(`<resume h="0" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
		c.want(`<resumed xmlns='urn:xmpp:sm:3' previd='TOKEN' h='0'/>`)
		if _, code := old.ended(); code != 0 && code != websocket.CloseAbnormalClosure {
			t.Errorf("old socket: code %d", code)
		}
		s.Send(message("x"))
		c.want(`<message xmlns='jabber:client' id='x'/>`)
		if b.srv.Session(address) != s {
			t.Error("address changed")
		}
		if got := b.h.take(); got != "opened; resumed" {
			t.Errorf("events: %s", got)
		}
	})
}

func TestResumeFails(t *testing.T) {
	const failed = `<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>`
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		c := b.dial("")
		token := c.join()
		s := b.h.session()
		c.raw.Close()
		time.Sleep(61 * time.Second)
		<-s.done
		if got := b.h.take(); got != "opened; closed" {
			t.Errorf("events: %s", got)
		}
		c = b.dial("?previd=" + token)
		c.login()
		c.send(`<resume h="0" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
		c.want(failed)
		c.send(bindIn) // Smack binds after a failure
		c.want(`<iq xmlns='jabber:client' type='result' id='_bind_auth_2'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid xmlns='urn:ietf:params:xml:ns:xmpp-bind'>UUID@localhost/TOKEN</jid></bind></iq>`)

		// Somebody else's token without being that guest, and a count of what was never sent.
		c.send(enableIn)
		token = hexadecimal.FindString(c.recv())
		thief := b.dial("")
		thief.login()
		thief.send(`<resume h="0" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
		thief.want(failed)
		liar := b.dial("?previd=" + token)
		liar.login()
		s = b.h.session()
		liar.send(`<resume h="7" previd="` + token + `" xmlns="urn:xmpp:sm:3"/>`)
		liar.want(failed)
		<-s.done
		if got := b.h.take(); got != "opened; closed" {
			t.Errorf("events: %s", got)
		}
	})
}

func TestHowSocketsEnd(t *testing.T) {
	closeWith := func(code int) func(*client) {
		return func(c *client) {
			c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), time.Time{})
		}
	}
	for _, tt := range []struct {
		name  string
		end   func(*client)
		alive bool // hibernates
	}{
		{"page closed", closeWith(websocket.CloseGoingAway), false},
		{"closed normally", closeWith(websocket.CloseNormalClosure), false},
		{"close element", func(c *client) { c.send(closeFrame) }, false},
		{"given up by the library in order to resume", closeWith(websocket.CloseNoStatusReceived), true},
		{"cut", func(c *client) { c.raw.Close() }, true},
		{"bad XML", func(c *client) { c.send("<iq") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBed(t)
				c := b.dial("")
				c.join()
				s := b.h.session()
				tt.end(c)
				go c.ended()
				time.Sleep(2 * time.Second)
				if got := b.srv.Session(s.JID()) != nil; got != tt.alive {
					t.Errorf("alive %v", got)
				}
				time.Sleep(59 * time.Second)
				if b.srv.Session(s.JID()) != nil {
					t.Error("alive after a minute")
				}
			})
		})
	}
}

func TestNoResumptionWithoutStreamManagement(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		c := b.dial("")
		c.login()
		c.send(bindIn)
		c.recv()
		s := b.h.session()
		c.raw.Close()
		<-s.done
	})
}

// Bad input is told what it is, and nobody else notices.
func TestBadInput(t *testing.T) {
	deep := strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100)
	for _, tt := range []struct {
		name, in, condition string
		bound               bool
	}{
		{"stanza before auth", `<message xmlns='jabber:client'/>`, "not-authorized", false},
		{"junk before auth", `<x xmlns='y'/>`, "unsupported-stanza-type", false},
		{"oversized before auth", `<x>` + strings.Repeat("x", 70<<10) + `</x>`, "policy-violation", false},
		{"resume before auth", `<resume h="0" previd="x" xmlns="urn:xmpp:sm:3"/>`, "unsupported-stanza-type", false},
		{"oversized", `<message xmlns='jabber:client'>` + strings.Repeat("x", 70<<10) + `</message>`, "policy-violation", true},
		{"deep", `<message xmlns='jabber:client'>` + deep + `</message>`, "policy-violation", true},
		{"doctype", `<!DOCTYPE x [<!ENTITY a "b">]><message/>`, "restricted-xml", true},
		{"entity", `<message xmlns='jabber:client'>&lol;</message>`, "restricted-xml", true},
		{"comment", `<message xmlns='jabber:client'><!-- x --></message>`, "restricted-xml", true},
		{"half", `<message xmlns='jabber:client'`, "not-well-formed", true},
		{"two in one", `<message xmlns='jabber:client'/><message/>`, "not-well-formed", true},
		{"no stanza", `<open xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>`, "unsupported-stanza-type", true},
		{"bad count", `<a h='-1' xmlns='urn:xmpp:sm:3'/>`, "bad-format", true},
		{"count of what was never sent", `<a h='9' xmlns='urn:xmpp:sm:3'/>`, "undefined-condition", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBed(t)
				other := b.dial("")
				other.join()
				witness := b.h.session()
				c := b.dial("")
				if tt.bound {
					c.join()
				} else {
					c.send(openIn)
					c.recv()
					c.recv()
				}
				go func() { c.ws.WriteMessage(websocket.TextMessage, []byte(tt.in)) }()
				got, _ := c.ended()
				want := []string{fmt.Sprintf(streamErrorXML, tt.condition), closeFrame}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				witness.Send(message("fine"))
				other.want(`<message xmlns='jabber:client' id='fine'/>`)
				synctest.Wait()
				if n := b.srv.Stats().Sessions; n != 1 {
					t.Errorf("%d sessions left", n)
				}
			})
		})
	}
}

// A client that reads nothing costs bounded memory and is cut; Send never waits for it.
func TestClientThatReadsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t, func(c *Config) { c.QueueFrames = 1000 })
		c := b.dial("")
		c.join()
		s := b.h.session()
		n := 0
		for s.Send(message("x")) {
			if n++; n > 2000 {
				t.Fatal("the queue has no end")
			}
		}
		<-s.done
		if n < 1000 || b.srv.Stats().Overflows != 1 || s.out.frames != nil {
			t.Errorf("%d frames taken, %+v", n, b.srv.Stats())
		}
	})
	bubble(t, func(t *testing.T) { // few stanzas: the socket counts as dead and the session hibernates
		b := newBed(t)
		c := b.dial("")
		c.join()
		s := b.h.session()
		s.Send(message("x"))
		time.Sleep(14 * time.Second)
		if s.Hibernating() {
			t.Error("too early")
		}
		time.Sleep(2 * time.Second)
		if !s.Hibernating() {
			t.Error("a socket that takes nothing is still in use")
		}
	})
}

// One that is away while more comes for it than is kept for anybody cannot be resumed.
func TestHibernatingQueueIsBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t, func(c *Config) { c.QueueFrames = 10 })
		c := b.dial("")
		c.join()
		s := b.h.session()
		c.raw.Close()
		synctest.Wait()
		n := 0
		for s.Send(message("x")) {
			n++
		}
		<-s.done
		if n != 10 || b.h.take() != "opened; closed" {
			t.Errorf("%d frames kept", n)
		}
	})
}

func TestCloseFromTheHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		b.h.open = func(s *Session) { s.Close("") }
		c := b.dial("")
		c.login()
		c.send(bindIn)
		c.ended()
		<-b.h.session().done

		b.h.open, b.h.stanza = nil, func(s *Session, _ *xmpp.Element) { s.Close("policy-violation") }
		c = b.dial("")
		c.join()
		c.send(`<presence xmlns='jabber:client'/>`)
		if got, _ := c.ended(); fmt.Sprint(got) != fmt.Sprint([]string{fmt.Sprintf(streamErrorXML, "policy-violation"), closeFrame}) {
			t.Errorf("got %s", got)
		}
		<-b.h.session().done
		if got := b.h.take(); got != "opened; closed; opened; closed" {
			t.Errorf("events: %s", got)
		}
	})
}

// A client that reads, but acknowledges nothing, costs bounded memory too.
func TestClientThatAcknowledgesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t, func(c *Config) { c.QueueBytes = 10000 })
		c := b.dial("")
		c.join()
		go c.ended()
		s := b.h.session()
		for s.Send(message("x")) {
			synctest.Wait()
		}
		<-s.done
	})
}

// A flood is read at its rate, and delays only its sender.
func TestFlood(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		fast, slow := 0, 0
		first := ""
		b.h.stanza = func(s *Session, _ *xmpp.Element) {
			if s.JID().String() == first {
				fast++
			} else {
				slow++
			}
		}
		flooder := b.dial("")
		flooder.join()
		first = b.h.session().JID().String()
		other := b.dial("")
		other.join()
		presence := `<presence xmlns='jabber:client'>` + strings.Repeat("x", 900) + `</presence>`
		go func() {
			for flooder.ws.WriteMessage(websocket.TextMessage, []byte(presence)) == nil {
			}
		}()
		start := time.Now()
		for range 100 { // ten a second for ten seconds, as many as a client under AV moderation sends
			other.send(presence)
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(start); d > 11*time.Second {
			t.Errorf("the other client was held up: %v", d)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if limit := (256 + 70*32 + 64) << 10 / len(presence); fast > limit || fast < 1000 || slow != 100 {
			t.Errorf("%d stanzas of the flooder handled in 70 s, at most %d wanted; %d of the other", fast, limit, slow)
		}
		if b.srv.Stats().Throttled == 0 {
			t.Error("not counted")
		}
		flooder.raw.Close()
	})
}

func TestSilentSocketIsDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		c := b.dial("")
		c.join()
		s := b.h.session()
		var pings atomic.Int32
		c.ws.SetPingHandler(func(string) error { pings.Add(1); return nil })
		go c.ended()
		time.Sleep(29 * time.Second)
		if s.Hibernating() || pings.Load() != 1 {
			t.Errorf("after 29 s: hibernating %v, %d pings", s.Hibernating(), pings.Load())
		}
		time.Sleep(2 * time.Second)
		if !s.Hibernating() {
			t.Error("still in use after 31 s of silence")
		}
	})
	bubble(t, func(t *testing.T) { // one that answers, as every browser does, stays
		b := newBed(t)
		c := b.dial("")
		c.join()
		go c.ended()
		time.Sleep(10 * time.Minute)
		if b.h.session().Hibernating() {
			t.Error("a quiet client was cut")
		}
		c.raw.Close()
	})
}

func TestHalfOpen(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t, func(c *Config) { c.HalfOpenPerAddress = 1000; c.HalfOpen = 2000 })
		// A school: a thousand connect before the first of them says anything, and all get in.
		school := make([]*client, 1000)
		for i := range school {
			school[i] = b.dial("?room=class")
		}
		_, resp, err := b.tryDial("")
		if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("one too many: %v %v", err, resp)
		}
		for _, c := range school {
			c.join()
		}
		if st := b.srv.Stats(); st.Sessions != 1000 || st.HalfOpen != 0 || st.Refused != 1 {
			t.Errorf("%+v", st)
		}
		// Sockets that say nothing keep nobody out once they have had time for a login.
		for range 1000 {
			b.dial("")
		}
		if _, _, err := b.tryDial(""); err == nil {
			t.Error("one too many was taken")
		}
		time.Sleep(4 * time.Second)
		for range 10 {
			b.dial("").join()
		}
		if n := b.srv.Stats().HalfOpen; n != 999 {
			t.Errorf("%d half open, want 999: one made way", n)
		}
		time.Sleep(12 * time.Second)
		if n := b.srv.Stats().HalfOpen; n != 0 {
			t.Errorf("%d half open after the time for logging in", n)
		}
		for _, c := range school {
			c.raw.Close()
		}
	})
}

// The oldest of all makes way when it is the total that is full.
func TestHalfOpenInAll(t *testing.T) {
	h := halfOpen{max: 2, maxPerAddress: 2}
	now := time.Now()
	killed := ""
	place := func(name, from string, now time.Time) *entrant {
		e := h.enter(netip.MustParseAddr(from), now)
		if e != nil && !h.admit(e, func() { killed += name }) {
			t.Errorf("%s is out at once", name)
		}
		return e
	}
	a := place("a", "192.0.2.1", now)
	b := place("b", "192.0.2.2", now.Add(time.Second))
	if place("c", "192.0.2.3", now.Add(2*time.Second)) != nil || killed != "" {
		t.Errorf("somebody made way too early: %q", killed)
	}
	if place("d", "192.0.2.3", now.Add(3*time.Second)) == nil || killed != "a" {
		t.Errorf("the oldest did not make way: %q", killed)
	}
	h.leave(a)
	h.leave(b)
	h.leave(b)
	if h.count() != 1 || len(h.by) != 1 {
		t.Errorf("%d left, %d addresses", h.count(), len(h.by))
	}
}

func TestServerCloses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBed(t)
		c := b.dial("")
		c.join()
		half := b.dial("")
		got := make(chan []string, 1)
		go func() { m, _ := c.ended(); got <- m }()
		go half.ended()
		start := time.Now()
		b.srv.Close(t.Context())
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("closing took %v", d)
		}
		if m := <-got; fmt.Sprint(m) != fmt.Sprint([]string{fmt.Sprintf(streamErrorXML, "system-shutdown"), closeFrame}) {
			t.Errorf("client was told %s", m)
		}
		if got := b.h.take(); got != "opened; closed" {
			t.Errorf("events: %s", got)
		}
		if _, _, err := b.tryDial(""); err == nil {
			t.Error("connected to a closed server")
		}
	})
}

// Region and address come from the edge's headers, and from an edge only.
func TestEdgeHeaders(t *testing.T) {
	srv := New(Config{Domain: "localhost", Handler: &recorder{}, Edges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	for _, tt := range []struct{ peer, remote, region string }{
		{"10.1.2.3:555", "198.51.100.7", "ber"},
		{"192.0.2.1:555", "192.0.2.1", ""},
		{"[::ffff:10.1.2.3]:555", "198.51.100.7", "ber"},
	} {
		r := httptest.NewRequest("GET", "/xmpp-websocket?room=r&prefix=p", nil)
		r.RemoteAddr = tt.peer
		r.Header.Set("X-Forwarded-For", "203.0.113.9, 198.51.100.7") // the client may have sent the first
		r.Header.Set("X-Proxy-Region", "ber")
		id := srv.identity(r)
		if id.Remote.String() != tt.remote || id.Region != tt.region || id.Room != "r" || id.Prefix != "p" {
			t.Errorf("%s: %+v", tt.peer, id)
		}
		if srv.FromEdge(r) != (tt.region != "") {
			t.Errorf("%s: FromEdge", tt.peer)
		}
	}
}

func TestSubprotocolIsRequired(t *testing.T) {
	srv := New(Config{Domain: "localhost", Handler: &recorder{}})
	w := httptest.NewRecorder()
	srv.ServeHTTP(w, httptest.NewRequest("GET", "/xmpp-websocket", nil))
	if w.Code != http.StatusBadRequest || srv.Stats().HalfOpen != 0 {
		t.Errorf("%d, %+v", w.Code, srv.Stats())
	}
}

// FuzzWebSocket sends raw bytes on the socket of a bound session: frames, halves of frames, anything.
func FuzzWebSocket(f *testing.F) {
	f.Add([]byte{0x81, 0x80, 0, 0, 0, 0})                              // an empty message
	f.Add([]byte{0x89, 0x81, 0, 0, 0, 0, 'x', 0x88, 0x80, 0, 0, 0, 0}) // ping, close
	f.Add([]byte("\x81\x8b\x00\x00\x00\x00<presence/>"))
	f.Add([]byte("\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("\x82\x81\x00\x00\x00\x00x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		synctest.Test(t, func(t *testing.T) {
			b := newBed(t)
			c := b.dial("")
			c.join()
			go io.Copy(io.Discard, c.raw)
			c.raw.Write(in)
			c.raw.Close()
			time.Sleep(2 * time.Minute)
			if n := b.srv.Stats(); n.Sessions != 0 {
				t.Errorf("left over: %+v", n)
			}
		})
	})
}

// BenchmarkBroadcast is one stanza to a hundred clients on real sockets, their reading of it included.
func BenchmarkBroadcast(b *testing.B) {
	const clients = 100
	var sessions []*Session
	h := &recorder{}
	srv := New(Config{Domain: "localhost", Handler: h, QueueFrames: 1 << 20, QueueBytes: 1 << 30})
	web := httptest.NewServer(srv)
	var reading sync.WaitGroup
	var got atomic.Int64
	for range clients {
		d := websocket.Dialer{Subprotocols: []string{"xmpp"}}
		ws, _, err := d.Dial("ws"+strings.TrimPrefix(web.URL, "http")+"/", nil)
		if err != nil {
			b.Fatal(err)
		}
		for _, s := range []string{openIn, anonymous, openIn, bindIn} {
			ws.WriteMessage(websocket.TextMessage, []byte(s))
		}
		for range 6 {
			if _, _, err := ws.ReadMessage(); err != nil {
				b.Fatal(err)
			}
		}
		sessions = append(sessions, h.session())
		reading.Go(func() {
			defer ws.Close()
			for n := 0; ; { // counts bytes and parses nothing
				m, err := ws.NetConn().Read(make([]byte, 64<<10))
				if err != nil {
					return
				}
				n += m
				got.Add(int64(m))
			}
		})
	}
	f := xmpp.NewFrame(xmpp.Presence("", "", "room@conference.localhost/aaaa1111", "").AddText(strings.Repeat("x", 800)))
	size := int64(len(appendFrame(nil, websocket.TextMessage, f.Bytes)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		for _, s := range sessions {
			s.Send(f)
		}
	}
	for got.Load() < size*clients*int64(b.N) {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/clients, "ns/delivery")
	srv.Close(context.Background())
	web.Close()
	reading.Wait()
}
