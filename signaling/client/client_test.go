package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testJID  = "bbbb2222-2222-4222-8222-222222222222@meet.local/rBob"
	testRoom = "golden@conference.meet.local"
)

// A shard is a scripted server for one client: it does what the recorded one did up to the join, and
// leaves the rest to the test. What it does not know goes to heard.
type shard struct {
	t     *testing.T
	http  *httptest.Server
	heard chan *xmpp.Element

	mu       sync.Mutex
	ws       *websocket.Conn
	handled  uint32 // stanzas received on the stream
	sent     [][]byte
	previd   []string             // of each socket
	channel  chan *websocket.Conn // bridge channels that were opened
	refuse   string               // condition of the answer to the conference request
	notReady int                  // answers with ready=false before the real one
}

func newShard(t *testing.T) *shard {
	s := &shard{t: t, heard: make(chan *xmpp.Element, 64), channel: make(chan *websocket.Conn, 4)}
	mux := http.NewServeMux()
	mux.HandleFunc("/xmpp-websocket", s.serve)
	mux.HandleFunc("/colibri-ws/b/c/e", func(w http.ResponseWriter, r *http.Request) {
		if ws, err := upgrader.Upgrade(w, r, nil); err == nil {
			s.channel <- ws
		}
	})
	mux.HandleFunc("/conference-request/v1", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"room":"`+testRoom+`","ready":true,"focusJid":"focus@auth.meet.local","properties":{}}`)
	})
	s.http = httptest.NewServer(mux)
	t.Cleanup(func() {
		s.mu.Lock()
		if s.ws != nil {
			_ = s.ws.Close()
		}
		s.mu.Unlock()
		s.http.Close()
	})
	return s
}

func (s *shard) config() Config {
	return Config{
		URL: s.http.URL, Room: "golden", Domain: "meet.local", Name: "Bob", Rewriting: true,
		Send:        Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: true},
		ResumeAfter: 10 * time.Millisecond,
	}
}

func (s *shard) join(cfg Config) *Participant {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	p, err := Join(ctx, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Close)
	return p
}

// say sends raw text and counts it as a stanza of the stream.
func (s *shard) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, []byte(text))
	_ = s.ws.WriteMessage(websocket.TextMessage, []byte(text))
}

func (s *shard) raw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.ws.WriteMessage(websocket.TextMessage, []byte(text))
}

var upgrader = websocket.Upgrader{Subprotocols: []string{"xmpp"}}

func (s *shard) serve(w http.ResponseWriter, r *http.Request) {
	if got := r.URL.Query().Get("room"); got != "golden" {
		s.t.Errorf("room=%q", got)
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	s.mu.Lock()
	s.ws = ws
	s.previd = append(s.previd, r.URL.Query().Get("previd"))
	s.mu.Unlock()
	opens := 0
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return
		}
		e, err := xmpp.Parse(b, xmpp.Limits{})
		if err != nil {
			s.t.Errorf("%v in %s", err, b)
			return
		}
		s.handle(e, &opens)
	}
}

func (s *shard) handle(e *xmpp.Element, opens *int) {
	if e.IsStanza() {
		s.mu.Lock()
		s.handled++
		s.mu.Unlock()
	}
	id := e.Attr("id")
	switch child := e.First(); {
	case e.Is(xmpp.NSFraming, "open"):
		s.raw(`<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='meet.local' version='1.0' id='1'/>`)
		inner := `<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>ANONYMOUS</mechanism></mechanisms>`
		if *opens++; *opens == 2 {
			inner = `<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/>`
		}
		s.raw(`<stream:features xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client'>` + inner + `</stream:features>`)
	case e.Is(xmpp.NSSASL, "auth"):
		s.raw(`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`)
	case child.Is(xmpp.NSBind, "bind"):
		s.raw(`<iq xmlns='jabber:client' type='result' id='` + id + `'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><jid>` + testJID + `</jid></bind></iq>`)
	case e.Is(xmpp.NSSM, "enable"):
		s.mu.Lock()
		s.handled, s.sent = 0, nil
		s.mu.Unlock()
		s.raw(`<enabled xmlns='urn:xmpp:sm:3' id='token' resume='true'/>`)
	case e.Is(xmpp.NSSM, "resume"):
		s.mu.Lock()
		h, all := s.handled, s.sent
		s.mu.Unlock()
		s.raw(fmt.Sprintf(`<resumed xmlns='urn:xmpp:sm:3' previd='token' h='%d'/>`, h))
		var got int
		fmt.Sscan(e.Attr("h"), &got)
		if got > len(all) {
			s.t.Errorf("client claims %d of %d stanzas", got, len(all))
			return
		}
		for _, b := range all[got:] {
			s.raw(string(b))
		}
	case e.Is(xmpp.NSSM, "r"):
		s.mu.Lock()
		h := s.handled
		s.mu.Unlock()
		s.raw(fmt.Sprintf(`<a xmlns='urn:xmpp:sm:3' h='%d'/>`, h))
	case child.Is(nsFocus, "conference"):
		if s.refuse != "" {
			s.say(`<iq xmlns='jabber:client' type='error' id='` + id + `'><error type='cancel'><` + s.refuse + ` xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>`)
			return
		}
		ready := s.notReady == 0
		s.notReady--
		s.say(fmt.Sprintf(`<iq xmlns='jabber:client' type='result' id='%s' from='focus.meet.local'><conference xmlns='http://jitsi.org/protocol/focus' room='%s' ready='%v' focusjid='focus@auth.meet.local'/></iq>`, id, testRoom, ready))
	case e.Is("", "presence") && e.Child(nsMUC, "x") != nil:
		s.say(occupant("focus", "focus@auth.meet.local/focus", "moderator", "", ""))
		s.say(occupant("aaaa1111", "a@meet.local/r", "moderator", "", `<SourceInfo>{"aaaa1111-a0":{"muted":true}}</SourceInfo>`))
		s.say(occupant("bbbb2222", testJID, "participant", "<status code='110'/>", ""))
		s.heard <- e
	case e.Is("", "iq") && e.Attr("to") == testRoom && child.Is(xmpp.NSDisco, "query"):
		s.say(`<iq xmlns='jabber:client' type='result' id='` + id + `' from='` + testRoom + `'><query xmlns='http://jabber.org/protocol/disco#info'><x xmlns='jabber:x:data' type='result'>` +
			`<field var='muc#roominfo_meetingId'><value>meeting-1</value></field></x></query></iq>`)
	case e.Is(xmpp.NSSM, "a"):
	default:
		s.heard <- e
	}
}

func occupant(nick, jid, role, status, more string) string {
	return `<presence xmlns='jabber:client' from='` + testRoom + `/` + nick + `' to='` + testJID + `'>` + more +
		`<x xmlns='http://jabber.org/protocol/muc#user'><item affiliation='none' jid='` + jid + `' role='` + role + `'/>` + status + `</x></presence>`
}

// next returns the next element that the script did not answer, as text.
func (s *shard) next() *xmpp.Element {
	s.t.Helper()
	select {
	case e := <-s.heard:
		return e
	case <-time.After(10 * time.Second):
		s.t.Fatal("the client says nothing")
		return nil
	}
}

func (s *shard) expect(wants ...string) *xmpp.Element {
	s.t.Helper()
	e := s.next()
	text := strings.ReplaceAll(e.String(), "&quot;", `"`)
	for _, want := range wants {
		if !strings.Contains(text, want) {
			s.t.Fatalf("no %s in %s", want, text)
		}
	}
	return e
}

// offer sends the recorded session-initiate, with the bridge at a port where nobody is.
func (s *shard) offer(sid string) {
	b, err := os.ReadFile("testdata/session-initiate.xml")
	if err != nil {
		s.t.Fatal(err)
	}
	text := strings.NewReplacer("10.99.0.11", "127.0.0.1", "'10000'", "'9'", "eka579oqiahi5", sid).Replace(string(b))
	s.say(`<iq xmlns='jabber:client' type='set' id='` + sid + `' from='` + testRoom + `/focus' to='` + testJID + `'>` + text + `</iq>`)
}

func (s *shard) result(e *xmpp.Element) {
	s.say(xmpp.Result(e).String())
}

func TestJoin(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.expect(`to='golden@conference.meet.local/bbbb2222'`, `<SourceInfo>{}</SourceInfo>`, `ver='+mpajJhafj8jFogLBKsPbQfMgzU='`,
		`<jitsi_participant_codecList>av1,vp9,vp8,h264`, `>Bob</nick>`)
	err := p.Wait(t.Context(), func(s Stats) bool { return s.MeetingID == "meeting-1" })
	if err != nil {
		t.Fatal(err)
	}
	st := p.Stats()
	if st.ID != "bbbb2222" || st.JID != testJID || len(st.Members) != 3 || !st.Members["aaaa1111"].Sources["aaaa1111-a0"].Muted {
		t.Errorf("%+v", st)
	}
	s.say(`<iq xmlns='jabber:client' type='get' id='d' from='` + testRoom + `/focus'><query xmlns='http://jabber.org/protocol/disco#info' node='https://jitsi.org/jitsi-meet#x'/></iq>`)
	s.expect(`type='result'`, `id='d'`, `node='https://jitsi.org/jitsi-meet#x'`, `var='http://jitsi.org/ssrc-rewriting-1'`, `to='golden@conference.meet.local/focus'`)
	s.say(`<iq xmlns='jabber:client' type='get' id='v' from='meet.local'><query xmlns='jabber:iq:version'/></iq>`)
	s.expect(`type='error'`, `service-unavailable`)

	left := make(chan error, 1)
	go func() { left <- p.Leave(t.Context()) }()
	s.expect(`type='unavailable'`, `to='golden@conference.meet.local/bbbb2222'`)
	s.say(strings.Replace(occupant("bbbb2222", testJID, "none", "<status code='110'/>", ""), "<presence ", "<presence type='unavailable' ", 1))
	s.expect(`<close`)
	if err := <-left; err != nil {
		t.Error(err)
	}
	if err := p.MuteAudio(true); !errors.Is(err, ErrClosed) {
		t.Errorf("mute after leaving: %v", err)
	}
}

func TestRefused(t *testing.T) {
	s := newShard(t)
	s.refuse = "not-authorized"
	_, err := Join(t.Context(), s.config())
	var stanza xmpp.StanzaError
	if !errors.As(err, &stanza) || stanza.Condition != xmpp.NotAuthorized {
		t.Errorf("err = %v", err)
	}
	for _, cfg := range []Config{{}, {URL: "http://x"}, {URL: "::", Room: "a"}, {URL: "http://x", Room: "a", Send: Media{Colour: "beige"}}} {
		if _, err := Join(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestNotReady(t *testing.T) {
	s := newShard(t)
	s.notReady = 1
	s.join(s.config())
}

func TestHTTPRequest(t *testing.T) {
	s := newShard(t)
	s.refuse = "not-allowed" // must not be asked by IQ
	cfg := s.config()
	cfg.HTTPRequest = true
	s.join(cfg)
}

// TestSession goes through a session: answer, sources in presence, a mute by the focus, the end.
func TestSession(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.next() // the join
	s.offer("sid1")
	s.expect(`id='sid1'`, `type='result'`)
	e := s.expect(`session-accept`)
	answer, err := jingle.Parse(e.First())
	if err != nil {
		t.Fatal(err)
	}
	video := answer.Content("video")
	if answer.SID != "sid1" || answer.Responder != testJID || len(video.Sources) != 6 || len(video.Groups) != 4 || video.Transport.Ufrag == "" {
		t.Errorf("%+v", answer)
	}
	s.result(e)
	s.expect(`{"bbbb2222-a0":{"muted":false},"bbbb2222-v0":{"muted":false}}`)

	s.say(`<iq xmlns='jabber:client' type='set' id='m' from='` + testRoom + `/focus'><mute xmlns='http://jitsi.org/jitmeet/audio' actor='x'>true</mute></iq>`)
	s.expect(`{"bbbb2222-a0":{"muted":true},"bbbb2222-v0":{"muted":false}}`)
	if err := p.MuteAudio(false); err != nil {
		t.Fatal(err)
	}
	s.expect(`{"bbbb2222-a0":{"muted":false}`)
	s.expect(`<mute xmlns='http://jitsi.org/jitmeet/audio' jid='golden@conference.meet.local/bbbb2222'>false</mute>`)

	s.say(`<iq xmlns='jabber:client' type='set' id='t' from='` + testRoom + `/focus'><jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='other'/></iq>`)
	s.expect(`type='error'`, `item-not-found`, `unknown-session`)
	s.say(`<iq xmlns='jabber:client' type='set' id='t' from='` + testRoom + `/focus'><jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='sid1'><reason><expired/></reason></jingle></iq>`)
	s.expect(`type='result'`, `id='t'`)
	s.expect(`<SourceInfo>{}</SourceInfo>`)

	s.offer("sid2")
	s.expect(`id='sid2'`, `type='result'`)
	s.expect(`session-accept`, `sid='sid2'`)
	if err := p.Restart(); err != nil {
		t.Fatal(err)
	}
	s.expect(`session-terminate`, `restart='true'`, `00000000-0000-4000-8000-000000000006`)
	if got := p.Stats().Sessions; got != 2 {
		t.Errorf("%d sessions", got)
	}
}

// TestChannelSocket uses the bridge channel over WebSocket: what is said first, and again after a loss.
func TestChannelSocket(t *testing.T) {
	s := newShard(t)
	cfg := s.config()
	cfg.WebSocketChannel = true
	p := s.join(cfg)
	if join := s.next(); strings.Contains(join.String(), "+mpajJhafj8jFogLBKsPbQfMgzU=") {
		t.Error("announces SCTP")
	}
	offer := golden(t)
	offer.Contents = offer.Contents[:2]
	for i := range offer.Contents {
		offer.Contents[i].Transport.Candidates = nil
		offer.Contents[i].Transport.WebSockets = []string{strings.Replace(s.http.URL, "http", "ws", 1) + "/colibri-ws/b/c/e?pwd=x"}
	}
	s.say(xmpp.IQ("set", "o", testRoom+"/focus", testJID, offer.Element()).String())
	for round := range 2 {
		var ws *websocket.Conn
		select {
		case ws = <-s.channel:
		case <-time.After(10 * time.Second):
			t.Fatal("no channel")
		}
		for _, want := range []string{
			`{"colibriClass":"SourceVideoTypeMessage","sourceName":"bbbb2222-v0","videoType":"camera"}`,
			`{"colibriClass":"ReceiverVideoConstraints","lastN":-1,"assumedBandwidthBps":-1}`,
		} {
			if _, b, err := ws.ReadMessage(); err != nil || string(b) != want {
				t.Fatalf("said %s, %v; want %s", b, err, want)
			}
		}
		_ = ws.WriteMessage(websocket.TextMessage, []byte(`{"colibriClass":"ServerHello"}`))
		_ = ws.WriteMessage(websocket.TextMessage, []byte(`not json`))
		_ = ws.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"colibriClass":"SenderSourceConstraints", "sourceName":"bbbb2222-v0", "maxHeight":%d}`, 180+round))
		if err := p.Wait(t.Context(), func(s Stats) bool { return s.MaxHeight["bbbb2222-v0"] == 180+round }); err != nil {
			t.Fatal(err)
		}
		_ = ws.Close()
	}
}

// TestResume drops the socket with stanzas under way in both directions: nothing is lost or doubled.
func TestResume(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.next() // the join
	if err := p.DropSocket(); err != nil {
		t.Fatal(err)
	}
	if err := p.Chat("sent while away"); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context(), func(s Stats) bool { return s.Resumptions == 1 }); err != nil {
		t.Fatal(err)
	}
	s.expect(`sent while away`)
	s.say(occupant("cccc3333", "c@meet.local/r", "participant", "", ""))
	if err := p.Wait(t.Context(), func(s Stats) bool { return len(s.Members) == 4 }); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.previd) != 2 || s.previd[1] != "token" {
		t.Errorf("previd %q", s.previd)
	}
	if len(s.heard) != 0 {
		t.Errorf("heard again: %s", <-s.heard)
	}
}

// TestCutNetwork holds both directions for a while; nothing is lost on TCP.
func TestCutNetwork(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.next()
	p.Cut()
	if err := p.Chat("held"); err != nil {
		t.Fatal(err)
	}
	s.say(occupant("cccc3333", "c@meet.local/r", "participant", "", ""))
	select {
	case e := <-s.heard:
		t.Fatalf("heard %s through a cut network", e)
	case <-time.After(100 * time.Millisecond):
	}
	if n := len(p.Stats().Members); n != 3 {
		t.Errorf("%d members through a cut network", n)
	}
	p.Restore()
	s.expect("held")
	if err := p.Wait(t.Context(), func(s Stats) bool { return len(s.Members) == 4 }); err != nil {
		t.Fatal(err)
	}
}

func TestKicked(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.say(strings.Replace(occupant("bbbb2222", testJID, "none", "<status code='110'/><status code='307'/>", ""), "<presence ", "<presence type='unavailable' ", 1))
	<-p.Done()
	if !errors.Is(p.Err(), ErrKicked) {
		t.Errorf("err = %v", p.Err())
	}
}

func TestVanish(t *testing.T) {
	s := newShard(t)
	p := s.join(s.config())
	s.next()
	s.offer("sid1")
	s.next()
	s.next()
	p.Vanish()
	select {
	case e := <-s.heard:
		t.Errorf("said %s", e)
	default:
	}
}
