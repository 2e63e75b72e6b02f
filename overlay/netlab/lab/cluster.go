//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"filippo.io/age"

	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
)

// domain is the lab's XMPP domain, and the name of its edges.
const domain = "meet.lab"

// mediaPort is where bridges take media.
const mediaPort = 10000

// A site is a host as it is wanted.
type site struct {
	name, region, roles string // roles as plenum init and plenum token create have them
	nat                 bool   // at somebody's home, with the media port forwarded
}

// threeHosts are two regions, the first host also the server.
var threeHosts = []site{
	{name: "ber-1", region: "ber", roles: "server,edge,shard,bridge"},
	{name: "muc-1", region: "muc", roles: "edge,shard,bridge"},
	{name: "muc-2", region: "muc", roles: "bridge"},
}

// Options say what a cluster is made of and where it tells what it does.
type options struct {
	binary string    // the built plenum
	sites  []site    // the first one begins, and is a server
	out    io.Writer // progress, line by line; nil: nothing
}

// A cluster is its hosts, and the programs that they run. All it does is what an operator would do. Methods that return
// an error may be used from any goroutine; the others of netlab are for the one of the test.
type cluster struct {
	t        netlab.TB
	ctx      context.Context // ends every command
	lab      *netlab.Lab
	wan      *netlab.Switch
	start    time.Time
	dir      string // of all files
	binaries string // plenum, consul, nomad, vault and prometheus
	members  []*member

	mu  sync.Mutex // of out
	out io.Writer
}

// A member is a test host and where its files lie.
type member struct {
	*netlab.Host
	site
	cable  *netlab.Link
	root   string
	public string         // where callers find it, if it stands behind a NAT
	media  netip.AddrPort // the door to its bridge, if it has one

	c *cluster
}

// newCluster makes the hosts and gathers the programs. Nothing runs yet. Everything ends with t.
func newCluster(ctx context.Context, t netlab.TB, o options) (*cluster, error) {
	c := &cluster{t: t, ctx: ctx, start: time.Now(), out: o.out}
	if c.out == nil {
		c.out = io.Discard
	}
	var err error
	if c.dir, err = os.MkdirTemp("", "lab"); err != nil { // short: a socket's path has 107 bytes
		return nil, err
	}
	t.Cleanup(func() { _ = os.RemoveAll(c.dir) })
	if err := c.gather(o.binary); err != nil {
		return nil, err
	}
	c.lab = netlab.New(t)
	c.wan = c.lab.Switch("wan")
	for _, s := range o.sites {
		if err := c.add(s); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add makes a host and its cable.
func (c *cluster) add(s site) error {
	m := &member{Host: c.lab.Host(s.name), site: s, root: filepath.Join(c.dir, s.name), c: c}
	var at netlab.Node = c.wan
	if s.nat {
		home := c.lab.NAT(s.name+"-home", c.wan, netlab.NATConfig{Kind: netlab.PortRestrictedCone})
		defer home.Forward("udp", mediaPort, m.Host, mediaPort) // as its donor has to
		at, m.public = home.Inside, home.Addr().String()
	}
	m.cable = c.lab.Link(m.Host, at, netlab.LinkConfig{})
	c.members = append(c.members, m)
	return os.Mkdir(m.root, 0o755)
}

// gather puts the programs into one folder, as --binaries wants them.
func (c *cluster) gather(binary string) error {
	c.binaries = filepath.Join(c.dir, "bin")
	if err := os.Mkdir(c.binaries, 0o755); err != nil {
		return err
	}
	sources := map[string]string{"plenum": binary}
	for _, name := range []string{"consul", "nomad", "vault"} {
		path, err := stack.Build(name)
		if err != nil {
			return err
		}
		sources[name] = path
	}
	for name, source := range sources {
		if err := linkOrCopy(source, filepath.Join(c.binaries, name)); err != nil {
			return err
		}
	}
	return nil
}

func linkOrCopy(source, path string) error {
	if os.Link(source, path) == nil {
		return nil
	}
	in, err := os.Open(source)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make build comes first", err)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// found makes the first host the first of a cluster, and has all others join: servers one by one, then the rest at once.
func (c *cluster) found() error {
	first := c.first()
	admin, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	c.say("%s: plenum init", first.name)
	if err := first.plenum("init", "--admin", "lab="+admin.Recipient().String(), "--cluster", "lab", "--region", first.region, "--host", first.name,
		"--roles", first.roles, "--address", first.Addr().String(), "--binaries", c.binaries); err != nil {
		return err
	}
	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(c.members))
	for i, m := range c.members[1:] {
		if m.server() { // raft likes one at a time
			if err := m.join(); err != nil {
				return err
			}
		} else {
			wg.Go(func() { errs[i] = m.join() })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.say("%d hosts joined in %.1f s", len(c.members)-1, time.Since(began).Seconds())
	return nil
}

// first is the host that the cluster began with, a server. Operators sit there.
func (c *cluster) first() *member { return c.members[0] }

// member finds a host.
func (c *cluster) member(name string) *member {
	for _, m := range c.members {
		if m.name == name {
			return m
		}
	}
	c.t.Fatalf("no host %s in this lab", name)
	return nil
}

// with lists the hosts that have a role.
func (c *cluster) with(role string) (all []*member) {
	for _, m := range c.members {
		if m.has(role) {
			all = append(all, m)
		}
	}
	return all
}

// regions lists the regions in the order of their first hosts.
func (c *cluster) regions() (all []string) {
	seen := map[string]bool{}
	for _, m := range c.members {
		if !seen[m.region] {
			all = append(all, m.region)
		}
		seen[m.region] = true
	}
	return all
}

// say tells something, with the time since the beginning.
func (c *cluster) say(format string, args ...any) {
	c.write("%6.1fs  %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

func (c *cluster) write(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.out, format, args...)
}

// confess prints what the services and the tasks of all hosts wrote last.
func (c *cluster) confess() {
	for _, m := range c.members {
		logs, _ := filepath.Glob(filepath.Join(m.root, "var/log/plenum/*.log"))
		tasks, _ := filepath.Glob(filepath.Join(m.root, "var/lib/plenum/nomad/alloc/*/alloc/logs/*.std*.0"))
		for _, path := range append(logs, tasks...) {
			b, err := os.ReadFile(path)
			if err == nil && len(bytes.TrimSpace(b)) > 0 && !strings.Contains(path, "audit") {
				c.say("%s: the end of %s:\n%s", m.name, filepath.Base(path), b[max(0, len(b)-3000):])
			}
		}
	}
}

// eventually tries f until it has nothing to complain about.
func (c *cluster) eventually(within time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(c.ctx, within)
	defer cancel()
	for {
		err := f()
		switch {
		case err == nil:
			return nil
		case c.ctx.Err() != nil:
			return context.Cause(c.ctx)
		case ctx.Err() != nil:
			return fmt.Errorf("after %v: %w", within, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
