package signaling

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"plenum/signaling/rooms"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

const (
	hallRoom = "golden@conference.meet.local"
	hallMUC  = meet.NSMUC
)

// A guest is a session without a socket. It keeps the roster that a client would have.
type guest struct {
	jid     jid.JID
	nick    string
	account string

	mu     sync.Mutex
	got    []*xmpp.Element
	roster map[string]string // nick -> SourceInfo
	joined bool
	answer func(*xmpp.Element) *xmpp.Element // to IQs; nil answers nothing
}

func (g *guest) JID() jid.JID       { return g.jid }
func (g *guest) Account() string    { return g.account }
func (g *guest) Region() string     { return "ber" }
func (g *guest) Remote() netip.Addr { return netip.Addr{} }

// take returns what came since the last call.
func (g *guest) take() []*xmpp.Element {
	g.mu.Lock()
	defer g.mu.Unlock()
	got := g.got
	g.got = nil
	return got
}

func (g *guest) others() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	others := maps.Clone(g.roster)
	delete(others, g.nick)
	return others
}

func (g *guest) in() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.joined
}

func (g *guest) receive(f *xmpp.Frame) *xmpp.Element {
	e, err := xmpp.Parse(f.Bytes, xmpp.Limits{})
	if err != nil {
		panic(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = append(g.got, e)
	if e.Name == "presence" && e.Attr("type") != "error" {
		nick := jid.MustParse(e.Attr("from")).Resource()
		if e.Attr("type") == "unavailable" {
			delete(g.roster, nick)
			g.joined = g.joined && nick != g.nick
		} else {
			g.roster[nick] = e.ChildNamed("SourceInfo").Text()
			g.joined = g.joined || nick == g.nick
		}
	}
	if e.IsRequest() && g.answer != nil {
		return g.answer(e)
	}
	return nil
}

// A lobby is a hall with guests.
type lobby struct {
	t    *testing.T
	h    *hall
	mu   sync.Mutex
	here map[jid.JID]*guest

	log    bytes.Buffer // read when the hall has ended
	panics int          // expected in it
}

// newLobby starts a hall that ends with the test.
func newLobby(t *testing.T, change func(*hallConfig)) *lobby {
	l := &lobby{t: t, here: make(map[jid.JID]*guest)}
	cfg := hallConfig{Domain: "meet.local", Deliver: func(to jid.JID, f *xmpp.Frame) bool {
		l.mu.Lock()
		g := l.here[to]
		l.mu.Unlock()
		if g == nil {
			return false
		}
		if reply := g.receive(f); reply != nil {
			l.h.Stanza(g, reply)
		}
		return true
	}}
	cfg.Log = slog.New(slog.NewTextHandler(&l.log, nil))
	if change != nil {
		change(&cfg)
	}
	l.h = newHall(cfg)
	return l
}

// run runs f while the hall runs.
func (l *lobby) run(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.h.Run(ctx) }()
	f(ctx)
	cancel()
	if err := <-done; err != nil {
		l.t.Error(err)
	}
	if n := strings.Count(l.log.String(), "room failed"); n != l.panics {
		l.t.Errorf("%d rooms failed:\n%s", n, l.log.String())
	}
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	if len(l.h.rooms) != 0 || len(l.h.seats) != 0 || len(l.h.asked) != 0 {
		l.t.Errorf("left over: %d rooms, %d seats, %d requests", len(l.h.rooms), len(l.h.seats), len(l.h.asked))
	}
}

func (l *lobby) guest(nick string) *guest {
	g := &guest{jid: jid.MustParse(nick + "@meet.local/r"), nick: nick, roster: make(map[string]string)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.here[g.jid] = g
	return g
}

func (l *lobby) bridge(nick string) *guest {
	g := &guest{jid: jid.MustParse("jvb@auth.meet.local/" + nick), nick: nick, account: "jvb", roster: make(map[string]string)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.here[g.jid] = g
	return g
}

func (l *lobby) gone(g *guest) {
	l.mu.Lock()
	delete(l.here, g.jid)
	l.mu.Unlock()
	l.h.Gone(g)
}

func (l *lobby) join(g *guest, room string) {
	l.h.Stanza(g, xmpp.Presence("", "", "", room+"/"+g.nick, xmpp.New(hallMUC, "x"), xmpp.New("", "SourceInfo").AddText("0")))
}

func (l *lobby) presence(g *guest, room, info string) {
	l.h.Stanza(g, xmpp.Presence("", "", "", room+"/"+g.nick, xmpp.New("", "SourceInfo").AddText(info)))
}

func (l *lobby) leave(g *guest, room string) {
	l.h.Stanza(g, xmpp.Presence("unavailable", "", "", room+"/"+g.nick))
}

func (l *lobby) open(room string) {
	l.t.Helper()
	if err := l.h.conferenceRoom(context.Background(), jid.MustParse(room)); err != nil {
		l.t.Fatal(err)
	}
}

// eventually waits for a condition; for tests in real time only.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

func TestRoomLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			ann, bob := l.guest("ann"), l.guest("bob")
			l.join(ann, hallRoom)
			synctest.Wait()
			got := ann.take()
			if len(got) != 1 || got[0].Child("", "error").Child(xmpp.NSStanzas, "text").Text() != "Room creation is restricted" {
				t.Fatalf("join of a room that nobody asked for: %v", got)
			}
			l.open(hallRoom)
			l.join(ann, hallRoom)
			synctest.Wait()
			got = ann.take()
			if len(got) < 3 || got[0].Attr("from") != hallRoom+"/focus" || !ann.in() {
				t.Fatalf("first join: %v", got)
			}
			l.join(bob, hallRoom)
			synctest.Wait()
			if !bob.in() || len(bob.others()) != 2 || len(ann.others()) != 2 {
				t.Fatalf("bob sees %v, ann sees %v", bob.others(), ann.others())
			}
			l.gone(bob)
			synctest.Wait()
			if len(ann.others()) != 1 {
				t.Fatalf("bob's session is gone, ann sees %v", ann.others())
			}
			l.leave(ann, hallRoom)
			synctest.Wait()
			time.Sleep(time.Second)
			synctest.Wait()
			if l.h.find(jid.MustParse(hallRoom)) != nil {
				t.Fatal("an empty room stays")
			}
			l.join(ann, hallRoom)
			synctest.Wait()
			if ann.in() {
				t.Fatal("joined a room that has ended")
			}

			l.open(hallRoom)
			time.Sleep(14 * time.Second)
			synctest.Wait()
			if l.h.find(jid.MustParse(hallRoom)) == nil {
				t.Fatal("a new room has ended early")
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if l.h.find(jid.MustParse(hallRoom)) != nil {
				t.Fatal("a room that nobody joins stays")
			}
			l.open(hallRoom) // left open for Run to end
			l.join(ann, hallRoom)
		})
	})
}

// TestJoinStorm: a hundred people at once; everybody ends with everybody else (ladder step 50).
func TestJoinStorm(t *testing.T) {
	defer goleak.VerifyNone(t)
	const n = 100
	l := newLobby(t, nil)
	l.run(func(context.Context) {
		l.open(hallRoom)
		guests := make([]*guest, n)
		var wg sync.WaitGroup
		for i := range guests {
			guests[i] = l.guest(fmt.Sprintf("g%d", i))
			wg.Go(func() {
				l.join(guests[i], hallRoom)
				l.presence(guests[i], hallRoom, fmt.Sprint(i))
			})
		}
		wg.Wait()
		for i, g := range guests {
			eventually(t, fmt.Sprintf("guest %d sees all", i), func() bool {
				others := g.others()
				if len(others) != n || !g.in() { // the focus is one of them
					return false
				}
				for j := range guests {
					if i != j && others[fmt.Sprintf("g%d", j)] != fmt.Sprint(j) {
						return false
					}
				}
				return true
			})
		}
	})
}

// TestHallFlood: who floods is slowed by its own quota, and alone with it; what others see of it in the end
// is the last thing it said.
func TestHallFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			ann, bob, eve, far := l.guest("ann"), l.guest("bob"), l.guest("eve"), l.guest("far")
			l.open(hallRoom)
			l.open("other@conference.meet.local")
			l.join(far, "other@conference.meet.local")
			for _, g := range []*guest{ann, bob, eve} {
				l.join(g, hallRoom)
			}
			synctest.Wait()
			bob.take()
			const flood = 10000
			for i := range flood {
				l.presence(eve, hallRoom, fmt.Sprint(i))
			}
			for range 50 {
				l.h.Stanza(eve, xmpp.Message("groupchat", "", "", hallRoom, xmpp.New("", "body").AddText("spam")))
			}
			l.presence(ann, hallRoom, "muted") // behind the flood, and not held up by it
			l.presence(far, "other@conference.meet.local", "far")
			synctest.Wait()
			got := bob.take()
			if len(got) > quotaBurst+10 {
				t.Errorf("bob got %d stanzas of a flood", len(got))
			}
			if bob.others()["ann"] != "muted" {
				t.Errorf("ann waits for eve: bob sees %v", bob.others())
			}
			refusals := 0
			for _, e := range eve.take() {
				if err, ok := xmpp.ParseError(e); ok && err.Condition == xmpp.ResourceConstraint {
					refusals++
				}
			}
			if refusals != 50 {
				t.Errorf("%d of 50 messages refused", refusals)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if s := bob.others()["eve"]; s != fmt.Sprint(flood-1) {
				t.Errorf("bob sees presence %s of eve, the last was %d", s, flood-1)
			}
			// A flooder that is gone stays gone.
			for i := range flood {
				l.presence(eve, hallRoom, fmt.Sprint(i))
			}
			l.gone(eve)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if _, there := bob.others()["eve"]; there {
				t.Error("a ghost")
			}
		})
	})
}

// TestHallBridges: a bridge in the brewery is in the fleet for as long as it is there; people stay outside.
func TestHallBridges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			jvb := l.bridge("jvb1")
			l.join(jvb, brewery)
			synctest.Wait()
			if !jvb.in() || len(jvb.others()) != 1 {
				t.Fatalf("the bridge sees %v", jvb.others())
			}
			ann := l.guest("ann")
			l.join(ann, brewery)
			synctest.Wait()
			if ann.in() {
				t.Fatal("a client in the brewery")
			}
			stats := colibri.Stats{{Name: "stress_level", Value: "0.1"}, {Name: "drain", Value: "false"}, {Name: "region", Value: "ber"}}
			l.h.Stanza(jvb, xmpp.Presence("", "", "", brewery+"/jvb1", stats.Element()))
			synctest.Wait()
			known := l.h.cfg.Fleet.Bridges(time.Now())
			if len(known) != 1 || known[0].JID.String() != brewery+"/jvb1" || known[0].Region != "ber" {
				t.Fatalf("fleet: %+v", known)
			}
			l.gone(jvb)
			synctest.Wait()
			if known := l.h.cfg.Fleet.Bridges(time.Now()); len(known) != 1 || !known[0].Failed {
				t.Fatalf("fleet after the bridge's connection broke: %+v", known)
			}
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if known := l.h.cfg.Fleet.Bridges(time.Now()); len(known) != 0 {
				t.Fatalf("fleet after the bridge has gone: %+v", known)
			}
		})
	})
}

// TestHallBridgeOfAnother: a host's account is good for the bridge of that host alone. One that claims another's relay id
// is not in the fleet, or not any more; accounts that an operator gave are not bound.
func TestHallBridgeOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, func(c *hallConfig) { c.Host = func(a jid.JID) bool { return a.Local() == "h2" } })
		l.run(func(context.Context) {
			h2, old := l.bridge("h2"), l.bridge("old")
			l.mu.Lock()
			delete(l.here, h2.jid)
			h2.jid, h2.account = jid.MustParse("h2@auth.meet.local/bridge"), "h2"
			l.here[h2.jid] = h2
			l.mu.Unlock()
			for _, b := range []*guest{h2, old} {
				l.join(b, brewery)
			}
			say := func(b *guest, relay string, want int) {
				t.Helper()
				stats := colibri.Stats{{Name: "stress_level", Value: "0.1"}, {Name: "region", Value: "ber"}, {Name: "relay_id", Value: relay}}
				l.h.Stanza(b, xmpp.Presence("", "", "", brewery+"/"+b.nick, stats.Element()))
				synctest.Wait()
				if known := l.h.cfg.Fleet.Bridges(time.Now()); len(known) != want {
					t.Errorf("%s says it is %q: the fleet is %+v", b.nick, relay, known)
				}
			}
			say(h2, "h3", 0)
			say(h2, "", 0)
			say(h2, "h2", 1)
			say(h2, "h3", 0)
			say(old, "h3", 1)
		})
	})
}

const brewery = "jvbbrewery@internal.auth.meet.local"

// working lets a bridge say how loaded it is, and answer requests for endpoints, which asked counts.
func (l *lobby) working(b *guest, stress string, asked *int) {
	b.answer = func(iq *xmpp.Element) *xmpp.Element {
		m, err := colibri.ParseModify(iq.First())
		if err != nil {
			return xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.BadRequest})
		}
		var made colibri.ConferenceModified
		for _, e := range m.Endpoints {
			if !e.Create {
				continue
			}
			*asked++
			made.Endpoints = append(made.Endpoints, colibri.Endpoint{ID: e.ID, Transport: &colibri.Transport{ICE: &jingle.Transport{
				Ufrag: "ufrag", Pwd: "a-password-of-22-bytes", RTCPMux: true,
				Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "actpass", Value: strings.Repeat("AB:", 31) + "AB"}},
				Candidates: []jingle.Candidate{{ID: "1", Foundation: "1", Component: 1, Priority: 1, Protocol: "udp", Type: "host",
					IP: "192.0.2.1", Port: 10000}},
			}}})
		}
		return xmpp.Result(iq, made.Element())
	}
	l.join(b, brewery)
	stats := colibri.Stats{{Name: "stress_level", Value: stress}, {Name: "drain", Value: "false"}}
	l.h.Stanza(b, xmpp.Presence("", "", "", brewery+"/"+b.nick, stats.Element()))
}

// client lets a guest answer the focus as a client does.
func client(g *guest) {
	g.answer = func(iq *xmpp.Element) *xmpp.Element {
		if iq.Child(xmpp.NSDisco, "query") == nil {
			return xmpp.Result(iq)
		}
		list := xmpp.New(xmpp.NSDisco, "query")
		for _, f := range []string{"urn:xmpp:jingle:apps:rtp:audio", "urn:xmpp:jingle:apps:rtp:video", "http://jitsi.org/ssrc-rewriting-1"} {
			list.Add(xmpp.New(xmpp.NSDisco, "feature", "var", f))
		}
		return xmpp.Result(iq, list)
	}
}

// offers counts the offers that a guest got since the last call.
func offers(t *testing.T, g *guest) (n int) {
	for _, e := range g.take() {
		if e.ChildNamed("jingle").Attr("action") != "session-initiate" {
			continue
		}
		n++
		if e.Attr("from") != hallRoom+"/focus" || e.Attr("to") != g.jid.String() {
			t.Errorf("offer from %s to %s", e.Attr("from"), e.Attr("to"))
		}
	}
	return n
}

// TestHallCall: two people get an offer from the bridge they share, and when that dies, from the other.
func TestHallCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			var asked [2]int
			bridges := [2]*guest{l.bridge("jvb1"), l.bridge("jvb2")}
			for i, b := range bridges {
				l.working(b, "0", &asked[i])
			}
			l.open(hallRoom)
			people := []*guest{l.guest("ann"), l.guest("bob")}
			for _, g := range people {
				client(g)
				l.join(g, hallRoom)
			}
			synctest.Wait()
			for _, g := range people {
				if n := offers(t, g); n != 1 {
					t.Fatalf("%s has got %d offers", g.nick, n)
				}
			}
			first := 0
			if asked[1] > 0 {
				first = 1
			}
			if asked[first] != 2 || asked[1-first] != 0 {
				t.Fatalf("endpoints asked of the bridges: %v", asked)
			}
			l.leave(bridges[first], brewery)
			synctest.Wait()
			for _, g := range people {
				if n := offers(t, g); n != 1 {
					t.Fatalf("%s has got %d offers after the bridge died", g.nick, n)
				}
			}
			if asked[1-first] != 2 {
				t.Fatalf("endpoints asked of the bridges: %v", asked)
			}
			view, err := json.Marshal(l.h.Debug(hallRoom))
			for _, want := range []string{`"nick":"ann"`, `"session":"offered"`, `"bridge":"` + brewery, `"endpoints":2`} {
				if err != nil || !strings.Contains(string(view), want) {
					t.Errorf("no %s for people who look for a fault: %s %v", want, view, err)
				}
			}
			for _, g := range people {
				l.gone(g)
			}
		})
	})
}

// TestHallSilentBridge: a bridge that does not answer in time is given up for another.
func TestHallSilentBridge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			var unused, asked int
			silent, other := l.bridge("jvb1"), l.bridge("jvb2")
			l.working(silent, "0", &unused)
			l.working(other, "0.5", &asked)
			silent.answer = nil
			l.open(hallRoom)
			people := []*guest{l.guest("ann"), l.guest("bob")}
			for _, g := range people {
				client(g)
				l.join(g, hallRoom)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := offers(t, people[0]); n != 0 || l.h.sizes().asked == 0 {
				t.Fatalf("%d offers without an answer of the bridge, %d requests open", n, l.h.sizes().asked)
			}
			time.Sleep(40 * time.Second)
			synctest.Wait()
			for _, g := range people {
				if n := offers(t, g); n != 1 {
					t.Errorf("%s has got %d offers", g.nick, n)
				}
			}
			if asked != 2 || l.h.sizes().asked != 0 {
				t.Errorf("%d endpoints asked of the other bridge, %d requests open", asked, l.h.sizes().asked)
			}
		})
	})
}

// TestLeaseLost: a room whose lease is lost ends without a word, and its people are sent to look for it.
func TestLeaseLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan struct{})
		cut := make(chan jid.JID, 8)
		l := newLobby(t, func(c *hallConfig) {
			c.Owner = &fickle{lost: lost}
			c.Cut = func(who jid.JID) { cut <- who }
		})
		l.run(func(context.Context) {
			ann := l.guest("ann")
			l.open(hallRoom)
			l.join(ann, hallRoom)
			synctest.Wait()
			ann.take()
			close(lost)
			synctest.Wait()
			if got := ann.take(); len(got) != 0 || len(cut) != 1 || <-cut != ann.jid {
				t.Fatalf("ann was told %v and not cut", got)
			}
			bob := l.guest("bob")
			if err := l.h.conferenceRoom(context.Background(), jid.MustParse(hallRoom)); !errors.Is(err, rooms.ErrHeld) {
				t.Fatalf("a room that somebody else owns was opened: %v", err)
			}
			l.join(bob, hallRoom)
			synctest.Wait()
			if bob.in() {
				t.Fatal("in a room that is elsewhere")
			}
		})
	})
}

// fickle gives a lease once.
type fickle struct {
	lost  chan struct{}
	mu    sync.Mutex
	given bool
}

func (f *fickle) Acquire(context.Context, jid.JID) (rooms.Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.given {
		return rooms.Lease{}, rooms.ErrHeld
	}
	f.given = true
	return rooms.Lease{Token: 1, Lost: f.lost}, nil
}

func (f *fickle) Release(jid.JID, uint64) {}

// TestOpenAndClose: rooms that end while others open them; nothing is lost or left.
func TestOpenAndClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	l := newLobby(t, nil)
	l.run(func(ctx context.Context) {
		var wg sync.WaitGroup
		for i := range 8 {
			g := l.guest(fmt.Sprintf("g%d", i))
			wg.Go(func() {
				for range 50 {
					if err := l.h.conferenceRoom(ctx, jid.MustParse(hallRoom)); err != nil {
						t.Error(err)
						return
					}
					l.join(g, hallRoom)
					l.leave(g, hallRoom)
				}
				l.gone(g)
			})
		}
		wg.Wait()
		eventually(t, "no room", func() bool { return l.h.find(jid.MustParse(hallRoom)) == nil })
	})
}

func TestHallDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(ctx context.Context) {
			ann := l.guest("ann")
			l.open(hallRoom)
			l.join(ann, hallRoom)
			drained := make(chan error, 1)
			go func() { drained <- l.h.Drain(ctx) }()
			synctest.Wait()
			l.open(hallRoom) // running rooms go on
			if err := l.h.conferenceRoom(ctx, jid.MustParse("new@conference.meet.local")); !errors.Is(err, ErrDraining) {
				t.Fatalf("new room: %v", err)
			}
			select {
			case err := <-drained:
				t.Fatal("drained with a room open: ", err)
			default:
			}
			l.leave(ann, hallRoom)
			if err := <-drained; err != nil {
				t.Fatal(err)
			}
		})
	})
}

// TestHallAddresses: what is for no room, or for the rooms' service.
func TestHallAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			ann := l.guest("ann")
			ask := func(st *xmpp.Element) string {
				l.h.Stanza(ann, st)
				synctest.Wait()
				got := ann.take()
				if len(got) == 0 {
					return ""
				}
				if err, ok := xmpp.ParseError(got[0]); ok {
					return err.Condition
				}
				return got[0].Attr("type")
			}
			disco := xmpp.New(xmpp.NSDisco, "query")
			for _, c := range []struct {
				st   *xmpp.Element
				want string
			}{
				{xmpp.IQ("get", "1", "", "conference.meet.local", disco), "result"},
				{xmpp.IQ("get", "1", "", "conference.meet.local", xmpp.New("x", "y")), "service-unavailable"},
				{xmpp.IQ("get", "1", "", hallRoom, disco), "item-not-found"},
				{xmpp.IQ("get", "1", "", "a@b@c", disco), "jid-malformed"},
				{xmpp.IQ("get", "1", "", "elsewhere.local", disco), "service-unavailable"},
				{xmpp.IQ("result", "1", "", hallRoom), ""},
				{xmpp.Presence("unavailable", "", "", hallRoom+"/ann"), ""},
				{xmpp.Message("", "", "", "metadata.meet.local", xmpp.New("http://jitsi.org/jitmeet", "room_metadata")), "item-not-found"},
				{xmpp.Message("error", "", "", hallRoom), ""},
			} {
				if got := ask(c.st); got != c.want {
					t.Errorf("%s: %q, want %q", c.st, got, c.want)
				}
			}
			for i := range maxSeats {
				room := fmt.Sprintf("r%d@conference.meet.local", i)
				l.open(room)
				l.join(ann, room)
			}
			synctest.Wait()
			ann.take()
			bob := l.guest("bob")
			l.open("golden@conference.club.meet.local") // a tenant's
			l.open(hallRoom)
			l.join(bob, "golden@conference.club.meet.local")
			synctest.Wait()
			if !bob.in() || bob.take()[0].Attr("from") != "golden@conference.club.meet.local/focus" {
				t.Error("not in the tenant's room")
			}
			if got := ask(xmpp.Presence("", "", "", hallRoom+"/ann", xmpp.New(hallMUC, "x"))); got != "resource-constraint" {
				t.Errorf("room number %d: %q", maxSeats+1, got)
			}
		})
	})
}

// TestStockFocus: with an account named focus there is no focus of our own; that session opens rooms,
// and clients wait for it.
func TestStockFocus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, func(c *hallConfig) { c.Stock = true })
		l.run(func(context.Context) {
			jicofo := &guest{jid: jid.MustParse("focus@auth.meet.local/focus"), nick: "focus", account: "focus@auth.meet.local", roster: make(map[string]string)}
			l.here[jicofo.jid] = jicofo
			ann, jvb := l.guest("ann"), l.bridge("jvb1")
			l.join(jicofo, brewery)
			l.join(jvb, brewery)
			l.join(ann, hallRoom)
			synctest.Wait()
			if ann.in() || jvb.others()["focus"] == "" || jicofo.others()["jvb1"] == "" {
				t.Fatalf("before: jvb sees %v, focus sees %v", jvb.others(), jicofo.others())
			}
			l.join(jicofo, hallRoom)
			l.join(ann, hallRoom)
			synctest.Wait()
			if !ann.in() || ann.others()["focus"] == "" || jicofo.others()["ann"] == "" {
				t.Fatalf("ann sees %v, focus sees %v", ann.others(), jicofo.others())
			}
			jicofo.take()
			ping := xmpp.New("x", "y")
			l.h.Stanza(ann, xmpp.IQ("set", "a1", "", hallRoom+"/focus", ping))
			synctest.Wait()
			asked := jicofo.take()
			if len(asked) != 1 || asked[0].Attr("from") != hallRoom+"/ann" {
				t.Fatalf("focus got %v", asked)
			}
			l.h.Stanza(jicofo, xmpp.Result(asked[0]))
			synctest.Wait()
			if got := ann.take(); got[len(got)-1].Attr("id") != "a1" || got[len(got)-1].Attr("type") != "result" {
				t.Fatalf("ann got %v", got[len(got)-1])
			}
			l.leave(ann, hallRoom)
			l.leave(jicofo, hallRoom)
			synctest.Wait()
			if l.h.find(jid.MustParse(hallRoom)) != nil {
				t.Fatal("an empty room stays")
			}
			l.gone(jicofo)
			l.gone(jvb)
		})
	})
}

// TestHallMetrics: what dashboards made for Jicofo ask for is there.
func TestHallMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewPedanticRegistry()
		l := newLobby(t, func(c *hallConfig) { c.Metrics = newMetrics(reg) })
		l.run(func(context.Context) {
			l.open(hallRoom)
			for _, nick := range []string{"ann", "bob", "cid"} {
				l.join(l.guest(nick), hallRoom)
			}
			l.h.Stanza(l.guest("eve"), xmpp.Presence("", "", "", "nowhere@conference.meet.local/eve", xmpp.New(hallMUC, "x")))
			synctest.Wait()
			got := make(map[string]float64)
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.Metric {
					got[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
					for _, label := range m.Label {
						if strings.Contains(label.GetValue(), "golden") || strings.Contains(label.GetValue(), "ann") {
							t.Errorf("%s names somebody", f.GetName())
						}
					}
				}
			}
			for name, want := range map[string]float64{
				"jitsi_jicofo_conferences": 1, "jitsi_jicofo_participants_current": 3, "jitsi_jicofo_largest_conference": 3,
				"jitsi_jicofo_participants_pairs": 6, "jitsi_jicofo_conferences_created_total": 1, "jitsi_jicofo_participants_total": 3,
				"jitsi_jicofo_conference_requests_total": 1, "jitsi_jicofo_conference_requests_new_total": 1,
				"plenum_shard_joins_total": 3, "plenum_shard_refusals_total": 1, "plenum_shard_room_panics_total": 0,
			} {
				if v, there := got[name]; !there || v != want {
					t.Errorf("%s = %v (there: %v), want %v", name, v, there, want)
				}
			}
		})
	})
}

// TestContained: a programming error in one room ends that room alone.
func TestContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(t, nil)
		l.panics = 1
		l.run(func(context.Context) {
			ann, far := l.guest("ann"), l.guest("far")
			l.open(hallRoom)
			l.open("other@conference.meet.local")
			l.join(ann, hallRoom)
			l.join(far, "other@conference.meet.local")
			synctest.Wait()
			l.h.find(jid.MustParse(hallRoom)).box.control(func(time.Time) { panic("muc: a test") })
			synctest.Wait()
			if ann.in() || l.h.find(jid.MustParse(hallRoom)) != nil {
				t.Error("a failed room stays")
			}
			l.presence(far, "other@conference.meet.local", "fine")
			synctest.Wait()
			if !far.in() {
				t.Error("another room has suffered")
			}
			l.open(hallRoom)
			l.join(ann, hallRoom)
			synctest.Wait()
			if !ann.in() {
				t.Error("a failed room cannot be opened again")
			}
		})
	})
}

// FuzzHallStanza: whatever an occupant or a stranger sends, no room and no focus fails, and the others stay in.
func FuzzHallStanza(f *testing.F) {
	for _, s := range []string{
		`<presence xmlns='jabber:client' to='golden@conference.meet.local/eve'><x xmlns='http://jabber.org/protocol/muc'/></presence>`,
		`<presence xmlns='jabber:client' to='golden@conference.meet.local/ann' type='unavailable'/>`,
		`<iq xmlns='jabber:client' type='set' id='1' to='golden@conference.meet.local/focus'><jingle xmlns='urn:xmpp:jingle:1' action='session-accept' sid='x'><content name='audio' creator='responder'><description xmlns='urn:xmpp:jingle:apps:rtp:1' media='audio'/><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='u' pwd='p'/></content></jingle></iq>`,
		`<iq xmlns='jabber:client' type='set' id='1' to='golden@conference.meet.local/focus'><jingle xmlns='urn:xmpp:jingle:1' action='source-add' sid='x'/></iq>`,
		`<iq xmlns='jabber:client' type='set' id='1' to='golden@conference.meet.local/focus'><mute xmlns='http://jitsi.org/jitmeet/audio' jid='golden@conference.meet.local/bob'>true</mute></iq>`,
		`<iq xmlns='jabber:client' type='get' id='1' to='conference.meet.local'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>`,
		`<message xmlns='jabber:client' to='metadata.meet.local'><room_metadata xmlns='http://jitsi.org/jitmeet' room='golden@conference.meet.local'>{"key":"a","data":1}</room_metadata></message>`,
		`<message xmlns='jabber:client' type='groupchat' to='golden@conference.meet.local'><body>b</body></message>`,
		`<presence xmlns='jabber:client' to='jvbbrewery@internal.auth.meet.local/x'><x xmlns='http://jabber.org/protocol/muc'/><stats xmlns='http://jitsi.org/protocol/colibri'><stat name='stress_level' value='NaN'/></stats></presence>`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, inside bool) {
		st, err := xmpp.Parse(b, xmpp.Limits{})
		if err != nil {
			return
		}
		l := newLobby(t, nil)
		l.run(func(context.Context) {
			var asked int
			jvb, ann, bob, eve := l.bridge("jvb1"), l.guest("ann"), l.guest("bob"), l.guest("eve")
			l.working(jvb, "0", &asked)
			l.open(hallRoom)
			for _, g := range []*guest{ann, bob} {
				client(g)
				l.join(g, hallRoom)
			}
			from := eve
			if inside {
				from = ann
			}
			l.h.Stanza(from, st)
			l.h.Stanza(jvb, st)
			l.h.Debug(hallRoom) // waits for the room to have taken it
			l.h.Debug(brewery)
			if !bob.in() && !strings.Contains(string(b), "item") && !strings.Contains(string(b), "destroy") { // ann is owner and may
				t.Errorf("bob is out after %s", b)
			}
			for _, g := range []*guest{ann, bob, eve, jvb} {
				l.gone(g)
			}
		})
	})
}

// BenchmarkJoins: how long a room of 500 takes to fill, per stanza that it delivers.
func BenchmarkJoins(b *testing.B) {
	const n = 500
	frames := 0
	for b.Loop() {
		done := make(chan struct{})
		left := n * (n + 1) // presences of the focus, of everybody to everybody, own included
		h := newHall(hallConfig{Domain: "meet.local", Deliver: func(_ jid.JID, f *xmpp.Frame) bool {
			frames++
			if strings.HasPrefix(string(f.Bytes[:9]), "<presence") && left > 0 {
				if left--; left == 0 {
					close(done)
				}
			}
			return true
		}})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- h.Run(ctx) }()
		if err := h.conferenceRoom(ctx, jid.MustParse(hallRoom)); err != nil {
			b.Fatal(err)
		}
		for i := range n {
			g := &guest{jid: jid.MustParse(fmt.Sprintf("g%d@meet.local/r", i)), nick: fmt.Sprintf("g%d", i)}
			h.Stanza(g, xmpp.Presence("", "", "", hallRoom+"/"+g.nick, xmpp.New(hallMUC, "x"), xmpp.New("", "SourceInfo").AddText("{}")))
		}
		<-done
		cancel()
		<-ended
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(frames), "ns/stanza")
}
