//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// serve runs an edge and a shard in every region and a bridge on every host that may have one, all at once.
func (c *cluster) serve() error {
	var all []func() error
	for _, region := range c.regions() {
		for _, m := range c.with("edge") {
			if m.region == region {
				all = append(all, func() error { return c.addEdge(region) })
				break
			}
		}
		for _, m := range c.with("shard") {
			if m.region == region {
				all = append(all, func() error { return c.addShard(region+"-shard", region) })
				break
			}
		}
	}
	for _, m := range c.with("bridge") {
		all = append(all, func() error { return c.addBridge(m) })
	}
	began := time.Now()
	if err := together(all...); err != nil {
		return err
	}
	c.say("%d jobs serve after %.1f s", len(all), time.Since(began).Seconds())
	return nil
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
	return c.first().plenum(append([]string{"shard", "add", name, "--region", region, "--domain", domain}, more...)...)
}

// addBridge runs the bridge of a host, which has a door for browsers.
func (c *cluster) addBridge(m *member, more ...string) error {
	if !m.media.IsValid() {
		var err error
		if m.media, err = m.mediaDoor(); err != nil {
			return err
		}
	}
	return c.first().plenum(append([]string{"bridge", "add", m.name, "--domain", domain, "--advertise", m.media.String()}, more...)...)
}

// addEdge runs the edges of a region.
func (c *cluster) addEdge(region string, more ...string) error {
	return c.first().plenum(append([]string{"edge", "add", region, "--domain", domain, "--https", "0"}, more...)...)
}

// url is where participants find the host's edge.
func (m *member) url() string { return "http://" + m.Addr().String() }

// probe has two participants talk, seen from a host, the one by way of the first edge and the other by way of the last,
// and returns what plenum probe says of it.
func (c *cluster) probe(from *member, edges ...*member) (string, error) {
	args := []string{"probe", "--domain", domain, "--timeout", "20s"}
	for _, m := range edges {
		args = append(args, "--shard", m.url())
	}
	out, err := from.output("plenum", args...)
	return strings.TrimSpace(out), err
}

// called waits for a call by way of the edges to work: the first of a shard's bridges may just be coming.
func (c *cluster) called(from *member, edges ...*member) error {
	return c.eventually(time.Minute, func() error {
		out, err := c.probe(from, edges...)
		if err == nil {
			c.say("%s", out)
		}
		return err
	})
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
