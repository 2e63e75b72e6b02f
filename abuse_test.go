package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/signaling/client"
	"plenum/signaling/client/count"
	"plenum/wire/colibri"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// An arena is plenum dev with a call of two in it, which has to go on whatever is done to the shard.
type arena struct {
	*testing.T
	http string
	call []*client.Participant
	room int          // of the last who joined
	from *net.TCPAddr // who join; nil is the usual address
}

func newArena(t *testing.T) *arena {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		goleak.VerifyNone(t, before)
	})
	a := &arena{T: t, http: startDev(t).HTTP}
	a.call = joinRoom(t, a.http, "call", 2, 0)
	a.callGoesOn()
	return a
}

// callGoesOn fails unless both hear and see each other from now on.
func (a *arena) callGoesOn() {
	a.Helper()
	for _, p := range a.call {
		now := time.Now()
		await(a.T, p, mediaLimit, "hears the other", func(s client.Stats) bool { return heardSince(s, now) == 1 })
		await(a.T, p, mediaLimit, "sees the other", func(s client.Stats) bool { return s.Playing(client.Video) == 1 })
		if s := p.Stats(); s.Resumptions != 0 || s.Sessions != 1 {
			a.Fatalf("%s did not stay undisturbed: %s", p.ID(), s.String())
		}
	}
}

// attacker is another address than the one that everybody else comes from.
var attacker = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}

func (a *arena) config() count.Config {
	c := count.Config{URL: strings.Replace(a.http, "http", "ws", 1) + "/xmpp-websocket", Room: "room", Nick: 1, Crowd: 1}
	if a.from != nil {
		c.From = a.from
	}
	return c
}

func (a *arena) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*mediaLimit)
	a.Cleanup(cancel)
	return ctx
}

// joins has n people join rooms of their own, four at a time, and returns how long each took, sorted.
func (a *arena) joins(n int) []time.Duration {
	a.Helper()
	ctx := a.context()
	took := make([]time.Duration, n)
	next := make(chan int)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range next {
				cfg := a.config()
				cfg.Room = fmt.Sprint("join-", a.room+i)
				began := time.Now()
				c, err := count.Dial(ctx, cfg)
				if err == nil {
					if err = c.Join(); err == nil {
						err = c.Until(ctx, c.Complete)
					}
					c.Leave()
				}
				if err != nil {
					a.Errorf("join: %v", err)
				}
				took[i] = time.Since(began)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	a.room += n
	slices.Sort(took)
	return took
}

func p95(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)*95/100].Round(100 * time.Microsecond)
}

// TestFloodFromElsewhere has one address open sockets that say nothing, sockets that speak before they log
// in, and rooms; everybody else joins as before.
func TestFloodFromElsewhere(t *testing.T) {
	a := newArena(t)
	joins := 40
	if fullLength() {
		joins = 90 // an address opens a hundred rooms at once
	}
	quiet := a.joins(joins)

	ctx, stop := context.WithCancel(a.context())
	var flood sync.WaitGroup
	flooder := func(one func(cfg count.Config) *count.Client) {
		flood.Go(func() {
			var held []*count.Client
			for ctx.Err() == nil {
				cfg := a.config()
				cfg.From = attacker
				if c := one(cfg); c != nil {
					held = append(held, c)
				}
			}
			for _, c := range held {
				c.Close()
			}
		})
	}
	var halfOpen, refused, early, created, denied atomic.Int64
	flooder(func(cfg count.Config) *count.Client {
		c, err := count.Open(ctx, cfg)
		if err != nil {
			refused.Add(1)
			return nil
		}
		halfOpen.Add(1)
		return c
	})
	flooder(func(cfg count.Config) *count.Client {
		if c, err := count.Open(ctx, cfg); err == nil {
			c.Say(`<presence to="call@conference.localhost/x" xmlns="jabber:client"/>`)
			c.Close()
			early.Add(1)
		}
		return nil
	})
	here := http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{LocalAddr: attacker}).DialContext,
	}}
	defer here.CloseIdleConnections()
	flooder(func(count.Config) *count.Client {
		body := strings.NewReader(fmt.Sprintf(`{"room":"spam%d@conference.localhost"}`, created.Load()+denied.Load()))
		request, _ := http.NewRequestWithContext(ctx, http.MethodPost, a.http+"/conference-request/v1", body)
		answer, err := here.Do(request)
		if err != nil {
			return nil
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			created.Add(1)
		} else {
			denied.Add(1)
		}
		return nil
	})
	flooded := a.joins(joins)
	a.callGoesOn()
	for ctx.Err() == nil && denied.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	flood.Wait()
	t.Logf("join p50 %v, p95 %v; under a flood of %d half-open sockets (%d refused), %d that spoke early and %d rooms (%d denied) p50 %v, p95 %v",
		quiet[joins/2].Round(100*time.Microsecond), p95(quiet), halfOpen.Load(), refused.Load(), early.Load(), created.Load(), denied.Load(),
		flooded[joins/2].Round(100*time.Microsecond), p95(flooded))
	if denied.Load() == 0 || created.Load() > 200 {
		t.Errorf("%d rooms for one address, %d denied", created.Load(), denied.Load())
	}
}

// TestSchool is the first lesson: hundreds of pupils behind one address, a thousand for make chaos, join thirty
// rooms at once.
func TestSchool(t *testing.T) {
	a := newArena(t)
	pupils, rooms := 300, 30
	if fullLength() {
		pupils = 1000
	}
	ctx := a.context()
	began := time.Now()
	all := make([]*count.Client, pupils)
	took := make([]time.Duration, pupils)
	var joining sync.WaitGroup
	for i := range all {
		joining.Go(func() {
			began := time.Now()
			cfg := a.config()
			cfg.Room = fmt.Sprint("class-", i%rooms)
			cfg.Nick, cfg.Crowd = uint32(i/rooms+1), pupils/rooms // at least so many are in each
			c, err := count.Dial(ctx, cfg)
			if err == nil {
				all[i] = c
				if err = c.Join(); err == nil {
					err = c.Until(ctx, c.Complete)
				}
			}
			if err != nil {
				t.Errorf("pupil %d: %v", i, err)
			}
			took[i] = time.Since(began)
		})
	}
	joining.Wait()
	slices.Sort(took)
	t.Logf("%d in %d rooms in %v, p50 %v, p95 %v", pupils, rooms, time.Since(began).Round(time.Millisecond), took[pupils/2].Round(time.Millisecond), p95(took))
	a.callGoesOn()
	for _, c := range all {
		if c != nil {
			joining.Go(c.Leave)
		}
	}
	joining.Wait()
}

// TestHalfOpenCrowd has a thousand sockets that never log in; they are gone in the end, and meanwhile people join.
func TestHalfOpenCrowd(t *testing.T) {
	a := newArena(t)
	ctx := a.context()
	cfg := a.config()
	cfg.From = attacker
	var opening sync.WaitGroup
	held := make([]*count.Client, 1000)
	for i := range held {
		opening.Go(func() {
			var err error
			if held[i], err = count.Open(ctx, cfg); err != nil {
				t.Errorf("socket %d: %v", i, err)
			}
		})
	}
	opening.Wait()
	a.joins(20)
	a.callGoesOn()
	for _, c := range held {
		if c != nil {
			c.Close()
		}
	}
}

// TestPresenceFlood has one member send up to ten thousand presences, as fast as they are taken, while another one reads nothing: the rest of
// the room and of the shard go on.
func TestPresenceFlood(t *testing.T) {
	a := newArena(t)
	ctx := a.context()
	members := make([]*count.Client, 4)
	for i := range members {
		cfg := a.config()
		cfg.Room, cfg.Nick, cfg.Crowd = "flood", uint32(i+1), len(members)
		c, err := count.Dial(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Join(); err != nil {
			t.Fatal(err)
		}
		members[i] = c
	}
	var reading sync.WaitGroup
	flooding, stop := context.WithCancel(ctx)
	for _, c := range members[:3] { // the fourth reads nothing
		if err := c.Until(ctx, c.Complete); err != nil {
			t.Fatal(err)
		}
	}
	sent := 0
	reading.Go(func() {
		members[0].SetDeadline(time.Time{})
		defer context.AfterFunc(flooding, func() { members[0].SetDeadline(time.Now()) })()
		for sent < 10_000 && members[0].Presence(false) == nil {
			sent++
		}
	})
	for _, c := range members[1:3] {
		reading.Go(func() { _ = c.Until(flooding, func(count.Counts) bool { return false }) })
	}
	quiet := a.joins(20)
	a.callGoesOn()
	stop()
	reading.Wait()
	got := members[1].Counts().Presences
	t.Logf("%d presences sent, %d came to the others; meanwhile join p95 %v", sent, got, p95(quiet))
	if got > 2000 { // a burst of 200, 20 a second after that
		t.Errorf("%d presences of a flooder came through", got)
	}
}

// TestOneIDTwice has two clients take the same endpoint id: the second is refused, the first stays.
func TestOneIDTwice(t *testing.T) {
	a := newArena(t)
	ctx := a.context()
	first, err := count.Dial(ctx, a.config())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if err := first.Join(); err != nil {
		t.Fatal(err)
	}
	if err := first.Until(ctx, first.Complete); err != nil {
		t.Fatal(err)
	}
	second, err := count.Dial(ctx, a.config())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.Join(); err != nil {
		t.Fatal(err)
	}
	if answer, err := second.Ask("", "type='error'"); err != nil || !strings.Contains(string(answer), "<conflict ") {
		t.Fatalf("%s, %v", answer, err)
	}
	if _, err := first.Ask(`<iq id="still" to="room@conference.localhost/00000001" type="get" xmlns="jabber:client"><ping xmlns="urn:xmpp:ping"/></iq>`, "still"); err != nil {
		t.Fatal(err)
	}
	a.callGoesOn()
}

// TestBombs has what XML can do to a parser, whole path: the sender is told and cut off.
func TestBombs(t *testing.T) {
	a := newArena(t)
	ctx := a.context()
	const open = `<open to="localhost" version="1.0" xmlns="urn:ietf:params:xml:ns:xmpp-framing"/>`
	message := func(body string) string {
		return `<message to="room@conference.localhost" type="groupchat" xmlns="jabber:client">` + body + `</message>`
	}
	for name, bomb := range map[string]string{
		"laughs":     `<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>` + message("<body>&b;</body>"),
		"external":   `<!DOCTYPE l SYSTEM "file:///etc/passwd">` + message(""),
		"deep":       message(strings.Repeat("<a>", 5000)),
		"wide":       message(strings.Repeat("<a/>", 15000)),
		"attributes": `<message xmlns="jabber:client"` + attributes(5000) + `/>`,
		"long":       message("<body>" + strings.Repeat("x", 1<<20) + "</body>"),
		"comment":    message("<!-- " + strings.Repeat("-", 100) + " -->"),
		"cut":        `<message xmlns="jabber:client"><body`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, early := range []bool{true, false} {
				var c *count.Client
				var err error
				if early {
					if c, err = count.Open(ctx, a.config()); err == nil {
						_, err = c.Ask(open, "features")
					}
				} else {
					c, err = count.Dial(ctx, a.config())
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(soon))
				c.Say(bomb) // a long one is cut off before its end
				answer, err := c.Ask("", "stream:error")
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("before the login %v: neither told nor cut off", early)
				} else if err == nil && !strings.Contains(string(answer), "urn:ietf:params:xml:ns:xmpp-streams") {
					t.Errorf("%s", answer)
				}
			}
		})
	}
	a.callGoesOn()
}

func attributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ` a%d=""`, i)
	}
	return b.String()
}

// TestSpoofedMessages has an endpoint speak in another one's name, and far too much: the name is put right,
// the rest is dropped, the channel lives.
func TestSpoofedMessages(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	shard := startDev(t)
	heard := make(chan string, 100)
	all := joinRoom(t, shard.HTTP, "spoof", 2, 0)
	ctx, cancel := context.WithTimeout(context.Background(), mediaLimit)
	defer cancel()
	cid, err := client.Join(ctx, client.Config{URL: shard.HTTP, Room: "spoof", Rewriting: true, OnEvent: func(e client.Event) {
		if e.Kind == client.ChannelMessage && strings.Contains(e.Text, "EndpointMessage") {
			heard <- e.Text
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer cid.Close()
	for _, p := range append(all, cid) {
		await(t, p, mediaLimit, "channel", func(s client.Stats) bool { return s.ChannelMessages > 0 })
	}
	evil, victim := all[0], all[1]
	if err := evil.Say(colibri.EndpointMessage{From: victim.ID(), To: cid.ID(), Fields: []colibri.Field{{Name: "msgPayload", Value: []byte(`{"n":1}`)}}}); err != nil {
		t.Fatal(err)
	}
	if err := evil.SendEndpointMessage(cid.ID(), strings.Repeat("x", 200<<10)); err != nil {
		t.Logf("refused by the own side: %v", err)
	}
	if err := evil.SendEndpointMessage(cid.ID(), map[string]int{"n": 2}); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case text := <-heard:
			if strings.Contains(text, victim.ID()) || !strings.Contains(text, evil.ID()) {
				t.Fatalf("a message in another's name: %.300s", text)
			}
			if strings.Contains(text, `"n":2`) {
				return
			}
		case <-ctx.Done():
			t.Fatal("the channel is dead")
		}
	}
}

// TestSSRCConflict has people take what another one in the room sends under: its SSRCs, msids and names are refused whenever they
// are announced, nothing comes through that was not, and the one who had them does not notice.
func TestSSRCConflict(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	shard := startDev(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*mediaLimit)
	defer cancel()
	numbers := func() func() uint32 {
		n := uint32(1000)
		return func() uint32 { n++; return n }
	}
	join := func(change func(*client.Config)) *client.Participant {
		t.Helper()
		cfg := client.Config{URL: shard.HTTP, Room: "ssrc", Rewriting: true, Send: client.Media{Audio: true, Video: true}}
		change(&cfg)
		p, err := client.Join(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	var said jingle.Session
	victim := join(func(c *client.Config) {
		c.SSRC, c.Answer = numbers(), func(s *jingle.Session) { said = *s }
		c.Send.Colour = "red"
	})
	plain := join(func(c *client.Config) { c.Rewriting, c.Send.Colour = false, "green" }) // knows senders by SSRC alone
	other := join(func(c *client.Config) { c.Send.Colour = "blue" })
	undisturbed := func() {
		t.Helper()
		now := time.Now()
		for _, p := range []*client.Participant{plain, other} {
			await(t, p, mediaLimit, "hears and sees the victim", func(s client.Stats) bool {
				picture := s.Source(victim.ID() + "-v0")
				return s.Source(victim.ID()+"-a0").LastPacket.After(now) && picture.LastFrame.After(now) && picture.Colour == "red"
			})
		}
		await(t, victim, mediaLimit, "hears and sees the others", plays(2))
		for _, p := range []*client.Participant{victim, plain, other} {
			if s := p.Stats(); s.Sessions != 1 || s.Resumptions != 0 {
				t.Fatalf("%s was disturbed: %s", p.ID(), s.String())
			}
		}
	}
	undisturbed()

	// With the first word.
	refused := make(chan error, 1)
	join(func(c *client.Config) {
		c.SSRC = numbers()
		c.OnEvent = func(e client.Event) {
			if e.Kind == client.SessionFailed {
				refused <- e.Err
			}
		}
	})
	select {
	case err := <-refused:
		if e := (xmpp.StanzaError{}); !errors.As(err, &e) || e.Condition != xmpp.BadRequest || !strings.Contains(e.Text, "in use") {
			t.Errorf("session-accept with another's SSRCs: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("session-accept with another's SSRCs is not answered")
	}
	undisturbed()

	// Later, and without a word: what is sent under the victim's SSRCs is announced under others.
	var offer jingle.Session
	thief := join(func(c *client.Config) {
		c.SSRC, c.Send.Colour = numbers(), "yellow"
		c.Answer = func(s *jingle.Session) {
			offer = *s
			for _, content := range s.Contents {
				for i := range content.Sources {
					content.Sources[i].SSRC += 1000
				}
				for _, g := range content.Groups {
					for i := range g.SSRCs {
						g.SSRCs[i] += 1000
					}
				}
			}
		}
	})
	await(t, thief, mediaLimit, "hears and sees the others", plays(3))
	theirs := said.Content("video").Sources[0]
	for what, s := range map[string]jingle.Source{
		"SSRC": {SSRC: theirs.SSRC, Name: thief.ID() + "-v1", MSID: "its own"},
		"msid": {SSRC: 5000, Name: thief.ID() + "-v1", MSID: theirs.MSID},
		"name": {SSRC: 5000, Name: theirs.Name, MSID: "its own"},
	} {
		_, err := thief.IQ(ctx, "set", offer.Initiator, jingle.Session{
			Action: jingle.SourceAdd, SID: offer.SID, Initiator: offer.Initiator,
			Contents: []jingle.Content{{Creator: "initiator", Name: "video", Media: "video", Sources: []jingle.Source{s}}},
		}.Element())
		if e := (xmpp.StanzaError{}); !errors.As(err, &e) || e.Condition != xmpp.BadRequest {
			t.Errorf("source-add of another's %s: %v", what, err)
		}
	}
	undisturbed()
	for _, p := range []*client.Participant{victim, plain, other} {
		for _, r := range p.Stats().Received {
			if r.Source.Owner == thief.ID() && r.Packets > 0 {
				t.Errorf("%s got %d packets of %s, which was announced otherwise", p.ID(), r.Packets, r.Source.Name)
			}
		}
	}
}
