//go:build linux

package main

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"plenum/signaling/client/thin"
)

// TestUplink has a bridge send more than its uplink: it says that it is full, and its presence tells the shard.
func TestUplink(t *testing.T) {
	shard := startDev(t, func(o *devOptions) { o.uplink = 0.5 })
	e := engine(t, thin.Config{CPU: -1})
	s := costScenario{name: "uplink", listeners: 2, publish: []thin.Publish{{Audio: true, Video: 500_000, Seed: 1}}}
	if err := joinThin(t.Context(), e, shard.BridgeHTTP, "uplink", s); err != nil {
		t.Fatal(err)
	}
	var stats struct {
		Stress float64 `json:"stress_level"`
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		getJSON(t, shard.BridgeHTTP+"/colibri/stats", &stats)
		var debug struct {
			Rooms struct{ Bridges []struct{ Stress float64 } }
		}
		getJSON(t, shard.Metrics+"/debug/", &debug)
		if stats.Stress > 1.5 && len(debug.Rooms.Bridges) == 1 && debug.Rooms.Bridges[0].Stress > 1.5 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the bridge says %+v, the shard %+v", stats, debug)
		}
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
