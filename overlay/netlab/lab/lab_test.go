//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/overlay/netlab"
)

// TestMain is a crowd when it is called by that name: tests start it on hosts.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "crowd" {
		crowd()
		return
	}
	goleak.VerifyTestMain(m)
}

// threeRegions have a server each, so that any of them may be lost. The second region has a host more.
var threeRegions = []site{
	{name: "ber-1", region: "ber", roles: "server,edge,shard,bridge"},
	{name: "ham-1", region: "ham", roles: "server,edge,shard,bridge"},
	{name: "muc-1", region: "muc", roles: "server,edge,shard,bridge"},
	{name: "muc-2", region: "muc", roles: "shard,bridge"},
}

// homes are the shards, each on a host of its own.
var homes = map[string]string{"ber-a": "ber-1", "ham-a": "ham-1", "muc-a": "muc-1", "muc-b": "muc-2"}

// A town is a lab's cluster at work, and a host outside of it from which people come.
type town struct {
	*cluster
	*testing.T // of the fault that is tried just now
	home       *netlab.Host
	web        *http.Client // from there
}

// TestLab breaks one cluster in every way that a winter has, one after the other. Each leaves it whole. Those that take
// long are for PLENUM_CHAOS=1, which has all of them last longer and hit more; PLENUM_CHAOS=30s has them last as long as
// that.
func TestLab(t *testing.T) {
	netlab.Require(t)
	w := newTown(t)
	for _, fault := range []struct {
		name string
		long bool
		try  func(*town)
	}{
		{"ShardKilled", false, shardKilled},
		{"EdgeLost", false, edgeLost},
		{"DrainStuck", true, drainStuck},
		{"MixedVersions", true, mixedVersions},
		{"NomadCut", true, nomadCut},
		{"ControlCut", true, controlCut},
		{"ServersLost", true, serversLost},
		{"HostLost", true, hostLost},
		{"RegionLost", true, regionLost},
	} {
		t.Run(fault.name, func(t *testing.T) {
			if fault.long && !chaos() {
				t.Skip("takes minutes: PLENUM_CHAOS=1")
			}
			w := *w
			w.T = t
			w.empty()
			began := time.Now()
			fault.try(&w)
			t.Logf("took %v", time.Since(began).Round(time.Second))
		})
	}
}

// chaos reports whether faults last as long as outside.
func chaos() bool { return os.Getenv("PLENUM_CHAOS") != "" }

// length is how long a fault lasts.
func length() time.Duration {
	if !chaos() {
		return 30 * time.Second
	}
	if d, err := time.ParseDuration(os.Getenv("PLENUM_CHAOS")); err == nil {
		return d
	}
	return 5 * time.Minute
}

// crowded is how many rooms a fault hits.
func crowded(some int) int {
	if chaos() {
		return 50
	}
	return some
}

// build makes a binary that says of itself that it is a release.
func build(t *testing.T, release string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plenum")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.release="+release, "-o", path, "plenum")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{T: t}
	c, err := newCluster(t.Context(), t, options{binary: build(t, "0.1-lab"), sites: threeRegions, out: t.Output()})
	if err == nil {
		err = c.found()
	}
	w.check(err)
	w.cluster = c
	t.Cleanup(func() {
		if t.Failed() {
			c.confess()
		}
	})
	ids := map[string]string{}
	w.within(time.Minute, func() error {
		nodes, _, _, err := c.sight()
		for _, n := range nodes {
			ids[n.Name] = n.ID
		}
		if err == nil && len(ids) < len(threeRegions) {
			err = fmt.Errorf("nodes: %v", ids)
		}
		return err
	})
	var all []func() error
	for shard, host := range homes {
		all = append(all, func() error { return c.addShard(shard, c.member(host).region, "--var", "nodes=["+ids[host]+"]") })
	}
	for _, m := range c.members {
		all = append(all, func() error { return c.addBridge(m) })
		if m.has("edge") {
			all = append(all, func() error { return c.addEdge(m.region) })
		}
	}
	w.check(together(all...))
	w.home = c.lab.Host("home")
	c.lab.Link(w.home, c.wan, netlab.LinkConfig{})
	w.web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: w.home.Dial, DisableKeepAlives: true}}
	w.settled()
	t.Logf("a cluster in %v", time.Since(c.start).Round(time.Second))
	return w
}

func (w *town) check(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// within waits until f has nothing to complain about, and returns how long that took.
func (w *town) within(limit time.Duration, f func() error) time.Duration {
	w.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			w.Fatalf("not within %v: %v", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// place has people at home who come by the edges of the hosts, the first that answers.
func (w *town) place(hosts ...string) *place {
	w.Helper()
	var edges []*member
	for _, h := range hosts {
		edges = append(edges, w.member(h))
	}
	return newPlace(w.T, w.home, edges...)
}

// An instance is one line of plenum shard list and its like.
type instance struct {
	Name, Host, Alloc, Why, Metrics string
	Load                            struct {
		Rooms, People, Bridges, Shards int
		Drain                          string
		Stress                         float64
	}
}

// list asks for the instances of a kind, by name.
func (w *town) list(kind string) (map[string]instance, error) {
	out, err := w.first().output("plenum", kind, "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var all []instance
	err = json.Unmarshal([]byte(out), &all)
	byName := map[string]instance{}
	for _, i := range all {
		byName[i.Name] = i
	}
	return byName, err
}

// settled waits until every host is a member in every respect, every shard has every bridge, and every edge serves.
func (w *town) settled() time.Duration {
	w.Helper()
	return w.within(3*time.Minute, func() error {
		if err := w.whole(); err != nil {
			return err
		}
		for _, kind := range []string{"shard", "bridge", "edge"} {
			all, err := w.list(kind)
			if err != nil {
				return err
			}
			for _, i := range all {
				switch {
				case i.Why != "":
					return fmt.Errorf("%s %s: %s", kind, i.Name, i.Why)
				case kind == "shard" && i.Load.Bridges < len(w.members), kind == "bridge" && i.Load.Shards < len(homes):
					return fmt.Errorf("%s %s: %+v", kind, i.Name, i.Load)
				}
			}
		}
		for _, m := range w.with("edge") {
			for shard := range homes {
				tries++
				code, got, err := w.open(m, fmt.Sprint("settled", tries, "_", shard))
				if err != nil || code != http.StatusOK || got != shard {
					return fmt.Errorf("the edge of %s: a room of %s: %d, on %q, %v", m.name, shard, code, got, err)
				}
			}
		}
		return nil
	})
}

// rested waits until every bridge serves all shards, and is not too busy to be chosen: they share one machine, and take part
// of each other's work for load.
func (w *town) rested() {
	w.Helper()
	w.within(2*time.Minute, func() error {
		all, err := w.list("bridge")
		for _, b := range all {
			if b.Why != "" || b.Load.Shards < len(homes) || b.Load.Stress > 0.5 {
				err = errors.Join(err, fmt.Errorf("%+v", b))
			}
		}
		return err
	})
}

// tries number rooms that nobody is in.
var tries int

// empty waits until nobody is left of the fault before.
func (w *town) empty() {
	w.Helper()
	w.within(2*time.Minute, func() error {
		all, err := w.list("bridge")
		for _, b := range all {
			if b.Load.People > 0 {
				err = fmt.Errorf("%d people are on %s", b.Load.People, b.Name)
			}
		}
		return err
	})
}

// open asks for a conference by way of an edge, and says which shard the room is on.
func (w *town) open(by *member, room string) (code int, shard string, err error) {
	body := fmt.Sprintf(`{"room": "%s@conference.%s"}`, room, domain)
	res, err := w.web.Post(by.url()+"/conference-request/v1?room="+url.QueryEscape(room), "application/json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, "", nil
	}
	return w.owner(by, room)
}

// owner says which shard has a room that is open.
func (w *town) owner(by *member, room string) (code int, shard string, err error) {
	res, err := w.web.Get(by.url() + "/xmpp-websocket?room=" + url.QueryEscape(room))
	if err != nil {
		return 0, "", err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return res.StatusCode, res.Header.Get("X-Jitsi-Shard"), nil
}

// An allocation is what Nomad says of one that it has not forgotten.
type allocation struct {
	ID, JobID, NodeName, ClientStatus, DesiredStatus string
	TaskStates                                       map[string]struct{ Restarts int }
}

// allocations are Nomad's, in the order of their ids.
func (w *town) allocations() (all []allocation, err error) {
	out, err := w.first().output("nomad", "operator", "api", "/v1/allocations?task_states=true")
	if err != nil {
		return nil, err
	}
	err = json.Unmarshal([]byte(out), &all)
	slices.SortFunc(all, func(a, b allocation) int { return strings.Compare(a.ID, b.ID) })
	return all, err
}

// allocated is allocations where they have to be had.
func (w *town) allocated() []allocation {
	w.Helper()
	var all []allocation
	w.within(time.Minute, func() (err error) {
		all, err = w.allocations()
		return err
	})
	return all
}

// unmoved complains about allocations that were made, ended or restarted since before, those on the host of that name
// excepted.
func (w *town) unmoved(before []allocation, except string) {
	w.Helper()
	was := map[string]allocation{}
	for _, a := range before {
		was[a.ID] = a
	}
	for _, a := range w.allocated() {
		b, there := was[a.ID]
		if !there {
			w.Errorf("%s was placed anew, on %s", a.JobID, a.NodeName)
			continue
		}
		if a.NodeName == except {
			continue
		}
		if a.ClientStatus != b.ClientStatus || a.DesiredStatus != b.DesiredStatus {
			w.Errorf("%s on %s was %s (%s) and is %s (%s)", a.JobID, a.NodeName, b.ClientStatus, b.DesiredStatus, a.ClientStatus, a.DesiredStatus)
		}
		for task, s := range a.TaskStates {
			if n := s.Restarts - b.TaskStates[task].Restarts; n != 0 {
				w.Errorf("%s/%s on %s was restarted %d times", a.JobID, task, a.NodeName, n)
			}
		}
	}
}

// signal sends a signal to the processes of a host whose command lines match; there must be some.
func (w *town) signal(m *member, signal, pattern string) {
	w.Helper()
	if out, err := m.Run("pkill", "-"+signal, "-f", "--", pattern); err != nil {
		ps, _ := m.Run("ps", "-eo", "args")
		w.Fatalf("%s: no process %q: %v %s\n%s", m.name, pattern, err, out, ps)
	}
}

// bar has the filter of a host's own drop what an expression matches, in and out, until the returned function is called.
func (w *town) bar(m *member, match string) (lift func()) {
	w.Helper()
	m.Nft(fmt.Sprintf("table inet fault {\n chain in { type filter hook input priority -300; %s drop; }\n chain out { type filter hook output priority -300; %s drop; }\n}", match, match))
	return func() { m.Nft("delete table inet fault") }
}
