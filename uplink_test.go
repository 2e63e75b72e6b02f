//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/signaling/client/thin"
)

// TestUplink asks more of a bridge than its uplink: it says that it is full, its presence tells the shard, and it sends no
// more than it may.
func TestUplink(t *testing.T) {
	const uplink = 1.5 // Mbit/s, of 2.4 that are wanted
	shard := startDev(t, func(o *devOptions) { o.uplink = uplink })
	e := engine(t, thin.Config{CPU: -1})
	s := costScenario{name: "uplink", listeners: 4, publish: []thin.Publish{{Audio: true, Video: 500_000, Seed: 1}}}
	if err := joinThin(t.Context(), e, shard.BridgeHTTP, "uplink", s); err != nil {
		t.Fatal(err)
	}
	var stats struct {
		Stress float64 `json:"stress_level"`
	}
	said, told := false, false
	for end := time.Now().Add(30 * time.Second); !said || !told; time.Sleep(100 * time.Millisecond) {
		getJSON(t, shard.BridgeHTTP+"/colibri/stats", &stats)
		var debug struct {
			Rooms struct{ Bridges []struct{ Stress float64 } }
		}
		getJSON(t, shard.Metrics+"/debug/", &debug)
		said = said || stats.Stress > 0.9
		told = told || len(debug.Rooms.Bridges) == 1 && debug.Rooms.Bridges[0].Stress > 0.9
		if time.Now().After(end) {
			t.Fatalf("the bridge says %+v, the shard %+v", stats, debug)
		}
	}
	e.Reset()
	began := time.Now()
	time.Sleep(10 * time.Second)
	c := e.Count()
	rate := 8 * float64(c.Bytes+28*c.Packets) / time.Since(began).Seconds() / 1e6
	t.Logf("%.2f Mbit/s", rate)
	if rate > 1.05*uplink || rate < 0.3*uplink {
		t.Errorf("%.2f Mbit/s of media over an uplink of %v", rate, uplink)
	}
}

// TestStressRises gives a bridge four times as much to do, and again: its stress by packets rises with that.
func TestStressRises(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("set PLENUM_CHAOS=1: it takes half a minute")
	}
	p, err := launch(t.Context(), buildServers(t).plenum, -1)
	if p != nil {
		t.Cleanup(p.stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t, thin.Config{CPU: -1})
	core := func() (v float64) {
		_ = p.each("/metrics", func(line string) {
			if strings.HasPrefix(line, "plenum_bridge_stress_core") {
				v, _ = strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			}
		})
		return v
	}
	before := 0.0
	for i, listeners := range []int{10, 40, 160} {
		s := costScenario{listeners: listeners, publish: []thin.Publish{{Audio: true, Video: 1_000_000, Seed: uint64(i)}}}
		if err := joinThin(t.Context(), e, p.bridge, fmt.Sprint("stress-", i), s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second) // it is measured every five
		u, err := p.usage()
		if err != nil {
			t.Fatal(err)
		}
		now := core()
		t.Logf("%d more: %.3f; %v of processor so far", listeners, now, u.cpu)
		if now < 1.1*before || now == 0 {
			t.Errorf("stress went from %.3f to %.3f", before, now)
		}
		before = now
	}
}

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}
