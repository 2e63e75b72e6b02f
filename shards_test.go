package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/signaling/handover"
)

// TestShardTwice has the catalogue still list what was replaced: that stops no shard from starting, and the first line counts.
func TestShardTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shards")
	text := "\nmuc-1 muc 10.77.0.3:8000 10.77.0.3:5222\n\nber-1 - 10.77.0.5:8000 10.77.0.5:5222\nmuc-1 muc 10.77.0.4:8000 10.77.0.4:5222\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readShards(path)
	want := []handover.Shard{{Name: "muc-1", Region: "muc", HTTP: "10.77.0.3:8000", XMPP: "10.77.0.3:5222"}, {Name: "ber-1", HTTP: "10.77.0.5:8000", XMPP: "10.77.0.5:5222"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
