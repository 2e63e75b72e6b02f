//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// numbered names a room so that no name is the beginning of another.
func numbered(prefix string, i int) string { return fmt.Sprintf("%s%02d", prefix, i) }

// fill opens rooms of two people each, on a shard if one is named.
func fill(p *place, prefix string, rooms int, shard ...string) {
	p.t.Helper()
	for i := range rooms {
		p.join(strings.Join(append([]string{numbered(prefix, i)}, shard...), "_"), 2)
	}
	p.talk(prefix, 2*rooms)
}

// undisturbed complains about people who were out for a moment, were invited anew, or heard nobody for longer than limit.
func (w *town) undisturbed(p *place, before news, rooms string, limit time.Duration) {
	w.Helper()
	p.talk(rooms, len(before.in(rooms)))
	was := map[int]person{}
	for _, o := range before.in(rooms) {
		was[o.Number] = o
	}
	for _, o := range p.now().in(rooms) {
		if b := was[o.Number]; o.Sessions != b.Sessions || o.Reloads != b.Reloads || o.Returns != b.Returns {
			w.Errorf("%s: %+v was %+v", rooms, o, b)
		}
	}
	if d := p.silence(rooms); d > limit {
		w.Errorf("%s: somebody heard nobody for %v", rooms, d)
	}
}

// shardKilled kills a shard with everything it has. Nomad starts it again, and everybody is back in the room with media.
func shardKilled(w *town) {
	rooms := crowded(10)
	people := w.place("ber-1", "muc-1", "ham-1")
	fill(people, "killed", rooms, "ber-a")
	others := w.place("muc-1")
	fill(others, "others", 2, "muc-a")
	before := others.now()
	others.calm()
	was := w.allocated()
	began := time.Now()
	w.signal(w.member("ber-1"), "KILL", "run signaling.*--shard ber-a ")
	took := people.back("killed", 2, began, 90*time.Second)
	w.Logf("shard killed: %d people of %d rooms are back with media: p50 %v, p95 %v", len(took), rooms, median(took), p95(took))
	if p95(took) > 10*time.Second {
		w.Errorf("p95 is %v, want less than 10 s", p95(took))
	}
	w.undisturbed(others, before, "others", 2*time.Second)
	if all, err := w.list("shard"); err != nil || all["ber-a"].Load.Rooms < rooms {
		w.Errorf("the rooms are not where they were: %+v, %v", all, err)
	}
	now := w.allocated()
	if len(now) != len(was) {
		w.Errorf("there were %d allocations and are %d", len(was), len(now))
	}
}

// edgeLost ends an edge that everybody is on, and does not let it come back. People return by another region's to the
// rooms that they were in, and their media never stops.
func edgeLost(w *town) {
	rooms := crowded(10)
	people := w.place("ber-1", "muc-1", "ham-1")
	fill(people, "edge", rooms, "ber-a")
	people.calm()
	ber := w.member("ber-1")
	began := time.Now()
	lift := w.bar(ber, "ip saddr "+w.home.Addr().String()+" tcp dport 80")
	w.signal(ber, "KILL", "haproxy -f")
	took := people.back("edge", 2, began, 90*time.Second)
	w.Logf("edge lost: %d people of %d rooms are back: p50 %v, p95 %v; nobody was silent for longer than %v",
		len(took), rooms, median(took), p95(took), people.silence("edge").Round(10*time.Millisecond))
	if p95(took) > 10*time.Second {
		w.Errorf("p95 is %v, want less than 10 s", p95(took))
	}
	for _, o := range people.now().in("edge") {
		if o.Reloads > 0 || o.Sessions != 1 {
			w.Errorf("somebody came anew: %+v", o)
		}
	}
	if d := people.silence("edge"); d > 2*time.Second {
		w.Errorf("somebody heard nobody for %v", d)
	}
	if _, shard, err := w.owner(w.member("muc-1"), "edge00_ber-a"); err != nil || shard != "ber-a" {
		w.Errorf("the other edge says that the room is on %q, %v", shard, err)
	}
	lift()
	w.settled()
}

// drainStuck (E17, E18) drains a bridge on which a call goes on. The deadline passes and nobody is cut; while the bridge
// does not say whom it has, it is not taken for empty; when the last has left, it is.
func drainStuck(w *town) {
	people := w.place("ham-1")
	fill(people, "stuck", 1)
	before := people.now()
	people.calm()
	was := w.allocated()
	host := ""
	w.within(20*time.Second, func() error {
		all, err := w.list("bridge")
		for _, b := range all {
			if b.Load.People == 2 {
				host = b.Name
				return nil
			}
		}
		return fmt.Errorf("%+v, %v", all, err)
	})
	exit := func(args ...string) (int, string) {
		out, err := w.first().output("plenum", append([]string{"bridge"}, args...)...)
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			return ended.ExitCode(), out + err.Error()
		}
		w.check(err)
		return 0, out
	}
	if code, out := exit("drain", host, "--deadline", "3s"); code != 2 {
		w.Errorf("a drain that is not over in time: status %d: %s", code, out)
	}
	w.undisturbed(people, before, "stuck", time.Second)

	cmd, err := w.first().command("plenum", "bridge", "drain", host)
	w.check(err)
	drain := w.first().StartCmd(cmd)
	defer drain.Kill()
	_, err = drain.Await(w.Context(), "2 people")
	w.check(err)
	w.signal(w.member(host), "STOP", "run bridge.*--relay-id "+host)
	select {
	case <-drain.Done():
		w.Errorf("a bridge that says nothing is drained: %s", drain.Output())
	case <-time.After(5 * time.Second): // ten looks
	}
	w.signal(w.member(host), "CONT", "run bridge.*--relay-id "+host)
	people.until(time.Minute, "the call goes on", func(n news) bool {
		return !slices.ContainsFunc(n.in("stuck"), func(o person) bool { return n.At.Sub(o.Heard) > time.Second })
	})
	select {
	case <-drain.Done():
		w.Errorf("a bridge with people is drained: %s", drain.Output())
	default:
	}
	people.leave("stuck")
	select {
	case <-drain.Done(): // the shard has taken them elsewhere meanwhile, so the bridge has to find out by itself that they are gone
	case <-time.After(3 * time.Minute):
		w.Fatalf("the drain does not end: %s", drain.Output())
	}
	if err := drain.Wait(); err != nil || !strings.Contains(drain.Output(), "drained") {
		w.Errorf("the drain: %v: %s", err, drain.Output())
	}
	if code, out := exit("drain", host, "--cancel"); code != 0 {
		w.Errorf("status %d: %s", code, out)
	}
	w.unmoved(was, "")
	w.settled()
}

// mixedVersions (E40) upgrades a bridge between two others. A conference stays on the version that it began with,
// wherever who comes later is; a new one may have the new version, and keeps to that.
func mixedVersions(w *town) {
	next := build(w.T, "0.2-lab")
	muc1, muc2 := w.member("muc-1"), w.member("muc-2")
	path := "opt/plenum/bin/plenum-0.2-lab"
	w.check(linkOrCopy(next, filepath.Join(muc2.root, path)))
	ham, muc := w.place("ham-1"), w.place("muc-1")

	w.rested()
	fill(ham, "old", 1)
	w.check(w.first().plenum("bridge", "drain", muc1.name)) // muc has only the one that is upgraded
	w.check(w.addBridge(muc2, "--var", "plenum=/"+path))
	w.rested()
	var all map[string]instance
	served := func(host string) int {
		var err error
		all, err = w.list("bridge")
		w.check(err)
		return all[host].Load.People
	}
	muc.join("old00", 1)
	muc.talk("old00", 1)
	if n := served(muc2.name); n != 0 {
		w.Errorf("%d people of a conference of the old version are on the new bridge: %+v", n, all)
	}
	fill(muc, "new", 1)
	if n := served(muc2.name); n != 2 {
		w.Errorf("%d people of a new conference are on the new bridge: %+v", n, all)
	}
	ham.join("new00", 1)
	ham.talk("new00", 1)
	if n := served(muc2.name); n != 3 {
		w.Errorf("%d of 3 people of a conference of the new version are on a bridge of it: %+v", n, all)
	}
	for _, p := range []*place{ham, muc} {
		for _, rooms := range []string{"old00", "new00"} {
			p.leave(rooms)
		}
	}
	w.empty()
	w.check(w.addBridge(muc2)) // and back
	w.check(w.first().plenum("bridge", "drain", muc1.name, "--cancel"))
	w.settled()
}

// nomadCut cuts the Nomad of a host from its servers. Nothing of what runs there is ended, started or moved, then or when
// it is back.
func nomadCut(w *town) {
	muc2 := w.member("muc-2")
	people := w.place("muc-1")
	fill(people, "nomad", 6)
	before, was := people.now(), w.allocated()
	people.calm()
	began := time.Now()
	lift := w.bar(muc2, "tcp dport 4647")
	w.noted(muc2, "ready", false)
	w.Logf("Nomad misses the host after %v", time.Since(began).Round(time.Second))
	time.Sleep(time.Until(began.Add(length())))
	w.undisturbed(people, before, "nomad", 2*time.Second)
	w.unmoved(was, muc2.name)
	lift()
	w.noted(muc2, "ready", true)
	w.settled()
	w.undisturbed(people, before, "nomad", 2*time.Second)
	w.unmoved(was, "")
}

// noted waits until Nomad says of a node that it has a status, or that it has not.
func (w *town) noted(m *member, status string, is bool) {
	w.Helper()
	w.within(2*time.Minute, func() error {
		nodes, _, _, err := w.sight()
		for _, n := range nodes {
			if n.Name == m.name && (n.Status == status) != is {
				return fmt.Errorf("%s is %s", n.Name, n.Status)
			}
		}
		return err
	})
}

// controlCut takes the control network from a host, and nothing else. Those whose media it carries notice nothing; those
// whose room's shard is there find the room on another one; nobody's call ends.
func controlCut(w *town) {
	muc2 := w.member("muc-2")
	people := w.place("muc-1")
	fill(people, "control", 8)
	here := map[string]bool{}
	for _, o := range people.now().in("control") {
		_, shard, err := w.owner(w.member("muc-1"), o.Room)
		w.check(err)
		here[o.Room] = shard == "muc-b"
	}
	before, was := people.now(), w.allocated()
	people.calm()
	began := time.Now()
	lift := w.bar(muc2, "udp dport 4242")
	moved := 0
	for room, cut := range here {
		if cut {
			moved++
			took := people.back(room, 2, began, 90*time.Second)
			w.Logf("control cut: a room of the host's shard is on another one after %v", took[len(took)-1])
			if took[len(took)-1] > 20*time.Second {
				w.Errorf("%s took %v", room, took)
			}
		}
	}
	if moved == 0 || moved == len(here) {
		w.Errorf("%d of %d rooms were on the host: too little was tried", moved, len(here))
	}
	time.Sleep(time.Until(began.Add(length())))
	for room, cut := range here {
		if !cut {
			w.undisturbed(people, before, room, 2*time.Second)
		}
	}
	lift()
	w.settled()
	w.unmoved(was, "")
	people.talk("control", len(before.in("control")))
	for _, o := range people.now().in("control") {
		if o.Reloads > 0 {
			w.Errorf("somebody had to come anew: %+v", o)
		}
	}
}

// serversLost (E24) ends Consul and Nomad on all servers. Who talks goes on talking, and nobody is taken out of the
// catalogue when they are back. With the most of the servers gone, and the rest saying so, new rooms open all the same.
func serversLost(w *town) {
	servers := w.with("server")
	stop := func(some []*member) {
		for _, m := range some {
			w.signal(m, "STOP", "run agent") // which would start them again
			w.signal(m, "KILL", "(consul|nomad).* agent ")
		}
	}
	people := w.place("ber-1", "muc-1", "ham-1")
	fill(people, "servers", 4)
	far := w.place("muc-1")
	fill(far, "servers-far", 4)
	all := map[*place]news{people: people.now(), far: far.now()}
	was := w.allocated()
	undisturbed := func() {
		w.Helper()
		for p, before := range all {
			w.undisturbed(p, before, "servers", 2*time.Second)
		}
	}
	for p := range all {
		p.calm()
	}
	began := time.Now()
	stop(servers)
	time.Sleep(time.Until(began.Add(length())))
	undisturbed()
	if code, _, err := w.open(servers[2], "unheard-of"); code == http.StatusOK {
		w.Errorf("a room opened without anybody to ask whether it is open elsewhere: %d, %v", code, err)
	}
	began = time.Now()
	for _, m := range servers {
		w.signal(m, "CONT", "run agent")
	}
	w.settled()
	w.Logf("servers lost: whole %v after they were back", time.Since(began).Round(time.Second))
	w.unmoved(was, "")
	undisturbed()

	began = time.Now()
	stop(servers[1:])
	for i, opened := 0, 0; opened < 5; i++ {
		if code, _, err := w.open(servers[i%3], fmt.Sprint("orphan", i)); err == nil && code == http.StatusOK && time.Since(began) > 10*time.Second {
			if opened++; opened == 1 {
				w.Logf("most servers lost: a new room after %v", time.Since(began).Round(time.Second))
			}
		}
		if time.Since(began) > time.Minute {
			w.Fatalf("within a minute %d of %d rooms opened", opened, i)
		}
		time.Sleep(200 * time.Millisecond)
	}
	fill(people, "orphaned", 1)
	undisturbed()
	for _, m := range servers[1:] {
		w.signal(m, "CONT", "run agent")
	}
	w.settled()
	undisturbed()
	people.talk("orphaned", 2)
	w.unmoved(was, "")
}

// hostLost (E42) takes the power from a host with a shard and a bridge. Its rooms are on another shard, calls on its
// bridge go on elsewhere, and Nomad places nothing anew. When the host is back, its shard takes new rooms bit by bit.
func hostLost(w *town) {
	muc1, muc2 := w.member("muc-1"), w.member("muc-2")
	people := w.place("muc-1", "ber-1", "ham-1")
	rooms := crowded(10)
	fill(people, "host", rooms)
	var here []string
	for i := range rooms {
		room := numbered("host", i)
		if _, shard, err := w.owner(muc1, room); err == nil && shard == "muc-b" {
			here = append(here, room)
		}
	}
	all, err := w.list("bridge")
	w.check(err)
	carried := all[muc2.name].Load.People
	if len(here) == 0 || carried == 0 {
		w.Fatalf("the host had %d rooms and carried %d people: too little is tried", len(here), carried)
	}
	was := w.allocated()
	began := time.Now()
	muc2.cable.Down()
	muc2.powerOff()
	took := people.back(strings.Join(here, " "), 2, began, 90*time.Second)
	people.talk("host", 2*rooms)
	w.Logf("host lost: %d people of %d rooms are back with media: p50 %v, p95 %v; all %d, of whom it carried %d, hear each other after %v",
		len(took), len(here), median(took), p95(took), 2*rooms, carried, time.Since(began).Round(100*time.Millisecond))
	if p95(took) > 20*time.Second {
		w.Errorf("p95 is %v, want less than 20 s", p95(took))
	}
	if d := people.silence("host"); d > 30*time.Second {
		w.Errorf("somebody heard nobody for %v", d)
	}
	for _, room := range here {
		if _, shard, err := w.owner(muc1, room); err != nil || shard == "" || shard == "muc-b" {
			w.Errorf("%s is on %q, %v", room, shard, err)
		}
	}
	w.noted(muc2, "ready", false)
	w.unmoved(was, muc2.name)

	owners := map[string]string{}
	for i := range rooms {
		_, owners[numbered("host", i)], err = w.owner(muc1, numbered("host", i))
		w.check(err)
	}
	people.talk("host", 2*rooms)
	before := people.now()
	people.calm()
	muc2.cable.Up()
	w.check(muc2.boot())
	w.ramps("muc-b", muc1)
	w.settled()
	w.undisturbed(people, before, "host", 2*time.Second)
	for room, was := range owners {
		if _, is, err := w.owner(muc1, room); err != nil || is != was {
			w.Errorf("%s moved from %s to %q, %v", room, was, is, err)
		}
	}
}

// ramps has new rooms opened by way of an edge until a shard that was away has some of them, and sees to it that it does
// not get its whole share at once.
func (w *town) ramps(shard string, by *member) {
	w.Helper()
	tried := 0
	first := w.within(3*time.Minute, func() error {
		tried++
		_, got, err := w.open(by, fmt.Sprint("fresh-", shard, tried))
		if got == shard {
			return nil
		}
		return fmt.Errorf("%d rooms, the last on %q, %v", tried, got, err)
	})
	n, got := 0, 0
	for began := time.Now(); n < 100 && time.Since(began) < 8*time.Second; n++ {
		if _, is, _ := w.open(by, fmt.Sprint("ramp-", shard, n)); is == shard {
			got++
		}
	}
	w.Logf("%s is back and has a room after %v; of the next %d new rooms it got %d", shard, first.Round(time.Second), n, got)
	if got*5 > n*2 {
		w.Errorf("%d of %d new rooms are on %s, which has just come back", got, n, shard)
	}
}

// regionLost (E22, E23) takes the power from a region. New rooms open elsewhere within fifteen seconds, the rooms that are
// there notice nothing, and those of the region go on elsewhere. When it is back no room moves, and it gets new ones
// bit by bit.
func regionLost(w *town) {
	ham := w.member("ham-1")
	lost, kept := w.place("ham-1", "ber-1", "muc-1"), w.place("muc-1")
	fill(lost, "lost", crowded(4), "ham-a")
	fill(kept, "kept", 4)
	before, was := kept.now(), w.allocated()
	kept.calm()
	began := time.Now()
	ham.cable.Down()
	ham.powerOff()

	var opening sync.WaitGroup
	worst := map[string]time.Duration{}
	var mu sync.Mutex
	for _, by := range []*member{w.member("ber-1"), w.member("muc-1")} {
		opening.Go(func() {
			for i, good := 0, 0; good < 50 && time.Since(began) < time.Minute; i++ {
				code, shard, err := w.open(by, fmt.Sprint("other-", by.name, i))
				if err == nil && code == http.StatusOK && shard != "ham-a" {
					good++
				} else {
					good = 0
					mu.Lock()
					worst[by.name] = time.Since(began)
					mu.Unlock()
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	took := lost.back("lost", 2, began, 90*time.Second)
	opening.Wait()
	w.Logf("region lost: %d people are back with media elsewhere: p50 %v, p95 %v; the last new room elsewhere that did not open: %v",
		len(took), median(took), p95(took), worst)
	if p95(took) > 20*time.Second {
		w.Errorf("p95 is %v, want less than 20 s", p95(took))
	}
	for by, d := range worst {
		if d > 15*time.Second {
			w.Errorf("%s: no new room for %v", by, d)
		}
	}
	w.undisturbed(kept, before, "kept", 2*time.Second)
	w.unmoved(was, ham.name)

	owners := map[string]string{}
	for _, o := range lost.now().People {
		_, shard, err := w.owner(w.member("ber-1"), o.Room)
		w.check(err)
		owners[o.Room] = shard
	}
	before = lost.now()
	lost.calm()
	ham.cable.Up()
	w.check(ham.boot())
	w.within(2*time.Minute, func() error {
		c, err := w.home.Dial(w.Context(), "tcp", ham.Addr().String()+":80")
		if err == nil {
			c.Close()
		}
		return err
	})
	w.ramps("ham-a", ham)
	w.Logf("the region is back after %v", w.settled().Round(time.Second))
	w.undisturbed(lost, before, "lost", 2*time.Second)
	w.undisturbed(kept, kept.now(), "kept", 2*time.Second)
	for room, was := range owners {
		if _, is, err := w.owner(w.member("ber-1"), room); err != nil || is != was {
			w.Errorf("%s moved from %s to %q, %v", room, was, is, err)
		}
	}
}
