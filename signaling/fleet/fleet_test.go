package fleet

import (
	"testing"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/jid"
)

func at(name string) jid.JID { return jid.MustParse("brewery@internal/" + name) }

func TestSelect(t *testing.T) {
	b := func(name, region string, stress float64, edit ...func(*Bridge)) Bridge {
		b := Bridge{JID: at(name), Region: region, Stress: stress}
		for _, e := range edit {
			e(&b)
		}
		return b
	}
	draining := func(b *Bridge) { b.Draining = true }
	failed := func(b *Bridge) { b.Failed = true }
	stopping := func(b *Bridge) { b.ShuttingDown = true }
	graceful := func(b *Bridge) { b.Graceful = true }
	in := func(names ...string) (used []jid.JID) {
		for _, n := range names {
			used = append(used, at(n))
		}
		return used
	}
	for _, c := range []struct {
		name    string
		bridges []Bridge
		request Request
		want    string // empty for none
		reason  string
	}{
		{"none", nil, Request{}, "", ""},
		{"one", []Bridge{b("x", "", 0)}, Request{}, "x", "least loaded"},
		{"less load", []Bridge{b("x", "", 0.3), b("y", "", 0.2)}, Request{}, "y", "least loaded"},
		{"equal load goes by name", []Bridge{b("y", "", 0), b("x", "", 0)}, Request{}, "x", "least loaded"},
		{"own region", []Bridge{b("x", "muc", 0.1), b("y", "ber", 0.7)}, Request{Region: "ber"}, "y", "least loaded in region"},
		{"own region is full", []Bridge{b("x", "muc", 0.1), b("y", "ber", 0.8)}, Request{Region: "ber"}, "x", "least loaded"},
		{"no region", []Bridge{b("x", "", 0.2), b("y", "ber", 0.1)}, Request{}, "y", "least loaded"},
		{"all full", []Bridge{b("x", "", 0.9), b("y", "", 0.8)}, Request{}, "y", "all overloaded"},
		{"draining", []Bridge{b("x", "", 0, draining), b("y", "", 0.9)}, Request{}, "y", "all overloaded"},
		{"all draining", []Bridge{b("x", "", 0.2, draining), b("y", "", 0.1, draining)}, Request{}, "y", "all draining"},
		{"failed", []Bridge{b("x", "", 0, failed), b("y", "", 0.9, draining)}, Request{}, "y", "all draining"},
		{"shutting down", []Bridge{b("x", "", 0, stopping)}, Request{Conference: in("x")}, "", ""},
		{"graceful, new conference", []Bridge{b("x", "", 0, graceful)}, Request{}, "", ""},
		{"graceful, its own conference", []Bridge{b("x", "", 0, graceful), b("y", "", 0)}, Request{Conference: in("x")}, "x", "conference is there"},
		{"stays together", []Bridge{b("x", "muc", 0.95, draining), b("y", "ber", 0)}, Request{Region: "ber", Conference: in("x")}, "x", "conference is there"},
		{"moves from a failed one", []Bridge{b("x", "", 0, failed), b("y", "", 0.5)}, Request{Conference: in("x")}, "y", "least loaded"},
		{"failed, but nothing else", []Bridge{b("x", "", 0, failed), b("y", "", 0, graceful)}, Request{Conference: in("x")}, "x", "conference is there, and nothing else"},
		{"failed, new conference", []Bridge{b("x", "", 0, failed)}, Request{}, "", ""},
		{"second bridge of a conference", []Bridge{b("x", "", 0, failed), b("y", "", 0.5), b("z", "", 0)}, Request{Conference: in("x", "y")}, "y", "conference is there"},
	} {
		got, ok := Select(c.bridges, c.request)
		if ok != (c.want != "") || ok && (got.Bridge != at(c.want) || got.Reason != c.reason) {
			t.Errorf("%s: got %v %v, want %s %q", c.name, got, ok, c.want, c.reason)
		}
	}
}

func TestFleet(t *testing.T) {
	now := time.Unix(0, 0)
	f := New()
	stats := func(pairs ...string) (s colibri.Stats) {
		s = colibri.Stats{{Name: "drain", Value: "false"}}
		for i := 0; i < len(pairs); i += 2 {
			s = append(s, colibri.Stat{Name: pairs[i], Value: pairs[i+1]})
		}
		return s
	}
	chosen := func() string { c, _ := f.Select(now, Request{}); return c.Bridge.Resource() }

	if !f.Observe(now, at("x"), stats("stress_level", "0.10", "region", "muc", "relay_id", "rx", "version", "2")) || f.Observe(now, at("x"), stats("stress_level", "0.10")) {
		t.Error("a bridge appears once")
	}
	if b := f.Bridges(now)[0]; b.Region != "muc" || b.RelayID != "rx" || b.Version != "2" || b.Draining || b.Stress != 0.10 {
		t.Errorf("%+v", b)
	}
	f.Observe(now, at("y"), stats("stress_level", "0.113", "average_participant_stress", "0.005"))

	// Endpoints count where they were placed until presence can show them.
	got := ""
	for range 5 {
		got += chosen()
	}
	if got != "xxyyx" {
		t.Errorf("placed on %s", got)
	}
	now = now.Add(rampUp + 1)
	if b := f.Bridges(now); b[0].Stress != 0.10 || b[1].Stress != 0.113 {
		t.Errorf("still counted: %+v", b)
	}

	// A failure is remembered for a minute.
	f.Failed(now, at("x"), false)
	if c := chosen(); c != "y" {
		t.Errorf("after a failure: %s", c)
	}
	now = now.Add(failureMemory)
	if c := chosen(); c != "x" {
		t.Errorf("a minute later: %s", c)
	}
	// Unhealthy ones and those that shut down are left out until they say otherwise.
	if f.Leave(now, at("x")) || f.Leave(now, at("nobody")) {
		t.Error("nothing is wrong with it")
	}
	if f.Observe(now, at("x"), stats("stress_level", "0.1", "healthy", "false")) {
		t.Error("a moment is made much of")
	}
	if c := chosen(); c != "y" || f.Leave(now, at("x")) {
		t.Errorf("unhealthy for a moment: %s", c)
	}
	for i := 2; i <= 4; i++ { // told once, when it is time to leave
		if got := f.Observe(now, at("x"), stats("healthy", "false")); got != (i == illForGood) || f.Leave(now, at("x")) != (i >= illForGood) {
			t.Errorf("presence %d: %v", i, got)
		}
	}
	if !f.Observe(now, at("x"), stats("stress_level", "0.1", "healthy", "true")) {
		t.Error("recovery is not reported")
	}
	f.Observe(now, at("y"), stats("graceful_shutdown", "true"))
	f.Failed(now, at("x"), true)
	if c := chosen(); c != "" {
		t.Errorf("both in graceful shutdown: %s", c)
	}
	f.Observe(now, at("x"), stats("stress_level", "junk", "shutting_down", "true"))
	if b := f.Bridges(now)[0]; !b.ShuttingDown || b.Stress < 0.1 {
		t.Errorf("%+v", b)
	}
	if f.Leave(now, at("x")) { // y takes nothing new
		t.Error("left although there is nowhere to go")
	}
	if !f.Lost(at("x")) || f.Lost(at("x")) || len(f.Bridges(now)) != 1 {
		t.Error("lost once")
	}
	f.Failed(now, at("x"), false) // unknown: nothing to remember

	// Silence about draining means draining.
	f.Observe(now, at("z"), colibri.Stats{{Name: "stress_level", Value: "NaN"}})
	if b := f.Bridges(now)[1]; !b.Draining || b.Stress != 0 {
		t.Errorf("%+v", b)
	}
}
