//go:build linux

package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/overlay"
	"plenum/overlay/netlab"
)

// TestCluster is the life of a cluster: made, joined by hosts one of which is killed after each of its steps, run for
// longer than its certificates live while agents are killed, rebooted, and left again. Packets flow all the time.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	srv, b, d := c.box("srv"), c.box("b"), c.box("d")

	plan := srv.plenum(append(c.initArgs(srv), "--plan")...)
	for _, want := range []string{"initialise Vault", "write /etc/plenum/consul.json", "start Nomad", "net.core.rmem_max"} {
		if !strings.Contains(plan, want) {
			t.Errorf("the plan does not say %q:\n%s", want, plan)
		}
	}
	if left := filesBelow(t, srv.root); len(left) > 0 {
		t.Fatalf("--plan made %v", left)
	}
	c.found(srv, "--host-life", "60s", "--server-life", "90s")
	if out := srv.plenum(c.initArgs(srv)...); !strings.Contains(out, "nothing to do") {
		t.Errorf("a second init says\n%s", out)
	}

	// b is killed after each of its steps, and goes on.
	token := c.token("ber", "shard,bridge")
	if n := b.killed("join", token, "--host", "b", "--binaries", c.bin); n < 20 {
		t.Errorf("only %d places where join was killed", n)
	}
	if out := b.join(token); !strings.Contains(out, "nothing to do") {
		t.Errorf("a second join says\n%s", out)
	}

	// The join service alone is killed while d joins, and Consul while e does. A token is one host's: by another key it is
	// refused before anything happens.
	d.joinWhile(c.token("muc", "bridge"), func() {
		check(t, kill(srv, srv.agentPID()))
		srv.reboot()
	})
	e := c.box("e")
	if out, err := e.try(nil, "join", token, "--host", "e", "--binaries", c.bin); err == nil || !strings.Contains(out, "token-used") {
		t.Errorf("another host with b's token: %v\n%s", err, out)
	}
	e.joinWhile(c.token("muc", "bridge"), func() { check(t, kill(srv, srv.pid(srv.root+consulFile))) })
	c.whole(90*time.Second, srv, b, d, e)
	if r := c.first.report().host("d"); !slices.Equal(r.Roles, []string{"bridge"}) || r.Region != "muc" {
		t.Errorf("d is %+v", r)
	}

	// e loses power for longer than its certificates live. Packets flow on both planes while agents die, one of them
	// after each of its effects, the other with a clock that is a day ahead, and while certificates are renewed.
	e.KillAll()
	marks := c.marks("plenum-consul", srv, b, d)
	before := srv.report().host("d").Certificate
	flows := []*flow{c.flow(b, "10.86.0.3"), c.flow(d, "10.87.0.2")}
	check(t, kill(d, d.agentPID()))
	dLog := len(d.logged("plenum-agent", 0))
	d.reboot("PLENUM_CLOCK=25h")
	began := time.Now()
	spoilt := filepath.Join(b.root, tlsDir, "cert.pem") // as by a disk
	check(t, os.WriteFile(spoilt, []byte("-----BEGIN CERTIFICATE-----\nno"), 0o600))
	crash := []string{"PLENUM_CRASH=" + filepath.Join(c.dir, "b-agent.places"), "PLENUM_CHAOS=" + os.Getenv("PLENUM_CHAOS")}
	for i := range agentKills() {
		if pid := b.agentPID(); pid != "" { // else it was killed after one of its effects
			check(t, kill(b, pid))
		}
		b.reboot(crash...) // whoever runs it starts it again
		c.eventually(30*time.Second, func() error {
			if b.agentPID() == "" {
				return fmt.Errorf("kill %d: no new agent", i)
			}
			return nil
		})
		if h := srv.report().host("b"); h.State == "silent" || h.State == "not registered" { // who is back soon never flaps
			t.Errorf("kill %d: b is %s", i, h.State)
		}
	}
	c.eventually(3*time.Minute, func() error {
		if b.agentPID() == "" {
			b.reboot(crash...)
		}
		if now := srv.report().host("d").Certificate; !now.After(before) {
			return fmt.Errorf("d's certificate is still of %s", now)
		}
		if left := time.Until(e.certificateTo()); left > 0 {
			return fmt.Errorf("e's certificate is valid for %s", left)
		}
		if n := flows[0].sent(); n < flowPackets() {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	for _, f := range flows {
		if sent, lost := f.halt(); lost > 0 || sent < flowPackets()*9/10 {
			t.Errorf("%d of %d packets lost", lost, sent)
		} else {
			t.Logf("0 of %d packets lost", sent)
		}
	}
	if places, _ := os.ReadFile(filepath.Join(c.dir, "b-agent.places")); strings.Count(string(places), "\n") < 3 {
		t.Errorf("b's agent was killed after %q alone", places)
	} else {
		t.Logf("b's agent was killed %d times, and:\n%s", agentKills(), places)
	}
	for _, line := range c.flaps(marks) {
		t.Errorf("gossip flaps: %s", line)
	}
	if text, err := os.ReadFile(spoilt); err != nil || !strings.Contains(string(text), "END CERTIFICATE") {
		t.Errorf("a spoilt certificate stays: %q, %v", text, err)
	}
	wrong := d.logged("plenum-agent", dLog)
	if !strings.Contains(wrong, "clock is 25h0m0s off") {
		t.Errorf("d's clock is a day ahead, and nobody says so:\n%s", wrong)
	}
	if n, most := strings.Count(wrong, "msg=renewed"), int(time.Since(began)/(15*time.Second))+2; n == 0 || n > most {
		t.Errorf("d's clock is a day ahead, and it renewed %d times in %s", n, time.Since(began))
	}

	// e is down and nobody's peer (E42), and comes back by its host key.
	for name, status := range c.nodes() {
		if want := map[bool]string{true: "down", false: "ready"}[name == "e"]; status != want {
			t.Errorf("node %s is %s after the kills", name, status)
		}
	}
	if s, err := overlay.Read(t.Context(), b.root); err != nil || slices.ContainsFunc(s.Paths, func(p overlay.Path) bool { return p.Host == "e" && p.Up }) {
		t.Errorf("b reaches e, which has no power: %+v, %v", s.Paths, err)
	}
	e.reboot()
	t.Logf("e is back %s after its boot with certificates that have expired", c.whole(3*time.Minute, srv, b, d, e).Round(100*time.Millisecond))
	e.plenum("leave")

	// All hosts lose power at once. What starts at boot is the agent alone.
	for _, x := range []*box{srv, b, d} {
		x.KillAll()
	}
	if os.Getenv("PLENUM_CHAOS") != "" { // off for twice a certificate's life
		time.Sleep(3 * time.Minute)
	}
	for _, x := range []*box{srv, b, d} {
		x.reboot()
	}
	t.Logf("whole again %s after all hosts lost power", c.whole(3*time.Minute, srv, b, d).Round(100*time.Millisecond))

	// A host that is revoked is nobody's peer at once.
	start := time.Now()
	revoke := srv.StartCmd(srv.command("host", "revoke", "d"))
	c.eventually(30*time.Second, func() error {
		s, err := overlay.Read(t.Context(), b.root)
		for _, p := range s.Paths {
			if p.Host == "d" && p.Up {
				return errors.New("b still reaches d by " + string(p.Plane))
			}
		}
		return err
	})
	cut := time.Since(start)
	if revoke.Wait() != nil { // members of the gossip that do not answer in time; who asks again gets the rest done
		t.Logf("revoke: %s", revoke.Output())
		c.eventually(time.Minute, func() error {
			out, err := srv.try(nil, "host", "revoke", "d")
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	if t.Logf("d was cut off after %s, forgotten after %s", cut.Round(100*time.Millisecond), time.Since(start).Round(100*time.Millisecond)); cut > 10*time.Second {
		t.Errorf("d was cut off after %s", cut)
	}
	if _, there := c.nodes()["d"]; there {
		t.Error("d is still a node")
	}

	// b leaves, killed after each step too, and nothing of plenum is left.
	check(t, os.WriteFile(filepath.Join(b.root, "etc/plenum/own.txt"), []byte("mine"), 0o600))
	if n := b.killed("leave"); n < 5 {
		t.Errorf("only %d places where leave was killed", n)
	}
	if diff := cmp.Diff([]string{"etc/plenum/own.txt"}, slices.DeleteFunc(filesBelow(t, b.root), func(f string) bool { return strings.HasPrefix(f, "proc/") })); diff != "" {
		t.Errorf("after leave (-want +got):\n%s", diff)
	}
	if out, err := b.Run("ip", "link", "show", controlDevice); err == nil {
		t.Errorf("a device is left: %s", out)
	}
	if out, _ := b.Run("nft", "list", "ruleset"); strings.Contains(out, "plenum") {
		t.Errorf("rules are left:\n%s", out)
	}
	c.eventually(20*time.Second, func() error { // the agent sees for itself that it is not needed any more
		if out, _ := b.Run("ps", "-eo", "args"); strings.Contains(out, b.root) {
			return fmt.Errorf("processes are left:\n%s", out)
		}
		return nil
	})
	c.eventually(time.Minute, func() error {
		if nodes := c.nodes(); len(nodes) != 1 {
			return fmt.Errorf("nodes are %v", nodes)
		}
		return nil
	})
}

// TestInitKilled kills init at each place where it may be killed. It takes minutes: PLENUM_CHAOS=1.
func TestInitKilled(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("init is killed a hundred times: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	c.first = srv
	if n := srv.killed(c.initArgs(srv)...); n < 50 {
		t.Errorf("only %d places where init was killed", n)
	}
	b.join(c.token("ber", "bridge"))
	c.whole(90*time.Second, srv, b)
}

func agentKills() int {
	if os.Getenv("PLENUM_CHAOS") != "" {
		return 20
	}
	return 5
}

// flowPackets is how many packets are asked for on each plane meanwhile.
func flowPackets() int {
	if os.Getenv("PLENUM_CHAOS") != "" {
		return 10_000
	}
	return 1000
}

// marks are how much a service of each host has written so far.
func (c *cluster) marks(service string, boxes ...*box) map[*box]int {
	m := map[*box]int{}
	for _, b := range boxes {
		m[b] = len(b.logged(service, 0))
	}
	return m
}

var memberGone = regexp.MustCompile(`serf: EventMember(?:Failed|Left?|Leave|Reap[^:]*): (\S+)`)

// flaps are the lines in which one host's Consul said since the marks that another of them is gone.
func (c *cluster) flaps(marks map[*box]int) (lines []string) {
	for b, from := range marks {
		for _, m := range memberGone.FindAllStringSubmatch(b.logged("plenum-consul", from), -1) {
			for other := range marks {
				if other.Name() == m[1] {
					lines = append(lines, b.Name()+" says "+m[0])
				}
			}
		}
	}
	return lines
}

// filesBelow are those below a root.
func filesBelow(t *testing.T, root string) (all []string) {
	t.Helper()
	check(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(root, path)
			all = append(all, name)
		}
		return err
	}))
	return all
}

// reboot starts what starts at boot.
func (b *box) reboot(env ...string) {
	cmd := exec.Command(filepath.Join(b.root, binDir, "plenum"), "run", "agent", "--root", b.root)
	cmd.Env, cmd.Dir = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.root}, env...), b.root
	log, err := os.OpenFile(filepath.Join(b.root, "var/log/plenum/plenum-agent.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	check(b.c.t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	b.agent = b.StartCmd(cmd)
}

// agentPID is the number of the agent on the host, as the host counts; "" is none.
func (b *box) agentPID() string { return b.pid("run agent --root " + b.root) }

// pid is that of the first process on the host whose command line has these words.
func (b *box) pid(words string) string {
	out, _ := b.Run("pgrep", "-f", words)
	return strings.TrimSpace(strings.SplitN(out, "\n", 2)[0])
}

func kill(b *box, pid string) error {
	out, err := b.Run("kill", "-9", pid)
	if err != nil {
		return fmt.Errorf("kill %q: %w: %s", pid, err, out)
	}
	return nil
}

// A flow is questions from one host to an address of another, and their answers: fifty a second, or two hundred. Answers
// pass the firewall of the control plane, which lets little else in.
type flow struct {
	c     *cluster
	p     *netlab.Process
	every time.Duration
}

func (c *cluster) flow(from *box, target string) *flow {
	every := 20 * time.Millisecond
	if os.Getenv("PLENUM_CHAOS") != "" {
		every = 5 * time.Millisecond
	}
	return &flow{c, from.Start("ping", "-n", "-i", fmt.Sprint(every.Seconds()), "-W", "5", target), every}
}

var (
	pingAnswer  = regexp.MustCompile(`icmp_seq=(\d+) ttl=.*ms\n`)
	pingSummary = regexp.MustCompile(`(\d+) packets transmitted`)
)

// sent is how many were answered so far.
func (f *flow) sent() int { return strings.Count(f.p.Output(), " ttl=") }

// halt says how many questions were asked, and how many of them had no answer. Those of the last half second may be on
// their way yet and do not count.
func (f *flow) halt() (sent, lost int) {
	f.c.t.Helper()
	check(f.c.t, f.p.Signal(os.Interrupt))
	_ = f.p.Wait()
	m := pingSummary.FindStringSubmatch(f.p.Output())
	if m == nil {
		f.c.t.Fatalf("ping wrote %q", f.p.Output()[max(0, len(f.p.Output())-500):])
	}
	all, _ := strconv.Atoi(m[1])
	answered := map[int]bool{}
	for _, m := range pingAnswer.FindAllStringSubmatch(f.p.Output(), -1) {
		n, _ := strconv.Atoi(m[1])
		sent, answered[n] = max(sent, n), true
	}
	sent = max(sent, all-int(time.Second/2/f.every))
	return sent, sent - len(answered)
}
