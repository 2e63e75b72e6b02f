package signaling

import (
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/wire/xmpp"
)

// service is an account on TCP, as Smack's clients are.
type service struct {
	*testing.T
	net.Conn
	dec *xmpp.Decoder
}

// login connects as an account of auth.localhost with SCRAM-SHA-1, or with another mechanism.
func login(t *testing.T, s *Server, user, password, resource string, mechanism ...string) *service {
	t.Helper()
	conn, err := net.Dial("tcp", s.XMPPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	g := &service{t, conn, xmpp.NewDecoder(conn, xmpp.Limits{})}
	if mechanism == nil {
		mechanism = []string{"SCRAM-SHA-1"}
	}
	n := xmpp.NewNegotiation(xmpp.NegotiationConfig{
		Domain: "auth.localhost", Framing: xmpp.TCP, User: user, Password: password, Resource: resource, Mechanisms: mechanism,
	})
	out, done := n.Start(), false
	for !done {
		for _, b := range out {
			g.write(string(b))
		}
		e, err := g.dec.Next()
		if err != nil {
			t.Fatal(err)
		}
		if out, done, err = n.Step(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range out {
		g.write(string(b))
	}
	return g
}

func (g *service) write(s string) {
	g.Helper()
	if _, err := g.Write([]byte(s)); err != nil {
		g.Fatal(err)
	}
}

// until sends a stanza, if it is one, and reads until one comes that matches.
func (g *service) until(say, pattern string) string {
	g.Helper()
	if say != "" {
		g.write(say)
	}
	re := regexp.MustCompile(pattern)
	for {
		e, err := g.dec.Next()
		if err != nil {
			g.Fatalf("waiting for %s: %v", pattern, err)
		}
		if text := e.String(); re.MatchString(text) {
			return text
		}
	}
}

// TestStockJicofo goes through what Jicofo does on its connection: login, discovery, brewery, a conference
// request that a client sends to the focus's public address, the room with its form, ownership, an offer.
func TestStockJicofo(t *testing.T) {
	defer goleak.VerifyNone(t)
	s, err := New(Config{HTTP: "127.0.0.1:0", XMPP: "127.0.0.1:0", Accounts: []string{"focus:secret"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	jicofo := login(t, s, "focus", "secret", "focus")
	jicofo.until(`<iq id='1' type='get'><query xmlns='jabber:iq:roster'/></iq>`, `id='1'.*type='result'|type='result'.*id='1'`)
	jicofo.write(`<presence/>`)
	jicofo.until(`<iq id='2' type='get' to='localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`, `category='component' type='room_metadata' name='metadata.localhost'`)
	jicofo.until(`<iq id='3' type='get' to='internal.auth.localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`, `var='http://jabber.org/protocol/muc'`)
	jicofo.until(`<presence to='jvbbrewery@internal.auth.localhost/focus'><x xmlns='http://jabber.org/protocol/muc'/></presence>`, `code='110'`)

	// Before the room exists nobody gets in; the request waits for Jicofo's answer, and no longer.
	type joined struct {
		g   *caller
		err error
	}
	ann := make(chan joined, 1)
	go func() {
		g, err := join(s, "stock", nil)
		ann <- joined{g, err}
	}()
	request := jicofo.until("", `<conference `)
	from := regexp.MustCompile(`from='([0-9a-f-]{36}@localhost/[0-9a-f]+)'`).FindStringSubmatch(request)
	id := regexp.MustCompile(` id='([^']+)'`).FindStringSubmatch(request)
	if from == nil || id == nil || !strings.Contains(request, "to='focus@auth.localhost/focus'") {
		t.Fatalf("Jicofo got %s", request)
	}
	const room = "stock@conference.localhost"
	jicofo.until(`<presence to='`+room+`/focus'><x xmlns='http://jabber.org/protocol/muc'/></presence>`, `code='201'`)
	form := jicofo.until(`<iq id='4' type='get' to='`+room+`'><query xmlns='http://jabber.org/protocol/muc#owner'/></iq>`, `id='4'`)
	for _, field := range []string{"muc#roominfo_meetingId", "muc#roomconfig_whois", "<value xmlns='jabber:x:data'>anyone</value>"} {
		if !strings.Contains(form, field) {
			t.Errorf("the form has no %s: %s", field, form)
		}
	}
	jicofo.until(`<iq id='5' type='set' to='`+room+`'><query xmlns='http://jabber.org/protocol/muc#owner'><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>http://jabber.org/protocol/muc#roomconfig</value></field><field var='muc#roomconfig_whois'><value>anyone</value></field></x></query></iq>`, `id='5'`)
	jicofo.write(`<presence to='` + room + `/focus'><versions xmlns='http://jitsi.org/jitmeet'/></presence>`)
	jicofo.write(`<iq type='result' id='` + id[1] + `' to='` + from[1] + `'><conference xmlns='http://jitsi.org/protocol/focus' room='` + room + `' ready='true' focusjid='focus@auth.localhost'/></iq>`)

	in := <-ann
	if in.g != nil {
		defer in.g.ws.Close()
	}
	if in.err != nil {
		t.Fatal(in.err)
	}
	g := in.g
	g.T = t
	jicofo.until("", `<presence .*from='`+room+`/`+g.nick+`'`)
	jicofo.until(`<iq id='6' type='set' to='`+room+`'><query xmlns='http://jabber.org/protocol/muc#admin'><item affiliation='owner' jid='`+strings.Split(g.jid, "/")[0]+`'/></query></iq>`, `id='6'.*type='result'|type='result'.*id='6'`)
	g.until(`affiliation='owner' role='moderator' jid='` + g.jid + `'.*code='110'`)

	jicofo.write(`<iq id='7' type='set' to='` + room + `/` + g.nick + `'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s1'/></iq>`)
	offer := g.until(`session-initiate`)
	token := regexp.MustCompile(` id='([^']+)'`).FindStringSubmatch(offer)
	if token == nil || !strings.Contains(offer, "from='"+room+"/focus'") || !strings.Contains(offer, "to='"+g.jid+"'") {
		t.Fatalf("the client got %s", offer)
	}
	g.send(`<iq id="` + token[1] + `" type="result" to="` + room + `/focus" xmlns="jabber:client"/>`)
	jicofo.until("", `(id='7'|type='result').*from='`+room+`/`+g.nick+`'`)
	g.send(`<iq id="a" type="set" to="` + room + `/focus" xmlns="jabber:client"><jingle xmlns="urn:xmpp:jingle:1" action="session-accept" sid="s1"/></iq>`)
	jicofo.until("", `session-accept`)

	// A request over HTTP is one to Jicofo, too.
	type answered struct {
		code int
		body string
	}
	post := func() <-chan answered {
		done := make(chan answered, 1)
		go func() {
			request, _ := http.NewRequest("POST", "http://"+s.HTTPAddr().String()+"/conference-request/v1",
				strings.NewReader(`{"room":"`+room+`","machineUid":"m1","properties":{"rtcstatsEnabled":false}}`))
			request.Header.Set("Authorization", "Bearer a.b.c")
			r, err := http.DefaultClient.Do(request)
			if err != nil {
				done <- answered{0, err.Error()}
				return
			}
			defer r.Body.Close()
			b, _ := io.ReadAll(r.Body)
			done <- answered{r.StatusCode, string(b)}
		}()
		return done
	}
	defer http.DefaultClient.CloseIdleConnections()
	asked := post()
	request = jicofo.until("", `<conference .*machine-uid='m1' token='a.b.c'`)
	attribute := func(name string) string {
		return regexp.MustCompile(` ` + name + `='([^']+)'`).FindStringSubmatch(request)[1]
	}
	jicofo.write(`<iq type='result' id='` + attribute("id") + `' to='` + attribute("from") + `'><conference xmlns='http://jitsi.org/protocol/focus' room='` + room +
		`' ready='true' focusjid='focus@auth.localhost' session-id='s'><property name='authentication' value='false'/></conference></iq>`)
	if a := <-asked; a.code != 200 || !strings.Contains(a.body, `"ready":true`) || !strings.Contains(a.body, `"focusJid":"focus@auth.localhost"`) || !strings.Contains(a.body, `"authentication":"false"`) {
		t.Errorf("the answer over HTTP is %+v", a)
	}
	asked = post()
	request = jicofo.until("", `<conference .*machine-uid='m1'`)
	jicofo.write(`<iq type='error' id='` + attribute("id") + `' to='` + attribute("from") + `'><error type='auth'><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>`)
	if a := <-asked; a.code != 403 {
		t.Errorf("the refusal over HTTP is %+v", a)
	}

	// Without Jicofo there is no conference: the client has to know.
	jicofo.until(`<presence type='unavailable' to='`+room+`/focus'/>`, `type='unavailable'`)
	g.until(`<presence .*from='` + room + `/focus' type='unavailable'`)
	jicofo.write(`</stream:stream>`)
	for _, err := jicofo.dec.Next(); err == nil; _, err = jicofo.dec.Next() {
	}
	if a := <-post(); a.code != 503 {
		t.Errorf("without Jicofo the answer over HTTP is %+v", a)
	}
}
