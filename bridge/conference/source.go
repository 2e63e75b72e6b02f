package conference

import (
	"slices"
	"strings"
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/codec"
	"plenum/bridge/project"
	"plenum/bridge/receive"
	"plenum/bridge/speaker"
)

const (
	idleAfter = 2 * time.Second // an encoding without packets is no longer there
	// A static screen may send very little.
	idleDesktop = 10 * time.Second
	// An encoding that has stopped while another of its source goes on is noticed sooner.
	idleBeside    = 600 * time.Millisecond
	goneAfter     = 3 // pictures without its highest spatial layer, and an encoding has it no more
	silentPackets = 4 // consecutive silent audio packets that pass
	silence       = 127
	untold        = -2 // no height was told
)

// A source is one thing that an endpoint sends, with everybody who gets it.
type source struct {
	c             *Conference
	name          string
	kind          Kind
	owner         *Endpoint
	signalledType string
	desktop       bool
	enabled       bool
	label         string // in maps: "CAMERA", "DESKTOP"
	encodings     []*encoding
	takers        []*output
	batch         []project.Packet // since the last Flush
	layers        []allocate.Layer // as of the last allocation

	keys  receive.KeyRequests
	round uint64 // of the last allocation that wanted it
	woken bool   // an encoding has begun since the last allocation

	heights map[int]int // how many receivers want which height
	told    int         // what the sender was told last

	// audio
	stale   bool  // receivers may be missing among the takers
	silent  int   // consecutive silent packets
	cut     int64 // sequence numbers taken out so far
	cutAt   int64 // the last of them, unwrapped as received
	last    int64 // the last that was forwarded, likewise
	holding int   // takers that wait
	held    receive.History
	newest  int64     // sequence number of the newest packet, after cutting
	spoke   time.Time // last packet that was not silent
	score   speaker.Score
	red     redundancy
}

// An encoding is one SSRC of a source.
type encoding struct {
	Encoding
	stream  receive.Stream
	reader  codec.Reader
	history receive.History
	rates   [codec.MaxSpatial][codec.MaxTID + 1]receive.Rate // by spatial and temporal layer
	heights [codec.MaxSpatial]int
	spatial int // spatial layers that come, at least 1
	lower   int // pictures in a row that ended below the highest of them
	top     int // highest temporal layer seen
	active  bool
	came    time.Time // last media packet
	nacked  bool      // on the list of this batch
	// described says that its packets carry a dependency descriptor.
	described bool
}

// is reports whether s is the same source, with the same encodings.
func (src *source) is(s Source) bool {
	return src.name == s.Name && src.kind == s.Kind && slices.EqualFunc(src.encodings, s.Encodings,
		func(a *encoding, b Encoding) bool { return a.Encoding == b })
}

func (src *source) setVideoType(t string) {
	if src.kind != Video {
		return
	}
	switch strings.ToLower(t) {
	case "none", "disabled":
		src.enabled = false
		if src.label == "" {
			src.label = "CAMERA"
		}
	case "desktop", "desktop_high_fps":
		src.enabled, src.desktop, src.label = true, true, strings.ToUpper(t)
	default:
		src.enabled, src.desktop, src.label = true, false, "CAMERA"
	}
}

// want notes that receiver e wants the source with that height, 0 not at all.
func (src *source) want(e *Endpoint, height int) {
	old := e.wants[src]
	if old == height {
		return
	}
	if old != 0 {
		if src.heights[old]--; src.heights[old] == 0 {
			delete(src.heights, old)
		}
		delete(e.wants, src)
	}
	if height != 0 {
		src.heights[height]++
		e.wants[src] = height
	}
}

// maxHeight is what the source's sender needs to send: 0 nothing, -1 everything.
func (src *source) maxHeight() (h int) {
	for n := range src.heights {
		if n < 0 {
			return -1
		}
		h = max(h, n)
	}
	return h
}

// liveness updates which encodings are there, and reports whether that has changed.
func (src *source) liveness(now time.Time) (changed bool) {
	var newest time.Time
	for _, enc := range src.encodings {
		if enc.came.After(newest) {
			newest = enc.came
		}
	}
	limit := idleAfter
	if src.desktop {
		limit = idleDesktop
	}
	for _, enc := range src.encodings {
		idle := now.Sub(enc.came)
		if enc.active && (idle > limit || idle > idleBeside && now.Sub(newest) < idleBeside/4) {
			enc.active, changed = false, true
			enc.history = receive.History{} // too old to be asked for
		}
	}
	return changed
}

// learn notes what a packet says of the layers of its encoding, and reports whether that is new.
func (enc *encoding) learn(f *codec.Frame, marker bool) bool {
	sid, tid := f.SID(), f.TID()
	spatial, heights := enc.spatial, enc.heights
	switch {
	case f.Spatial != 0:
		spatial = int(f.Spatial)
		for i, h := range f.Heights {
			if h != 0 {
				heights[i] = int(h)
			}
		}
		enc.lower = 0
	case sid >= spatial:
		spatial, enc.lower = sid+1, 0
	case marker && sid < spatial-1:
		if enc.lower++; enc.lower == goneAfter {
			spatial, enc.lower = sid+1, 0
		}
	case marker:
		enc.lower = 0
	}
	if spatial == enc.spatial && heights == enc.heights && tid <= enc.top {
		return false
	}
	enc.spatial, enc.heights, enc.top = spatial, heights, max(tid, enc.top)
	return true
}

// bps is what the encoding takes.
func (enc *encoding) bps(now time.Time) (bps int64) {
	for sid := range enc.rates {
		for tid := range enc.rates[sid] {
			bps += enc.rates[sid][tid].BPS(now)
		}
	}
	return bps
}

// choices lists the layers that are there, in rising quality. Index is the encoding, the spatial and the temporal
// layer, as encoding<<6|sid<<3|tid.
func (src *source) choices(now time.Time) []allocate.Layer {
	src.layers = src.layers[:0]
	for i, enc := range src.encodings {
		if !enc.active {
			continue
		}
		var below [codec.MaxTID + 1]int64 // what the lower spatial layers take, by temporal layer
		for sid := range enc.spatial {
			var bps int64
			for tid := 0; tid <= enc.top; tid++ {
				bps += enc.rates[sid][tid].BPS(now)
				below[tid] += bps
				src.layers = append(src.layers, allocate.Layer{
					Height: enc.heights[sid], FPS: 30 / float64(int(1)<<(enc.top-tid)), Bitrate: max(below[tid], 1), Index: i<<6 | sid<<3 | tid,
				})
			}
		}
	}
	return src.layers
}
