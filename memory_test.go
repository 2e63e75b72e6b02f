//go:build linux

package main

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"plenum/signaling/client/thin"
)

// TestFrugal has a hundred receive one camera from the program as make build makes it: it needs no more memory than promised,
// its pages of the program included, at no time since its start.
func TestFrugal(t *testing.T) {
	const limit = 48 << 20 // 40 is the aim, which bench shows; the rest is for a machine that is late with collecting
	path := filepath.Join(t.TempDir(), "plenum")
	build := exec.Command("go", "build", "-trimpath", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	e, err := thin.New(thin.Config{From: netip.MustParseAddr("127.0.0.1"), CPU: -1})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var engine sync.WaitGroup
	engine.Go(func() { e.Run(running) })
	defer engine.Wait()
	defer stop()
	s := costScenario{listeners: 100, publish: []thin.Publish{{Audio: true, AudioBytes: 200, Video: 1_500_000, Seed: 1}}}
	p, err := startPlenum(ctx, path, e, s)
	if p != nil {
		defer p.stop()
	}
	if err != nil {
		t.Fatal(err)
	}
	for e.Count().Packets < 100_000 { // five seconds of it
		if ctx.Err() != nil {
			t.Fatalf("%+v", e.Count())
		}
		time.Sleep(50 * time.Millisecond)
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if peak := 1024 * statusField(text, "VmHWM:"); peak == 0 || peak > limit {
		t.Errorf("%d kB at most", peak>>10)
	} else {
		t.Logf("%d kB at most", peak>>10)
	}
}
