//go:build linux

package main

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"plenum/signaling/client/thin"
)

// TestThinLoad has the load engine's participants in a room over the bridge's private HTTP: what one sends arrives
// at all others, whole.
func TestThinLoad(t *testing.T) {
	shard := startDev(t)
	e, err := thin.New(thin.Config{From: netip.MustParseAddr("127.0.0.1"), CPU: -1})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(context.Background())
	var engine sync.WaitGroup
	engine.Go(func() { e.Run(running) })
	defer engine.Wait()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s := costScenario{name: "test", listeners: 3, publish: []thin.Publish{
		{Audio: true, Video: 500_000, Seed: 1}, {Audio: true, Seed: 2},
	}}
	if err := joinThin(ctx, e, shard.BridgeHTTP, "thin", s); err != nil {
		t.Fatal(err)
	}
	// Three streams to four each.
	for {
		c := e.Count()
		if c.Bad > 0 {
			t.Fatalf("%+v", c)
		}
		if c.Streams == 12 && c.Packets > 1000 && c.Opened > 20 && c.Video.P50 > 0 && c.Audio.P50 > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("%+v", c)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
