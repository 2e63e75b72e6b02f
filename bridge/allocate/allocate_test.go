package allocate

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// simulcast is the camera of a current browser: three encodings with three temporal layers each.
// Layer k has Index k: encoding k/3, temporal layer k%3.
func simulcast(name string, bitrates ...int64) Source {
	s := Source{Name: name, Owner: name[:1], Enabled: true}
	for k := range 9 {
		total := bitrates[k/3]
		s.Layers = append(s.Layers, Layer{
			Height: 180 << (k / 3), FPS: 7.5 * float64(int(1)<<(k%3)), Index: k,
			Bitrate: total * int64(2+k%3) / 4, // 50, 75, 100 %
		})
	}
	return s
}

func camera(name string) Source { return simulcast(name, 200_000, 500_000, 1_500_000) }

// desktop is a screen share: one height, three frame rates.
func desktop(name string) Source {
	return Source{Name: name, Owner: name[:1], Desktop: true, Enabled: true, Layers: []Layer{
		{Height: 1080, FPS: 5, Bitrate: 800_000, Index: 0},
		{Height: 1080, FPS: 15, Bitrate: 1_200_000, Index: 1},
		{Height: 1080, FPS: 30, Bitrate: 1_600_000, Index: 2},
	}}
}

func off(s Source) Source { s.Enabled = false; return s }

func ptr[T any](v T) *T { return &v }

func height(h int) *Constraint { return &Constraint{MaxHeight: h} }

const inf = math.MaxInt64

var w Allocator

// show writes results as "name:layer", in order; layer "-" when there is none and "x" when none is wanted.
func show(rs []Result) (out []string) {
	for _, r := range rs {
		switch {
		case !r.Wanted:
			out = append(out, r.Name+":x")
		case r.Layer < 0:
			out = append(out, r.Name+":-")
		default:
			out = append(out, fmt.Sprintf("%s:%d", r.Name, r.Layer))
		}
	}
	return out
}

func TestAllocate(t *testing.T) {
	cams := []Source{camera("a"), camera("b"), camera("c")}
	first := Request{LastN: ptr(-1)}
	for _, tc := range []struct {
		name      string
		requests  []Request
		sources   []Source
		bandwidth int64
		want      []string
	}{
		// Settings and lastN.
		{"nothing before the first request", nil, cams, inf, []string{"a:x", "b:x", "c:x"}},
		{"first request wants all at 180", []Request{first}, cams, inf, []string{"a:2", "b:2", "c:2"}},
		{"first request without lastN", []Request{{}}, cams, inf, []string{"a:2", "b:2", "c:2"}},
		{"absent fields stay", []Request{{Default: height(720)}, {LastN: ptr(-1)}}, cams, inf, []string{"a:8", "b:8", "c:8"}},
		{"unlimited height", []Request{{Default: height(-1)}}, cams, inf, []string{"a:8", "b:8", "c:8"}},
		{"lastN takes the first speakers", []Request{{LastN: ptr(2)}}, cams, inf, []string{"a:2", "b:2", "c:x"}},
		{"lastN 0", []Request{{LastN: ptr(0)}}, cams, inf, []string{"a:x", "b:x", "c:x"}},
		{"lastN does not count what is not wanted", []Request{{LastN: ptr(1), Constraints: map[string]Constraint{"a": {}}}}, cams, inf,
			[]string{"a:x", "b:2", "c:x"}},
		{"lastN does not count disabled ones, which come last", []Request{{LastN: ptr(1)}}, []Source{off(camera("a")), camera("b"), camera("c")}, inf,
			[]string{"b:2", "c:x", "a:x"}},
		{"selected come first", []Request{{LastN: ptr(1), SelectedSources: ptr([]string{"c"})}}, cams, inf, []string{"c:2", "a:x", "b:x"}},
		{"on stage before selected", []Request{{SelectedSources: ptr([]string{"b"}), OnStageSources: ptr([]string{"c"})}}, cams, inf,
			[]string{"c:2", "b:2", "a:2"}},
		{"unknown names do not matter", []Request{{SelectedSources: ptr([]string{"zz", "b", "b"})}}, cams, inf, []string{"b:2", "a:2", "c:2"}},
		{"a constraint of its own", []Request{{Default: height(180), Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}}, cams, inf,
			[]string{"a:2", "b:8", "c:2"}},
		{"an empty map removes them", []Request{{Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}, {Constraints: map[string]Constraint{}}}, cams, inf,
			[]string{"a:2", "b:2", "c:2"}},

		// Candidate layers of a camera.
		{"360 leaves 720 out", []Request{{Default: height(360)}}, cams[:1], inf, []string{"a:5"}},
		{"below the lowest height gives the lowest", []Request{{Default: height(90)}}, cams[:1], inf, []string{"a:2"}},
		{"2160 is as good as none", []Request{{Default: height(2160)}}, cams[:1], inf, []string{"a:8"}},
		{"frame rate", []Request{{Default: &Constraint{MaxHeight: 180, MaxFrameRate: 15}}}, cams[:1], inf, []string{"a:1"}},
		{"frame rate below the lowest layer", []Request{{Default: &Constraint{MaxHeight: 180, MaxFrameRate: 2}}}, cams[:1], inf, []string{"a:0"}},
		{"inactive encodings are skipped", []Request{{Default: height(720)}}, []Source{simulcast("a", 200_000, 500_000, 0)}, inf, []string{"a:5"}},
		{"unless all are", []Request{{Default: height(720)}}, []Source{simulcast("a", 0, 0, 0)}, inf, []string{"a:8"}},
		{"a source without layers", []Request{first}, []Source{{Name: "a", Enabled: true}}, inf, []string{"a:-"}},
		{"above 180 only full frame rate from 360 up", []Request{{Default: height(720)}}, cams[:1], 1_400_000, []string{"a:5"}},

		// Candidate layers of a screen.
		{"a screen below its limit", []Request{{Default: height(2160)}}, []Source{desktop("d")}, inf, []string{"d:2"}},
		{"a screen above its limit is sent all the same", []Request{{Default: height(180)}}, []Source{desktop("d")}, inf, []string{"d:2"}},

		// Rounds.
		{"everybody gets one before anybody gets two", []Request{first}, cams, 320_000, []string{"a:0", "b:0", "c:0"}},
		{"the first one first", []Request{first}, cams, 380_000, []string{"a:1", "b:0", "c:0"}},
		{"too little for all", []Request{first}, cams, 150_000, []string{"a:0", "b:-", "c:-"}},
		{"nothing at all", []Request{first}, cams, 0, []string{"a:-", "b:-", "c:-"}},
		{"on stage jumps to preferred once all are seen", []Request{{OnStageSources: ptr([]string{"b"}), Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}}, cams, 720_000,
			[]string{"b:5", "a:0", "c:0"}},
		{"on stage below preferred is improved first", []Request{{OnStageSources: ptr([]string{"b"}), Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}}, cams, 449_000,
			[]string{"b:2", "a:0", "c:0"}},
		{"on stage stays longest", []Request{{OnStageSources: ptr([]string{"b"}), Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}}, cams, 199_000,
			[]string{"b:1", "a:-", "c:-"}},
		{"and exceeds by a little", []Request{{OnStageSources: ptr([]string{"b"})}}, cams, 80_000, []string{"b:0", "a:-", "c:-"}},
		{"but not by much", []Request{{OnStageSources: ptr([]string{"b"})}}, cams, 79_000, []string{"b:-", "a:-", "c:-"}},
		{"beyond preferred it takes turns", []Request{{OnStageSources: ptr([]string{"b"}), Constraints: map[string]Constraint{"b": {MaxHeight: 720}}}}, cams, 1_950_000,
			[]string{"b:8", "a:2", "c:2"}},
		{"a higher layer that costs no more", []Request{{Default: height(720)}}, []Source{simulcast("a", 200_000, 200_000, 200_000)}, inf, []string{"a:8"}},
		{"jump within a small budget", []Request{{Default: height(720)}}, []Source{simulcast("a", 300_000, 100_000, 0)}, 160_000, []string{"a:5"}},

		// Oversending.
		{"a screen on stage may exceed", []Request{{OnStageSources: ptr([]string{"d"}), Default: height(2160)}}, []Source{camera("a"), desktop("d")}, 400_000,
			[]string{"d:0", "a:-"}},
		{"by so much only", []Request{{OnStageSources: ptr([]string{"d"}), Default: height(2160)}}, []Source{desktop("d")}, 300_000, []string{"d:-"}},
		{"not off stage", []Request{{Default: height(2160)}}, []Source{desktop("d")}, 400_000, []string{"d:-"}},
		{"not a camera", []Request{{OnStageSources: ptr([]string{"a"}), Default: height(2160)}}, []Source{simulcast("a", 1_000_000, 1_500_000, 0)}, 390_000, []string{"a:-"}},
		{"not the second on stage", []Request{{OnStageSources: ptr([]string{"a", "d"}), Default: height(2160)}}, []Source{simulcast("a", 100_000, 200_000, 0), desktop("d")}, 400_000,
			[]string{"a:5", "d:-"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s Settings
			for _, r := range tc.requests {
				s.Apply(r)
			}
			if got := show(w.Allocate(nil, &s, tc.sources, tc.bandwidth)); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestHeights is the table of the ladder: each limit against each set of active encodings.
func TestHeights(t *testing.T) {
	for _, limit := range []int{-1, 90, 180, 240, 360, 540, 720, 1080, 2160} {
		for active := 1; active <= 3; active++ {
			rates := []int64{0, 0, 0}
			want := 180
			for i := range active {
				rates[i] = int64(i+1) * 100_000
				// Below the preferred 360 the limit itself does not exclude a layer under 360.
				if h := 180 << i; limit < 0 || h <= limit {
					want = max(want, h)
				}
			}
			src := simulcast("a", rates...)
			var s Settings
			s.Apply(Request{Default: height(limit)})
			r := w.Allocate(nil, &s, []Source{src}, inf)[0]
			if got := src.Layers[r.Layer].Height; got != want {
				t.Errorf("limit %d, %d encodings: height %d, want %d", limit, active, got, want)
			}
			if r.Effective.MaxHeight != limit {
				t.Errorf("effective %v for limit %d", r.Effective, limit)
			}
		}
	}
}

func TestInitialLastN(t *testing.T) {
	var s Settings
	s.SetLastN(1)
	sources := []Source{camera("a"), camera("b")}
	if got := show(w.Allocate(nil, &s, sources, inf)); !slices.Equal(got, []string{"a:x", "b:x"}) {
		t.Errorf("before the first request: %v", got)
	}
	if s.Started() {
		t.Error("lastN alone counts as a request")
	}
	s.Apply(Request{})
	if got := show(w.Allocate(nil, &s, sources, inf)); !slices.Equal(got, []string{"a:2", "b:x"}) {
		t.Errorf("after it: %v", got)
	}
}

func TestMaxForwarded(t *testing.T) {
	var sources []Source
	for i := range MaxForwarded + 10 {
		sources = append(sources, camera(fmt.Sprint(i)))
	}
	var s Settings
	s.Apply(Request{LastN: ptr(-1)})
	wanted := 0
	for _, r := range w.Allocate(nil, &s, sources, inf) {
		if r.Wanted {
			wanted++
		}
	}
	if wanted != MaxForwarded {
		t.Errorf("%d wanted", wanted)
	}
}

// TestProperties holds for any sources, wishes and budget.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sources []Source
		layers := map[string]Source{}
		for i := range rapid.IntRange(0, 12).Draw(t, "sources") {
			name := fmt.Sprint(i)
			rate := rapid.Int64Range(0, 2_000_000)
			s := simulcast(name, rate.Draw(t, "low"), rate.Draw(t, "mid"), rate.Draw(t, "high"))
			s.Desktop, s.Enabled = rapid.Bool().Draw(t, "desktop"), rapid.Bool().Draw(t, "enabled")
			sources = append(sources, s)
			layers[name] = s
		}
		names := rapid.SliceOfN(rapid.Map(rapid.IntRange(0, 14), func(i int) string { return fmt.Sprint(i) }), 0, 3)
		var s Settings
		lastN := rapid.IntRange(-1, 14).Draw(t, "lastN")
		s.Apply(Request{
			LastN: &lastN, Default: height(rapid.IntRange(-1, 1080).Draw(t, "height")),
			SelectedSources: ptr(names.Draw(t, "selected")), OnStageSources: ptr(names.Draw(t, "stage")),
		})
		budget := rapid.Int64Range(0, 10_000_000).Draw(t, "budget")
		got := w.Allocate(nil, &s, sources, budget)
		if len(got) != len(sources) {
			t.Fatalf("%d results for %d sources", len(got), len(sources))
		}
		seen := map[string]bool{}
		var cost int64
		wanted := 0
		for _, r := range got {
			if seen[r.Name] {
				t.Fatalf("%s twice", r.Name)
			}
			seen[r.Name] = true
			if r.Wanted {
				wanted++
			}
			if r.Layer >= 0 {
				if !r.Wanted || !layers[r.Name].Enabled {
					t.Fatalf("%s is sent and not wanted", r.Name)
				}
				cost += layers[r.Name].Layers[r.Layer].Bitrate
			}
		}
		if lastN >= 0 && wanted > lastN {
			t.Fatalf("%d wanted with lastN %d", wanted, lastN)
		}
		if cost > budget+oversend {
			t.Fatalf("%d bit/s of %d", cost, budget)
		}
	})
}

func TestAllocateDoesNotAllocate(t *testing.T) {
	var sources []Source
	for i := range 100 {
		sources = append(sources, camera(fmt.Sprint(i)))
	}
	var s Settings
	s.Apply(Request{LastN: ptr(20), OnStageSources: ptr([]string{"50"}), Default: height(720)})
	dst := w.Allocate(nil, &s, sources, 5_000_000)
	if n := testing.AllocsPerRun(100, func() { dst = w.Allocate(dst[:0], &s, sources, 5_000_000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAllocate100(b *testing.B) {
	var sources []Source
	for i := range 100 {
		sources = append(sources, camera(fmt.Sprint(i)))
	}
	var s Settings
	s.Apply(Request{LastN: ptr(20), OnStageSources: ptr([]string{"50"}), Default: height(720)})
	var dst []Result
	for b.Loop() {
		dst = w.Allocate(dst[:0], &s, sources, 5_000_000)
	}
}
