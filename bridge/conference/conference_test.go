package conference

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/bridge/allocate"
	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

const frameTime = 33 * time.Millisecond

// stream lets c send n frames of all the given encodings, answering key frame requests as an encoder does.
func (c *client) stream(n int, encodings ...int) {
	for range n {
		c.r.pass(frameTime)
		key := c.answersPLI()
		for _, enc := range encodings {
			c.frame(enc, 2, key || c.n[enc] == 0)
		}
		c.r.flush()
	}
}

func (c *client) answersPLI() bool {
	n := len(c.rtcpOf(packet.TypePSF, packet.FormatPLI))
	defer func() { c.plis = n }()
	return n > c.plis
}

// continuous checks that packets follow one another as one stream: numbers without gaps, timestamps in real time.
func continuous(t *testing.T, packets []got, pictures bool) {
	t.Helper()
	if len(packets) == 0 {
		t.Fatal("no packets")
	}
	var r codec.Reader
	var last codec.Frame
	for i, g := range packets {
		var f codec.Frame
		r.Read(codec.VP8, g.r.Payload, g.r.Extension(extDD), g.r.Timestamp(), &f)
		if i == 0 && !f.Key {
			t.Fatal("does not begin with a key frame")
		}
		if f.Numbering == codec.ByDescriptor && f.Present == 1<<32-1 && f.Descriptor.TID > 0 {
			t.Fatalf("packet %d: no structure for its template", i)
		}
		if i > 0 {
			p := packets[i-1]
			if g.r.Seq() != p.r.Seq()+1 {
				t.Fatalf("packet %d: seq %d after %d", i, g.r.Seq(), p.r.Seq())
			}
			step := time.Duration(int32(g.r.Timestamp()-p.r.Timestamp())) * time.Second / 90000
			if f.Start != (step > 0) || f.Start && (step-g.at.Sub(p.at)).Abs() > 45*time.Millisecond {
				t.Fatalf("packet %d: timestamp goes by %v in %v", i, step, g.at.Sub(p.at))
			}
			if f.Start && pictures && f.Picture.ID != (last.Picture.ID+1)&0x7fff {
				t.Fatalf("packet %d: picture %d after %d", i, f.Picture.ID, last.Picture.ID)
			}
			if d := f.Picture.TL0 - last.Picture.TL0; pictures && d > 1 || pictures && f.Key && d != 1 {
				t.Fatalf("packet %d: TL0 %d after %d", i, f.Picture.TL0, last.Picture.TL0)
			}
			if f.Start && !pictures && f.Descriptor.Frame != last.Descriptor.Frame+1 {
				t.Fatalf("packet %d: frame %d after %d", i, f.Descriptor.Frame, last.Descriptor.Frame)
			}
			if f.Key && f.Descriptor.HasStructure && f.Heights != last.Heights && last.Heights[0] != 0 {
				if was := last.Descriptor.TemplateOffset; f.Descriptor.TemplateOffset == was {
					t.Fatalf("packet %d: the new structure has the ids of the old one", i)
				}
			}
		}
		h := last
		last = f
		if !f.Key {
			last.Heights, last.Descriptor.TemplateOffset = h.Heights, h.Descriptor.TemplateOffset
		}
	}
}

func heights(packets []got) (out []int) {
	for _, g := range packets {
		var f codec.Frame
		codec.ParseVP8(g.r.Payload, &f)
		if f.Key && (len(out) == 0 || out[len(out)-1] != int(f.Heights[0])) {
			out = append(out, int(f.Heights[0]))
		}
	}
	return out
}

func TestSimulcastSwitches(t *testing.T) {
	for _, rewriting := range []bool{true, false} {
		for _, pictures := range []bool{true, false} {
			r := newRoom(t)
			alice, bob := r.join("alice"), r.joinWith("bob", nil, rewriting)
			alice.pictures = pictures
			if !rewriting {
				r.maps["bob"] = map[SSRC]Mapping{alice.base + 1: {Source: "alice-v0"}}
			}
			alice.stream(3, 0, 1, 2)
			if len(bob.rtp) != 0 {
				t.Fatal("video before the first constraints")
			}
			for _, h := range []int{180, 720, 360, 180, 720} {
				bob.e.SetConstraints(want(h), r.now)
				alice.stream(40, 0, 1, 2)
			}
			bob.e.SetConstraints(want(0), r.now)
			before := len(bob.rtp)
			alice.stream(30, 0, 1, 2)
			if len(bob.rtp) != before {
				t.Fatal("video although nothing is wanted")
			}
			bob.e.SetConstraints(want(720), r.now)
			alice.stream(30, 0, 1, 2)
			alice.stream(90, 0, 1) // the highest encoding stops
			got := bob.on("alice-v0")
			continuous(t, thinned(got, pictures), pictures)
			if h := heights(got); !slices.Equal(h, []int{180, 720, 360, 180, 720, 360}) {
				t.Fatalf("heights %v", h)
			}
			if asked := len(alice.rtcpOf(packet.TypePSF, packet.FormatPLI)); asked > 9 {
				t.Errorf("%d key frame requests for 7 changes", asked)
			}
			wantLog := []string{"alice send alice-v0 0", "alice send alice-v0 180", "alice send alice-v0 720", "alice send alice-v0 360",
				"alice send alice-v0 180", "alice send alice-v0 720", "alice send alice-v0 0", "alice send alice-v0 720"}
			if log := r.take("alice send"); !slices.Equal(log, wantLog) {
				t.Errorf("sender heard %q", log)
			}
		}
	}
}

// thinned is the identity: between asking for a smaller picture and getting it, layers may be left out, and then
// frame numbers have gaps; those are cut out of the comparison by renumbering.
func thinned(in []got, pictures bool) []got {
	if pictures {
		return in
	}
	var out []got
	var next, was uint16
	for i, g := range in {
		c := g
		c.r.Header = slices.Clone(g.r.Header)
		r, _ := packet.ParseRTP(append(c.r.Header, g.r.Payload...))
		d := r.Extension(extDD)
		n := binary.BigEndian.Uint16(d[1:])
		if i == 0 {
			next = n
		} else if n != was {
			next++
		}
		was = n
		binary.BigEndian.PutUint16(d[1:], next)
		c.r = r
		out = append(out, c)
	}
	return out
}

func TestFirstKeyFrameIsNotLost(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	r.pass(time.Second)
	alice.frame(0, 3, true)
	r.flush()
	if n := len(bob.on("alice-v0")); n != 3 {
		t.Fatalf("%d packets of the first frame", n)
	}
	if n := len(alice.rtcpOf(packet.TypePSF, packet.FormatPLI)); n != 0 {
		t.Fatalf("%d requests for what was coming anyway", n)
	}
	// A later one has to ask, at once.
	carol := r.join("carol")
	carol.e.SetConstraints(want(180), r.now)
	if n := len(alice.rtcpOf(packet.TypePSF, packet.FormatPLI)); n != 1 {
		t.Fatalf("%d requests", n)
	}
}

func TestRTPBeforeSources(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	alice.e.SetSources(nil, r.now)
	alice.stream(3, 0)
	if len(bob.rtp) != 0 || r.c.Stats().Unsignalled != 6 {
		t.Fatalf("%d packets, %d unsignalled", len(bob.rtp), r.c.Stats().Unsignalled)
	}
	alice.e.SetSources(alice.sources(), r.now)
	alice.stream(3, 0)
	alice.stream(20, 0)
	continuous(t, bob.on("alice-v0"), false)
}

func TestRetransmission(t *testing.T) {
	for _, pictures := range []bool{true, false} {
		r := newRoom(t)
		alice, bob := r.join("alice"), r.join("bob")
		alice.pictures = pictures
		bob.e.SetConstraints(want(180), r.now)
		alice.stream(10, 0, 1)
		bob.e.SetConstraints(want(360), r.now)
		alice.stream(20, 0, 1)
		media := bob.on("alice-v0")
		m := r.maps["bob"][media[0].r.SSRC()]
		bob.rtp = nil
		var asked []uint16
		for _, i := range []int{2, len(media) - 30, len(media) - 20, len(media) - 1} {
			asked = append(asked, media[i].r.Seq())
		}
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m.SSRC, asked), r.now)
		if len(bob.rtp) != len(asked) {
			t.Fatalf("%d packets for %d", len(bob.rtp), len(asked))
		}
		for i, g := range bob.rtp {
			if g.r.SSRC() != m.RTX || g.r.PT() != ptRTX || g.r.Seq() != uint16(i+1) {
				t.Fatalf("ssrc %d pt %d seq %d", g.r.SSRC(), g.r.PT(), g.r.Seq())
			}
			j := slices.IndexFunc(media, func(o got) bool { return o.r.Seq() == asked[i] })
			o := media[j].r
			if binary.BigEndian.Uint16(g.r.Payload) != asked[i] || !bytes.Equal(g.r.Payload[2:], o.Payload) {
				t.Fatalf("payload %x, was %x", g.r.Payload[:12], o.Payload[:12])
			}
			if g.r.Timestamp() != o.Timestamp() || g.r.Marker() != o.Marker() || !bytes.Equal(g.r.Extension(extDD), o.Extension(extDD)) {
				t.Fatal("the original differs")
			}
		}
		// Of what never was, nothing; without an RTX format, nothing.
		bob.rtp = nil
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m.SSRC, []uint16{media[len(media)-1].r.Seq() + 1}), r.now)
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, 4711, []uint16{1}), r.now)
		bob.e.formats[ptVP8].rtx = 0
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m.SSRC, asked), r.now)
		if len(bob.rtp) != 0 {
			t.Fatalf("%d packets", len(bob.rtp))
		}
	}
}

func TestRetransmissionIsLimited(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	alice.stream(10, 0)
	m := bob.on("alice-v0")
	bob.rtp = nil
	for range 10000 {
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m[0].r.SSRC(), []uint16{m[3].r.Seq()}), r.now)
	}
	if len(bob.rtp) > rtxBurst {
		t.Fatalf("%d packets", len(bob.rtp))
	}
}

func TestUplinkLossIsRepaired(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	alice.stream(4, 0)
	r.pass(frameTime)
	frame := alice.makeFrame(0, 4, false)
	alice.send(frame[0])
	alice.send(frame[3])
	r.flush()
	nacks := alice.rtcpOf(packet.TypeRTPF, packet.FormatNACK)
	if len(nacks) != 1 || nacks[0].Media() != alice.base+1 || nacks[0].Sender() != 2 {
		t.Fatalf("%v", nacks)
	}
	before := len(bob.rtp)
	for _, lost := range frame[1:3] { // as RTX
		o, _ := packet.ParseRTP(lost)
		h := slices.Clone(o.Header)
		h[1] = h[1]&0x80 | ptRTX
		binary.BigEndian.PutUint32(h[8:], alice.base+11)
		copy(h[2:], []byte{0, byte(lost[3])})
		p := append(append(h, lost[2], lost[3]), o.Payload...)
		alice.send(p)
		alice.send(p) // and once more, as Chromium pads
	}
	r.flush()
	if n := len(bob.rtp) - before; n != 2 {
		t.Fatalf("%d packets went on", n)
	}
	var seqs []uint16
	for _, g := range bob.on("alice-v0")[8:] {
		seqs = append(seqs, g.r.Seq())
	}
	first := seqs[0]
	if !slices.Equal(seqs, []uint16{first, first + 3, first + 1, first + 2}) {
		t.Fatalf("%v", seqs)
	}
	if r.c.Stats().Duplicates != 2 {
		t.Fatalf("%d duplicates", r.c.Stats().Duplicates)
	}
	r.pass(2 * time.Second)
	if n := len(alice.rtcpOf(packet.TypeRTPF, packet.FormatNACK)); n != 1 {
		t.Fatalf("%d NACKs for what came", n)
	}
}

func TestSilence(t *testing.T) {
	for _, rewriting := range []bool{true, false} {
		r := newRoom(t)
		alice, bob := r.join("alice"), r.joinWith("bob", nil, rewriting)
		say := func(levels ...byte) {
			for _, l := range levels {
				r.pass(20 * time.Millisecond)
				alice.audio(l)
				r.flush()
			}
		}
		say(127, 127, 127, 127, 127, 127)
		if rewriting && (len(bob.rtp) != 0 || len(r.take("bob maps audio")) != 0) {
			t.Fatal("a silent source was mapped")
		}
		bob.rtp = nil
		say(slices.Repeat([]byte{30}, 20)...)
		say(slices.Repeat([]byte{127}, 50)...)
		n := len(bob.rtp)
		if n != 24 {
			t.Fatalf("%d packets, want 20 and four silent ones", n)
		}
		say(30, 30)
		if len(bob.rtp) != 26 {
			t.Fatalf("%d packets after the silence", len(bob.rtp)-n)
		}
		last, next := bob.rtp[23].r, bob.rtp[24].r
		if next.Seq() != last.Seq()+1 || next.Timestamp() != last.Timestamp()+47*960 {
			t.Fatalf("seq %d after %d, timestamp by %d", next.Seq(), last.Seq(), next.Timestamp()-last.Timestamp())
		}
		o, _ := packet.ParseRTP(alice.sent[alice.base][6])
		first := bob.rtp[0].r
		if first.Timestamp() != o.Timestamp() || !bytes.Equal(first.Payload, o.Payload) {
			t.Fatal("the first packet is not what was sent")
		}
		if !bytes.Equal(first.Extension(extLevel), []byte{0x80 | 30}) || len(first.Extension(extTCC)) != 2 || first.Extension(extMID) != nil {
			t.Fatalf("extensions %x", first.Header[12:])
		}
	}
}

func TestAudioWaitsForItsMap(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	r.pass(time.Second)
	started := r.now
	r.take("")
	for range 30 {
		alice.audio(30)
		r.flush()
		r.pass(20 * time.Millisecond)
	}
	if log := r.take("bob maps"); !slices.Equal(log, []string{"bob maps audio alice-a0 "}) {
		t.Fatalf("%q", log)
	}
	if len(bob.rtp) != 30 {
		t.Fatalf("%d packets", len(bob.rtp))
	}
	for i, g := range bob.rtp {
		if g.at.Sub(started) < 180*time.Millisecond {
			t.Fatalf("packet %d after %v", i, g.at.Sub(started))
		}
		o, _ := packet.ParseRTP(alice.sent[alice.base][i])
		if g.r.Seq() != o.Seq() || !bytes.Equal(g.r.Payload, o.Payload) {
			t.Fatalf("packet %d is %d, was %d", i, g.r.Seq(), o.Seq())
		}
	}
	if late := bob.rtp[0].at.Sub(started); late > 200*time.Millisecond {
		t.Fatalf("held for %v", late)
	}
	if r.c.sources["alice-a0"].holding != 0 {
		t.Fatal("still holding")
	}
	// A map comes first, and there is none before the channel.
	carol := r.enter("carol", nil, Capabilities{Rewriting: true})
	carol.e.Connected(r.now)
	alice.audio(30)
	r.flush()
	if len(carol.rtp) != 0 || r.maps["carol"] != nil {
		t.Fatal("audio without a channel")
	}
}

func TestForceMute(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	alice.stream(5, 0)
	alice.e.SetForceMute(true, true, r.now)
	r.take("")
	n := len(bob.rtp)
	for range 5 {
		alice.audio(30)
		alice.stream(1, 0)
	}
	if len(bob.rtp) != n {
		t.Fatal("muted media went on")
	}
	alice.e.SetForceMute(false, false, r.now)
	alice.stream(20, 0)
	continuous(t, bob.on("alice-v0"), false)
	if len(bob.rtp) == n {
		t.Fatal("not unmuted")
	}
}

func TestSlotTakeover(t *testing.T) {
	for _, pictures := range []bool{true, false} {
		r := newRoom(t)
		r.c.cfg.VideoSlots = 2
		bob := r.join("bob")
		bob.e.SetConstraints(allocate.Request{Default: &allocate.Constraint{}}, r.now)
		var all []*client
		for _, id := range []EndpointID{"a", "b", "c", "d"} {
			c := r.join(id)
			c.pictures = pictures
			all = append(all, c)
		}
		bob.rtp = nil
		for i := range 12 {
			name := string(all[i%4].id) + "-v0"
			bob.e.SetConstraints(allocate.Request{Constraints: map[string]allocate.Constraint{name: {MaxHeight: 180}}}, r.now)
			for range 10 {
				r.pass(frameTime)
				for _, c := range all {
					c.frame(0, 2, c.answersPLI() || c.n[0] == 0)
				}
				r.flush()
			}
		}
		bySSRC := map[SSRC][]got{}
		for _, g := range bob.rtp {
			bySSRC[g.r.SSRC()] = append(bySSRC[g.r.SSRC()], g)
		}
		if len(bySSRC) != 2 {
			t.Fatalf("%d SSRCs on 2 slots", len(bySSRC))
		}
		for _, packets := range bySSRC {
			continuous(t, packets, pictures)
			if len(packets) < 60 {
				t.Fatalf("%d packets", len(packets))
			}
		}
	}
}

func TestAudioSlotTakeover(t *testing.T) {
	r := newRoom(t)
	r.c.cfg.AudioSlots = 1
	bob := r.join("bob")
	talkers := []*client{r.join("a"), r.join("b")}
	for turn := range 6 {
		for range 100 {
			r.pass(20 * time.Millisecond)
			talkers[turn%2].audio(20)
			r.flush()
		}
	}
	// The last one needs a second of the other's silence before it gets the slot.
	if len(bob.rtp) < 350 {
		t.Fatalf("%d packets", len(bob.rtp))
	}
	for i, g := range bob.rtp[1:] {
		last := bob.rtp[i]
		if g.r.SSRC() != last.r.SSRC() || g.r.Seq() != last.r.Seq()+1 {
			t.Fatalf("packet %d: ssrc %d seq %d after %d %d", i, g.r.SSRC(), g.r.Seq(), last.r.SSRC(), last.r.Seq())
		}
		step := time.Duration(int32(g.r.Timestamp()-last.r.Timestamp())) * time.Second / 48000
		if step <= 0 || g.r.Timestamp()-last.r.Timestamp() != 960 && (step-g.at.Sub(last.at)).Abs() > 25*time.Millisecond {
			t.Fatalf("packet %d: timestamp goes by %v in %v", i, step, g.at.Sub(last.at))
		}
	}
	if got := r.take("bob maps audio"); len(got) != 6 {
		t.Fatalf("%q", got)
	}
}

func TestSlotsOfLeavers(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	alice.stream(5, 0)
	first := bob.on("alice-v0")[0].r.SSRC()
	// Removed and signalled again: the same slot.
	alice.e.SetSources(alice.sources()[:1], r.now)
	alice.e.SetSources(alice.sources(), r.now)
	alice.stream(10, 0)
	packets := bob.on("alice-v0")
	if last := packets[len(packets)-1].r.SSRC(); last != first || len(packets) < 20 {
		t.Fatalf("ssrc %d, was %d; %d packets", last, first, len(packets))
	}
	continuous(t, packets, false)
	// Gone and here again: another SSRC, so that the client does not mix them up.
	r.c.Remove("alice", r.now)
	if len(bob.e.slots[Video]) != 0 || len(bob.e.gets) != 0 || r.c.Len() != 1 {
		t.Fatal("slots of somebody who left")
	}
	alice = r.join("alice")
	bob.rtp = nil
	alice.stream(5, 0)
	if bob.on("alice-v0")[0].r.SSRC() == first {
		t.Fatal("the same SSRC")
	}
	r.c.Remove("bob", r.now)
	r.c.Remove("alice", r.now)
	if len(r.c.sources) != 0 || r.c.Len() != 0 {
		t.Fatal("something is left")
	}
	r.pass(10 * time.Second)
}

// Without rewriting a returning source goes on with its numbers: its SSRC and its key are the same.
func TestOriginalSSRCReturns(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.joinWith("bob", nil, false)
	r.maps["bob"] = map[SSRC]Mapping{alice.base + 1: {Source: "alice-v0"}}
	bob.e.SetConstraints(want(180), r.now)
	alice.stream(10, 0)
	alice.e.SetSources(nil, r.now)
	alice.e.SetSources(alice.sources(), r.now)
	alice.stream(20, 0)
	continuous(t, bob.on("alice-v0"), false)
}

func TestSenderReports(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	const ntp = 3_900_000_000 << 32
	report := func(enc int) {
		alice.e.ReceiveRTCP(packet.AppendSR(nil, packet.SenderInfo{SSRC: alice.base + 1 + SSRC(enc), NTP: ntp, Timestamp: alice.ts[enc+1]}), r.now)
	}
	report(0)
	report(1)
	at := r.now
	alice.stream(20, 0, 1)
	bob.e.SetConstraints(want(360), r.now)
	alice.stream(20, 0, 1)
	reports := bob.rtcpOf(packet.TypeSR, 0)
	if len(reports) != 2 {
		t.Fatalf("%d reports: one for the start and one for the switch", len(reports))
	}
	media := bob.on("alice-v0")
	for i, p := range reports {
		sr, _ := p.SenderInfo()
		if sr.SSRC != media[0].r.SSRC() || sr.Packets == 0 || sr.Octets == 0 {
			t.Fatalf("%+v", sr)
		}
		// Both clocks start at the first report; a packet of that moment must have that timestamp.
		elapsed := time.Duration(int64(sr.NTP-ntp) * int64(time.Second) >> 32)
		near := slices.IndexFunc(media, func(g got) bool { return g.at.Sub(at) >= elapsed })
		if off := int32(sr.Timestamp - media[near].r.Timestamp()); off < -90*45 || off > 90*45 {
			t.Fatalf("report %d is off by %d ticks", i, off)
		}
	}
	bob.rtcp = nil
	report(0) // not forwarded now
	if len(bob.rtcp) != 0 {
		t.Fatal("the report of another encoding went on")
	}
}

func TestReportsAndFeedback(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	for range 60 { // two seconds
		alice.audio(30)
		alice.stream(1, 0, 1)
	}
	rr := alice.rtcpOf(packet.TypeRR, 0)
	if len(rr) < 3 || len(rr) > 5 {
		t.Errorf("%d receiver reports in 2 s", len(rr))
	}
	var blocks []packet.Report
	rr[1].Reports(func(b packet.Report) { blocks = append(blocks, b) })
	if len(blocks) != 3 || blocks[0].FractionLost != 0 || blocks[0].SSRC != alice.base {
		t.Errorf("%+v", blocks)
	}
	tcc := alice.rtcpOf(packet.TypeRTPF, packet.FormatTransportCC)
	if len(tcc) < 20 || len(tcc) > 65 {
		t.Errorf("%d feedback messages in 2 s", len(tcc))
	}
	r.pass(5 * time.Second)
	alice.rtcp = nil
	r.pass(5 * time.Second)
	if len(alice.rtcp) != 0 {
		t.Errorf("%d messages without a packet", len(alice.rtcp))
	}
	// Towards the receiver: transport-wide numbers on everything, from 1.
	numbers := map[uint16]bool{}
	for _, g := range append(bob.rtp, bob.padding...) {
		if b := g.r.Extension(extTCC); len(b) == 2 {
			numbers[binary.BigEndian.Uint16(b)] = true
		}
		if g.r.Extension(extTime) != nil {
			t.Fatal("abs-send-time of the sender")
		}
	}
	if n := len(bob.rtp) + len(bob.padding); len(numbers) != n || !numbers[1] || !numbers[uint16(n)] {
		t.Errorf("%d transport-wide numbers on %d packets", len(numbers), n)
	}
}

func TestPLIStorm(t *testing.T) {
	r := newRoom(t)
	alice := r.join("alice")
	var all []*client
	for i := range 20 {
		c := r.join(EndpointID("r" + string(rune('a'+i))))
		c.e.SetConstraints(want(180), r.now)
		all = append(all, c)
	}
	alice.stream(10, 0)
	alice.rtcp = nil
	for range 100 { // one second
		r.pass(10 * time.Millisecond)
		for _, c := range all {
			for ssrc, m := range r.maps[c.id] {
				if m.Source == "alice-v0" {
					c.e.ReceiveRTCP(packet.AppendPLI(nil, 9, ssrc), r.now)
				}
			}
			c.e.ReceiveRTCP(packet.AppendPLI(nil, 9, 123), r.now) // of nothing
		}
	}
	plis := alice.rtcpOf(packet.TypePSF, packet.FormatPLI)
	if len(plis) < 4 || len(plis) > 6 || plis[0].Media() != alice.base+1 || plis[0].Sender() != 2 {
		t.Errorf("%d key frame requests in a second", len(plis))
	}
}

func TestConstraintsReachTheSender(t *testing.T) {
	r := newRoom(t)
	alice, bob, carol := r.join("alice"), r.join("bob"), r.join("carol")
	r.take("")
	step := func(name string, do func(), expect ...string) {
		t.Helper()
		do()
		r.pass(25 * time.Millisecond)
		if got := r.take("alice send"); !slices.Equal(got, expect) {
			t.Fatalf("%s: %q", name, got)
		}
	}
	n, zero := -1, 0
	step("first", func() { bob.e.SetConstraints(allocate.Request{LastN: &n}, r.now) }, "alice send alice-v0 180")
	step("maximum", func() { carol.e.SetConstraints(want(720), r.now) }, "alice send alice-v0 720")
	step("passed on as it is", func() { bob.e.SetConstraints(want(2160), r.now) }, "alice send alice-v0 2160")
	step("unlimited", func() { bob.e.SetConstraints(want(-1), r.now) }, "alice send alice-v0 -1")
	step("last-n 0", func() { bob.e.SetConstraints(allocate.Request{LastN: &zero}, r.now) }, "alice send alice-v0 720")
	step("leaves", func() { r.c.Remove("carol", r.now) }, "alice send alice-v0 0")
	step("returns", func() { bob.e.SetConstraints(allocate.Request{LastN: &n}, r.now) }, "alice send alice-v0 -1")
	step("muted", func() { alice.e.SetVideoType("alice-v0", "none", r.now) }, "alice send alice-v0 0")
	step("unmuted", func() { alice.e.SetVideoType("alice-v0", "camera", r.now) }, "alice send alice-v0 -1")
}

func TestBurstOnChannel(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(180), r.now)
	for i := range 150 {
		alice.stream(1, 0)
		alice.audio(speech(i))
		r.flush()
	}
	want := []string{
		"bob send bob-v0 0", "bob forwarded [alice-v0]", "bob maps video alice-v0 ", "bob maps audio alice-a0 ", "bob speaker alice []",
	}
	for range 2 { // again after a reconnect
		r.take("")
		bob.e.ChannelOpened(r.now)
		if got := r.take("bob"); !slices.Equal(got, want) {
			t.Fatalf("%q", got)
		}
	}
}

// speech is the level of the i-th packet of somebody who first listens, in a room with some noise, then talks.
func speech(i int) byte {
	switch {
	case i < 50:
		return byte(75 + i%3)
	case i%23 < 2:
		return 48
	}
	return byte(20 + i%7)
}

func TestMIDs(t *testing.T) {
	r := newRoom(t)
	alice := r.join("alice")
	bob := r.enter("bob", nil, Capabilities{Rewriting: true, MIDDemux: true})
	bob.e.Connected(r.now)
	bob.e.ChannelOpened(r.now)
	bob.e.SetConstraints(want(180), r.now)
	for range 20 {
		alice.stream(1, 0)
		alice.audio(10)
		r.flush()
	}
	for _, g := range bob.rtp {
		want := "v0"
		if g.r.PT() == ptOpus {
			want = "a0"
		}
		if string(g.r.Extension(extMID)) != want || r.maps["bob"][g.r.SSRC()].MID != want {
			t.Fatalf("mid %q", g.r.Extension(extMID))
		}
	}
	if len(bob.rtp) < 30 {
		t.Fatalf("%d packets", len(bob.rtp))
	}
}

func TestConnectivity(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	r.take("")
	for range 30 {
		r.pass(500 * time.Millisecond)
		bob.e.Heard(r.now)
	}
	if got := r.take("alice sees"); len(got) != 0 {
		t.Fatalf("within 15 s: %q", got)
	}
	r.pass(time.Second)
	if got := r.take("alice sees"); !slices.Equal(got, []string{"alice sees alice false"}) {
		t.Fatalf("after 16 s: %q", got)
	}
	alice.audio(1)
	r.flush()
	r.pass(time.Second)
	if got := r.take("bob sees"); !slices.Equal(got, []string{"bob sees alice true"}) {
		t.Fatalf("back: %q", got)
	}
	bob.e.Heard(r.now)
	r.pass(6900 * time.Millisecond)
	if got := r.take("bob sees"); len(got) != 0 {
		t.Fatalf("%q", got)
	}
	r.pass(1600 * time.Millisecond)
	if got := r.take("bob sees"); !slices.Contains(got, "bob sees alice false") {
		t.Fatalf("after 8 s: %q", got)
	}
	carol := r.join("carol")
	if got := r.take("carol sees"); !slices.Contains(got, "carol sees alice false") {
		t.Fatalf("a newcomer hears %q", got)
	}
	_ = carol
}

func TestSpeaker(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	talk := func(who *client, d time.Duration) {
		for i := range int(d / (20 * time.Millisecond)) {
			for _, c := range []*client{alice, bob} {
				level := speech(i % 50)
				if c == who {
					level = speech(50 + i)
				}
				c.audio(level)
			}
			r.flush()
			r.pass(20 * time.Millisecond)
		}
	}
	talk(nil, time.Second)
	talk(alice, 2*time.Second)
	if got := r.take("bob speaker"); len(got) == 0 || got[len(got)-1] != "bob speaker alice []" {
		t.Fatalf("%q", got)
	}
	talk(bob, 3*time.Second)
	if got := r.take("bob speaker"); len(got) != 1 || got[0] != "bob speaker bob [alice]" {
		t.Fatalf("%q", got)
	}
}

func TestAudioSubscription(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	talk := func() int {
		before := len(bob.rtp)
		for range 30 {
			alice.audio(20)
			r.flush()
			r.pass(20 * time.Millisecond)
		}
		return len(bob.rtp) - before
	}
	for i, test := range []struct {
		s    AudioSubscription
		hear bool
	}{
		{AudioSubscription{All: true}, true},
		{AudioSubscription{}, false},
		{AudioSubscription{Include: []string{"alice-a0"}}, true},
		{AudioSubscription{All: true, Exclude: []string{"alice-a0"}}, false},
		{AudioSubscription{All: true, Include: []string{"alice-a0"}, Exclude: []string{"alice-a0"}}, false},
		{AudioSubscription{All: true}, true},
	} {
		bob.e.SetAudioSubscription(test.s, r.now)
		if n := talk(); n > 0 != test.hear {
			t.Errorf("%d: %d packets", i, n)
		}
	}
}

// Fuzzed bytes from one participant reach nobody and break nothing.
func FuzzReceive(f *testing.F) {
	r := newRoom(f)
	c := r.join("x")
	f.Add(c.videoPacket(0, true, true, true, 100), []byte{})
	f.Add(c.audioPacket(3, 10), packet.AppendNACK(nil, 1, 2, []uint16{1, 2}))
	f.Add([]byte{}, packet.AppendSR(packet.AppendPLI(nil, 1, 2), packet.SenderInfo{SSRC: 1001}))
	f.Fuzz(func(t *testing.T, rtp, rtcp []byte) {
		r := newRoom(t)
		alice, bob := r.join("alice"), r.joinWith("bob", nil, false)
		bob.e.SetConstraints(want(720), r.now)
		alice.stream(2, 0)
		for _, ssrc := range []SSRC{0, alice.base, alice.base + 1, alice.base + 11} {
			b := &packet.Buf{}
			b.Data = append(b.Space()[:0], rtp[:min(len(rtp), packet.MaxBytes)]...)
			if ssrc != 0 && len(b.Data) >= 12 {
				binary.BigEndian.PutUint32(b.Data[8:], ssrc)
			}
			alice.e.ReceiveRTP(b, r.now)
			b = &packet.Buf{}
			b.Data = append(b.Space()[:0], alice.videoPacket(0, true, true, false, 100)...)
			alice.e.ReceiveRTP(b, r.now)
		}
		alice.e.ReceiveRTCP(rtcp, r.now)
		bob.e.ReceiveRTCP(rtcp, r.now)
		r.c.Flush(r.now)
		r.pass(time.Second)
	})
}

// Whatever is lost or late around silence, no number goes out twice and the order of what was sent stays.
func TestSilenceNumbers(test *testing.T) {
	rapid.Check(test, func(t *rapid.T) {
		r := newRoom(test)
		alice, bob := r.join("alice"), r.joinWith("bob", nil, false)
		var late [][]byte
		level := byte(30)
		for range rapid.IntRange(1, 120).Draw(t, "packets") {
			if rapid.IntRange(0, 7).Draw(t, "turn") == 0 {
				level = 157 - level // silence or speech
			}
			p := alice.audioPacket(level, 20)
			switch rapid.IntRange(0, 7).Draw(t, "fate") {
			case 0:
			case 1:
				late = append(late, p)
			default:
				alice.send(p)
			}
			if len(late) > 0 && rapid.IntRange(0, 2).Draw(t, "arrives") == 0 {
				alice.send(late[0])
				late = late[1:]
			}
			r.flush()
		}
		bySeq := map[uint16]uint32{}
		for _, g := range bob.rtp {
			if ts, again := bySeq[g.r.Seq()]; again {
				t.Fatalf("%d went out with timestamps %d and %d", g.r.Seq(), ts, g.r.Timestamp())
			}
			bySeq[g.r.Seq()] = g.r.Timestamp()
		}
		for _, a := range bob.rtp {
			for _, b := range bob.rtp {
				if packet.Newer(a.r.Seq(), b.r.Seq()) != (int32(a.r.Timestamp()-b.r.Timestamp()) > 0) {
					t.Fatalf("seq %d and %d, timestamps %d and %d", a.r.Seq(), b.r.Seq(), a.r.Timestamp(), b.r.Timestamp())
				}
			}
		}
	})
}
