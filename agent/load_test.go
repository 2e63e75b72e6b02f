//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// TestStatusLoads: status shows what each host carries where that is known, and says so where it is not.
func TestStatusLoads(t *testing.T) {
	report := func(loads map[string]Load, err error) (Report, string) {
		r := Report{Hosts: []HostReport{{Host: "a", State: "up"}, {Host: "b", State: "up"}}}
		r.carry(t.Context(), "/", func(context.Context, string) (map[string]Load, error) { return loads, err })
		var b bytes.Buffer
		check(t, (&Command{Out: &b}).print(r))
		return r, b.String()
	}
	r, text := report(map[string]Load{"b": {Rooms: 4, People: 31, Media: 12, Mbit: 20.5, Stress: 0.25, Drain: "draining"}}, nil)
	if strings.Count(text, "\n") < 5 || !strings.Contains(text, "\nb     4      31      12     20.5    0.25    draining\n") ||
		!strings.Contains(text, "\na     0      0       0      0.0     0.00    -\n") || r.Hosts[1].Load.People != 31 {
		t.Errorf("%+v:\n%s", r.Hosts, text)
	}
	if r, text = report(nil, errors.New("no Nomad")); strings.Contains(text, "MBIT/S") || !strings.Contains(text, "what hosts carry is not known: no Nomad") || r.Hosts[0].Load != nil {
		t.Errorf("what nobody knows:\n%s", text)
	}
}
