package project

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/bridge/codec"
)

// A layered sender makes one encoding of spatial layers with three temporal ones each, pattern 0 2 1 2. With keyed
// the spatial layers depend on each other in key pictures only (L3T3_KEY), else always (L3T3).
type layered struct {
	numbering codec.Numbering
	spatial   int
	keyed     bool
	seq       int64
	ts        uint32
	picture   uint16
	frame     uint16
	tl0       uint8
	n         int
	last      [codec.MaxSpatial][3]int // by layer: the newest frame
	frames    []made
}

// A made frame, with those that its decoding needs.
type made struct {
	sid, tid int
	needs    []int
	top      bool // nothing higher in its picture
}

// next makes one picture; each packet comes with the index of its frame.
func (x *layered) next(packets int, key bool, now time.Time) (out []Packet, of []int) {
	if key {
		x.n = 0
	}
	tid := [4]int{0, 2, 1, 2}[x.n%4]
	if tid == 0 {
		x.tl0++
	}
	for sid := range x.spatial {
		m := made{sid: sid, tid: tid, top: sid == x.spatial-1}
		inter := sid > 0 && (key || !x.keyed) // depends on the layer below
		if inter {
			m.needs = append(m.needs, len(x.frames)-1)
		}
		if !key {
			newest := -1 // of this layer and not above this one in time
			for t := 0; t <= tid; t++ {
				if t < tid || tid == 0 {
					newest = max(newest, x.last[sid][t])
				}
			}
			m.needs = append(m.needs, newest)
		} else {
			x.last[sid] = [3]int{-1, -1, -1}
		}
		x.last[sid][tid] = len(x.frames)
		x.frames = append(x.frames, m)

		var present, canGo codec.Layers
		for s := range codec.MaxSpatial {
			if s == sid || s > sid && (key || !x.keyed) {
				present |= codec.Layers(0xff<<tid&0xff) << (8 * s)
			}
		}
		canGo = codec.Layers(0xff<<tid&0xff) << (8 * sid)
		if key && x.numbering == codec.ByDescriptor {
			canGo = 1<<32 - 1
		}
		for i := range packets {
			p := Packet{RTP: makePacket(x.seq, x.ts), Seq: x.seq, Arrival: now}
			f := &p.Frame
			f.Numbering, f.Present, f.Switch = x.numbering, present, canGo
			f.Start, f.End = i == 0, i == packets-1
			f.Key = key && f.Start && sid == 0
			if f.Key {
				f.Spatial = uint8(x.spatial)
			}
			if x.numbering == codec.ByLayers {
				f.Codec = codec.VP9
				f.Picture = codec.Picture{ID: x.picture & 0x7fff, Wide: true, TL0: x.tl0, TID: uint8(tid), SID: uint8(sid), IDAt: 1, TL0At: 4}
			} else {
				f.Codec = codec.AV1
				f.Descriptor = codec.Descriptor{Start: f.Start, End: f.End, Frame: x.frame, TID: uint8(tid), SID: uint8(sid), HasStructure: f.Key, Templates: 9}
			}
			out, of = append(out, p), append(of, len(x.frames)-1)
			x.seq++
		}
		x.frame++
	}
	x.ts += 3000
	x.picture++
	x.n++
	return out, of
}

// Whatever layers are asked for, and whenever: what goes out can be decoded, is numbered without a break, ends
// each picture with a marker, and is in the end what was asked for.
func TestLayers(t *testing.T) {
	for _, numbering := range []codec.Numbering{codec.ByLayers, codec.ByDescriptor} {
		for _, keyed := range []bool{true, false} {
			t.Run(fmt.Sprint(numbering, keyed), func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { testLayers(t, numbering, keyed) }) })
		}
	}
}

func testLayers(t *rapid.T, numbering codec.Numbering, keyed bool) {
	x := &layered{numbering: numbering, keyed: keyed, spatial: 3, seq: 1<<16 + 65000, ts: 0xfffff000, picture: 0x7ff0, frame: 65500}
	s := Stream{Clock: 90000}
	now := start
	got := map[int]int{} // packets of each frame that went out
	var last Output
	var lastIn Packet
	sent, target := 0, -1
	s.SetTarget(-1, 0)
	for range rapid.IntRange(1, 120).Draw(t, "pictures") {
		now = now.Add(33 * time.Millisecond)
		if rapid.IntRange(0, 9).Draw(t, "change") == 0 {
			target = rapid.IntRange(-1, 2).Draw(t, "sid")
			if target < 0 {
				s.SetTarget(-1, 0)
			} else {
				s.SetTarget(0, target<<3|rapid.SampledFrom([]int{0, 1, 2, AllLayers}).Draw(t, "tid"))
			}
		}
		key := rapid.IntRange(0, 11).Draw(t, "key") == 0
		if key {
			x.spatial = rapid.IntRange(1, 3).Draw(t, "spatial")
		}
		packets, of := x.next(rapid.IntRange(1, 3).Draw(t, "packets"), key, now)
		marked := 0
		out := Output{}
		any := false
		for i, p := range packets {
			var o Output
			if !s.Accept(&p, &o) {
				continue
			}
			out, any = o, true
			if marked > 0 {
				t.Fatal("a packet behind the marker")
			}
			if Ends(&p.Frame, o.Offsets) || i == len(packets)-1 {
				marked++
			}
			if sent > 0 && o.Seq != last.Seq+1 {
				t.Fatalf("seq %d after %d", o.Seq, last.Seq)
			}
			if sent > 0 && !o.Switched && o.Offsets.Timestamp == last.Offsets.Timestamp {
				if numbering == codec.ByLayers && o.Offsets.Picture != last.Offsets.Picture || numbering == codec.ByDescriptor && o.Offsets.Frame != last.Offsets.Frame {
					t.Fatal("differences between the numbers of frames changed")
				}
			}
			m := x.frames[of[i]]
			if p.Frame.Start {
				for _, n := range m.needs {
					if got[n] == 0 {
						t.Fatalf("frame %d of layer %d/%d went out without %d, of %d/%d", of[i], m.sid, m.tid, n, x.frames[n].sid, x.frames[n].tid)
					}
				}
			}
			got[of[i]]++
			last, lastIn = o, p
			sent++
		}
		if any && marked != 1 {
			t.Fatalf("%d markers, layer %d of %d", marked, out.Offsets.Layer>>3, x.spatial)
		}
		for i, f := range of { // whole frames
			if packets[i].Frame.End && got[f] != 0 && got[f] != slices.Index(of[slices.Index(of, f):], f)+count(of, f) {
				t.Fatalf("%d packets of a frame of %d", got[f], count(of, f))
			}
		}
		if target >= 0 && key && any {
			if want := min(target, x.spatial-1); int(out.Offsets.Layer>>3) != want {
				t.Fatalf("spatial layer %d after a key picture, want %d", out.Offsets.Layer>>3, want)
			}
		}
		if target < 0 && any {
			t.Fatal("something went out")
		}
		if target >= 0 && !any && s.Current() == 0 && packets[0].Frame.TID() == 0 {
			t.Fatal("a base picture left nothing")
		}
	}
	_ = lastIn
}

func count(of []int, f int) (n int) {
	for _, g := range of {
		if g == f {
			n++
		}
	}
	return n
}

// A lower layer that is part of what goes out is gone over to at once; any other one needs a key frame.
func TestLayerDown(t *testing.T) {
	for _, keyed := range []bool{true, false} {
		for _, numbering := range []codec.Numbering{codec.ByLayers, codec.ByDescriptor} {
			x := &layered{numbering: numbering, keyed: keyed, spatial: 3, seq: 1 << 16}
			s := Stream{Clock: 90000}
			s.SetTarget(0, 2<<3|AllLayers)
			pass := func(pictures int, key bool) (layer uint8) {
				for range pictures {
					packets, _ := x.next(2, key, start)
					for _, p := range packets {
						if out, ok := s.accept(t, p); ok {
							layer = out.Offsets.Layer >> 3
						}
					}
				}
				return layer
			}
			pass(1, true)
			if got := pass(8, false); got != 2 || s.Waiting() {
				t.Fatalf("spatial layer %d, waiting %v", got, s.Waiting())
			}
			s.SetTarget(0, AllLayers)
			if s.Waiting() != keyed {
				t.Errorf("keyed %v: waiting %v", keyed, s.Waiting())
			}
			if got := pass(5, false); (got == 0) == keyed {
				t.Errorf("keyed %v: spatial layer %d", keyed, got)
			}
			pass(1, true)
			s.SetTarget(0, 1<<3|AllLayers)
			if got := pass(5, false); got != 0 || !s.Waiting() {
				t.Errorf("went up to %d without a key frame, waiting %v", got, s.Waiting())
			}
			if got := pass(1, true); got != 1 || s.Waiting() {
				t.Errorf("spatial layer %d after a key frame, waiting %v", got, s.Waiting())
			}
		}
	}
}
