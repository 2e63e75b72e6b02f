package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"plenum/signaling/trace"
)

// TestRoomTrace has people in a room, and reads what the command says of the way to each and of what it gets.
func TestRoomTrace(t *testing.T) {
	shard := startDev(t)
	all := joinAll(t, shard.HTTP, "looked-at", 2)
	for _, p := range all {
		await(t, p, mediaLimit, "the other plays", plays(1))
	}
	run := func(args ...string) string {
		t.Helper()
		c := command()
		var out bytes.Buffer
		c.SetOut(&out)
		c.SetArgs(append([]string{"room", "trace", "--from", shard.Metrics, "--from", shard.BridgeHTTP}, args...))
		if err := c.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	var text string
	for end := time.Now().Add(mediaLimit); ; time.Sleep(20 * time.Millisecond) {
		text = run("looked-at")
		if strings.Count(text, "by transport-cc: RTT") == 2 && strings.Count(text, " lines, ") >= 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the ways are not known:\n%s", text)
		}
	}
	for i, p := range all {
		for _, want := range []string{p.ID() + ": connected", "sends " + p.ID() + "-v0 to 1", all[1-i].ID() + "-v0 in "} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in\n%s", want, text)
			}
		}
	}
	t.Log("\n" + text)
	var v trace.View
	if err := json.Unmarshal([]byte(run("-o", "json", "looked-at")), &v); err != nil || len(v.Shards) != 1 || len(v.Bridges) != 1 {
		t.Errorf("JSON: %v, %d shards, %d bridges", err, len(v.Shards), len(v.Bridges))
	}
	c := command()
	c.SetArgs([]string{"room", "trace", "--from", shard.Metrics, "nowhere"})
	if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "--from") {
		t.Errorf("a room that there is not: %v", err)
	}
}
