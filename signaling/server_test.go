package signaling

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
)

// caller is a client on the public wire, as far as it is needed to join.
type caller struct {
	*testing.T
	ws    *websocket.Conn
	jid   string
	nick  string
	count int // stanzas since stream management began
	hear  func(stanza string)
}

func (g *caller) say(s string) error { return g.ws.WriteMessage(websocket.TextMessage, []byte(s)) }

// scan reads until done says so.
func (g *caller) scan(done func(stanza string) bool) error {
	g.ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		_, b, err := g.ws.ReadMessage()
		if err != nil {
			return err
		}
		switch text := string(b); {
		case strings.HasPrefix(text, "<r "):
			if err := g.say(`<a h="` + strconv.Itoa(g.count) + `" xmlns="urn:xmpp:sm:3"/>`); err != nil {
				return err
			}
		default:
			if strings.HasPrefix(text, "<enabled") {
				g.count = 0
			} else if strings.HasPrefix(text, "<iq") || strings.HasPrefix(text, "<presence") || strings.HasPrefix(text, "<message") {
				g.count++
			}
			if g.hear != nil {
				g.hear(text)
			}
			if done(text) {
				return nil
			}
		}
	}
}

// ask says something and reads until the pattern matches; it returns what matched.
func (g *caller) ask(say, pattern string) (found string, err error) {
	if say != "" {
		if err := g.say(say); err != nil {
			return "", err
		}
	}
	re := regexp.MustCompile(pattern)
	err = g.scan(func(text string) bool { found = text; return re.MatchString(text) })
	if err != nil {
		err = fmt.Errorf("waiting for %s: %w", pattern, err)
	}
	return found, err
}

func (g *caller) send(s string) {
	g.Helper()
	if err := g.say(s); err != nil {
		g.Fatal(err)
	}
}

func (g *caller) until(pattern string) string {
	g.Helper()
	found, err := g.ask("", pattern)
	if err != nil {
		g.Fatal(err)
	}
	return found
}

const sayOpen = `<open to="localhost" version="1.0" xmlns="urn:ietf:params:xml:ns:xmpp-framing"/>`

// join connects and enters a room; hear, if any, is told of everything that comes.
func join(s *Server, room string, hear func(string)) (*caller, error) {
	d := websocket.Dialer{Subprotocols: []string{"xmpp"}}
	ws, _, err := d.Dial("ws://"+s.HTTPAddr().String()+"/xmpp-websocket?room="+room, nil)
	if err != nil {
		return nil, err
	}
	g := &caller{ws: ws, hear: hear}
	for _, step := range []struct{ say, pattern string }{
		{sayOpen, "ANONYMOUS"},
		{`<auth mechanism="ANONYMOUS" xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>`, "<success"},
		{sayOpen, "xmpp-bind"},
		// What there is comes before the address.
		{`<iq id="_bind_auth_2" type="set" xmlns="jabber:client"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/></iq>`, "type='room_metadata' name='metadata.localhost'"},
		{"", "_bind_auth_2"},
		{`<enable resume="true" xmlns="urn:xmpp:sm:3"/>`, "<enabled"},
		{`<iq id="c" to="focus.localhost" type="set" xmlns="jabber:client"><conference room="` + room + `@conference.localhost" xmlns="http://jitsi.org/protocol/focus"/></iq>`, "id='c'.*ready='true'"},
	} {
		found, err := g.ask(step.say, step.pattern)
		if err != nil {
			return g, err
		}
		if step.pattern == "_bind_auth_2" {
			g.jid = regexp.MustCompile(`[0-9a-f-]{36}@localhost/[0-9a-f]+`).FindString(found)
			g.nick = g.jid[:8]
		}
	}
	// The focus comes before the own presence.
	if _, err := g.ask(`<presence to="`+room+`@conference.localhost/`+g.nick+`" xmlns="jabber:client"><x xmlns="http://jabber.org/protocol/muc"/><nick xmlns="http://jabber.org/protocol/nick">Ann</nick></presence>`,
		`from='`+room+`@conference.localhost/focus'`); err != nil {
		return g, err
	}
	_, err = g.ask("", `from='`+room+`@conference.localhost/`+g.nick+`'.*code='110'`)
	return g, err
}

func enter(t *testing.T, s *Server, room string) *caller {
	t.Helper()
	g, err := join(s, room, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.T = t
	return g
}

// Two people meet on a running shard; one leaves by closing the page; the shard stops and says so.
func TestServerRuns(t *testing.T) {
	defer goleak.VerifyNone(t)
	registry := prometheus.NewPedanticRegistry()
	s := testServer(t, func(c *Config) { c.Metrics = registry })
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()

	ann := enter(t, s, "golden")
	bob := enter(t, s, "golden")
	ann.until("<presence.*from='golden@conference.localhost/" + bob.nick + "'")
	bob.send(`<message to="golden@conference.localhost" type="groupchat" xmlns="jabber:client"><body>hello</body></message>`)
	ann.until("<message.*from='golden@conference.localhost/" + bob.nick + "'.*hello")
	if got := s.Sessions(); got.Sessions != 2 || got.HalfOpen != 0 {
		t.Errorf("%+v", got)
	}

	families, err := registry.Gather()
	if err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool {
		return f.GetName() == "plenum_shard_sessions" && f.GetMetric()[0].GetGauge().GetValue() == 2
	}) {
		t.Error("plenum_shard_sessions is not 2")
	}
	debug := func(path string) (int, map[string]any) {
		r, _ := http.NewRequest("GET", path, nil)
		w := &response{h: http.Header{}}
		s.DebugHandler().ServeHTTP(w, r)
		var v map[string]any
		json.Unmarshal([]byte(w.b.String()), &v)
		return w.code, v
	}
	if _, v := debug("/debug/rooms/golden"); v == nil {
		t.Error("the room is not in /debug/rooms/golden")
	}
	if code, _ := debug("/debug/rooms/lead"); code != http.StatusNotFound {
		t.Errorf("a room that does not exist: %d", code)
	}

	bob.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(time.Second))
	bob.ws.Close()
	ann.until("<presence.*type='unavailable'.*from='golden@conference.localhost/" + bob.nick + "'|<presence.*from='golden@conference.localhost/" + bob.nick + "'.*type='unavailable'")

	answer, err := http.Post("http://"+s.HTTPAddr().String()+"/conference-request/v1?room=silver", "application/json",
		strings.NewReader(`{"room":"silver@conference.localhost","machineUid":"x","properties":{"rtcstatsEnabled":false,"visitors-version":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if want := `{"room":"silver@conference.localhost","ready":true,"focusJid":"focus@auth.localhost","properties":{"authentication":"false","visitors-supported":"false"}}`; strings.TrimSpace(string(body)) != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}

	start := time.Now()
	cancel()
	ann.until("<stream:error.*system-shutdown")
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("stopping took %v", d)
	}
	ann.ws.Close()
	http.DefaultClient.CloseIdleConnections()
}

type response struct {
	h    http.Header
	code int
	b    strings.Builder
}

func (r *response) Header() http.Header         { return r.h }
func (r *response) WriteHeader(code int)        { r.code = code }
func (r *response) Write(b []byte) (int, error) { return r.b.Write(b) }

func TestServerThatIsNotRun(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := testServer(t)
	busy := Config{HTTP: "127.0.0.1:0", XMPP: s.XMPPAddr().String()}
	if other, err := New(busy); err == nil {
		other.Close()
		t.Error("two servers on one port")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestServerDrains(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := testServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	ann := enter(t, s, "golden")
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(ctx) }()
	for {
		resp, err := http.Get("http://" + s.HTTPAddr().String() + "/about/health")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	ann.send(`<iq id="d" to="focus.localhost" type="set" xmlns="jabber:client"><conference room="new@conference.localhost" xmlns="http://jitsi.org/protocol/focus"/></iq>`)
	ann.until("id='d'.*resource-constraint")
	ann.send(`<iq id="e" to="focus.localhost" type="set" xmlns="jabber:client"><conference room="golden@conference.localhost" xmlns="http://jitsi.org/protocol/focus"/></iq>`)
	ann.until("id='e'.*ready='true'")
	select {
	case err := <-drained:
		t.Errorf("drained with somebody in a room: %v", err)
	default:
	}
	cancel()
	if err := <-drained; err == nil {
		t.Error("drained")
	}
	<-ran
	ann.ws.Close()
	http.DefaultClient.CloseIdleConnections()
}

// A hundred come at once to one room; each of them sees all others, and nobody is cut (ladder step
// 50 of docs/PROTOCOL.md).
func TestServerStorm(t *testing.T) {
	defer goleak.VerifyNone(t)
	const n = 100
	s := testServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	var joined, left sync.WaitGroup
	done := make(chan struct{})
	joined.Add(n)
	start := time.Now()
	for range n {
		left.Go(func() {
			nick := regexp.MustCompile(`<presence[^>]* from='crowd@conference.localhost/([0-9a-f]{8})'`)
			seen := map[string]bool{}
			g, err := join(s, "crowd", func(stanza string) {
				if m := nick.FindStringSubmatch(stanza); m != nil {
					seen[m[1]] = true
				}
			})
			if err == nil {
				err = g.scan(func(string) bool { return len(seen) == n })
			}
			if err != nil {
				t.Errorf("saw %d of %d: %v", len(seen), n, err)
			}
			joined.Done()
			<-done
			if g != nil {
				g.ws.Close()
			}
		})
	}
	joined.Wait()
	t.Logf("%d joined in %v", n, time.Since(start).Round(time.Millisecond))
	if got := s.Sessions(); got.Sessions != n || got.Overflows != 0 {
		t.Errorf("%+v", got)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	close(done)
	left.Wait()
}
