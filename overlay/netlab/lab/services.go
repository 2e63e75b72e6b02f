//go:build linux

package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"plenum/overlay/netlab/stack"
)

// serve runs edges and a shard in every region, and a bridge on every host that may have one, all at once. What is for the
// first host waits until it is ready.
func (c *cluster) serve() error {
	var all []func() error
	run := func(hosts []*member, add func() error) {
		if len(hosts) > 0 {
			all = append(all, func() error {
				if err := c.able(hosts); err != nil {
					return err
				}
				return add()
			})
		}
	}
	for _, region := range c.regions() {
		run(c.in(region, "edge"), func() error { return c.addEdge(region) })
		run(c.in(region, "shard"), func() error { return c.addShard(region+"-1", region) })
	}
	for _, m := range c.with("bridge") {
		run([]*member{m}, func() error { return c.addBridge(m) })
	}
	return together(all...)
}

// able waits until hosts that have joined can take jobs.
func (c *cluster) able(hosts []*member) error {
	if slices.Contains(hosts, c.first()) {
		return c.ready()
	}
	return nil
}

// in lists the hosts of a region that have a role.
func (c *cluster) in(region, role string) []*member {
	return slices.DeleteFunc(c.with(role), func(m *member) bool { return m.region != region })
}

// together runs them all at once.
func together(all ...func() error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, f := range all {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// addShard runs a shard, with what more the command takes: "--var", "deadline=10s".
func (c *cluster) addShard(name, region string, more ...string) error {
	return c.addJob("shard", name, append([]string{"--region", region}, more...)...)
}

// addJob runs a job of plenum's, which may wait for a host that has just joined.
func (c *cluster) addJob(kind, name string, more ...string) error {
	return c.first().plenum(append([]string{kind, "add", name, "--domain", domain, "--wait", "3m"}, more...)...)
}

// addBridge runs the bridge of a host, which has a door for browsers.
func (c *cluster) addBridge(m *member, more ...string) error {
	if !m.media.IsValid() {
		var err error
		if m.media, err = m.mediaDoor(); err != nil {
			return err
		}
	}
	return c.addJob("bridge", m.name, append([]string{"--advertise", m.media.String()}, more...)...)
}

// addEdge runs the edges of a region.
func (c *cluster) addEdge(region string, more ...string) error {
	args := []string{"--https", "0"}
	if c.ca != nil {
		args = []string{"--name", domain, "--name", region + "." + domain, "--var", "acme=" + c.ca.directory, "--var", "acme_roots=" + string(c.ca.api)}
	}
	return c.addJob("edge", region, append(args, more...)...)
}

// jobFiles is where the job files are, for Nomad's own command line.
func jobFiles() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "jobs")
}

// runJob submits a job file as an operator without plenum's commands does: nomad job run -var … FILE. It does not wait.
func (c *cluster) runJob(file string, vars ...string) error {
	args := []string{"job", "run", "-detach"}
	for _, v := range vars {
		args = append(args, "-var", v)
	}
	return c.first().run("nomad", append(args, file)...)
}

// nodes are the ids that the cluster knows of hosts' nodes, as a job file has a list.
func (c *cluster) nodes(hosts []*member) (string, error) {
	if err := c.able(hosts); err != nil {
		return "", err
	}
	var ids []string
	err := c.eventually(3*time.Minute, func() error {
		text, err := c.first().output("plenum", "host", "list", "-o", "json")
		if err != nil {
			return err
		}
		var all []struct{ Host, Node string }
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		ids = nil
		for _, m := range hosts {
			for _, h := range all {
				if h.Host == m.name && h.Node != "" {
					ids = append(ids, fmt.Sprintf("%q", h.Node))
				}
			}
		}
		if len(ids) < len(hosts) {
			return fmt.Errorf("of %d hosts, %d have a node", len(hosts), len(ids))
		}
		return nil
	})
	return "nodes=[" + strings.Join(ids, ",") + "]", err
}

// addTURN runs coturn on the edge hosts of a region.
func (c *cluster) addTURN(region string) error {
	hosts := c.in(region, "edge")
	nodes, err := c.nodes(hosts)
	if err != nil {
		return err
	}
	if _, err := c.first().output("nomad", "var", "put", "-out", "none", "nomad/jobs/turn-"+region, "secret="+rand.Text()); err != nil {
		return err
	}
	return c.runJob("turn.nomad.hcl", "region="+region, nodes, "realm="+domain)
}

// relays waits until every TURN server is well.
func (c *cluster) relays() error {
	return c.eventually(2*time.Minute, func() error {
		all, err := c.catalogue("plenum-turn")
		if err == nil && len(all) < len(c.with("edge")) {
			err = fmt.Errorf("there are %d of %d", len(all), len(c.with("edge")))
		}
		for _, e := range all {
			for _, check := range e.Checks {
				if check.Status != "passing" {
					err = errors.Join(err, fmt.Errorf("%s is %s: %s", e.Node.Node, check.Status, check.Output))
				}
			}
		}
		if err != nil {
			return fmt.Errorf("TURN: %w", err)
		}
		return nil
	})
}

// addPrometheus puts Prometheus on a host that may read everybody's metrics, and runs its job there.
func (c *cluster) addPrometheus(m *member) error {
	path, err := stack.Build("prometheus")
	if err != nil {
		return err
	}
	if err := linkOrCopy(path, filepath.Join(m.root, "opt/plenum/bin/prometheus")); err != nil {
		return err
	}
	nodes, err := c.nodes([]*member{m})
	if err != nil {
		return err
	}
	return c.runJob("prometheus.nomad.hcl", nodes, "disk=300")
}

// An entry is an instance in Consul's catalogue, as /v1/health/service has it.
type entry struct {
	Node    struct{ Node string }
	Service struct {
		Address string
		Port    uint16
		Meta    map[string]string
	}
	Checks []struct{ Name, Status, Output string }
}

// catalogue lists the instances of a service, those too that are not well.
func (c *cluster) catalogue(service string) (all []entry, err error) {
	tokens, err := c.tokens()
	if err != nil {
		return nil, err
	}
	body, err := fetch(c.first().web(), "http://127.0.0.1:8500/v1/health/service/"+service+"?token="+tokens.Consul)
	if err == nil {
		err = json.Unmarshal(body, &all)
	}
	return all, err
}

// watched waits until Prometheus has found every agent, overlay, server, shard, bridge and edge, and each answers. It
// returns where Prometheus is, by a door.
func (c *cluster) watched(m *member) (netip.AddrPort, error) {
	want := map[string]int{"plenum-agent": len(c.members), "plenum-overlay": len(c.members), "nomad": len(c.with("server")), "consul": 1,
		"plenum-shard": len(c.regions()), "plenum-bridge": len(c.with("bridge")), "plenum-edge": len(c.with("edge")), "haproxy": len(c.with("edge")),
		"plenum-prometheus": 1}
	var at netip.AddrPort
	if err := c.eventually(2*time.Minute, func() error {
		all, err := c.catalogue("plenum-prometheus")
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("there are %d", len(all))
		}
		if err != nil {
			return fmt.Errorf("no Prometheus: %w", err)
		}
		ip, err := netip.ParseAddr(all[0].Service.Address)
		at = netip.AddrPortFrom(ip, all[0].Service.Port)
		if err != nil {
			return err
		}
		body, err := fetch(m.web(), "http://"+at.String()+"/api/v1/targets?state=active")
		if err != nil {
			return err
		}
		var found struct {
			Data struct {
				ActiveTargets []struct {
					Labels            map[string]string
					Health, LastError string
				}
			}
		}
		if err := json.Unmarshal(body, &found); err != nil {
			return err
		}
		up := map[string]int{}
		for _, t := range found.Data.ActiveTargets {
			if t.Health == "up" {
				up[t.Labels["job"]]++
			} else {
				err = errors.Join(err, fmt.Errorf("%s on %s is %s: %s", t.Labels["job"], t.Labels["host"], t.Health, t.LastError))
			}
		}
		for job, n := range want {
			if up[job] != n {
				err = errors.Join(err, fmt.Errorf("%d of %d %s", up[job], n, job))
			}
		}
		return err
	}); err != nil {
		return netip.AddrPort{}, fmt.Errorf("not all is seen by Prometheus: %w", err)
	}
	return m.door(at)
}

// probe has two people talk, the one by the first URL and the other by the last, and returns what plenum probe says. It
// tries again for a minute, for the first of a shard's bridges may just be coming.
func (c *cluster) probe(urls ...string) (out string, err error) {
	args := []string{"probe", "--domain", domain, "--timeout", "20s"}
	for _, u := range urls {
		args = append(args, "--shard", u)
	}
	err = c.eventually(time.Minute, func() (err error) {
		b, err := exec.CommandContext(c.ctx, filepath.Join(c.binaries, "plenum"), args...).CombinedOutput()
		if out = strings.TrimSpace(string(b)); err != nil {
			err = fmt.Errorf("plenum probe: %w: %s", err, out)
		}
		return err
	})
	return out, err
}

// whole says which host is not yet a member in every respect: of Nomad, of Consul, of the agents, of both networks.
func (c *cluster) whole() error {
	nodes, members, report, err := c.sight()
	if err != nil {
		return err
	}
	for _, m := range c.members {
		ready, alive, up := false, false, false
		for _, n := range nodes {
			ready = ready || n.Name == m.name && n.Status == "ready"
		}
		for line := range strings.Lines(members) {
			f := strings.Fields(line)
			alive = alive || len(f) > 2 && f[0] == m.name && f[2] == "alive"
		}
		for _, h := range report.Hosts {
			up = up || h.Host == m.name && h.State == "up"
		}
		paths := 0
		for _, row := range report.Matrix {
			for _, p := range row.Paths {
				if row.Host == m.name && p.Up {
					paths++
				}
			}
		}
		if want := 2 * (len(c.members) - 1); !ready || !alive || !up || paths < want {
			return fmt.Errorf("%s: node ready %t, member alive %t, agent up %t, %d of %d paths up", m.name, ready, alive, up, paths, want)
		}
	}
	return nil
}
