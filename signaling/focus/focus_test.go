package focus

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/colibri"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// TestLikeJicofo compares what the focus says, word by word, with what Jicofo said in the recordings:
// the request to the bridge, the offer, and the request after the client's answer.
func TestLikeJicofo(t *testing.T) {
	w := newWorld(t)
	w.configure([]string{"all-codecs"})
	delete(w.cfg.Caps.(capsFake), "mid")
	w.do("join", []string{"zzzz0000"})
	w.c.participants[0].uninvited = true // leaves the creation to the one that was recorded
	w.step(Joined{Occupant{Nick: "bbbb2222", Presence: []*xmpp.Element{
		xmpp.New("", "stats-id").AddText("Zed-xyz"), xmpp.New(xmpp.NSCaps, "c", "hash", "sha-1", "ver", "known"),
	}}})
	created := w.asked[0]
	if diff := cmp.Diff(golden(t, "colibri-create.xml"), canonical(created.Payload)); diff != "" {
		t.Errorf("creation (-Jicofo +ours):\n%s", diff)
	}

	var offer *xmpp.Element
	for _, a := range w.c.Step(w.now, BridgeAnswer{created.ID, xmpp.IQ("result", "", "", "", readElement(t, "testdata/colibri-created.xml"))}) {
		if iq, ok := a.(SendIQ); ok {
			offer = iq.Payload
		}
	}
	want := golden(t, "../../wire/jingle/testdata/session-initiate.xml")
	sid := func(l []string) []string { // random, and the zero trace is left out
		l = slices.DeleteFunc(l, func(s string) bool { return strings.Contains(s, "traceparent") })
		for i := range l {
			l[i] = strings.NewReplacer("eka579oqiahi5", "SID", "000000000001", "SID", "00000000-0000-4000-8000-000000000006", "UUID", "00000000-0000-4000-8000-000SID", "UUID", "00000000-0000-4000-8000-000000000002", "UUID").Replace(l[i])
		}
		return l
	}
	if diff := cmp.Diff(sid(want), sid(canonical(offer))); diff != "" {
		t.Errorf("offer (-Jicofo +ours):\n%s", diff)
	}

	accept := readElement(t, "../../wire/jingle/testdata/session-accept.xml").Clone()
	accept.SetAttr("sid", w.c.participants[1].session.sid)
	var updated *xmpp.Element
	for _, a := range w.c.Step(w.now, Stanza{"bbbb2222", xmpp.IQ("set", "1", "bbbb2222@meet.local/r", "golden@conference.meet.local/focus", accept)}) {
		if r, ok := a.(BridgeRequest); ok {
			updated = r.Payload
		}
	}
	if diff := cmp.Diff(golden(t, "colibri-update.xml"), canonical(updated)); diff != "" {
		t.Errorf("update (-Jicofo +ours):\n%s", diff)
	}
}

// TestFamilies: a bridge is asked for that all can reach: who is invited, and who has media already.
func TestFamilies(t *testing.T) {
	w := newWorld(t)
	for who, want := range [][]string{nil, {"ipv6", "ipv4"}, {"ipv6", "ipv4"}, {"ipv6", "ipv4"}} {
		w.do("join", [][]string{{"aaaa0000", "family=ipv6", "region=ber"}, {"bbbb1111", "family=ipv4"}, {"cccc2222"}, {"dddd3333", "family=ipv6", "region=muc"}}[who])
		got := slices.Sorted(slices.Values(w.bridges.last.Families))
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Errorf("%d people: %v, want %v", who+1, got, want)
		}
	}
	if w.bridges.last.Region != "muc" {
		t.Errorf("the last is from %q", w.bridges.last.Region)
	}
}

func TestCapsHash(t *testing.T) {
	if got := capsHash(recorded); got != recordedVer {
		t.Errorf("hash of the recorded features is %s", got)
	}
}

func TestCheckSources(t *testing.T) {
	source := func(ssrc uint32, name, msid string) jingle.Source {
		return jingle.Source{SSRC: ssrc, Name: name, MSID: msid}
	}
	group := func(semantics string, ssrcs ...uint32) jingle.SourceGroup {
		return jingle.SourceGroup{Semantics: semantics, SSRCs: ssrcs}
	}
	var many []jingle.Source
	var groups []jingle.SourceGroup
	for i := range uint32(maxSSRCs) {
		many = append(many, source(i+1, "a-v0", "m"))
		groups = append(groups, group("SIM", i+1))
	}
	for _, c := range []struct {
		name         string
		audio, video jingle.MediaSources
		want         string // part of the error, empty for none
	}{
		{"nothing", jingle.MediaSources{}, jingle.MediaSources{}, ""},
		{"limit reached", jingle.MediaSources{}, jingle.MediaSources{Sources: many, Groups: groups}, ""},
		{"one more", jingle.MediaSources{Sources: []jingle.Source{source(99, "a-a0", "m")}}, jingle.MediaSources{Sources: many}, "at most 20"},
		{"groups", jingle.MediaSources{}, jingle.MediaSources{Sources: many, Groups: append(groups, group("SIM", 1))}, "at most 20"},
		{"zero", jingle.MediaSources{Sources: []jingle.Source{source(0, "a-a0", "")}}, jingle.MediaSources{}, "ssrc 0"},
		{"audio and video", jingle.MediaSources{Sources: many[:1]}, jingle.MediaSources{Sources: many[:1]}, "twice"},
		{"name in two kinds", jingle.MediaSources{Sources: many[:1]}, jingle.MediaSources{Sources: many[1:2]}, "both"},
		{"foreign name", jingle.MediaSources{}, jingle.MediaSources{Sources: []jingle.Source{source(7, "b-v0", "")}}, "belong"},
		{"prefix of a name", jingle.MediaSources{}, jingle.MediaSources{Sources: []jingle.Source{source(7, "ab-v0", "")}}, "belong"},
		{"long msid", jingle.MediaSources{}, jingle.MediaSources{Sources: []jingle.Source{source(7, "a-v0", strings.Repeat("m", maxMSIDBytes+1))}}, "long"},
		{"long name", jingle.MediaSources{}, jingle.MediaSources{Sources: []jingle.Source{source(7, "a-"+strings.Repeat("v", maxNameBytes), "")}}, "belong"},
		{"FID of one", jingle.MediaSources{}, jingle.MediaSources{Sources: many, Groups: []jingle.SourceGroup{group("FID", 1)}}, "group of 1"},
		{"FID of three", jingle.MediaSources{}, jingle.MediaSources{Sources: many, Groups: []jingle.SourceGroup{group("FID", 1, 2, 3)}}, "group of 3"},
		{"FID of itself", jingle.MediaSources{}, jingle.MediaSources{Sources: many, Groups: []jingle.SourceGroup{group("FID", 1, 1)}}, "twice"},
		{"empty group", jingle.MediaSources{}, jingle.MediaSources{Groups: []jingle.SourceGroup{group("SIM")}}, "group of 0"},
		{"unknown member", jingle.MediaSources{}, jingle.MediaSources{Sources: many[:1], Groups: []jingle.SourceGroup{group("FID", 1, 2)}}, "not signaled"},
		{"group over kinds", jingle.MediaSources{Sources: []jingle.Source{source(9, "a-a0", "m")}}, jingle.MediaSources{Sources: []jingle.Source{source(1, "a-v0", "m")}, Groups: []jingle.SourceGroup{group("FID", 1, 9)}}, "not signaled"},
		{"several msids", jingle.MediaSources{}, jingle.MediaSources{Sources: []jingle.Source{source(1, "a-v0", "m"), source(2, "a-v0", "n")}, Groups: []jingle.SourceGroup{group("FID", 1, 2)}}, "several msids"},
		{"other's ssrc", jingle.MediaSources{Sources: []jingle.Source{source(100, "a-a0", "")}}, jingle.MediaSources{}, "ssrc 100 is in use"},
		{"other's msid", jingle.MediaSources{Sources: []jingle.Source{source(7, "a-a0", "b b")}}, jingle.MediaSources{}, "msid of ssrc 7 is in use"},
		{"other's name", jingle.MediaSources{Sources: []jingle.Source{source(7, "a-b-a0", "")}}, jingle.MediaSources{}, "name of ssrc 7 is in use"},
	} {
		a, b := &participant{Occupant: Occupant{Nick: "a"}}, &participant{Occupant: Occupant{Nick: "a-b"}, session: &session{}}
		b.session.sources.Audio.Sources = []jingle.Source{source(100, "a-b-a0", "b b")}
		conference := Conference{participants: []*participant{a, b}}
		err := conference.checkSources(a, jingle.EndpointSources{Audio: c.audio, Video: c.video})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestBridgeSources(t *testing.T) {
	got := bridgeSources(jingle.EndpointSources{
		Audio: jingle.MediaSources{Sources: []jingle.Source{{SSRC: 1, Name: "a-a0", MSID: "m"}}},
		Video: jingle.MediaSources{
			Sources: []jingle.Source{{SSRC: 2, Name: "a-v1"}, {SSRC: 3, Name: "a-v0"}, {SSRC: 4, Name: "a-v1"}},
			Groups:  []jingle.SourceGroup{{Semantics: "FID", SSRCs: []uint32{2, 4}}},
		},
	})
	want := &colibri.Sources{Media: []colibri.MediaSource{
		{ID: "a-a0", Type: "audio", Sources: []jingle.Source{{SSRC: 1, Name: "a-a0"}}},
		{ID: "a-v1", Type: "video", Sources: []jingle.Source{{SSRC: 2, Name: "a-v1"}, {SSRC: 4, Name: "a-v1"}}, Groups: []jingle.SourceGroup{{Semantics: "FID", SSRCs: []uint32{2, 4}}}},
		{ID: "a-v0", Type: "video", Sources: []jingle.Source{{SSRC: 3, Name: "a-v0"}}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	at := func(s float64) bool {
		return l.allow(time.Unix(0, 0).Add(time.Duration(s*float64(time.Second))), 5*time.Second, 5)
	}
	for _, c := range []struct {
		at   float64
		want bool
	}{{0, true}, {4.9, false}, {5, true}, {10, true}, {15, true}, {20, true}, {25, false}, {59.9, false}, {60, true}, {60.1, false}, {65, true}} {
		if got := at(c.at); got != c.want {
			t.Errorf("at %v s: %v", c.at, got)
		}
	}
}

// Whoever leaves, participant or bridge, takes the requests along that it owes an answer to.
func TestRequestsAreForgotten(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.do("join", []string{"aaaa", "caps=none"})
		w.do("join", []string{"bbbb"})
		w.do("join", []string{"cccc"})
		w.do("leave", []string{"bbbb"})
		w.do("leave", []string{"aaaa"})
		w.do("lost", []string{"jvb1"})
		w.do("appears", []string{"jvb1"})
	}
	w.do("leave", []string{"cccc"})
	if n := len(w.c.requests) + len(w.c.bridges); n != 0 {
		t.Errorf("%d requests and bridges are left", n)
	}
}

func TestState(t *testing.T) {
	w := newWorld(t)
	sessions := func() (got []string) {
		for _, p := range w.c.State().Participants {
			got = append(got, p.Nick+" "+p.Session)
		}
		return got
	}
	for _, c := range []struct {
		verb string
		args []string
		want []string
	}{
		{"join", []string{"aaaa"}, []string{"aaaa waiting"}},
		{"join", []string{"bbbb", "caps=none"}, []string{"aaaa allocating", "bbbb asking"}},
		{"bridge", []string{"jvb1"}, []string{"aaaa offered", "bbbb asking"}},
		{"accept", []string{"aaaa"}, []string{"aaaa active", "bbbb asking"}},
		{"terminate", []string{"aaaa"}, []string{"aaaa uninvited", "bbbb asking"}},
	} {
		w.do(c.verb, c.args)
		if diff := cmp.Diff(c.want, sessions()); diff != "" {
			t.Errorf("%s %v:\n%s", c.verb, c.args, diff)
		}
	}
	w.do("join", []string{"cccc"})
	if s := w.c.State(); len(s.Bridges) != 1 || s.Bridges[0].Endpoints != 1 || s.Participants[2].Bridge != s.Bridges[0].JID {
		t.Errorf("%+v", s)
	}
}

func golden(t *testing.T, file string) []string {
	if !strings.Contains(file, "/") {
		file = "testdata/" + file
	}
	return slices.DeleteFunc(canonical(readElement(t, file)), func(l string) bool { return strings.Contains(l, "traceparent") })
}

func readElement(t *testing.T, file string) *xmpp.Element {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e, err := xmpp.Parse(b, xmpp.Limits{})
	if err != nil {
		t.Fatal(file, err)
	}
	return e
}

// canonical writes an element a line per element, attributes and siblings sorted, without attributes
// that say no. The order of SSRCs in a group is kept.
func canonical(e *xmpp.Element) []string {
	var attrs []string
	for _, a := range e.Attrs {
		if a.Value != "false" || a.Name == "rtcstats-enabled" {
			attrs = append(attrs, fmt.Sprintf("%s=%q", a.Name, a.Value))
		}
	}
	slices.Sort(attrs)
	lines := []string{fmt.Sprintf("{%s}%s %s %q", e.Space, e.Name, strings.Join(attrs, " "), strings.TrimSpace(e.Text()))}
	var children []string
	for c := range e.Children {
		children = append(children, strings.Join(canonical(c), "\n"))
	}
	if e.Name != "ssrc-group" {
		slices.Sort(children)
	}
	for _, c := range children {
		for _, l := range strings.Split(c, "\n") {
			lines = append(lines, "  "+l)
		}
	}
	return lines
}

// BenchmarkFullRoom is the hundredth participant of a call: join, offer, accept, leave.
func BenchmarkFullRoom(b *testing.B) {
	for _, rewriting := range []bool{true, false} {
		b.Run(fmt.Sprintf("rewriting=%v", rewriting), func(b *testing.B) {
			w := newWorld(&testing.T{})
			caps := "caps=known"
			if !rewriting {
				caps = "caps=plain"
			}
			enter := func(nick string) {
				w.do("join", []string{nick, caps})
				w.do("bridge", []string{"jvb1", "all"})
				w.do("accept", []string{nick})
				w.do("bridge", []string{"jvb1", "all"})
			}
			for i := range 99 {
				enter(fmt.Sprintf("%08x", i))
			}
			for b.Loop() {
				enter("ffffffff")
				w.do("leave", []string{"ffffffff"})
			}
		})
	}
}
