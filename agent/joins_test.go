//go:build linux

package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestJoins measures how long plenum join takes, from the command to a node that Nomad calls ready, with the programs
// already in a folder. It is for docs/PERFORMANCE.md: PLENUM_CHAOS=1.
func TestJoins(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("twenty joins take minutes: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	c.found(c.box("srv"))
	b := c.box("b")
	var all []time.Duration
	var slowest string
	for range 20 {
		token := c.token("ber", "bridge")
		start := time.Now()
		out := b.join(token)
		all = append(all, time.Since(start))
		if all[len(all)-1] == slices.Max(all) {
			slowest = strings.Join(regexp.MustCompile(`(?m)^ *[\d.]+s  .*$`).FindAllString(out, -1), "\n")
		}
		if status := c.nodes()["b"]; status != "ready" {
			t.Fatalf("join %d ended and the node is %q", len(all), status)
		}
		b.plenum("leave")
	}
	t.Logf("in order: %s; where the time of the slowest went:\n%s", all, slowest)
	slices.Sort(all)
	t.Logf("20 joins: p50 %s, p95 %s, longest %s", all[9].Round(100*time.Millisecond), all[18].Round(100*time.Millisecond), all[19].Round(100*time.Millisecond))
	if all[18] > 30*time.Second {
		t.Errorf("p95 is %s, more than 30 s", all[18])
	}
}

// TestIdle measures what the product's own agent takes while nothing happens, on a server host and on another. It is for
// docs/PERFORMANCE.md: PLENUM_CHAOS=1.
func TestIdle(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("idling takes minutes: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	program := filepath.Join(c.bin, "plenum")
	check(t, os.Remove(program)) // a link to this test
	build := exec.Command("go", "build", "-trimpath", "-o", program, "plenum")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	srv, b := c.box("srv"), c.box("b")
	c.found(srv)
	b.join(c.token("ber", "bridge"))
	c.whole(90*time.Second, srv, b)

	const settle, length = 30 * time.Second, time.Minute
	time.Sleep(settle)
	before := map[*box]time.Duration{srv: srv.agentTime(), b: b.agentTime()}
	time.Sleep(length)
	for x, was := range before {
		share := (x.agentTime() - was).Seconds() / length.Seconds()
		out, err := x.Run("sed", "-nE", `s/^(VmRSS|VmHWM|RssAnon):\s+([0-9]+) kB/\1 \2/p`, "/proc/"+x.agentPID()+"/status")
		check(t, err)
		kb := map[string]int{}
		for line := range strings.Lines(out) {
			name, n, _ := strings.Cut(strings.TrimSpace(line), " ")
			kb[name], _ = strconv.Atoi(n)
		}
		t.Logf("the agent of %s: %.2f %% of a core, %d MB resident, %d MB at most, %d MB of them its own", x.Name(), 100*share, kb["VmRSS"]/1000, kb["VmHWM"]/1000, kb["RssAnon"]/1000)
		if share > 0.005 || kb["VmRSS"] > 40_000 {
			t.Errorf("the agent of %s takes more than 0.5 %% of a core, or 40 MB", x.Name())
		}
	}
}

// agentTime is the time on a processor that the host's agent has taken, with the programs that it ran.
func (b *box) agentTime() time.Duration {
	b.c.t.Helper()
	out, err := b.Run("cat", "/proc/"+b.agentPID()+"/stat")
	check(b.c.t, err)
	fields := strings.Fields(out[strings.LastIndexByte(out, ')')+1:])
	var ticks int
	for _, f := range fields[11:15] { // utime, stime, and the children's (proc(5))
		n, err := strconv.Atoi(f)
		check(b.c.t, err)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
