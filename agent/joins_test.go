//go:build linux

package agent

import (
	"os"
	"regexp"
	"slices"
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
	for range 20 {
		token := c.token("ber", "bridge")
		start := time.Now()
		out := b.join(token)
		all = append(all, time.Since(start))
		if len(all) == 1 {
			t.Logf("where the time goes:\n%s", strings.Join(regexp.MustCompile(`(?m)^ *[\d.]+s  .*$`).FindAllString(out, -1), "\n"))
		}
		if status := c.nodes()["b"]; status != "ready" {
			t.Fatalf("join %d ended and the node is %q", len(all), status)
		}
		b.plenum("leave")
	}
	slices.Sort(all)
	t.Logf("20 joins: p50 %s, p95 %s, longest %s", all[9].Round(100*time.Millisecond), all[18].Round(100*time.Millisecond), all[19].Round(100*time.Millisecond))
	if all[18] > 30*time.Second {
		t.Errorf("p95 is %s, more than 30 s", all[18])
	}
}
