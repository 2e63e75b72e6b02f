//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

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
	https  bool      // edges have certificates; without, they are reached by plain HTTP
	out    io.Writer // progress, line by line; nil: nothing
	detail bool      // what every command says, too
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
	binaries string // plenum, consul, nomad and vault
	members  []*member
	ca       *authority    // nil: edges are reached by plain HTTP
	inited   chan struct{} // closed at the end of plenum init
	failed   error         // how that ended

	mu     sync.Mutex // of out
	out    io.Writer
	detail bool
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

// newCluster makes the hosts and gathers the programs. Nothing runs yet. Everything ends with t, and with the process if
// that is killed; what is then left of files goes at the next start.
func newCluster(ctx context.Context, t netlab.TB, o options) (*cluster, error) {
	c := &cluster{t: t, ctx: ctx, start: time.Now(), out: o.out, detail: o.detail, inited: make(chan struct{})}
	if c.out == nil {
		c.out = io.Discard
	}
	var err error
	if c.dir, err = newDir(t); err != nil {
		return nil, err
	}
	if err := c.gather(o.binary); err != nil {
		return nil, err
	}
	c.lab = netlab.New(t)
	c.wan = c.lab.Switch("wan", wan...)
	for _, s := range o.sites {
		if err := c.add(s); err != nil {
			return nil, err
		}
	}
	if o.https {
		if c.ca, err = c.newAuthority(); err != nil {
			return nil, err
		}
	}
	return c, c.nameEdges()
}

// wan is the lab's Internet. The prefixes are somebody's out there: TURN relays to nobody whose address is not public.
var wan = []netip.Prefix{netip.MustParsePrefix("5.9.0.0/24"), netip.MustParsePrefix("2a01:4f8:1::/64")}

// newDir makes the folder of all files, its name short: a socket's path has 107 bytes. It goes with t. A lab that was
// killed leaves its own, with a lock that nobody holds: those go now.
func newDir(t netlab.TB) (string, error) {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "lab*", "lock"))
	for _, path := range left {
		if lock, err := os.Open(path); err == nil {
			if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				dir := filepath.Dir(path)
				stack.Sweep(dir)
				removeDir(dir)
			}
			lock.Close()
		}
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDONLY, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	t.Cleanup(func() { // after the hosts have ended
		removeDir(dir)
		lock.Close()
	})
	return dir, err
}

// removeDir removes the folder, and the control groups of the tasks that it was about: those alone are the machine's, not
// the host's.
func removeDir(dir string) {
	allocations, _ := filepath.Glob(filepath.Join(dir, "*/var/lib/plenum/nomad/alloc/*"))
	for _, path := range allocations {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/*/" + filepath.Base(path) + ".*")
		for _, g := range groups {
			_ = os.Remove(g)
		}
	}
	_ = os.RemoveAll(dir)
}

// nameEdges has every host know the names of edges, as it would by DNS.
func (c *cluster) nameEdges() error {
	text := []byte("127.0.0.1 localhost\n::1 localhost\n")
	for _, m := range c.with("edge") {
		text = fmt.Appendf(text, "%s %s\n", m.Addr(), strings.Join(m.names(), " "))
	}
	file := filepath.Join(c.dir, "hosts")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	for _, m := range c.members {
		if out, err := m.Run("mount", "--bind", file, "/etc/hosts"); err != nil {
			return fmt.Errorf("%s: /etc/hosts: %w: %s", m.name, err, out)
		}
	}
	return nil
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

// begin makes the first host the first of a cluster, and has all others join as soon as they may: servers one by one,
// then the rest at once. The first host may not be ready yet.
func (c *cluster) begin() error {
	first := c.first()
	admin, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	failed, fail := context.WithCancelCause(c.ctx)
	go func() {
		err := first.plenum("init", "--admin", "lab="+admin.Recipient().String(), "--cluster", "lab", "--region", first.region, "--host", first.name,
			"--roles", first.roles, "--address", first.Addr().String(), "--binaries", c.binaries)
		if err != nil {
			fail(err)
		}
		c.failed = err
		close(c.inited)
	}()
	if err := c.eventually(3*time.Minute, func() error {
		conn, err := first.Dial(failed, "tcp", net.JoinHostPort(first.Addr().String(), "8443"))
		if err == nil {
			return conn.Close()
		}
		return errors.Join(err, context.Cause(failed))
	}); err != nil {
		return fmt.Errorf("%s: plenum init: no join service: %w", first.name, err)
	}
	began := time.Now()
	var rest []func() error
	for _, m := range c.members[1:] {
		if !m.server() {
			rest = append(rest, m.join)
		} else if err := m.join(); err != nil { // raft likes one at a time
			return err
		}
	}
	if err := together(rest...); err != nil {
		return err
	}
	c.say("%d hosts joined in %.1f s", len(c.members)-1, time.Since(began).Seconds())
	return nil
}

// found begins a cluster and waits until its first host is ready, too.
func (c *cluster) found() error {
	if err := c.begin(); err != nil {
		return err
	}
	return c.ready()
}

// ready waits until the first host is ready. It is the last to be: Nomad's server has its own node wait.
func (c *cluster) ready() error {
	<-c.inited
	return c.failed
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

// confess prints what services and tasks of the hosts wrote last, all of them or those whose names begin so.
func (c *cluster) confess(names ...string) {
	for _, m := range c.members {
		logs, _ := filepath.Glob(filepath.Join(m.root, "var/log/plenum/*.log"))
		tasks, _ := filepath.Glob(filepath.Join(m.root, "var/lib/plenum/nomad/alloc/*/alloc/logs/*.std*.0"))
		for _, path := range append(logs, tasks...) {
			name := filepath.Base(path)
			wanted := len(names) == 0 || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(name, n) })
			b, err := os.ReadFile(path)
			if err == nil && wanted && len(bytes.TrimSpace(b)) > 0 && !strings.Contains(name, "audit") {
				c.say("%s: the end of %s:\n%s", m.name, name, b[max(0, len(b)-3000):])
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
