package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plenum/overlay/netlab/stack"
	"plenum/signaling/client"
	"plenum/wire/xmpp"
)

// A quorum is three real Consul servers on loopback.
type quorum struct {
	t       *testing.T
	urls    []string
	raft    []string // address of each, as the others name the leader
	process []*exec.Cmd
}

func newQuorum(t *testing.T) *quorum {
	t.Helper()
	q := &quorum{t: t}
	path := stack.Path(t, "consul")
	port := func() string { _, p, _ := strings.Cut(freePort(t), ":"); return p }
	var joins []string
	var configs []string
	for i := range 3 {
		http, server, serf := port(), port(), port()
		q.urls, q.raft = append(q.urls, "http://127.0.0.1:"+http), append(q.raft, "127.0.0.1:"+server)
		joins = append(joins, fmt.Sprintf("%q", "127.0.0.1:"+serf))
		configs = append(configs, fmt.Sprintf(`
node_name = "server%d"
server = true
bootstrap_expect = 3
bind_addr = "127.0.0.1"
data_dir = %q
session_ttl_min = "5s"
ports { http = %s, dns = -1, grpc = -1, grpc_tls = -1, server = %s, serf_lan = %s, serf_wan = -1 }
performance { raft_multiplier = 1 }
retry_interval = "300ms"
`, i, t.TempDir(), http, server, serf))
	}
	for _, c := range configs {
		file := filepath.Join(t.TempDir(), "consul.hcl")
		if err := os.WriteFile(file, []byte(c+"retry_join = ["+strings.Join(joins, ", ")+"]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "agent", "-config-file", file)
		cmd.Env = stack.Environment(t.TempDir())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		q.process = append(q.process, cmd)
	}
	for end := time.Now().Add(time.Minute); q.leader() < 0; pause(t.Context(), 50*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no leader after a minute")
		}
	}
	return q
}

// leader is the number of the server that leads, or -1.
func (q *quorum) leader() int {
	c := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, u := range q.urls {
		res, err := c.Get(u + "/v1/status/leader")
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		for i, r := range q.raft {
			if strings.Contains(string(text), r) {
				return i
			}
		}
	}
	return -1
}

// A resident stays in a room whatever happens, and speaks. What it hears of itself says that the instance of the room
// that it joined is still written to.
type resident struct {
	room string
	p    *client.Participant

	mu     sync.Mutex
	began  time.Time // of this instance
	shard  string    // that it is on; empty: not asked yet
	echoes []echo
}

// An echo is something that a shard wrote to a room's people at a time, in an instance that began before.
type echo struct {
	at, began time.Time
	shard     string
}

func (r *resident) event(e client.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case client.Joined: // also after a resumption by a shard that did not know it
		r.began, r.shard = time.Now(), ""
	case client.Chat:
		r.echoes = append(r.echoes, echo{time.Now(), r.began, r.shard})
	}
}

// ask finds out which shard the resident is on.
func (r *resident) ask() {
	r.mu.Lock()
	began, known := r.began, r.shard != ""
	r.mu.Unlock()
	if known {
		return
	}
	shard := shardOf(r.p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.Equal(began) && len(shard) == 1 {
		r.shard = shard
	}
}

// overlap returns how long after others had been let into another instance of the room, at a time, this one was still
// written to. One after another on the same shard is no harm: what was written may be late here.
func (r *resident) overlap(other time.Time, shard string) (late time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.echoes {
		if e.began.Before(other) && e.at.After(other) && (e.shard == "" || e.shard != shard) {
			late = max(late, e.at.Sub(other))
		}
	}
	return late
}

// since is when the resident joined the instance that it is in.
func (r *resident) since() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began
}

// TestOneOwner has people in rooms and others coming and going by edges that disagree, while shards freeze for longer than
// their leases, lose sight of Consul and Consul loses its leaders: no room is ever open twice.
func TestOneOwner(t *testing.T) {
	n, rounds, frozen := 6, 1, 15*time.Second
	if fullLength() {
		n, rounds, frozen = envInt("PLENUM_CHAOS_ROOMS", 200), envInt("PLENUM_CHAOS_ROUNDS", 50), 30*time.Second
	}
	q := newQuorum(t)
	w := newTown(t, "")
	gates := map[string]*gate{}
	for i, name := range []string{"a", "b", "c"} {
		g := newGate(t, strings.TrimPrefix(q.urls[i], "http://"))
		gates[name] = g
		args := []string{"run", "signaling", "--shard", name, "--http", freePort(t), "--xmpp", freePort(t), "--metrics", loopback,
			"--shards-file", w.list, "--resume-key", "the same", "--edge", "127.0.0.0/8", "--log-level", "warn",
			"--consul", "http://" + g.listener.Addr().String(), "--room-key", "the same"}
		for _, u := range q.urls {
			args = append(args, "--consul-server", u)
		}
		w.shards, w.names = append(w.shards, startMember(t, name, args...)), append(w.names, name)
	}
	w.render()
	a, b, c := w.shards[0], w.shards[1], w.shards[2]
	one, two := newEdge(t, "one", a.addr(), b.addr(), c.addr()), newEdge(t, "two", b.addr(), c.addr(), a.addr())

	for _, s := range w.shards {
		s.awaitMetric("plenum_shard_ownership", 2)
	}
	for round := range rounds {
		began := time.Now()
		residents := make([]*resident, n)
		var joining sync.WaitGroup
		for i := range residents {
			r := &resident{room: fmt.Sprintf("room-%d-%d", round, i)}
			residents[i] = r
			joining.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				url := one.URL
				if i%2 == 1 {
					url = two.URL
				}
				for r.p == nil && ctx.Err() == nil { // a socket may be refused, as everybody's may
					p, err := client.Join(ctx, client.Config{URL: url, Room: r.room, OnEvent: r.event, ResumeAfter: 500 * time.Millisecond})
					if r.p = p; err != nil {
						t.Logf("%s: %v", r.room, err)
						r.p = nil
						pause(ctx, time.Second)
					}
				}
				if r.p == nil {
					t.Errorf("%s: nobody gets in", r.room)
				}
			})
		}
		joining.Wait()
		if t.Failed() {
			return
		}
		ctx, stop := context.WithCancel(context.Background())
		var all sync.WaitGroup
		var visits, refused, others atomic.Int64
		var worst atomic.Int64
		for i, r := range residents {
			all.Go(func() { // speaks, and comes back whenever it is out
				for ctx.Err() == nil {
					r.ask()
					r.p.Chat("here")
					pause(ctx, 300*time.Millisecond)
				}
			})
			all.Go(func() { // somebody else, who comes and goes
				for v := 0; ctx.Err() == nil; v++ {
					url := two.URL
					if (i+v)%2 == 1 {
						url = one.URL
					}
					visit, cancel := context.WithTimeout(ctx, 15*time.Second)
					p, err := client.Join(visit, client.Config{URL: url, Room: r.room})
					cancel()
					if err != nil {
						refused.Add(1)
						pause(ctx, 500*time.Millisecond)
						continue
					}
					visits.Add(1)
					in := time.Now()
					if _, there := p.Stats().Members[r.p.ID()]; !there {
						others.Add(1)
						shard := shardOf(p)
						pause(ctx, 3*time.Second) // who writes to the other one now, still does
						_, there := p.Stats().Members[r.p.ID()]
						late := r.overlap(in, shard)
						switch {
						case there && r.since().Before(in): // it joined this one in the same moment
						case late > time.Duration(worst.Load()):
							worst.Store(int64(late))
							t.Logf("%5.1fs %s is on %s for a visitor and still on %s for its resident", in.Sub(began).Seconds(), r.room, shard, shardOf(r.p))
						}
					}
					p.Vanish()
					pause(ctx, 200*time.Millisecond)
				}
			})
		}
		step := func(what string, d time.Duration, do func()) {
			t.Logf("%5.1fs %s", time.Since(began).Seconds(), what)
			do()
			pause(ctx, d)
		}
		step("all is well", 2*time.Second, func() {})
		step("a freezes", frozen, func() { a.signal(syscall.SIGSTOP) })
		step("a goes on", 2*time.Second, func() { a.signal(syscall.SIGCONT) })
		leader := q.leader()
		step("the leader freezes", 4*time.Second, func() { q.process[max(leader, 0)].Process.Signal(syscall.SIGSTOP) })
		step("the leader goes on", 2*time.Second, func() { q.process[max(leader, 0)].Process.Signal(syscall.SIGCONT) })
		before := others.Load()
		step("b loses sight of Consul", 20*time.Second, func() { gates["b"].set(true) })
		step("b sees Consul again", 5*time.Second, func() { gates["b"].set(false) })
		stop()
		all.Wait()
		for _, r := range residents {
			r.p.Close()
		}
		t.Logf("%d rooms: %d visits, %d refused, %d to a room that had another owner than its resident's; written to after that: %v",
			n, visits.Load(), refused.Load(), others.Load(), time.Duration(worst.Load()).Round(time.Millisecond))
		if before == 0 || others.Load() == before {
			t.Errorf("%d rooms changed their owner when a was frozen, %d when b was cut off: too little was tried", before, others.Load()-before)
		}
		// Half a second is what an echo may have been on its way in this process.
		if late := time.Duration(worst.Load()); late > 500*time.Millisecond {
			t.Errorf("a room was open on two shards for %v", late)
		}
	}
}

// shardOf asks a participant's shard for its name.
func shardOf(p *client.Participant) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	answer, err := p.IQ(ctx, "get", "localhost", xmpp.New(xmpp.NSDisco, "query"))
	if err != nil {
		return err.Error()
	}
	for id := range answer.Child(xmpp.NSDisco, "query").Children {
		if id.Attr("type") == "shard" {
			return id.Attr("name")
		}
	}
	return "?"
}

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
