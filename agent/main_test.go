//go:build linux

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"go.uber.org/goleak"

	"plenum/overlay"
	"plenum/overlay/nebula"
	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
	"plenum/overlay/wireguard"
)

// TestMain is plenum itself when it is called by that name: tests link the test binary to it.
func TestMain(m *testing.M) {
	if strings.HasPrefix(filepath.Base(os.Args[0]), "plenum") {
		crashOnce()
		wrongClock()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := plenumCommand().ExecuteContext(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "plenum:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// crashOnce has this process killed at the first place where none was killed before. The file that PLENUM_CRASH names
// remembers the places. Before a step is after another one, so only the chaos tests look at those places too.
func crashOnce() {
	path := os.Getenv("PLENUM_CRASH")
	if path == "" {
		return
	}
	crashHook = func(where string) {
		seen, _ := os.ReadFile(path)
		if strings.HasPrefix(where, "before ") && os.Getenv("PLENUM_CHAOS") == "" || slices.Contains(strings.Split(string(seen), "\n"), where) {
			return
		}
		_ = os.WriteFile(path, append(seen, where+"\n"...), 0o600)
		fmt.Fprintln(os.Stderr, "killed", where)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// wrongClock has this process take another time for now: PLENUM_CLOCK is by how much it is ahead.
func wrongClock() {
	if off, err := time.ParseDuration(os.Getenv("PLENUM_CLOCK")); err == nil {
		wallClock = func() time.Time { return time.Now().Add(off) }
	}
}

func plenumCommand() *cobra.Command {
	const release = "0.0-test"
	logger := func(string, string) (*slog.Logger, error) { return slog.New(slog.NewTextHandler(os.Stderr, nil)), nil }
	o := overlay.Options{Backends: map[string]func(*slog.Logger) overlay.Backend{"nebula": nebula.New, "wireguard": wireguard.New}}
	run := &cobra.Command{Use: "run"}
	ov := &cobra.Command{Use: "overlay", RunE: func(c *cobra.Command, _ []string) error {
		o.Log, _ = logger("", "")
		return overlay.Run(c.Context(), o)
	}}
	own := flag.NewFlagSet("overlay", flag.ContinueOnError)
	o.Flags(own)
	ov.Flags().AddGoFlagSet(own)
	run.AddCommand(RunCommand(release, logger), ov)
	root := &cobra.Command{Use: "plenum", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands(release)...)
	root.AddCommand(run)
	return root
}

// A cluster is test hosts that the real commands make into one.
type cluster struct {
	t     *testing.T
	lab   *netlab.Lab
	wan   *netlab.Switch
	dir   string
	bin   string
	first *box
	boxes []*box
	admin string // Ada's age key
}

// A box is one test host.
type box struct {
	*netlab.Host
	c     *cluster
	root  string
	agent *netlab.Process // where the test started it, after a reboot
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	netlab.Require(t)
	dir, err := os.MkdirTemp("", "ag") // short: a socket's path has 107 bytes
	check(t, err)
	c := &cluster{t: t, dir: dir, bin: filepath.Join(dir, "bin")}
	c.lab = netlab.New(t)
	t.Cleanup(func() { c.races(); _ = os.RemoveAll(dir) })
	c.wan = c.lab.Switch("wan")
	check(t, os.Mkdir(c.bin, 0o755))
	self, err := os.Executable()
	check(t, err)
	for name, source := range map[string]string{"plenum": self, "consul": stack.Path(t, "consul"), "nomad": stack.Path(t, "nomad"), "vault": stack.Path(t, "vault")} {
		link(t, source, filepath.Join(c.bin, name))
	}
	return c
}

func link(t *testing.T, source, path string) {
	t.Helper()
	if os.Link(source, path) == nil {
		return
	}
	in, err := os.Open(source)
	check(t, err)
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	check(t, err)
	_, err = io.Copy(out, in)
	check(t, err)
	check(t, out.Close())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) box(name string) *box {
	c.t.Helper()
	b := &box{Host: c.lab.Host(name), c: c, root: filepath.Join(c.dir, name)}
	c.lab.Link(b.Host, c.wan, netlab.LinkConfig{})
	check(c.t, os.Mkdir(b.root, 0o755))
	c.boxes = append(c.boxes, b)
	return b
}

// command prepares a command of plenum on the host.
func (b *box) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.c.bin, "plenum"), append(args, "--root", b.root)...)
	cmd.Env, cmd.Dir = append(stack.Environment(b.root), "PLENUM_ADMIN=ada"), b.root
	return cmd
}

// try runs a command of plenum on the host and returns what it wrote on both outputs.
func (b *box) try(env []string, args ...string) (string, error) {
	cmd := b.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(cmd.Env, env...)
	err := b.StartCmd(cmd).Wait()
	return out.String(), err
}

// plenum runs a command that has to go well.
func (b *box) plenum(args ...string) string {
	b.c.t.Helper()
	out, err := b.try(nil, args...)
	if err != nil {
		b.confess()
		if b.c.first != b && b.c.first != nil {
			b.c.first.confess()
		}
		b.c.t.Fatalf("%s: plenum %s: %v\n%s", b.Name(), strings.Join(args, " "), err, out)
	}
	return out
}

// killed runs a command again and again, each time until it is killed at another place, and at last to its end. It
// returns how often that was.
func (b *box) killed(args ...string) (times int) {
	b.c.t.Helper()
	file := filepath.Join(b.c.dir, b.Name()+"-"+args[0]+".places")
	for ; ; times++ {
		out, err := b.try([]string{"PLENUM_CRASH=" + file, "PLENUM_CHAOS=" + os.Getenv("PLENUM_CHAOS")}, args...)
		if err == nil {
			b.c.t.Logf("%s: plenum %s was killed %d times", b.Name(), args[0], times)
			return times
		}
		if !strings.Contains(out, "killed ") || times > 300 {
			b.confess()
			b.c.t.Fatalf("%s: plenum %s, killed %d times: %v\n%s", b.Name(), args[0], times, err, out)
		}
	}
}

// raceOfOurs is a report in which one of the two accesses is by a function of ours.
var raceOfOurs = regexp.MustCompile(`(?i)(?:read|write) at .*\n\s+plenum/`)

// races fails the test where a program of ours that the race detector is in found one: nobody sees how it ends.
func (c *cluster) races() {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*/var/log/plenum/plenum-*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		for i, report := range strings.Split(string(text), "WARNING: DATA RACE") {
			if i > 0 && raceOfOurs.MatchString(report) { // Nebula has one of its own, in the list of a peer's relays
				c.t.Errorf("%s:\n%s", path, report[:min(len(report), 3000)])
			}
		}
	}
}

// confess logs what the services of a host wrote last.
func (b *box) confess() {
	logs, _ := filepath.Glob(filepath.Join(b.root, "var/log/plenum/plenum-*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		b.c.t.Logf("%s: the end of %s:\n%s", b.Name(), filepath.Base(path), text[max(0, len(text)-2000):])
	}
}

// found makes the host the first of the cluster.
func (c *cluster) found(b *box, more ...string) string {
	c.t.Helper()
	c.first = b
	return b.plenum(c.initArgs(b, more...)...)
}

func (c *cluster) initArgs(b *box, more ...string) []string {
	if c.admin == "" {
		id, err := age.GenerateX25519Identity()
		check(c.t, err)
		c.admin = id.Recipient().String()
	}
	return append([]string{"init", "--cluster", "test", "--region", "ber", "--host", b.Name(), "--roles", "server", "--address", b.Addr().String(),
		"--admin", "ada=" + c.admin, "--binaries", c.bin}, more...)
}

func (c *cluster) token(region, roles string) string {
	c.t.Helper()
	out := c.first.plenum("token", "create", "--region", region, "--roles", roles)
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, "plenum-") {
			return word
		}
	}
	c.t.Fatalf("plenum token create wrote %q", out)
	return ""
}

func (b *box) join(token string) string {
	return b.plenum("join", token, "--host", b.Name(), "--binaries", b.c.bin)
}

// joinWhile joins, and as soon as a join service is asked f breaks something. The join goes on by itself.
func (b *box) joinWhile(token string, f func()) {
	b.c.t.Helper()
	p := b.StartCmd(b.command("join", token, "--host", b.Name(), "--binaries", b.c.bin))
	if _, err := p.Await(b.c.t.Context(), "asking"); err != nil {
		b.c.t.Fatal(err)
	}
	f()
	if err := p.Wait(); err != nil {
		b.confess()
		b.c.first.confess()
		b.c.t.Fatalf("%s: join: %v\n%s", b.Name(), err, p.Output())
	}
	for line := range strings.Lines(p.Output()) {
		if strings.Contains(line, "waiting for a join service") || strings.Contains(line, "enrolled") {
			b.c.t.Logf("%s: %s", b.Name(), strings.TrimSpace(line))
		}
	}
}

// certificateTo is when the host's certificate expires.
func (b *box) certificateTo() time.Time {
	b.c.t.Helper()
	w, err := newWork(b.root)
	check(b.c.t, err)
	return w.answer.CertificateTo
}

// logged is what a service of the host wrote, from a mark on; the mark is how much that was before.
func (b *box) logged(service string, from int) string {
	text, _ := os.ReadFile(filepath.Join(b.root, "var/log/plenum", service+".log"))
	return string(text[min(from, len(text)):])
}

// nodes are Nomad's, by name: their status.
func (c *cluster) nodes() map[string]string {
	c.t.Helper()
	var tokens struct{ Nomad string }
	b, err := os.ReadFile(filepath.Join(c.first.root, joinDir, "common.json"))
	check(c.t, err)
	check(c.t, json.Unmarshal(b, &tokens))
	cmd := exec.Command(filepath.Join(c.bin, "nomad"), "node", "status", "-json")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.Discard
	cmd.Env = append(stack.Environment(c.first.root), "NOMAD_ADDR=https://"+nomadAddress, "NOMAD_CACERT="+filepath.Join(c.first.root, tlsDir, "ca.pem"),
		"NOMAD_TLS_SERVER_NAME=localhost", "NOMAD_TOKEN="+tokens.Nomad)
	if c.first.StartCmd(cmd).Wait() != nil {
		return nil
	}
	var all []struct{ Name, Status string }
	_ = json.Unmarshal(out.Bytes(), &all)
	nodes := map[string]string{}
	for _, n := range all {
		if nodes[n.Name] != "ready" {
			nodes[n.Name] = n.Status
		}
	}
	return nodes
}

// report is plenum status on a host; the zero Report where it fails.
func (b *box) report() (r Report) {
	out, err := b.try(nil, "status", "-o", "json")
	if err == nil {
		_ = json.Unmarshal([]byte(out), &r)
	}
	return r
}

func (r Report) host(name string) HostReport {
	for _, h := range r.Hosts {
		if h.Host == name {
			return h
		}
	}
	return HostReport{}
}

// eventually waits until f has nothing to complain about, and returns how long that took.
func (c *cluster) eventually(within time.Duration, f func() error) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > within {
			for _, b := range c.boxes {
				b.confess()
			}
			c.t.Fatalf("after %s: %v", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// whole waits until every box is a node, a member, and reaches all others on both planes.
func (c *cluster) whole(within time.Duration, boxes ...*box) time.Duration {
	c.t.Helper()
	return c.eventually(within, func() error {
		nodes, r := c.nodes(), c.first.report()
		for _, b := range boxes {
			if nodes[b.Name()] != "ready" {
				return fmt.Errorf("node %s is %q", b.Name(), nodes[b.Name()])
			}
			if h := r.host(b.Name()); h.State != "up" || h.Reaches < len(boxes)-1 {
				return fmt.Errorf("host %+v", h)
			}
		}
		return nil
	})
}
