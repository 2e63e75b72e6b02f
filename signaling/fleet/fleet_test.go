package fleet

import (
	"net/netip"
	"slices"
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
	of := func(version string) func(*Bridge) { return func(b *Bridge) { b.Version = version } }
	by := func(families ...string) func(*Bridge) { return func(b *Bridge) { b.Families = families } }
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
		{"all full, a neighbour before the rest", []Bridge{b("x", "muc", 0.81), b("y", "fra", 0.9)}, Request{Region: "ber", Near: []string{"ber", "fra"}}, "y", "all overloaded, near the region"},
		{"own region suffers, far does not", []Bridge{b("x", "muc", 0.7), b("y", "ber", 0.81), b("z", "fra", 0.85)}, Request{Region: "ber", Near: []string{"ber", "fra"}}, "x", "least loaded"},
		{"own release", []Bridge{b("x", "", 0, of("1")), b("y", "", 0.7, of("2"))}, Request{Release: "2"}, "y", "least loaded, of this release"},
		{"the release before", []Bridge{b("x", "", 0.1, of("1")), b("y", "", 0, of("2"))}, Request{Release: "1"}, "x", "least loaded, of this release"},
		{"own region before own release", []Bridge{b("x", "ber", 0.1, of("1")), b("y", "muc", 0, of("2"))}, Request{Region: "ber", Release: "2"}, "x", "least loaded in region"},
		{"own release is overloaded", []Bridge{b("x", "", 0.1, of("1")), b("y", "", 0.8, of("2"))}, Request{Release: "2"}, "x", "least loaded"},
		{"own release is crushed", []Bridge{b("x", "", 1, of("1")), b("y", "", 1.1, of("2"))}, Request{Release: "2"}, "x", "all overloaded"},
		{"nobody has the release", []Bridge{b("x", "", 0.1, of("1")), b("y", "", 0, of("Java"))}, Request{Release: "2"}, "y", "least loaded"},
		{"one release", []Bridge{b("x", "", 0.1, of("2")), b("y", "", 0, of("2"))}, Request{Release: "2"}, "y", "least loaded"},
		{"a conference keeps to its version", []Bridge{b("x", "muc", 0.3, of("1")), b("y", "ber", 0, of("2"))}, Request{Region: "ber", Release: "2", Conference: in("x")}, "x", "conference is there"},
		{"by IPv4", []Bridge{b("x", "ber", 0, by("ipv6")), b("y", "muc", 0.5, by("ipv6", "ipv4"))}, Request{Region: "ber", Families: []string{"ipv4"}}, "y", "least loaded"},
		{"by IPv6", []Bridge{b("x", "", 0, by("ipv4")), b("y", "", 0.5, by("ipv6"))}, Request{Families: []string{"ipv6"}}, "y", "least loaded"},
		{"by both", []Bridge{b("x", "", 0, by("ipv4")), b("y", "", 0.5, by("ipv6", "ipv4"))}, Request{Families: []string{"ipv6", "ipv4"}}, "y", "least loaded"},
		{"by what nobody has", []Bridge{b("x", "", 0.1, by("ipv6")), b("y", "", 0, by("ipv6"))}, Request{Families: []string{"ipv4"}}, "y", "least loaded, though not everybody's kind of address"},
		{"addresses not known", []Bridge{b("x", "", 0), b("y", "", 0.5, by("ipv4"))}, Request{Families: []string{"ipv4"}}, "x", "least loaded"},
		{"moves to who is reached by all", []Bridge{b("x", "", 0, by("ipv6")), b("y", "", 0.9, by("ipv6", "ipv4"))}, Request{Families: []string{"ipv6", "ipv4"}, Conference: in("x")}, "y", "all overloaded"},
		{"does not move for nothing", []Bridge{b("x", "", 0.5, by("ipv6")), b("y", "", 0, by("ipv4"))}, Request{Families: []string{"ipv6", "ipv4"}, Conference: in("x")}, "x", "conference is there, though not everybody's kind of address"},
		{"nor to who drains", []Bridge{b("x", "", 0.5, by("ipv6")), b("y", "", 0, by("ipv4"), draining)}, Request{Families: []string{"ipv4"}, Conference: in("x")}, "x", "conference is there, though not everybody's kind of address"},
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
	f := New("", []string{"ber", "ham"}, []string{"ham", "cph"})
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
	f := New("")
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
	f, now := New(""), time.Unix(1e9, 0)
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

// TestFamilies: a bridge says by which families it is reached, or its candidates do once it has been used.
func TestFamilies(t *testing.T) {
	f, now := New(""), time.Unix(0, 0)
	for _, name := range []string{"lan", "said", "seen"} {
		f.Observe(now, at(name), stats())
	}
	f.Observe(now, at("said"), stats("address_families", "ipv4,ipv6"))
	f.Serves(at("lan"), []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:10000"), netip.MustParseAddrPort("[fd00::1]:10000")})
	f.Serves(at("said"), []netip.AddrPort{netip.MustParseAddrPort("[2001:470::1]:10000")})
	f.Serves(at("seen"), []netip.AddrPort{netip.MustParseAddrPort("100.64.0.7:10000"), netip.MustParseAddrPort("[2001:470::1]:10000")}) // DS-Lite
	for i, want := range [][]string{nil, {"ipv4", "ipv6"}, {"ipv6"}} {
		if b := f.Bridges(now)[i]; !slices.Equal(b.Families, want) {
			t.Errorf("%s: %v, want %v", b.JID.Resource(), b.Families, want)
		}
	}
	for a, want := range map[string]string{"192.0.2.1": "ipv4", "::ffff:192.0.2.1": "ipv4", "2001:db8::1": "ipv6", "127.0.0.1": "", "::1": ""} {
		if got := Family(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %q", a, got)
		}
	}
	if got := Family(netip.Addr{}); got != "" {
		t.Errorf("nobody's: %q", got)
	}
}

// TestHalfUpgraded (E16, E40): while half of a region runs another release, each conference stays on one version, whoever
// joins it from where; new ones follow the release of their shard, forth and back.
func TestHalfUpgraded(t *testing.T) {
	now := time.Unix(0, 0)
	shard := func(release string) *Fleet {
		f := New(release)
		for name, s := range map[string][]string{"old": {"muc", "plenum-1"}, "new": {"muc", "plenum-2"}, "far": {"ber", "plenum-2"}} {
			f.Observe(now, at(name), stats("region", s[0], "version", s[1], "stress_level", "0.3"))
		}
		return f
	}
	before, after := shard("1"), shard("2")
	for range 3 {
		for f, want := range map[*Fleet]string{before: "old", after: "new"} {
			c, ok := f.Select(now, Request{Region: "muc"})
			if !ok || c.Bridge != at(want) || c.Reason != "least loaded in region, of this release" {
				t.Errorf("shard of release %s: %+v", f.release, c)
			}
			for _, region := range []string{"muc", "ber", ""} {
				if again, ok := f.Select(now, Request{Region: region, Conference: []jid.JID{c.Bridge}}); !ok || again.Version != c.Version {
					t.Errorf("a conference of version %s gets %+v", c.Version, again)
				}
			}
		}
	}
}
