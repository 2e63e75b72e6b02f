package project

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

var start = time.Unix(1_700_000_000, 0)

// A sender makes the packets of one encoding, as Chromium does: three temporal layers, pattern 0 2 1 2.
type sender struct {
	encoding int
	seq      int64
	ts       uint32
	picture  uint16
	tl0      uint8
	frame    uint16
	template uint8 // offset
	n        int   // frames since the key frame
	mode     codec.Numbering
	skew     time.Duration // capture clock against arrival
}

func makePacket(seq int64, ts uint32) packet.RTP {
	r, err := packet.ParseRTP(packet.Header{PT: 100, Seq: uint16(seq), Timestamp: ts, SSRC: 1}.Append(nil))
	if err != nil {
		panic(err)
	}
	return r
}

// next makes one frame of n packets.
func (s *sender) next(n int, key bool, now time.Time) (out []Packet) {
	if key {
		s.n = 0
	}
	tid := [4]uint8{0, 2, 1, 2}[s.n%4]
	if s.n%4 == 0 && s.n > 0 || key {
		s.tl0++
	}
	for i := range n {
		p := Packet{RTP: makePacket(s.seq, s.ts), Seq: s.seq, Encoding: s.encoding, Arrival: now}
		if s.skew != 0 {
			p.Capture = now.Add(s.skew).UnixMicro()
		}
		f := &p.Frame
		f.Codec, f.Numbering = codec.VP8, s.mode
		f.Start, f.Key = i == 0, key && i == 0
		switch s.mode {
		case codec.ByPicture:
			f.Picture = codec.Picture{ID: s.picture & 0x7fff, Wide: true, TL0: s.tl0, TID: tid, Sync: tid > 0 && s.n < 4, IDAt: 2, TL0At: 4}
		case codec.ByDescriptor:
			f.Descriptor = codec.Descriptor{
				Start: i == 0, End: i == n-1, Frame: s.frame, Template: s.template + uint8(tid), TID: tid,
				HasStructure: key && i == 0, TemplateOffset: s.template, Templates: 5,
			}
			f.Present = 0xff << tid & 0xff * 0x01010101
			if tid == 0 {
				f.Switch = 1<<32 - 1
			} else {
				f.Descriptor.FDiffs = 1
			}
		}
		out = append(out, p)
		s.seq++
	}
	s.ts += 3000
	s.picture++
	s.frame++
	s.n++
	return out
}

func (s *Stream) accept(t interface{ Fatalf(string, ...any) }, p Packet) (Output, bool) {
	var out Output
	ok := s.Accept(&p, &out)
	return out, ok
}

func senders(mode codec.Numbering) [3]*sender {
	return [3]*sender{
		{encoding: 0, seq: 1<<16 + 65530, ts: 0xfffff000, picture: 0x7ffd, tl0: 254, frame: 65534, template: 60, mode: mode, skew: time.Hour},
		{encoding: 1, seq: 1<<16 + 100, ts: 77, picture: 5, tl0: 9, frame: 3, template: 3, mode: mode, skew: time.Hour},
		{encoding: 2, seq: 1<<16 + 30000, ts: 1 << 31, picture: 0x100, tl0: 200, frame: 40000, template: 0, mode: mode, skew: time.Hour},
	}
}

// Three encodings, the target changed now and then: what comes out is one gap-free stream.
func TestSwitching(t *testing.T) {
	for _, mode := range []codec.Numbering{codec.Plain, codec.ByPicture, codec.ByDescriptor} {
		rapid.Check(t, func(t *rapid.T) {
			all := senders(mode)
			s := Stream{Clock: 90000}
			now := start
			target, current := -1, -1
			var last Output
			var lastFrame struct {
				picture, frame uint16
				tl0            uint8
				in             uint16
				templates      uint8
			}
			var lastAt time.Time
			sent := 0
			for range rapid.IntRange(1, 80).Draw(t, "frames") {
				now = now.Add(33 * time.Millisecond)
				if rapid.IntRange(0, 5).Draw(t, "change") == 0 {
					target = rapid.IntRange(-1, 2).Draw(t, "target")
					s.SetTarget(target, AllLayers)
					if target < 0 {
						current = -1
					}
				}
				if rapid.IntRange(0, 20).Draw(t, "pause") == 0 {
					gone := time.Duration(rapid.IntRange(0, 20000).Draw(t, "ms")) * time.Millisecond
					now = now.Add(gone)
					for _, x := range all {
						x.ts += uint32(gone * 90 / time.Millisecond)
					}
				}
				key := rapid.IntRange(0, 4).Draw(t, "key") == 0
				n := rapid.IntRange(1, 3).Draw(t, "packets")
				for _, x := range all {
					for _, p := range x.next(n, key, now) {
						out, ok := s.accept(t, p)
						if p.Encoding == target && p.Frame.Key {
							current = target
						}
						// While a smaller picture is waited for, only the base layer has to come.
						if want := target >= 0 && p.Encoding == current; ok != want && (ok || p.Frame.TID() == 0) {
							t.Fatalf("encoding %d: accepted %v, target %d, current %d", p.Encoding, ok, target, current)
						}
						if !ok {
							continue
						}
						if sent > 0 && out.Seq != last.Seq+1 {
							t.Fatalf("seq %d after %d", out.Seq, last.Seq)
						}
						f := &p.Frame
						picture, frame, tl0 := (f.Picture.ID+out.Offsets.Picture)&0x7fff, f.Descriptor.Frame+out.Offsets.Frame, f.Picture.TL0+out.Offsets.TL0
						if sent > 0 {
							step := time.Duration(int32(out.Timestamp-last.Timestamp)) * time.Second / 90000
							if f.Start {
								if step <= 0 {
									t.Fatalf("timestamp goes by %v", step)
								}
								if drift := step - now.Sub(lastAt); drift.Abs() > 40*time.Millisecond {
									t.Fatalf("timestamp goes by %v in %v", step, now.Sub(lastAt))
								}
								if mode == codec.ByPicture && picture != (lastFrame.picture+1)&0x7fff {
									t.Fatalf("picture %d after %d", picture, lastFrame.picture)
								}
								if d := tl0 - lastFrame.tl0; mode == codec.ByPicture && d != 0 && d != 1 {
									t.Fatalf("TL0 %d after %d", tl0, lastFrame.tl0)
								}
								if mode == codec.ByDescriptor && (out.Switched && frame != lastFrame.frame+1 || !packet.Newer(frame, lastFrame.frame)) {
									t.Fatalf("frame %d after %d", frame, lastFrame.frame)
								}
								if mode == codec.ByDescriptor && out.Switched && (f.Descriptor.TemplateOffset+out.Offsets.Template)&63 != lastFrame.templates {
									t.Fatalf("templates from %d on, want %d", (f.Descriptor.TemplateOffset+out.Offsets.Template)&63, lastFrame.templates)
								}
							} else if step != 0 || picture != lastFrame.picture || frame != lastFrame.frame {
								t.Fatal("numbers change within a frame")
							}
						}
						if f.Descriptor.HasStructure {
							lastFrame.templates = (f.Descriptor.TemplateOffset + out.Offsets.Template + f.Descriptor.Templates) & 63
						}
						last, lastAt, lastFrame.picture, lastFrame.frame, lastFrame.tl0 = out, now, picture, frame, tl0
						sent++
					}
				}
			}
		})
	}
}

// Loss, reordering, thinning, switching, pauses, takeover: no output number is ever used twice, and each leads
// back to the packet that went out under it.
func TestNumbersAreUnique(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mode := rapid.SampledFrom([]codec.Numbering{codec.Plain, codec.ByPicture, codec.ByDescriptor}).Draw(t, "mode")
		all := senders(mode)
		s := Stream{Clock: 90000}
		now := start
		type from struct {
			source, encoding int
			seq              int64
			ts               uint32
		}
		used := map[uint16]from{}
		source := 0
		var late []Packet
		offer := func(p Packet) {
			out, ok := s.accept(t, p)
			if !ok {
				return
			}
			if was, again := used[out.Seq]; again {
				t.Fatalf("%d stood for %v, and now for %d of encoding %d", out.Seq, was, p.Seq, p.Encoding)
			}
			used[out.Seq] = from{source, p.Encoding, p.Seq, out.Timestamp}
			encoding, in, off, ok := s.Source(out.Seq)
			if !ok || encoding != p.Encoding || in != p.Seq || off != out.Offsets {
				t.Fatalf("%d leads to %d of encoding %d (%v), not to %d of %d", out.Seq, in, encoding, ok, p.Seq, p.Encoding)
			}
		}
		s.SetTarget(0, AllLayers)
		for range rapid.IntRange(1, 150).Draw(t, "frames") {
			now = now.Add(33 * time.Millisecond)
			switch rapid.IntRange(0, 25).Draw(t, "event") {
			case 0:
				s.SetTarget(rapid.IntRange(-1, 2).Draw(t, "target"), rapid.IntRange(0, 3).Draw(t, "tid"))
			case 1:
				s.SetTarget(rapid.IntRange(0, 2).Draw(t, "target"), rapid.IntRange(0, 3).Draw(t, "tid"))
			case 2:
				if rapid.IntRange(0, 5).Draw(t, "takeover") == 0 {
					s.Takeover()
					source++
					late = nil
					s.SetTarget(0, AllLayers)
				}
			case 3:
				if x := all[rapid.IntRange(0, 2).Draw(t, "jump")]; true {
					x.seq += int64(rapid.IntRange(0, 3000).Draw(t, "by"))
				}
			case 4:
				x := all[rapid.IntRange(0, 2).Draw(t, "padding")]
				s.Skip(x.encoding, x.seq)
				x.seq++
			}
			key := rapid.IntRange(0, 6).Draw(t, "key") == 0
			for _, x := range all {
				for _, p := range x.next(rapid.IntRange(1, 4).Draw(t, "packets"), key, now) {
					switch rapid.IntRange(0, 9).Draw(t, "fate") {
					case 0: // lost
					case 1:
						late = append(late, p)
					default:
						offer(p)
					}
				}
			}
			for len(late) > 0 && rapid.Bool().Draw(t, "arrives") {
				i := rapid.IntRange(0, len(late)-1).Draw(t, "which")
				p := late[i]
				late = append(late[:i], late[i+1:]...)
				offer(p)
			}
		}
		for seq, f := range used { // what is still known is right
			if encoding, in, _, ok := s.Source(seq); ok && f.source == source && (encoding != f.encoding || in != f.seq) {
				t.Fatalf("%d leads to %d of %d, not to %v", seq, in, encoding, f)
			}
		}
	})
}

// Leaving out temporal layers closes sequence numbers and picture ids; frame numbers keep their gaps, because
// frames name those that they depend on by difference.
func TestThinning(t *testing.T) {
	for _, mode := range []codec.Numbering{codec.ByPicture, codec.ByDescriptor} {
		x := senders(mode)[0]
		s := Stream{Clock: 90000}
		s.SetTarget(0, 0)
		now := start
		var last Output
		var picture, frame uint16
		count := map[uint8]int{}
		for i := range 200 {
			now = now.Add(33 * time.Millisecond)
			if i == 100 {
				s.SetTarget(0, 1)
			}
			for _, p := range x.next(3, i%50 == 0, now) {
				out, ok := s.accept(t, p)
				tid := uint8(p.Frame.TID())
				if ok != (tid == 0 || tid == 1 && i >= 100) {
					t.Fatalf("%v: frame %d of layer %d accepted: %v", mode, i, tid, ok)
				}
				if !ok {
					continue
				}
				count[tid]++
				if i > 0 && out.Seq != last.Seq+1 {
					t.Fatalf("seq %d after %d", out.Seq, last.Seq)
				}
				pic := (p.Frame.Picture.ID + out.Offsets.Picture) & 0x7fff
				if mode == codec.ByPicture && i > 0 && p.Frame.Start && pic != (picture+1)&0x7fff {
					t.Fatalf("picture %d after %d", pic, picture)
				}
				if mode == codec.ByDescriptor {
					if i > 0 && p.Frame.Descriptor.Frame+out.Offsets.Frame-frame != p.Frame.Descriptor.Frame-uint16(frame-out.Offsets.Frame) {
						t.Fatal("frame differences changed")
					}
					frame = p.Frame.Descriptor.Frame + out.Offsets.Frame
				}
				last, picture = out, pic
			}
		}
		if count[0] == 0 || count[1] == 0 || count[2] != 0 {
			t.Fatalf("%v", count)
		}
	}
}

func TestUplinkLossStaysVisible(t *testing.T) {
	x := senders(codec.ByDescriptor)[1]
	s := Stream{Clock: 90000}
	s.SetTarget(0+1, AllLayers)
	first, _ := s.accept(t, x.next(1, true, start)[0])
	lost := x.next(1, false, start)[0]
	after, ok := s.accept(t, x.next(1, false, start)[0])
	if !ok || after.Seq != first.Seq+2 {
		t.Fatalf("%d after %d", after.Seq, first.Seq)
	}
	out, ok := s.accept(t, lost)
	if !ok || out.Seq != first.Seq+1 {
		t.Fatalf("the repaired packet went out as %d, %v", out.Seq, ok)
	}
}

func TestFirstPacketOfKeyFrameComesLate(t *testing.T) {
	x := senders(codec.ByDescriptor)[1]
	s := Stream{Clock: 90000}
	s.SetTarget(1, AllLayers)
	key := x.next(4, true, start)
	for _, p := range key[1:] {
		if _, ok := s.accept(t, p); ok {
			t.Fatal("accepted before the start of the key frame")
		}
	}
	out, ok := s.accept(t, key[0])
	if !ok || !out.Switched {
		t.Fatal("the start was refused")
	}
	for i := range uint16(3) { // the receiver will ask for the rest
		if _, in, _, ok := s.Source(out.Seq + 1 + i); ok && in != key[1+i].Seq {
			t.Fatalf("%d leads to %d", out.Seq+1+i, in)
		}
	}
	next, ok := s.accept(t, x.next(1, false, start)[0])
	if !ok || next.Seq != out.Seq+4 {
		t.Fatalf("%d after %d", next.Seq, out.Seq)
	}
	if _, in, _, ok := s.Source(out.Seq + 2); !ok || in != key[2].Seq {
		t.Fatalf("the missing packet leads to %d, %v", in, ok)
	}
}

func TestAudioKeepsNumbersAndTakeoverFollows(t *testing.T) {
	s := Stream{Clock: 48000}
	s.SetTarget(0, AllLayers)
	audio := func(seq int64, ts uint32, now time.Time) Packet {
		p := Packet{RTP: makePacket(seq, ts), Seq: seq, Arrival: now}
		p.Frame.Codec, p.Frame.Start = codec.Opus, true
		return p
	}
	out, ok := s.accept(t, audio(1<<16+0x7fb8, 0x292b0fb5, start))
	if !ok || out.Seq != 0x7fb8 || out.Timestamp != 0x292b0fb5 {
		t.Fatalf("%+v %v", out, ok)
	}
	s.Takeover()
	if _, ok := s.accept(t, audio(1<<16+5, 99, start)); ok {
		t.Fatal("accepted without a target")
	}
	s.SetTarget(0, AllLayers)
	out, ok = s.accept(t, audio(1<<16+5, 99, start.Add(500*time.Millisecond)))
	if !ok || out.Seq != 0x7fb9 || out.Timestamp != 0x292b0fb5+24000 {
		t.Fatalf("%+v %v", out, ok)
	}
}

func TestCodecChange(t *testing.T) {
	x := senders(codec.ByDescriptor)[0]
	s := Stream{Clock: 90000}
	s.SetTarget(0, AllLayers)
	first, _ := s.accept(t, x.next(1, true, start)[0])
	p := x.next(1, false, start)[0]
	p.Frame.Codec = codec.AV1
	if _, ok := s.accept(t, p); ok || !s.Waiting() {
		t.Fatal("another codec began without a key frame")
	}
	p = x.next(1, true, start)[0]
	p.Frame.Codec = codec.AV1
	if out, ok := s.accept(t, p); !ok || out.Seq != first.Seq+1 {
		t.Fatalf("%+v %v", out, ok)
	}
}

func TestMapTimestamp(t *testing.T) {
	all := senders(codec.ByDescriptor)
	s := Stream{Clock: 90000}
	s.SetTarget(0, AllLayers)
	if _, ok := s.MapTimestamp(0, 1); ok {
		t.Fatal("mapped before the first packet")
	}
	s.accept(t, all[0].next(1, true, start)[0])
	s.SetTarget(2, AllLayers)
	p := all[2].next(1, true, start.Add(time.Second))[0]
	out, ok := s.accept(t, p)
	if !ok {
		t.Fatal("refused")
	}
	if ts, ok := s.MapTimestamp(2, p.RTP.Timestamp()+90); !ok || ts != out.Timestamp+90 {
		t.Fatalf("%d, %v", ts, ok)
	}
	if _, ok := s.MapTimestamp(0, 1); ok {
		t.Fatal("the encoding that is not forwarded was mapped")
	}
}

func TestAllocations(t *testing.T) {
	all := senders(codec.ByDescriptor)
	s := Stream{Clock: 90000}
	s.SetTarget(0, 0)
	var packets []Packet
	for i := range 4000 {
		packets = append(packets, all[0].next(2, i%100 == 0, start)...)
	}
	for i := range packets[:4000] { // warm
		var out Output
		s.Accept(&packets[i], &out)
	}
	i := 4000
	if n := testing.AllocsPerRun(3000, func() {
		var out Output
		s.Accept(&packets[i], &out)
		s.Source(out.Seq)
		i++
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAccept(b *testing.B) {
	x := senders(codec.ByDescriptor)[0]
	s := Stream{Clock: 90000}
	s.SetTarget(0, AllLayers)
	p := x.next(1, true, start)[0]
	var out Output
	s.Accept(&p, &out)
	p.Frame.Key, p.Frame.Descriptor.HasStructure = false, false
	for b.Loop() {
		p.Seq++
		p.Frame.Descriptor.Frame++
		s.Accept(&p, &out)
	}
}
