//go:build linux

package agent

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One name with the addresses of all edges, and one for each region; a hook that fails is told.
func TestZone(t *testing.T) {
	edges := []Edge{{"a", "ber", netip.MustParseAddr("192.0.2.1")}, {"b", "muc", netip.MustParseAddr("2001:db8::2")}, {"c", "ber", netip.MustParseAddr("192.0.2.1")}}
	want := `ber.meet.example. 60 IN A 192.0.2.1
meet.example. 60 IN A 192.0.2.1
meet.example. 60 IN AAAA 2001:db8::2
muc.meet.example. 60 IN AAAA 2001:db8::2
`
	for _, name := range []string{"meet.example", "meet.example."} {
		if got := zone(name, edges); got != want {
			t.Errorf("%s:\n%s", name, got)
		}
	}
	var out bytes.Buffer
	c := &Command{Out: &out}
	hook := filepath.Join(t.TempDir(), "hook")
	check(t, os.WriteFile(hook, []byte("#!/bin/sh\nread -r first; echo \"first $first\"; [ -z \"$FAIL\" ] || { echo no key >&2; exit 1; }\n"), 0o755))
	check(t, c.hand(t.Context(), hook, want, edges))
	if out.String() != "first ber.meet.example. 60 IN A 192.0.2.1\n" {
		t.Errorf("the hook got %q", out.String())
	}
	t.Setenv("FAIL", "1")
	if err := c.hand(t.Context(), hook, want, edges); err == nil || !strings.Contains(err.Error(), "no key") {
		t.Errorf("a hook that fails: %v", err)
	}
}
