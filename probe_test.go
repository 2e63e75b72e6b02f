package main

import (
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestProbe has the real binary probe what works and what only seems to.
func TestProbe(t *testing.T) {
	w := newTown(t, "")
	s := w.shard("one", "")
	self := s.cmd.Path
	run := func(args ...string) (string, error) {
		out, err := (&exec.Cmd{Path: self, Args: append([]string{"plenum", "probe"}, args...)}).CombinedOutput()
		return string(out), err
	}
	if out, err := run("--shard", s.ready.HTTP, "--timeout", "2s"); err == nil || !strings.Contains(out, "no sound") {
		t.Errorf("a shard without bridges: %v %s", err, out)
	}
	heard := func(m *member) int {
		res, err := http.Get(m.ready.Metrics + "/about/heard")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	if got := heard(s); got != http.StatusServiceUnavailable {
		t.Errorf("a shard without bridges answers its check with %d", got)
	}
	b := w.bridge("b1", "muc")
	w.bridged()
	for _, m := range []*member{s, b} {
		eventually(t, "people are heard", func() bool { return heard(m) == http.StatusOK })
	}
	for _, args := range [][]string{{"--shard", s.ready.HTTP}, {"--bridge", b.ready.BridgeHTTP}} {
		began := time.Now()
		out, err := run(append(args, "--timeout", "30s")...)
		if err != nil {
			t.Errorf("%v: %v %s", args, err, out)
		}
		t.Logf("%v: %v, all in all %v", args, strings.TrimSpace(out), time.Since(began).Round(time.Millisecond))
	}
	b.signal(syscall.SIGSTOP)
	defer b.signal(syscall.SIGCONT)
	if out, err := run("--bridge", b.ready.BridgeHTTP, "--timeout", "1s"); err == nil {
		t.Errorf("a frozen bridge: %s", out)
	}
}
