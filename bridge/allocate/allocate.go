// Package allocate divides a receiver's bandwidth among the video sources of its conference: constraints,
// budget and sources in, a layer for each source out. It has no clock and no state beyond a receiver's
// Settings; the rules are those of the Java bridge, so that Jitsi's
// clients see the picture sizes that they asked for in the order they expect.
package allocate

import (
	"math"
	"slices"
)

const (
	// A camera that may be larger than a thumbnail is worth showing from 360p at 30 frames on.
	preferredHeight = 360
	preferredFPS    = 30
	thumbnail       = 180

	// A shared screen on stage may exceed the budget by this much: a slow picture of it beats none.
	oversend = 500_000 // bits per second
)

// A Source is one video source that the receiver could get. Layers are in rising quality.
type Source struct {
	Name    string
	Owner   string
	Desktop bool // camera otherwise
	Enabled bool // false: its owner says that it sends nothing
	Current int  // 1 + Index of the layer that the receiver gets now; 0 nothing
	Layers  []Layer
}

// A Layer is one encoding with the temporal and spatial layers below it.
type Layer struct {
	Height  int     // pixels
	FPS     float64 // 0 or less: unknown, which is good enough
	Bitrate int64   // bits per second now; 0: inactive
	Index   int     // the caller's name for it
}

// A Result is what a receiver gets of one source.
type Result struct {
	Name      string
	Layer     int        // Index of the chosen layer; -1: nothing
	Effective Constraint // what its sender is asked for on behalf of this receiver
	Wanted    bool       // Effective allows something, whether or not the budget does
	Bitrate   int64      // of the chosen layer
	Ideal     int64      // of the best one that Effective allows
}

// An Allocator is working memory, kept from call to call and shared by all receivers of one goroutine. The zero value is
// ready to use.
type Allocator struct {
	order  []int // into sources
	states []state
	layers []candidate // of all sources, one after the other
}

// A candidate is a layer that may be chosen, for what it is counted as: what the receiver has is a little cheaper, what
// would be more a little dearer, so that the choice does not go back and forth with every change of a bitrate.
type candidate struct {
	Layer
	cost int64
}

// Shares of a bitrate, in percent, that a layer costs.
const (
	keep  = 95
	climb = 110
)

// state is one source while layers are chosen.
type state struct {
	source     int
	effective  Constraint
	first, end int // candidates in Allocator.layers
	preferred  int // among the candidates; -1: none
	oversend   int // the candidate that may exceed the budget; -1: none
	target     int // chosen candidate; -1: none
	onStage    bool
}

// Allocate appends one result for each source to dst, in order of importance: on stage, selected, then in
// the given order, which is that of speech; disabled sources last. Bandwidth is in bits per second,
// math.MaxInt64 for no limit. It allocates nothing once w and dst have grown.
func (w *Allocator) Allocate(dst []Result, s *Settings, sources []Source, bandwidth int64) []Result {
	w.order = prioritize(w.order[:0], s, sources)
	w.states, w.layers = w.states[:0], w.layers[:0]
	wanted, limit := 0, s.limit()
	for _, i := range w.order {
		src := &sources[i]
		st := state{source: i, preferred: -1, oversend: -1, target: -1}
		if c := s.of(src.Name); src.Enabled && c.MaxHeight != 0 && wanted < limit {
			wanted++
			st.effective = c
			st.onStage = slices.Contains(s.onStage, src.Name)
			w.candidates(&st, src)
		}
		w.states = append(w.states, st)
	}

	// Infinite bandwidth must survive the additions below.
	remaining := min(bandwidth, math.MaxInt64/2)
	for i := range w.states { // all are seen before one is seen better
		remaining -= w.show(&w.states[i], remaining, i == 0)
	}
	for changed := true; changed; {
		changed = false
		for i := range w.states {
			st := &w.states[i]
			before := st.target
			remaining -= w.improve(st, remaining, i == 0)
			changed = changed || st.target != before
			if st.onStage && st.target < st.preferred {
				break // nobody after it is improved until it has its preferred size
			}
		}
	}

	for i := range w.states {
		st := &w.states[i]
		r := Result{Name: sources[st.source].Name, Layer: -1, Effective: st.effective, Wanted: st.effective.MaxHeight != 0}
		if st.target >= 0 {
			r.Layer, r.Bitrate = w.layers[st.first+st.target].Index, w.layers[st.first+st.target].Bitrate
		}
		for _, l := range w.layers[st.first:st.end] {
			r.Ideal = max(r.Ideal, l.Bitrate)
		}
		dst = append(dst, r)
	}
	return dst
}

// prioritize appends the order of importance to dst.
func prioritize(dst []int, s *Settings, sources []Source) []int {
	add := func(i int) {
		if !slices.Contains(dst, i) {
			dst = append(dst, i)
		}
	}
	for _, names := range [2][]string{s.onStage, s.selected} {
		for _, name := range names {
			if i := slices.IndexFunc(sources, func(src Source) bool { return src.Name == name }); i >= 0 && sources[i].Enabled {
				add(i)
			}
		}
	}
	front := len(dst)
	for _, enabled := range [2]bool{true, false} {
		for i := range sources {
			if sources[i].Enabled == enabled && !slices.Contains(dst[:front], i) {
				dst = append(dst, i)
			}
		}
	}
	return dst
}

// candidates collects the layers of src that may be chosen, in rising quality.
func (w *Allocator) candidates(st *state, src *Source) {
	st.first = len(w.layers)
	// A source that was just signalled has no active layer: take all, so that it starts with its first packet.
	inactive := !slices.ContainsFunc(src.Layers, func(l Layer) bool { return l.Bitrate > 0 })
	usable := func(l Layer) bool {
		return (inactive || l.Bitrate > 0) && l.FPS <= st.effective.rate()
	}
	if src.Desktop {
		w.desktop(st, src, usable)
	} else {
		w.camera(st, src, usable)
	}
	st.end = len(w.layers)
	if st.first == st.end && len(src.Layers) > 0 && st.effective.MaxFrameRate > 0 {
		// The limit on the frame rate leaves nothing: the lowest layer is the closest to it.
		i := slices.IndexFunc(src.Layers, func(l Layer) bool { return inactive || l.Bitrate > 0 })
		w.layers = append(w.layers, candidate{src.Layers[i], src.Layers[i].Bitrate})
		st.end, st.preferred = len(w.layers), 0
	}
	if src.Current == 0 {
		return
	}
	for i := range w.layers[st.first:st.end] {
		l := &w.layers[st.first+i]
		if l.Index < src.Current {
			l.cost = l.Bitrate * keep / 100
		} else {
			l.cost = l.Bitrate * climb / 100
		}
	}
}

func (w *Allocator) camera(st *state, src *Source, usable func(Layer) bool) {
	lowest, fastest := math.MaxInt, 0.0
	for _, l := range src.Layers {
		lowest, fastest = min(lowest, l.Height), max(fastest, l.FPS)
	}
	height, fps := 0, 0.0
	if st.effective.height() > thumbnail {
		height, fps = preferredHeight, min(preferredFPS, fastest)
	}
	for _, l := range src.Layers {
		fits := l.Height <= st.effective.height() && (l.FPS <= 0 || l.FPS >= fps)
		if usable(l) && (l.Height < height || fits || l.Height == lowest) {
			w.layers = append(w.layers, candidate{l, l.Bitrate})
			if l.Height <= max(height, lowest) {
				st.preferred = len(w.layers) - 1 - st.first
			}
		}
	}
}

func (w *Allocator) desktop(st *state, src *Source, usable func(Layer) bool) {
	lowest := math.MaxInt
	for _, l := range src.Layers {
		if usable(l) {
			lowest = min(lowest, l.Height)
		}
	}
	bound := max(lowest, st.effective.height())
	for _, l := range src.Layers {
		if usable(l) && l.Height <= bound {
			w.layers = append(w.layers, candidate{l, l.Bitrate})
		}
	}
	if !st.onStage {
		return
	}
	// Of the tallest layers the cheapest may be sent over the budget.
	for i, l := range w.layers[st.first:] {
		if st.oversend < 0 {
			st.oversend = i
			continue
		}
		o := w.layers[st.first+st.oversend]
		if l.Height > o.Height || l.Height == o.Height && l.Bitrate < o.Bitrate {
			st.oversend = i
		}
	}
}

// show gives st its lowest layer, and returns what that costs. The first source on stage may exceed the budget a little.
func (w *Allocator) show(st *state, remaining int64, first bool) int64 {
	layers := w.layers[st.first:st.end]
	if len(layers) == 0 {
		return 0
	}
	if cost := layers[0].cost; cost <= remaining || first && st.onStage && cost <= remaining+remaining/4 {
		st.target = 0
		return cost
	}
	if first && st.oversend >= 0 && layers[st.oversend].cost < remaining+oversend {
		st.target = st.oversend
		return layers[st.target].cost
	}
	return 0
}

// improve moves st up as far as one round allows, and returns what that costs in bits per second.
func (w *Allocator) improve(st *state, remaining int64, first bool) int64 {
	layers := w.layers[st.first:st.end]
	if len(layers) == 0 {
		return 0
	}
	own := int64(0)
	if st.target >= 0 {
		own = layers[st.target].cost
	}
	if st.onStage && st.target < st.preferred {
		for i := st.target + 1; i <= st.preferred && layers[i].cost <= remaining+own; i++ {
			st.target = i
		}
	} else if next := st.target + 1; next < len(layers) && layers[next].cost < remaining+own {
		st.target = next
	}
	if st.target >= 0 {
		// A higher layer that costs no more is better at once.
		for i := len(layers) - 1; i > st.target; i-- {
			if layers[i].cost <= layers[st.target].cost {
				st.target = i
			}
		}
	}
	if first && st.oversend > st.target && layers[st.oversend].cost < remaining+own+oversend {
		st.target = st.oversend
	}
	if st.target < 0 {
		return 0
	}
	return layers[st.target].cost - own
}
