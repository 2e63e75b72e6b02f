package receive

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"pgregory.net/rapid"

	"plenum/bridge/packet"
)

var start = time.Unix(1_700_000_000, 0)

func TestMissing(t *testing.T) {
	s := Stream{SSRC: 1, Clock: 90000, Repair: true}
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	s.Arrive(65533, 0, false, at(0))
	s.Arrive(1, 0, false, at(0)) // 65534, 65535 and 0 are missing
	if got := s.Missing(nil, at(0)); !slices.Equal(got, []uint16{65534, 65535, 0}) {
		t.Fatalf("at once: %v", got)
	}
	if got := s.Missing(nil, at(149)); len(got) != 0 {
		t.Fatalf("too soon: %v", got)
	}
	if got := s.Missing(nil, at(150)); len(got) != 3 {
		t.Fatalf("after 150 ms: %v", got)
	}
	if _, ok := s.Arrive(65535, 0, true, at(160)); !ok {
		t.Fatal("the repaired packet was refused")
	}
	asked := []int{0, 150}
	for ms := 160; ms < 5000; ms += 10 {
		if got := s.Missing(nil, at(ms)); len(got) > 0 {
			if !slices.Equal(got, []uint16{65534, 0}) {
				t.Fatalf("again: %v", got)
			}
			asked = append(asked, ms)
		}
	}
	if len(asked) != 10 || asked[9] != 9*150 || s.Expecting() {
		t.Fatalf("asked at %v; still expecting: %v", asked, s.Expecting())
	}
	s.Arrive(3, 0, false, at(5000)) // 2 is missing, and comes after 30 ms
	s.Missing(nil, at(5000))
	s.Arrive(2, 0, true, at(5030))
	s.Arrive(5, 0, false, at(5040))
	asked = nil
	for ms := 5040; ms < 9000; ms += 10 {
		if len(s.Missing(nil, at(ms))) > 0 {
			asked = append(asked, ms-5040)
		}
	}
	if want := []int{0, 50, 100, 150, 250, 400, 550, 700, 850, 1000}; !slices.Equal(asked, want) {
		t.Fatalf("asked at %v where an answer takes 30 ms", asked)
	}
	s.Arrive(6, 0, false, at(9000))
	s.Arrive(4, 0, true, at(9000))
	s.Missing(nil, at(9000))
	s.Arrive(106, 0, false, at(10_000)) // a jump of 99
	if got := s.Missing(nil, at(10_000)); len(got) != 99 {
		t.Fatalf("gap of 99: %d", len(got))
	}
	s.Arrive(207, 0, false, at(10_000)) // a jump of 100
	if got := s.Missing(nil, at(11_000)); len(got) != 0 {
		t.Fatalf("a jump of 100 is a new beginning, not %v", got)
	}
}

func TestArriveAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Stream{Clock: 90000, Repair: true}
		model := map[int64]bool{}
		at := int64(rapid.Uint16().Draw(t, "first")) + 1<<16
		highest := at
		s.Arrive(uint16(at), 0, false, start)
		model[at] = true
		for _, step := range rapid.SliceOf(rapid.OneOf(rapid.IntRange(-20, 20), rapid.IntRange(-1500, 1500))).Draw(t, "steps") {
			at = highest + int64(step)
			ext, ok := s.Arrive(uint16(at), 0, false, start)
			want := !model[at] && at > highest-window
			if ext != at || ok != want {
				t.Fatalf("%d after %d: %d %v, want %v", at, highest, ext, ok, want)
			}
			model[at] = true
			highest = max(highest, at)
			for _, m := range s.missing {
				if model[m.seq] {
					t.Fatalf("%d came and is missing", m.seq)
				}
			}
			if len(s.missing) > maxMissing {
				t.Fatal("unbounded")
			}
		}
	})
}

func TestReport(t *testing.T) {
	s := Stream{SSRC: 7, Clock: 90000}
	now := start
	if _, ok := s.Report(now); ok {
		t.Fatal("a report of nothing")
	}
	for i := range 100 {
		if i%4 == 3 {
			continue // a quarter is lost
		}
		s.Arrive(uint16(65500+i), uint32(i)*900, false, now.Add(time.Duration(i)*10*time.Millisecond))
	}
	s.Arrive(65503, 2700, true, now) // by RTX: repairs, but was lost
	s.SenderReport(packet.SenderInfo{SSRC: 7, NTP: 0x0001_0002_0003_0004}, now)
	r, ok := s.Report(now.Add(time.Second))
	if !ok || r.SSRC != 7 || r.Highest != 65500+98 || r.Lost != 24 || r.FractionLost != 24*256/99 || r.Jitter != 0 || r.LastSR != 0x0002_0003 || r.DLSR != 65536 {
		t.Fatalf("%+v", r)
	}
	if _, ok := s.Report(now); ok {
		t.Fatal("nothing came since")
	}
}

func TestCapture(t *testing.T) {
	s := Stream{Clock: 90000}
	if s.Capture(1) != 0 {
		t.Fatal("known before a report")
	}
	s.SenderReport(packet.SenderInfo{NTP: 10<<32 | 1<<31, Timestamp: 1000}, start)
	for ts, want := range map[uint32]int64{1000: 10_500_000, 91000: 11_500_000, 1<<32 - 44000: 10_000_000} {
		if got := s.Capture(ts); got != want {
			t.Errorf("Capture(%d) = %d, want %d", ts, got, want)
		}
	}
}

func TestHistory(t *testing.T) {
	var h History
	put := func(seq int64, size int, now time.Time) {
		b := append(packet.Header{PT: 100, Seq: uint16(seq), SSRC: 1}.Append(nil), bytes.Repeat([]byte{byte(seq)}, size)...)
		r, err := packet.ParseRTP(b)
		if err != nil {
			t.Fatal(err)
		}
		h.Put(seq, &r, now)
	}
	check := func(seq int64) bool {
		r, ok := h.Get(seq)
		if ok && (r.Seq() != uint16(seq) || bytes.Count(r.Payload, []byte{byte(seq)}) != len(r.Payload)) {
			t.Fatalf("%d is not itself", seq)
		}
		return ok
	}
	if check(1<<16) || check(-5) {
		t.Fatal("something in an empty history")
	}
	now, seq := start, int64(1<<16+7)
	for i := range 20000 { // 1.5 Mbit/s
		put(seq, 900+i%200, now)
		for back := int64(0); back < 180; back += 13 { // a second
			if int64(i) >= back && !check(seq-back) {
				t.Fatalf("packet %d: the one %d before is gone", i, back)
			}
		}
		for back := int64(180); back < 600; back += 29 {
			check(seq - back)
		}
		seq++
		now = now.Add(5 * time.Millisecond)
	}
	if len(h.ring) > maxHistoryBytes {
		t.Fatalf("%d bytes", len(h.ring))
	}
	if check(seq - historyPackets - 1) {
		t.Fatal("older than the index")
	}
	b := append(packet.Header{}.Append(nil), make([]byte, 1000)...)
	r, _ := packet.ParseRTP(b)
	if n := testing.AllocsPerRun(1000, func() { seq++; h.Put(seq, &r, now); h.Get(seq) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var slow History
	for i := range int64(1000) { // 24 kbit/s
		b := append(packet.Header{}.Append(nil), make([]byte, 60)...)
		r, _ := packet.ParseRTP(b)
		slow.Put(1<<16+i, &r, start.Add(time.Duration(i)*20*time.Millisecond))
	}
	if len(slow.ring) != minHistoryBytes {
		t.Errorf("a thin stream takes %d bytes", len(slow.ring))
	}
}

func TestRate(t *testing.T) {
	var r Rate
	now := start
	for range 300 {
		r.Add(1250, now) // 1 Mbit/s
		now = now.Add(10 * time.Millisecond)
	}
	if bps := r.BPS(now); bps < 900_000 || bps > 1_100_000 {
		t.Errorf("%d bps", bps)
	}
	if bps := r.BPS(now.Add(1300 * time.Millisecond)); bps != 0 {
		t.Errorf("%d bps after a pause", bps)
	}
}

func TestKeyRequests(t *testing.T) {
	var k KeyRequests
	if _, ok := k.Due(start); ok {
		t.Fatal("nobody asked")
	}
	sent := [3]int{}
	for ms := range 3000 { // twenty receivers ask all the time
		now := start.Add(time.Duration(ms) * time.Millisecond)
		for i := range 20 {
			k.Ask(i % 3)
		}
		if i, ok := k.Due(now); ok {
			sent[i]++
			for j := range 3 {
				if ms%2 == 0 { // a browser sends key frames of all
					k.Came(j)
				}
			}
		}
	}
	if n := sent[0] + sent[1] + sent[2]; n != 15 {
		t.Errorf("%v requests in 3 s", sent)
	}
	// Those who answer for one encoding only are asked for each.
	k = KeyRequests{}
	k.Ask(0)
	k.Ask(2)
	var asked []int
	for ms := range 1000 {
		if i, ok := k.Due(start.Add(time.Duration(ms) * time.Millisecond)); ok {
			asked = append(asked, i)
			k.Came(i)
		}
	}
	if !slices.Equal(asked, []int{2, 0}) {
		t.Errorf("asked for %v", asked)
	}
	k = KeyRequests{}
	n := 0
	for ms := range 2000 {
		now := start.Add(time.Duration(ms) * time.Millisecond)
		k.StillWaiting(2, now)
		if _, ok := k.Due(now); ok {
			n++
		}
	}
	if n != 4 {
		t.Errorf("%d repetitions in 2 s", n)
	}
}

// Feedback as pion reads it must say what came, and when, of every packet once.
func TestFeedbackAgainstPion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := NewFeedback(start)
		first := rapid.Uint16().Draw(t, "first")
		now := start
		at := map[uint16]time.Time{} // arrival by number
		told := map[uint16]time.Duration{}
		lost := map[uint16]bool{}
		count := uint8(0)
		seq := first
		read := func() {
			for f.Pending() {
				b := f.Append(nil, 42, now)
				if len(b) == 0 {
					continue
				}
				var cc rtcp.TransportLayerCC
				if err := cc.Unmarshal(b); err != nil {
					t.Fatalf("%v: %x", err, b)
				}
				if cc.SenderSSRC != 42 || cc.MediaSSRC != 9 || cc.FbPktCount != count {
					t.Fatalf("%v", cc)
				}
				count++
				var symbols []uint16
				for _, c := range cc.PacketChunks {
					switch c := c.(type) {
					case *rtcp.RunLengthChunk:
						for range c.RunLength {
							symbols = append(symbols, c.PacketStatusSymbol)
						}
					case *rtcp.StatusVectorChunk:
						symbols = append(symbols, c.SymbolList...)
					}
				}
				if len(symbols) < int(cc.PacketStatusCount) {
					t.Fatalf("%d symbols for %d packets", len(symbols), cc.PacketStatusCount)
				}
				clock, deltas := time.Duration(cc.ReferenceTime)*64*time.Millisecond, cc.RecvDeltas
				for i := range cc.PacketStatusCount {
					n := cc.BaseSequenceNumber + i
					if symbols[i] == 0 {
						lost[n] = true
						continue
					}
					clock += time.Duration(deltas[0].Delta) * time.Microsecond
					deltas = deltas[1:]
					told[n] = clock
				}
			}
		}
		n := rapid.IntRange(1, 900).Draw(t, "packets")
		lossy := rapid.IntRange(0, 3).Draw(t, "loss")
		for range n {
			now = now.Add(time.Duration(rapid.IntRange(0, 30000).Draw(t, "pause")) * time.Microsecond)
			if lossy > 0 && rapid.IntRange(0, 9).Draw(t, "lost") < lossy {
				seq++
			}
			f.Arrive(seq, 9, true, now)
			at[seq] = now
			seq++
			if f.Due(now) {
				read()
			}
		}
		read()
		for s := range at {
			d, ok := told[s]
			if !ok {
				t.Fatalf("%d was not reported", s)
			}
			want := at[s].Sub(start.Add(-time.Second))
			if diff := want - d; diff < 0 || diff >= tick {
				t.Fatalf("%d arrived at %v, reported at %v", s, want, d)
			}
		}
		for s := range lost {
			if _, came := at[s]; came {
				t.Fatalf("%d came and is reported lost", s)
			}
		}
	})
}

func TestFeedbackPace(t *testing.T) {
	f := NewFeedback(start)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	f.Arrive(1, 9, false, at(10))
	if f.Due(at(99)) || !f.Due(at(100)) {
		t.Error("without a marker every 100 ms")
	}
	f.Append(nil, 1, at(100))
	if f.Due(at(300)) {
		t.Error("nothing to report")
	}
	f.Arrive(2, 9, true, at(110))
	if f.Due(at(119)) || !f.Due(at(120)) {
		t.Error("with a marker after 20 ms")
	}
	f.Append(nil, 1, at(120))
	f.Arrive(4, 9, true, at(130))
	f.Append(nil, 1, at(140))
	f.Arrive(3, 9, true, at(150)) // late: it is reported as come
	var cc rtcp.TransportLayerCC
	if err := cc.Unmarshal(f.Append(nil, 1, at(160))); err != nil || cc.BaseSequenceNumber != 3 || cc.PacketStatusCount != 2 {
		t.Errorf("%v %v", cc, err)
	}
	b := make([]byte, 0, 1500)
	seq := uint16(5)
	now := at(200)
	if n := testing.AllocsPerRun(100, func() {
		seq++
		now = now.Add(time.Millisecond)
		f.Arrive(seq, 9, true, now)
		f.Append(b[:0], 1, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestStreamAllocations(t *testing.T) {
	s := Stream{Clock: 90000, Repair: true}
	seqs := make([]uint16, 0, 512)
	n, now := uint16(0), start
	s.missing = make([]missing, 0, maxMissing)
	if allocs := testing.AllocsPerRun(1000, func() {
		n += 1 + n%7/6
		now = now.Add(time.Millisecond)
		s.Arrive(n, uint32(n)*90, false, now)
		s.Missing(seqs[:0], now)
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
