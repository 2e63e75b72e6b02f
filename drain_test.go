package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"plenum/jobs"
	"plenum/signaling/client"
)

// TestLastShard: what would leave people without a shard is refused and says why: the drain of the last one, a change of one
// that they are on, two drains at once.
func TestLastShard(t *testing.T) {
	e := newEstate(t)
	e.must("shard", "add", "one", "--region", "muc", "--domain", "localhost")
	shard := e.list(jobs.Shard)["one"]
	if shard.Release != version() || shard.Region != "muc" || shard.Host != e.host || shard.Since.IsZero() || shard.URL == "" {
		t.Errorf("the list says %+v", shard)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		p, err := client.Join(ctx, client.Config{URL: shard.URL, Room: "here", ResumeAfter: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
	}
	eventually(t, "the shard tells of its people", func() bool {
		one := e.list(jobs.Shard)["one"]
		t.Logf("%+v, %s", one.Load, one.Why)
		return one.Load.People == 2
	})

	if hosts, err := (&jobs.Cluster{Nomad: e.nomad}).Carried(t.Context()); err != nil || fmt.Sprint(hosts[e.host]) != "{1 2 0 0 0 }" {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}
	if out := e.must("room", "trace", "here"); !strings.Contains(out, "2 in the room; here because: first socket came here") && !strings.Contains(out, "3 in the room; here because: first socket came here") {
		t.Errorf("the room, of which nobody said where it is: %s", out)
	}

	refused := func(want string, args ...string) {
		t.Helper()
		out, status := e.plenum(args...)
		if status != 1 || !strings.Contains(out, want) {
			t.Errorf("plenum %s: status %d: %s", strings.Join(args, " "), status, out)
		}
		if l := e.list(jobs.Shard)["one"].Load; l.Drain != "" || l.People != 2 {
			t.Errorf("after plenum %s: %+v", strings.Join(args, " "), l)
		}
	}
	const last = "no other shard is in service (there is none), so nobody takes its 1 room with 2 people"
	refused(last, "shard", "drain", "one")
	refused(last, "shard", "rm", "one")
	change := []string{"shard", "add", "one", "--region", "muc"}
	for _, v := range e.vars {
		if !strings.HasPrefix(v, "haproxy=") {
			change = append(change, "--var", v)
		}
	}
	change = append(change, "--var", "log_level=info")
	refused("moves 2 people in 1 room", change...)
	refused("--restart", change...)
	refused(last, append(change, "--restart")...)

	e.must("shard", "add", "two", "--region", "muc")
	for round := range 2 { // whoever is first, one shard stays
		var both sync.WaitGroup
		var said [2]string
		var status [2]int
		for i, name := range []string{"one", "two"} {
			both.Go(func() { said[i], status[i] = e.plenum("shard", "drain", name) })
		}
		both.Wait()
		serve := 0
		for _, i := range e.list(jobs.Shard) {
			if i.Load.Drain == "" && i.Why == "" {
				serve++
			}
		}
		if serve == 0 || status[0] == 0 && status[1] == 0 {
			t.Errorf("two drains at once left %d shards: status %d: %s; status %d: %s", serve, status[0], said[0], status[1], said[1])
		}
		t.Logf("round %d: status %v, %d in service", round, status, serve)
		for _, name := range []string{"one", "two"} {
			e.must("shard", "drain", name, "--cancel")
		}
		eventually(t, "both are in service", func() bool {
			all := e.list(jobs.Shard)
			return all["one"].Load.Drain+all["two"].Load.Drain == ""
		})
	}

	full := "one"
	eventually(t, "somebody has the people", func() bool {
		for name, i := range e.list(jobs.Shard) {
			if i.Load.People == 2 {
				full = name
				return true
			}
		}
		return false
	})
	change[2] = full
	out := e.must(append(change, "--restart")...)
	if !strings.Contains(out, "drained, after") || !strings.Contains(out, "serves on") {
		t.Errorf("a change with people on it: %s", out)
	}
}
