package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/bridge"
	"plenum/signaling"
	"plenum/signaling/client"
	"plenum/signaling/web"
)

// fullLength reports whether the long versions run, as make chaos asks for.
func fullLength() bool { return os.Getenv("PLENUM_CHAOS") != "" }

// A split is a shard and a bridge that stop and start by themselves, as on two machines.
type split struct {
	t          *testing.T
	http, xmpp string
	shard      *signaling.Server
	stop       func()
	change     func(*signaling.Config)
}

// startSplit runs a bridge until the test ends, and a shard that restart replaces.
func startSplit(t *testing.T, change ...func(*signaling.Config)) *split {
	t.Helper()
	s := &split{t: t, http: freePort(t), xmpp: freePort(t), change: func(cfg *signaling.Config) {
		for _, f := range change {
			f(cfg)
		}
	}}
	s.start()
	const free = "127.0.0.1:0"
	b, err := bridge.New(bridge.Config{
		Media: free, HTTP: free, Loopback: true, RelayID: "only",
		Shards: []bridge.Shard{{
			Addr: s.xmpp, Domain: "auth.localhost", User: "jvb", Password: "secret",
			Brewery: "jvbbrewery@internal.auth.localhost", InsecureTLS: true,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		s.stop()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("bridge: %v", err)
		}
	})
	return s
}

// given are the ports that tests have: the system may find the one of a moment ago free again.
var given sync.Map

// freePort returns an address that nobody listens on just now, and that was not given before.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, taken := given.LoadOrStore(l.Addr().String(), true); !taken {
			return l.Addr().String()
		}
	}
}

// start runs a shard that knows nothing of an earlier one but its key.
func (s *split) start() {
	s.t.Helper()
	config := signaling.Config{HTTP: s.http, XMPP: s.xmpp, Accounts: []string{"jvb:secret"}, Web: web.Handler()}
	config.Sessions.ResumeKey = []byte("the same every time")
	s.change(&config)
	shard, err := signaling.New(config)
	if err != nil {
		s.t.Fatal(err)
	}
	s.shard = shard
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- shard.Run(ctx) }()
	s.stop = func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("shard: %v", err)
		}
	}
}

// restart ends the shard and starts another one after a while.
func (s *split) restart(away time.Duration) {
	s.stop()
	s.stop = func() {}
	time.Sleep(away)
	s.start()
}

// TestShardRestarts has everybody in a call go on by themselves, with media, when their shard was restarted:
// same addresses, same page, no word to anybody.
func TestShardRestarts(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	n, resumeAfter, limit := 4, 300*time.Millisecond, mediaLimit
	if fullLength() {
		n, resumeAfter, limit = envInt("PLENUM_CHAOS_CROWD", 50), 0, time.Minute // the stock client's delays
	}
	s := startSplit(t)
	all := joinRoom(t, "http://"+s.http, "restart", n, resumeAfter)
	seen := min(n-1, 2) // of a large room the three loudest are heard, perhaps oneself among them
	for _, p := range all {
		await(t, p, limit, "others play", func(s client.Stats) bool { return s.Playing(client.Audio) >= seen })
	}
	began := time.Now()
	s.restart(0)
	var back sync.WaitGroup
	times := make([]time.Duration, n)
	for i, p := range all {
		sessions := p.Stats().Sessions
		back.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			err := p.Wait(ctx, func(s client.Stats) bool {
				return s.Resumptions == 1 && s.Sessions > sessions && len(s.Members) == n+1
			})
			anew := time.Now() // what comes from now on comes by the new session
			if err == nil {
				err = p.Wait(ctx, func(s client.Stats) bool { return heardSince(s, anew) >= seen })
			}
			if err != nil {
				s := p.Stats()
				t.Errorf("%s is not back: %v, ended: %v\n%s", p.ID(), err, p.Err(), s.String())
			}
			times[i] = time.Since(began)
		})
	}
	back.Wait()
	slices.Sort(times)
	t.Logf("%d participants back with media: p50 %v, p95 %v, last %v", n, times[n/2].Round(time.Millisecond),
		times[n*95/100].Round(time.Millisecond), times[n-1].Round(time.Millisecond))
}

// people returns how many are in rooms.
func (s *split) people() int {
	w := httptest.NewRecorder()
	s.shard.DebugHandler().ServeHTTP(w, httptest.NewRequest("GET", "/debug/", nil))
	var v struct{ Rooms struct{ People int } }
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		s.t.Fatal(err)
	}
	return v.Rooms.People
}

// TestTabsSurviveRestart is the same for the built-in page: nobody has to reload it.
func TestTabsSurviveRestart(t *testing.T) {
	s := startSplit(t)
	b := newBrowser(t)
	room := "http://" + s.http + "/restart"
	ann, bob := b.open(t, "ann", room, css(red)), b.open(t, "bob", room, css(green))
	ann.until("plenum.id", joinLimit)
	bob.until("plenum.id", joinLimit)
	ann.sees(bob, green, mediaLimit)
	bob.sees(ann, red, mediaLimit)
	s.restart(0)
	for end := time.Now().Add(mediaLimit); s.people() < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d people are back", s.people())
		}
	}
	ann.sees(bob, green, mediaLimit)
	bob.sees(ann, red, mediaLimit)
	bob.click("mic")
	ann.until(fmt.Sprintf("plenum.tiles.get(%q).figure.classList.contains('silent')", bob.id()), soon)
}

// TestCuts cuts one of three off in every way and counts the time from the end of the cut until it hears the
// others and they hear it. The short cuts run always, the long ones for make chaos.
func TestCuts(t *testing.T) {
	type cut struct {
		what  string
		after time.Duration
		long  bool
	}
	for _, c := range []cut{
		{"socket", time.Second, false}, {"media", 2 * time.Second, false}, {"all", 2 * time.Second, false},
		{"socket", 5 * time.Second, true}, {"socket", 90 * time.Second, true},
		{"media", 5 * time.Second, true}, {"media", 45 * time.Second, true},
		{"all", 5 * time.Second, true},
	} {
		t.Run(fmt.Sprintf("%s for %v", c.what, c.after), func(t *testing.T) {
			if c.long != fullLength() {
				t.Skip("not in this run")
			}
			t.Parallel()
			shard := startDev(t, func(o *devOptions) { o.resumeKey = "secret" })
			g := newGate(t, strings.TrimPrefix(shard.HTTP, "http://"))
			others := joinRoom(t, shard.HTTP, "cuts", 2, 0)
			one := joinRoom(t, "http://"+g.listener.Addr().String(), "cuts", 1, 0)[0]
			for _, p := range append(others, one) {
				await(t, p, mediaLimit, "hears the others", func(s client.Stats) bool { return s.Playing(client.Audio) == 2 })
			}
			var restore func()
			switch c.what {
			case "socket":
				g.set(true)
				restore = func() { g.set(false) }
			case "media":
				one.CutMedia()
				restore = one.Restore
			case "all":
				one.Cut()
				restore = one.Restore
			}
			time.Sleep(c.after)
			restore()
			began := time.Now()
			reloaded := ""
			select {
			case <-one.Done(): // it has made its three attempts; the stock client now reloads its page
				reloaded = "; after a reload"
				one = joinRoom(t, shard.HTTP, "cuts", 1, 0)[0]
			default:
			}
			heard := func(p *client.Participant, who string) time.Duration {
				await(t, p, time.Minute, "hears "+who, func(s client.Stats) bool { return s.Source(who + "-a0").LastPacket.After(began) })
				return time.Since(began)
			}
			down := heard(one, others[0].ID())
			up := heard(others[0], one.ID())
			if c.what == "socket" && reloaded == "" {
				await(t, one, time.Minute, "is back on its shard", func(s client.Stats) bool { return s.Resumptions > 0 && len(s.Members) == 4 })
			}
			s := one.Stats()
			t.Logf("hears after %v, is heard after %v, all well after %v; %d resumptions, %d media sessions%s", down.Round(time.Millisecond),
				up.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), s.Resumptions, s.Sessions, reloaded)
		})
	}
}

// participant is a program of the tests: participant URL ROOM takes part in a call, and says twenty times a second what it
// gets, until its input ends.
func participant() {
	ctx, stop := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	p, err := client.Join(ctx, client.Config{
		URL: os.Args[1], Room: os.Args[2], Rewriting: true, ResumeAfter: 500 * time.Millisecond,
		Send: client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: true},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer p.Close()
	for out := json.NewEncoder(os.Stdout); ctx.Err() == nil && p.Err() == nil; time.Sleep(50 * time.Millisecond) {
		s := p.Stats()
		w := word{ID: s.ID, Sessions: s.Sessions, Resumptions: s.Resumptions, Heard: map[string]time.Time{}, Seen: map[string]time.Time{}}
		for _, r := range s.Received {
			if r.Source.Kind == client.Audio {
				w.Heard[r.Source.Owner] = r.LastPacket
			} else {
				w.Seen[r.Source.Owner] = r.LastFrame
			}
		}
		out.Encode(w)
	}
}

// A word is what a participant in another process says of itself: when it last heard and saw whom.
type word struct {
	ID                    string
	Sessions, Resumptions int
	Heard, Seen           map[string]time.Time
}

// A remote is a participant in another process.
type remote struct {
	t    *testing.T
	mu   sync.Mutex
	last word
}

// listen takes what the participant says.
func (r *remote) listen(out io.Reader) {
	for in := json.NewDecoder(out); ; {
		var w word
		if in.Decode(&w) != nil {
			return
		}
		r.mu.Lock()
		r.last = w
		r.mu.Unlock()
	}
}

// await waits until the participant says something of that sort.
func (r *remote) await(limit time.Duration, what string, f func(word) bool) word {
	r.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		r.mu.Lock()
		w := r.last
		r.mu.Unlock()
		if f(w) {
			return w
		}
		if time.Now().After(end) {
			r.t.Fatalf("participant elsewhere: %s: not within %v; it says %+v", what, limit, w)
		}
	}
}

// gets holds when the participant has heard and seen n others since a time.
func gets(n int, since time.Time) func(word) bool {
	return func(w word) bool {
		heard, seen := 0, 0
		for who, at := range w.Heard {
			if who != "jvb" && at.After(since) {
				heard++
			}
		}
		for who, at := range w.Seen {
			if who != "jvb" && at.After(since) {
				seen++
			}
		}
		return heard == n && seen == n
	}
}

// TestAsleep stops the process of somebody in a call, as a computer does whose lid is closed, for longer than anybody waits
// for its sign of life, and counts from when it goes on until it hears and sees, and is heard and seen.
func TestAsleep(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	asleep, short := 90*time.Second, func(*signaling.Config) {}
	if !fullLength() {
		asleep, short = 8*time.Second, func(cfg *signaling.Config) { // but bridges speak every 5 s only
			cfg.Sessions.Silence, cfg.Sessions.Hibernation = 3*time.Second, time.Second
		}
	}
	s := startSplit(t, short)
	others := joinRoom(t, "http://"+s.http, "asleep", 2, 0)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Args: []string{"participant", "http://" + s.http, "asleep"}, Stderr: os.Stderr}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &remote{t: t}
	var listening sync.WaitGroup
	listening.Go(func() { r.listen(out) })
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Signal(syscall.SIGCONT)
		listening.Wait()
		cmd.Wait()
	})
	one := r.await(mediaLimit, "hears and sees the others", gets(2, time.Now()))
	known := func(limit time.Duration, since time.Time) {
		t.Helper()
		for _, p := range others {
			await(t, p, limit, "hears and sees who sleeps", func(s client.Stats) bool {
				return s.Source(one.ID+"-a0").LastPacket.After(since) && s.Source(one.ID+"-v0").LastFrame.After(since)
			})
		}
	}
	known(mediaLimit, time.Now())
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(asleep)
	await(t, others[0], time.Minute, "sees that it is gone", func(s client.Stats) bool { return len(s.Members) == 3 })
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back := r.await(time.Minute, "is back", func(w word) bool { return w.Sessions > one.Sessions && gets(2, began)(w) })
	gets := time.Since(began)
	known(time.Minute, began)
	t.Logf("asleep for %v: hears and sees after %v, is heard and seen after %v; %d resumptions, %d media sessions", asleep,
		gets.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), back.Resumptions, back.Sessions)
	if back.ID != one.ID {
		t.Errorf("it went as %s and came back as %s", one.ID, back.ID)
	}
}

// heardSince counts the others whose sound has come since a time.
func heardSince(s client.Stats, since time.Time) (n int) {
	for _, r := range s.Received {
		if r.Source.Kind == client.Audio && r.Source.Owner != "jvb" && r.LastPacket.After(since) {
			n++
		}
	}
	return n
}

// joinRoom has n participants join at once; everybody sends sound, the first two a picture too.
func joinRoom(t *testing.T, url, room string, n int, resumeAfter time.Duration) []*client.Participant {
	t.Helper()
	all := make([]*client.Participant, n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var joining sync.WaitGroup
	for i := range all {
		joining.Go(func() {
			p, err := client.Join(ctx, client.Config{
				URL: url, Room: room, Name: fmt.Sprint("participant ", i), Rewriting: true, ResumeAfter: resumeAfter,
				Send: client.Media{Audio: true, Video: i < 2, Simulcast: true, DependencyDescriptor: true},
			})
			if err != nil {
				t.Errorf("participant %d: %v", i, err)
				return
			}
			all[i] = p
		})
	}
	joining.Wait()
	t.Cleanup(func() {
		for _, p := range all {
			if p != nil {
				p.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return all
}

func envInt(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return def
}
