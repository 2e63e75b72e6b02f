//go:build linux

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOutage takes the only server away (E24) from two hosts that joined at the same instant. They go on to talk, and
// tell what they knew and how old that is; when the server is back nobody was taken out. Thirty seconds, or five minutes.
func TestOutage(t *testing.T) {
	c := newCluster(t)
	srv, b, d := c.box("srv"), c.box("b"), c.box("d")
	c.found(srv)

	// A clock that is wrong is told before a token is used (E29).
	tokens := map[*box]string{b: c.token("ber", "bridge"), d: c.token("muc", "bridge")}
	for _, off := range []string{"2m", "25h"} {
		out, err := b.try([]string{"PLENUM_CLOCK=" + off}, "join", tokens[b], "--host", "b", "--binaries", c.bin)
		if err == nil || !strings.Contains(out, "clock is "+off) {
			t.Errorf("with a clock that is %s ahead: %v\n%s", off, err, out)
		}
	}
	var wg sync.WaitGroup
	for x, token := range tokens {
		wg.Go(func() {
			if out, err := x.try(nil, "join", token, "--host", x.Name(), "--binaries", c.bin); err != nil {
				t.Errorf("%s: %v\n%s", x.Name(), err, out)
			}
		})
	}
	wg.Wait()
	c.whole(90*time.Second, srv, b, d)
	if r := srv.report(); r.host("b").Control == r.host("d").Control || r.host("b").Media == r.host("d").Media {
		t.Fatalf("b and d have one address: %+v", r.Hosts)
	}

	control, media := b.report().host("d").Control, b.report().host("d").Media
	flows := []*flow{c.flow(b, control), c.flow(b, media)}
	gone := time.Now()
	srv.KillAll()
	length := 30 * time.Second
	if os.Getenv("PLENUM_CHAOS") != "" {
		length = 5 * time.Minute
	}
	c.eventually(time.Minute, func() error {
		r := b.report()
		if r.Stale == "" || len(r.Hosts) != 3 || r.host("d").Control != control {
			return fmt.Errorf("without servers b says %+v", r)
		}
		if since := r.Seen.Sub(gone); since > 5*time.Second || since < -time.Minute {
			t.Errorf("the servers went at %s, and b says that the catalog told it at %s", gone, r.Seen)
		}
		return nil
	})
	if out := b.plenum("status"); !strings.Contains(out, "as of ") {
		t.Errorf("people are not told that it is old:\n%s", out)
	}
	time.Sleep(time.Until(gone.Add(length)))
	if r := b.report(); r.Stale == "" || r.Seen.After(gone.Add(5*time.Second)) {
		t.Errorf("%s after the servers went b says that the catalog told it at %s: %q", length, r.Seen, r.Stale)
	}
	srv.reboot()
	t.Logf("the catalog answers %s after the servers are back", c.eventually(2*time.Minute, func() error {
		r := b.report()
		if r.Stale != "" || len(r.Hosts) == 0 {
			return errors.New(r.Stale)
		}
		for _, h := range r.Hosts {
			if h.State == "not registered" {
				t.Fatalf("%s was taken out of the catalog", h.Host)
			}
			if h.State == "unknown" {
				return fmt.Errorf("%s is unknown", h.Host)
			}
		}
		return nil
	}).Round(100*time.Millisecond))
	c.eventually(time.Minute, func() error {
		nodes := c.nodes()
		if len(nodes) != 3 {
			return fmt.Errorf("nodes: %v", nodes)
		}
		for _, name := range []string{"b", "d"} {
			if nodes[name] == "down" {
				t.Fatalf("node %s is down: the server was, not it", name)
			}
		}
		return nil
	})
	c.whole(2*time.Minute, srv, b, d)
	for _, f := range flows {
		sent, lost := f.halt()
		if t.Logf("%d of %d packets lost while there was no server", lost, sent); lost > 0 || sent < 1000 {
			t.Error("too many")
		}
	}
}

// TestDiskFull joins a host whose disk is too small: it says so, and goes on when there is space. Then the disk is full
// for longer than its certificates live. It takes minutes: PLENUM_CHAOS=1.
func TestDiskFull(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("another cluster: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	c.found(srv, "--host-life", "60s")
	if out, err := b.Run("mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", b.root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	token := c.token("ber", "bridge")
	if out, err := b.try(nil, "join", token, "--host", "b", "--binaries", c.bin); err == nil || !strings.Contains(out, "no space left") {
		t.Errorf("on a full disk: %v\n%s", err, out)
	}
	if out, err := b.Run("mount", "-o", "remount,size=1500m", b.root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.join(token)
	c.whole(90*time.Second, srv, b)

	if out, err := b.Run("dd", "if=/dev/zero", "of="+filepath.Join(b.root, "ballast"), "bs=1M"); err == nil {
		t.Fatalf("the disk does not end: %s", out)
	}
	expires := srv.report().host("b").Certificate
	c.eventually(2*time.Minute, func() error {
		if left := time.Until(expires); left > -5*time.Second {
			return fmt.Errorf("%s to go", left)
		}
		return nil
	})
	if out, err := b.Run("rm", filepath.Join(b.root, "ballast")); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("whole %s after there is space again", c.whole(2*time.Minute, srv, b).Round(100*time.Millisecond))
}
