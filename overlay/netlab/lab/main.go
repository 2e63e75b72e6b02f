//go:build linux

// Command lab makes a cluster out of nothing on one machine: test hosts in two regions, one of them behind a NAT, with
// the real Consul, Nomad and Vault and both encrypted networks. It runs the built binary as an operator would, and
// nothing of it by other means. make lab-hosts starts it; it needs root. With -call, which make lab gives, it goes on to
// shards, edges and bridges in both regions, and to a room link for a browser on this machine.
//
//	LAB_ONCE=1   set up, prove, take down, exit 0
//	SERVERS=3    three server hosts instead of one
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"filippo.io/age"

	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
)

func main() {
	binary := flag.String("plenum", "./plenum", "the binary to run")
	call := flag.Bool("call", false, "run shards, edges and bridges too, and have a call")
	flag.Parse()
	name := "lab-hosts"
	if *call {
		name = "lab"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	err := netlab.Run(os.Stderr, name, func(t netlab.TB) {
		c := &cluster{t: t, ctx: ctx, start: start, call: *call}
		if err := c.run(*binary); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("%v", err)
		}
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// A member is a test host and where its files lie.
type member struct {
	*netlab.Host
	name, region, roles, root string
	server                    bool
	public                    string // where callers find it, if it stands behind a NAT
}

// A cluster is all of them.
type cluster struct {
	t        netlab.TB
	ctx      context.Context
	start    time.Time
	call     bool
	dir      string
	binaries string
	members  []*member

	mu sync.Mutex // of the output
}

// confess prints what the services of a host wrote last.
func (c *cluster) confess(m *member) {
	logs, _ := filepath.Glob(filepath.Join(m.root, "var/log/plenum/*.log"))
	tasks, _ := filepath.Glob(filepath.Join(m.root, "var/lib/plenum/nomad/alloc/*/alloc/logs/*.stderr.0"))
	logs = append(logs, tasks...)
	for _, path := range logs {
		if strings.Contains(path, "audit") {
			continue
		}
		b, _ := os.ReadFile(path)
		if len(b) > 3000 {
			b = b[len(b)-3000:]
		}
		c.say("%s: the end of %s:\n%s", m.name, filepath.Base(path), b)
	}
}

func (c *cluster) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Printf("%6.1fs  %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

func (c *cluster) run(binary string) error {
	var err error
	if c.dir, err = os.MkdirTemp("", "lab"); err != nil { // short: a socket's path has 107 bytes
		return err
	}
	c.t.Cleanup(func() { _ = os.RemoveAll(c.dir) })
	if err := c.gather(binary); err != nil {
		return err
	}
	c.build()
	servers := 0
	for _, m := range c.members {
		if m.server {
			servers++
		}
	}
	first := c.members[0]
	c.say("%s: plenum init", first.name)
	admin, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	if err := c.plenum(first, "init", "--admin", "lab="+admin.Recipient().String(), "--cluster", "lab", "--region", first.region, "--host", first.name, "--roles", first.roles,
		"--address", first.Addr().String(), "--binaries", c.binaries); err != nil {
		return err
	}
	var slowest time.Duration
	joined := time.Now()
	for _, wave := range [][]*member{c.others(true), c.others(false)} {
		var wg sync.WaitGroup
		errs := make([]error, len(wave))
		for i, m := range wave {
			token, err := c.token(first, m)
			if err != nil {
				return err
			}
			join := func() {
				begin := time.Now()
				args := []string{"join", token, "--host", m.name, "--binaries", c.binaries}
				if m.public != "" {
					args = append(args, "--public", m.public)
				}
				errs[i] = c.plenum(m, args...)
				c.mu.Lock()
				slowest = max(slowest, time.Since(begin))
				c.mu.Unlock()
			}
			if m.server { // one at a time: raft likes that
				join()
			} else {
				wg.Go(join)
			}
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	c.say("%d hosts joined in %.1f s, the slowest in %.1f s", len(c.members)-1, time.Since(joined).Seconds(), slowest.Seconds())
	if c.call {
		return c.talk()
	}
	if err := c.prove(); err != nil {
		return err
	}
	summary := fmt.Sprintf("lab-hosts: %d servers and %d hosts in 2 regions, one behind NAT: nodes ready, members alive, both networks whole, in %.0f s",
		servers, len(c.members)-servers, time.Since(c.start).Seconds())
	if os.Getenv("LAB_ONCE") != "" {
		fmt.Println(summary)
		return nil
	}
	for _, m := range c.members {
		c.say("a shell on %s: nsenter -t %d -a; there: %s --root %s", m.name, m.PID(), filepath.Join(c.binaries, "plenum")+" status", m.root)
	}
	c.say("Ctrl-C takes everything down")
	fmt.Println(summary)
	<-c.ctx.Done()
	return nil
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

// build makes the test hosts.
//
//	ber: srv, ber-1 ── wan ── muc-1 :muc
//	                    └──── NAT ── muc-2
//
// With a call there are three hosts, ber-1 the server, and no NAT.
func (c *cluster) build() {
	lab := netlab.New(c.t)
	wan := lab.Switch("wan")
	add := func(at netlab.Node, name, region, roles string) {
		m := &member{Host: lab.Host(name), name: name, region: region, roles: roles, root: filepath.Join(c.dir, name), server: strings.Contains(roles, "server")}
		lab.Link(m.Host, at, netlab.LinkConfig{})
		if err := os.Mkdir(m.root, 0o755); err != nil {
			c.t.Fatalf("%v", err)
		}
		c.members = append(c.members, m)
	}
	if c.call {
		add(wan, "ber-1", "ber", "server,edge,shard,bridge")
		add(wan, "muc-1", "muc", "edge,shard,bridge")
		add(wan, "muc-2", "muc", "bridge")
		return
	}
	add(wan, "srv", "ber", "server")
	home := lab.NAT("home", wan, netlab.NATConfig{Kind: netlab.PortRestrictedCone})
	if os.Getenv("SERVERS") == "3" {
		add(wan, "srv-2", "ber", "server")
		add(wan, "srv-3", "muc", "server")
	}
	add(wan, "ber-1", "ber", "edge,shard")
	add(wan, "muc-1", "muc", "shard,bridge")
	add(home.Inside, "muc-2", "muc", "bridge")
	behind := c.members[len(c.members)-1]
	home.Forward("udp", 10000, behind.Host, 10000) // as its donor has to
	behind.public = home.Addr().String()
}

// others are the hosts that join.
func (c *cluster) others(server bool) (all []*member) {
	for _, m := range c.members[1:] {
		if m.server == server {
			all = append(all, m)
		}
	}
	return all
}

// plenum runs a command of the binary on a host and prints what it says.
func (c *cluster) plenum(m *member, args ...string) error {
	out := &lines{c: c, name: m.name}
	cmd := exec.CommandContext(c.ctx, filepath.Join(c.binaries, "plenum"), append(args, "--root", m.root)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, m.root
	cmd.Env = stack.Environment(m.root)
	if err := m.StartCmd(cmd).Wait(); err != nil {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		for _, m := range c.members {
			c.confess(m)
		}
		return fmt.Errorf("%s: plenum %s: %w", m.name, args[0], err)
	}
	return nil
}

// lines prints what a host says, line by line, with its name.
type lines struct {
	c    *cluster
	name string
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		l.c.mu.Lock()
		fmt.Printf("          %-6s %s\n", l.name, line)
		l.c.mu.Unlock()
		l.rest = rest
	}
}

// output runs a program on a host and returns what it writes to standard output.
func (c *cluster) output(m *member, env []string, name string, args ...string) (string, error) {
	var out, why bytes.Buffer
	cmd := exec.CommandContext(c.ctx, name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &why, m.root
	cmd.Env = append(stack.Environment(m.root), env...)
	if err := m.StartCmd(cmd).Wait(); err != nil {
		return "", fmt.Errorf("%s: %s %s: %w: %s", m.name, filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(why.String()))
	}
	return out.String(), nil
}

func (c *cluster) token(first, m *member) (string, error) {
	out, err := c.output(first, nil, filepath.Join(c.binaries, "plenum"), "token", "create", "--region", m.region, "--roles", m.roles, "--root", first.root)
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, "plenum-") {
			return word, nil
		}
	}
	return "", fmt.Errorf("plenum token create wrote %q", out)
}

// prove asks the real servers, with their own programs, and the networks.
func (c *cluster) prove() error {
	first := c.members[0]
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		if last = c.whole(first); last == nil {
			text, err := c.output(first, nil, filepath.Join(c.binaries, "plenum"), "status", "--root", first.root)
			fmt.Print("\n", text, "\n")
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	for _, m := range c.members {
		c.confess(m)
	}
	return fmt.Errorf("after a minute: %w", last)
}

// whole says what is missing.
func (c *cluster) whole(first *member) error {
	var tokens struct{ Consul, Nomad string }
	b, err := os.ReadFile(filepath.Join(first.root, "var/lib/plenum/join/common.json"))
	if err == nil {
		err = json.Unmarshal(b, &tokens)
	}
	if err != nil {
		return err
	}
	nodes, err := c.output(first, []string{"NOMAD_ADDR=https://127.0.0.1:4646", "NOMAD_CACERT=" + filepath.Join(first.root, "var/lib/plenum/tls/ca.pem"),
		"NOMAD_TLS_SERVER_NAME=localhost", "NOMAD_TOKEN=" + tokens.Nomad}, filepath.Join(c.binaries, "nomad"), "node", "status", "-json")
	if err != nil {
		return err
	}
	var all []struct{ Name, Status string }
	if err := json.Unmarshal([]byte(nodes), &all); err != nil {
		return err
	}
	members, err := c.output(first, []string{"CONSUL_HTTP_TOKEN=" + tokens.Consul}, filepath.Join(c.binaries, "consul"), "members")
	if err != nil {
		return err
	}
	status, err := c.output(first, nil, filepath.Join(c.binaries, "plenum"), "status", "-o", "json", "--root", first.root)
	if err != nil {
		return err
	}
	var report struct {
		Hosts  []struct{ Host, State string }
		Matrix []struct {
			Host  string
			Paths []struct {
				Plane, Host string
				Up          bool
			}
		}
	}
	if err := json.Unmarshal([]byte(status), &report); err != nil {
		return err
	}
	for _, m := range c.members {
		ready, alive, up := false, false, false
		for _, n := range all {
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
