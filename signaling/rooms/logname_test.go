package rooms

import (
	"testing"
	"time"
)

// TestLogNames: a room has one name in a process's logs for a day, which is not what Consul calls it, and not what it is
// called elsewhere or later.
func TestLogNames(t *testing.T) {
	now := time.Unix(1e9, 0)
	n, other := LogNames{now: func() time.Time { return now }}, LogNames{}
	r := room("secret")
	first := n.Name(r)
	now = now.Add(nameLife)
	if n.Name(r) != first {
		t.Error("a second name within a day")
	}
	if first == n.Name(room("other")) || first == other.Name(r) || first == Key([]byte("secret"), r)[:12] {
		t.Errorf("%s tells which room it is", first)
	}
	now = now.Add(1)
	if n.Name(r) == first {
		t.Error("the key is older than a day")
	}
}
