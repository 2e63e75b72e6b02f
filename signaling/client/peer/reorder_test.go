package peer

import (
	"slices"
	"testing"
	"time"
)

// video plays packets into a reorder: one packet a frame, every 100 ms.
type video struct {
	*reorder
	rec Received
	now time.Time
}

func (v *video) frame(seq uint16, key bool) {
	v.now = v.now.Add(100 * time.Millisecond)
	v.add(&v.rec, seq, part{ts: uint32(seq) * 9000, start: true, marker: true, key: key}, v.now)
}

func TestReorder(t *testing.T) {
	for _, tt := range []struct {
		name                           string
		play                           func(v *video)
		frames, broken, lost, repaired uint64
		late                           uint64
		asks                           []uint16
		pli                            bool
	}{
		{"in order", func(v *video) {
			v.frame(65534, true)
			v.frame(65535, false)
			v.frame(0, false)
		}, 3, 0, 0, 0, 0, nil, false},
		{"no key frame", func(v *video) {
			v.frame(1, false)
			v.frame(2, false)
		}, 0, 2, 0, 0, 0, nil, true},
		{"swapped", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			v.frame(2, false)
		}, 3, 0, 0, 0, 0, nil, false},
		{"twice", func(v *video) {
			v.frame(1, true)
			v.frame(1, true)
		}, 1, 0, 0, 0, 1, nil, false},
		{"missing", func(v *video) {
			v.frame(1, true)
			v.frame(4, false)
			v.now = v.now.Add(nackAfter)
		}, 1, 0, 0, 0, 0, []uint16{2, 3}, false},
		{"repaired", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			v.repair(&v.rec, 2, part{ts: 2, start: true, marker: true}, v.now)
		}, 3, 0, 0, 1, 0, nil, false},
		{"given up", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			for seq := range uint16(11) {
				v.frame(4+seq, false)
			}
		}, 1, 12, 1, 0, 0, nil, true},
		{"given up, then a key frame", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			for seq := range uint16(11) {
				v.frame(4+seq, seq == 10)
			}
		}, 2, 11, 1, 0, 0, nil, false},
		{"a key frame behind a hole", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			v.add(&v.rec, 5, part{ts: 5, start: true, key: true}, v.now)
			v.add(&v.rec, 7, part{ts: 5, marker: true}, v.now)
			v.now = v.now.Add(nackAfter)
		}, 1, 0, 0, 0, 0, []uint16{2, 4, 6}, false},
		{"a whole key frame behind a hole", func(v *video) {
			v.frame(1, true)
			v.frame(3, false)
			v.add(&v.rec, 5, part{ts: 5, start: true, key: true}, v.now)
			v.add(&v.rec, 7, part{ts: 5, marker: true}, v.now)
			v.repair(&v.rec, 6, part{ts: 5}, v.now)
			v.frame(9, false)
			v.repair(&v.rec, 2, part{ts: 2, start: true, marker: true}, v.now)
			v.now = v.now.Add(nackAfter)
		}, 2, 0, 2, 1, 1, []uint16{8}, false},
		{"jump", func(v *video) {
			v.frame(1, true)
			v.frame(2000, true)
		}, 2, 0, 1998, 0, 0, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := &video{reorder: newReorder(), now: time.Unix(1e9, 0)}
			tt.play(v)
			if r := v.rec; r.Frames != tt.frames || r.Broken != tt.broken || r.Lost != tt.lost || r.Recovered != tt.repaired || r.Late != tt.late {
				t.Errorf("frames %d broken %d lost %d repaired %d late %d; want %d %d %d %d %d",
					r.Frames, r.Broken, r.Lost, r.Recovered, r.Late, tt.frames, tt.broken, tt.lost, tt.repaired, tt.late)
			}
			if got := v.reorder.lost(v.now); !slices.Equal(got, tt.asks) {
				t.Errorf("asks for %d, want %d", got, tt.asks)
			}
			if got := v.pictureLost(v.now.Add(nackEvery)); got != tt.pli {
				t.Errorf("picture lost = %v", got)
			}
			if v.pictureLost(v.now.Add(nackEvery)) {
				t.Error("asks twice at once")
			}
		})
	}
}

// FuzzReorder checks that no order of packets breaks the invariants: nothing counted twice, memory bounded.
func FuzzReorder(f *testing.F) {
	f.Add([]byte{0, 1, 0, 2, 0, 4, 0, 3})
	f.Add([]byte{255, 254, 0, 1, 128, 0, 127, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		v := &video{reorder: newReorder(), now: time.Unix(1e9, 0)}
		for ; len(b) >= 2; b = b[2:] {
			v.frame(uint16(b[0])<<8|uint16(b[1]), b[1]&3 == 0)
			if len(v.missing) > 2*maxMissing {
				t.Fatalf("%d gaps kept", len(v.missing))
			}
			if v.next > v.highest+1 {
				t.Fatalf("next %d beyond highest %d", v.next, v.highest)
			}
		}
	})
}
