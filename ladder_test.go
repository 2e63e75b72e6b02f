package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/bridge"
	"plenum/signaling"
	"plenum/signaling/client"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// A rack is a shard with bridges that end one by one, in this process.
type rack struct {
	t     *testing.T
	url   string
	shard *signaling.Server
	stops map[*bridge.Bridge]func()
}

// newRack runs a shard and as many bridges until the end of the test.
func newRack(t *testing.T, bridges int, change ...func(*signaling.Config)) *rack {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	c := signaling.Config{HTTP: "127.0.0.1:0", XMPP: "127.0.0.1:0", Accounts: []string{"jvb:secret"}}
	for _, f := range change {
		f(&c)
	}
	shard, err := signaling.New(c)
	if err != nil {
		t.Fatal(err)
	}
	k := &rack{t: t, url: "http://" + shard.HTTPAddr().String(), shard: shard, stops: map[*bridge.Bridge]func(){}}
	end := k.background(shard.Run)
	t.Cleanup(end)
	for range bridges {
		k.start()
	}
	t.Cleanup(func() {
		for _, stop := range k.stops {
			stop()
		}
	})
	return k
}

// background runs f; the function returned ends it and waits.
func (k *rack) background(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			k.t.Error(err)
		}
	}
}

// start adds a bridge.
func (k *rack) start() *bridge.Bridge {
	k.t.Helper()
	b, err := bridge.New(bridge.Config{
		Media: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Shards: []bridge.Shard{{
			Addr: k.shard.XMPPAddr().String(), Domain: "auth.localhost", User: "jvb", Password: "secret",
			Brewery: "jvbbrewery@internal.auth.localhost", InsecureTLS: true,
		}},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.stops[b] = k.background(b.Run)
	return b
}

// busy waits for the one bridge that has a conference; statistics lag behind.
func (k *rack) busy() *bridge.Bridge {
	k.t.Helper()
	for end := time.Now().Add(mediaLimit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		for b := range k.stops {
			r, err := http.Get("http://" + b.HTTPAddr().String() + "/colibri/stats")
			if err != nil {
				k.t.Fatal(err)
			}
			var stats struct{ Conferences int }
			err = json.NewDecoder(r.Body).Decode(&stats)
			r.Body.Close()
			if err != nil {
				k.t.Fatal(err)
			}
			if stats.Conferences > 0 {
				return b
			}
		}
	}
	k.t.Fatal("no bridge has the conference")
	return nil
}

func (k *rack) kill(b *bridge.Bridge) {
	k.stops[b]()
	delete(k.stops, b)
}

// focusShows holds when the focus's presence has that child.
func focusShows(name string) func(client.Stats) bool {
	return func(s client.Stats) bool { return s.Members["focus"].Presence.ChildNamed(name) != nil }
}

// TestBridgesComeAndGo moves a room of rewriting and other clients: away from a bridge that shuts down, from
// one that is gone, and back when there was none (ladder steps 22, 29, 30).
func TestBridgesComeAndGo(t *testing.T) {
	k := newRack(t, 2)
	all := joinMixed(t, k.url, "moves", 3)
	everybody := func(sessions int) {
		t.Helper()
		for _, p := range all {
			await(t, p, mediaLimit, fmt.Sprintf("session %d plays", sessions), func(s client.Stats) bool {
				return s.Sessions == sessions && plays(len(all)-1)(s)
			})
		}
	}
	everybody(1)

	old := k.busy()
	r, err := http.Post("http://"+old.HTTPAddr().String()+"/colibri/shutdown", "application/json", strings.NewReader(`{"force-shutdown":"true"}`))
	if err != nil || r.StatusCode/100 != 2 {
		t.Fatalf("shutdown: %v %v", r, err)
	}
	r.Body.Close()
	everybody(2)
	k.kill(old)

	k.kill(k.busy())
	for _, p := range all {
		await(t, p, mediaLimit, "hears that there is no bridge", focusShows("bridgeNotAvailable"))
	}
	k.start()
	everybody(3)
	for _, p := range all {
		if s := p.Stats(); len(s.Members) != len(all)+1 || focusShows("bridgeNotAvailable")(s) {
			t.Errorf("%s ends with %s", p.ID(), s.String())
		}
	}
}

// joinMixed has every other participant let the bridge rewrite; the rest are told of sources over Jingle.
func joinMixed(t *testing.T, url, room string, n int) (all []*client.Participant) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for i := range n {
		p, err := client.Join(ctx, client.Config{
			URL: url, Room: room, Rewriting: i%2 == 0, Send: client.Media{Audio: true, Video: true, Simulcast: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		all = append(all, p)
	}
	return all
}

// TestAlone ends the session of the last one after a while, and begins another when somebody comes
// (ladder step 31); a client that restarts gets a new session (step 28), but not all the time.
func TestAlone(t *testing.T) {
	k := newRack(t, 1, func(c *signaling.Config) { c.Focus.LonelyTimeout = 300 * time.Millisecond })
	all := joinMixed(t, k.url, "alone", 2)
	for _, p := range all {
		await(t, p, mediaLimit, "plays", plays(1))
	}
	ann := all[0]
	ctx, cancel := context.WithTimeout(context.Background(), mediaLimit)
	defer cancel()
	if err := all[1].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	await(t, ann, mediaLimit, "no bridge any more", func(s client.Stats) bool {
		e := s.Members["focus"].Presence
		return e != nil && strings.Contains(e.String(), "key='bridge-count' value='0'")
	})
	bob := joinMixed(t, k.url, "alone", 1)[0]
	for _, p := range []*client.Participant{ann, bob} {
		await(t, p, mediaLimit, "plays again", plays(1))
	}

	was := ann.Stats().Sessions
	if err := ann.Restart(); err != nil {
		t.Fatal(err)
	}
	await(t, ann, mediaLimit, "restarted", func(s client.Stats) bool { return s.Sessions == was+1 && plays(1)(s) })
	await(t, bob, mediaLimit, "still plays", plays(1))
	if s := bob.Stats(); s.Sessions != 1 {
		t.Errorf("the other one has had %d sessions", s.Sessions)
	}
}

// TestPeers passes the Jingle of two who talk to each other without a bridge (ladder step 35), and what a
// moderator may do to others by way of the focus (step 40).
func TestPeers(t *testing.T) {
	k := newRack(t, 1)
	all := joinMixed(t, k.url, "peers", 2)
	ann, bob := all[0], all[1]
	for _, p := range all {
		await(t, p, mediaLimit, "plays", plays(1))
	}
	ctx, cancel := context.WithTimeout(context.Background(), mediaLimit)
	defer cancel()
	room := "peers@conference.localhost/"
	// Our client knows no such session, and says so itself: the question and the answer went through.
	stray := jingle.Session{Action: jingle.TransportInfo, SID: "p2p", Initiator: room + ann.ID()}
	_, err := ann.IQ(ctx, "set", room+bob.ID(), stray.Element())
	var refused xmpp.StanzaError
	if !errors.As(err, &refused) || refused.Condition != xmpp.ItemNotFound || len(refused.App) != 1 || !refused.App[0].Is(jingle.NSErrors, "unknown-session") {
		t.Errorf("peer to peer: %v", err)
	}
	if _, err := ann.IQ(ctx, "set", room+"nobody", stray.Element()); !errors.As(err, &refused) || refused.Condition != xmpp.ItemNotFound || len(refused.App) != 0 {
		t.Errorf("to nobody: %v", err)
	}
	if err := bob.MuteOther(ctx, ann.ID(), client.Audio); !errors.As(err, &refused) || refused.Condition != xmpp.NotAllowed {
		t.Errorf("a participant mutes the moderator: %v", err)
	}
	if err := ann.MuteOther(ctx, bob.ID(), client.Audio); err != nil {
		t.Error(err)
	}
	await(t, ann, mediaLimit, "sees that bob is muted", func(s client.Stats) bool { return s.Members[bob.ID()].Sources[bob.ID()+"-a0"].Muted })
	await(t, bob, mediaLimit, "sees that ann is not", func(s client.Stats) bool { return !s.Members[ann.ID()].Sources[ann.ID()+"-a0"].Muted })
}
