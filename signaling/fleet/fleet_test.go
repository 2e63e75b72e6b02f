package fleet

import (
	"testing"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/jid"
)

func at(name string) jid.JID { return jid.MustParse("brewery@internal/" + name) }

func stats(pairs ...string) (s colibri.Stats) {
	s = colibri.Stats{{Name: "drain", Value: "false"}}
	for i := 0; i < len(pairs); i += 2 {
		s = append(s, colibri.Stat{Name: pairs[i], Value: pairs[i+1]})
	}
	return s
}

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
		{"a neighbour", []Bridge{b("x", "muc", 0.1), b("y", "fra", 0.7)}, Request{Region: "ber", Near: []string{"ber", "fra"}}, "y", "least loaded near the region"},
		{"a neighbour, but our own", []Bridge{b("x", "ber", 0.7), b("y", "fra", 0.1)}, Request{Region: "ber", Near: []string{"ber", "fra"}}, "x", "least loaded in region"},
		{"all much to do, own region", []Bridge{b("x", "muc", 0.81), b("y", "ber", 0.9)}, Request{Region: "ber"}, "y", "all overloaded, in region"},
		{"all full, own region more", []Bridge{b("x", "muc", 0.81), b("y", "ber", 1)}, Request{Region: "ber"}, "x", "all overloaded"},
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

func TestGroups(t *testing.T) {
	f := New([]string{"ber", "ham"}, []string{"ham", "cph"})
	for region, want := range map[string]int{"ber": 2, "ham": 4, "muc": 0, "": 0} {
		if got := f.near(region); len(got) != want {
			t.Errorf("near %s: %v", region, got)
		}
	}
	now := time.Unix(0, 0)
	for name, region := range map[string]string{"a": "muc", "b": "cph"} {
		f.Observe(now, at(name), colibri.Stats{{Name: "drain", Value: "false"}, {Name: "region", Value: region}})
	}
	if c, ok := f.Select(now, Request{Region: "ham"}); !ok || c.Region != "cph" || c.Reason != "least loaded near the region" {
		t.Errorf("%+v", c)
	}
}

func TestFleet(t *testing.T) {
	now := time.Unix(0, 0)
	f := New()
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

// TestGracefulThenShuttingDown tells conferences twice, as a Java bridge that drains gracefully first refuses
// new ones and then wants to be left.
func TestGracefulThenShuttingDown(t *testing.T) {
	f, now := New(), time.Unix(1e9, 0)
	for _, b := range []string{"x", "y"} {
		f.Observe(now, at(b), stats("stress_level", "0.1"))
	}
	if !f.Observe(now, at("x"), stats("graceful_shutdown", "true")) || f.Leave(now, at("x")) {
		t.Error("in graceful shutdown a bridge keeps what it has, and gets no more")
	}
	closing := stats("graceful_shutdown", "true", "shutting_down", "true")
	if !f.Observe(now, at("x"), closing) || !f.Leave(now, at("x")) {
		t.Error("conferences are not told to leave a bridge that shuts down in the end")
	}
	if f.Observe(now, at("x"), closing) {
		t.Error("and told again")
	}
}
