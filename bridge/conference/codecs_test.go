package conference

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

const (
	ptVP9, ptVP9RTX   = 101, 97
	ptH264, ptH264RTX = 107, 99
)

// A camera sends one source's encodings with any codec; it answers requests for key frames.
type camera struct {
	*client
	codec   codec.Codec
	spatial int // VP9: layers of the one encoding
	filler  *rand.Rand
	asked   int
	key     bool
}

func newCamera(r *room, id EndpointID, c codec.Codec) *camera {
	x := &camera{client: r.join(id), codec: c, spatial: 3, filler: rand.New(rand.NewPCG(1, 2)), key: true}
	return x
}

// codecsOffer is offer with the codecs that there are.
func codecsOffer() Media {
	m := offer()
	m.PayloadTypes = append(m.PayloadTypes,
		PayloadType{PT: ptVP9, Codec: "VP9", Clockrate: 90000}, PayloadType{PT: ptVP9RTX, Codec: "rtx", Clockrate: 90000, RTXFor: ptVP9},
		PayloadType{PT: ptH264, Codec: "H264", Clockrate: 90000}, PayloadType{PT: ptH264RTX, Codec: "rtx", Clockrate: 90000, RTXFor: ptH264})
	return m
}

// emit sends one packet of an encoding: descriptor as given, then noise.
func (x *camera) emit(enc int, pt uint8, marker bool, payload ...byte) {
	h := packet.Header{PT: pt, Marker: marker, Seq: x.seq[enc+1], Timestamp: x.ts[enc+1], SSRC: x.base + 1 + SSRC(enc)}
	p, e := packet.BeginExtensions(h.Append(nil), false)
	if pt == ptVP9 { // which has no need of a descriptor
		p = e.Add(p, extDD, 3)
		p[len(p)-3] = 0xc9
	}
	p = append(e.End(p, 0), payload...)
	for range 200 {
		p = append(p, byte(x.filler.Uint32()))
	}
	x.seq[enc+1]++
	x.send(p)
}

// picture sends one picture in the given encodings.
func (x *camera) picture(encs ...int) {
	if n := len(x.rtcpOf(packet.TypePSF, packet.FormatPLI)); n > x.asked {
		x.asked, x.key = n, true
	}
	for _, enc := range encs {
		if x.key {
			x.n[enc] = 0
		}
		tid := [4]byte{0, 2, 1, 2}[x.n[enc]%4]
		if tid == 0 {
			x.tl0[enc]++
		}
		switch x.codec {
		case codec.VP9:
			for sid := range byte(x.spatial) {
				for i := range 2 {
					d := byte(0xa0) // I, L
					if !x.key {
						d |= 0x40
					}
					d |= []byte{0x08, 0x04}[i] // B, E
					if !x.key || int(sid) == x.spatial-1 {
						d |= 0x01 // Z
					}
					layers := tid<<5 | 0x10 | sid<<1
					p := []byte{d, 0x80 | byte(x.number(enc)>>8), byte(x.number(enc)), layers, x.tl0[enc]}
					if x.key && sid == 0 && i == 0 {
						p[0] |= 0x02
						p = append(p, byte(x.spatial-1)<<5|0x10)
						for s := range x.spatial {
							p = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(p, 320<<s), 180<<s)
						}
					}
					x.emit(enc, ptVP9, i == 1 && int(sid) == x.spatial-1, p...)
				}
			}
		case codec.H264:
			if x.key {
				x.emit(enc, ptH264, false, 0x78, 0, 4, 0x67, 0x42, 0, byte(enc), 0, 2, 0x68, 0xce)
				x.emit(enc, ptH264, false, 0x7c, 0x85)
				x.emit(enc, ptH264, true, 0x7c, 0x45)
			} else {
				x.emit(enc, ptH264, true, 0x41)
			}
		}
		x.ts[enc+1] += 3000
		x.client.picture[enc]++
		x.n[enc]++
	}
	x.key = false
	x.r.flush()
	x.r.pass(33 * time.Millisecond)
}

func (x *camera) number(enc int) uint16 { return x.client.picture[enc] & 0x7fff }

func (x *camera) run(pictures int, encs ...int) {
	for range pictures {
		x.picture(encs...)
	}
}

// gapless checks that sequence numbers and timestamps of one stream go on, and returns its frames.
func gapless(t *testing.T, in []got, c codec.Codec) (frames []codec.Frame) {
	t.Helper()
	var r codec.Reader
	for i, g := range in {
		var f codec.Frame
		r.Read(c, g.r.Payload, nil, g.r.Timestamp(), &f)
		if i > 0 {
			p := in[i-1].r
			if g.r.Seq() != p.Seq()+1 {
				t.Fatalf("packet %d: seq %d after %d", i, g.r.Seq(), p.Seq())
			}
			if step := int32(g.r.Timestamp() - p.Timestamp()); (step > 0) != p.Marker() || step < 0 {
				t.Fatalf("packet %d: timestamp goes by %d, marker %v before it", i, step, p.Marker())
			}
		} else if !f.Key {
			t.Fatal("does not begin with a key frame")
		}
		frames = append(frames, f)
	}
	return frames
}

// One encoding of three spatial layers: each receiver gets that which it asks for, and no higher or lower one but
// in key pictures.
func TestSpatialLayers(t *testing.T) {
	r := newRoom(t)
	alice, bob, carol := newCamera(r, "alice", codec.VP9), r.join("bob"), r.join("carol")
	for _, c := range r.all {
		c.e.SetMedia(codecsOffer())
	}
	carol.e.SetConstraints(want(720), r.now)
	var expect []uint8
	for _, h := range []int{180, 720, 360, 180, 720} {
		bob.e.SetConstraints(want(h), r.now)
		alice.run(30, 0)
		expect = append(expect, map[int]uint8{180: 0, 360: 1, 720: 2}[h])
	}
	alice.spatial = 2 // the camera has not the means for the highest any more, and says so by not sending it
	alice.run(60, 0)
	expect = append(expect, 1)

	media := bob.on("alice-v0")
	frames := gapless(t, media, codec.VP9)
	var tops []uint8
	for i, f := range frames {
		if media[i].r.Extension(extDD) != nil {
			t.Fatal("the dependency descriptor went out with VP9")
		}
		if i > 0 && f.Start && media[i-1].r.Marker() {
			step := (f.Picture.ID - frames[i-1].Picture.ID) & 0x7fff
			if step == 0 || step > 4 {
				t.Fatalf("packet %d: picture %d after %d", i, f.Picture.ID, frames[i-1].Picture.ID)
			}
		}
		if media[i].r.Marker() && (len(tops) == 0 || tops[len(tops)-1] != f.Picture.SID) {
			tops = append(tops, f.Picture.SID)
		}
	}
	if !slices.Equal(tops, expect) {
		t.Errorf("bob got spatial layers %v, wanted %v", tops, expect)
	}
	if asked := len(alice.rtcpOf(packet.TypePSF, packet.FormatPLI)); asked > 12 {
		t.Errorf("%d key frame requests", asked)
	}
	// Retransmitted is what went out: the marker that the sender gave to a higher layer too.
	m := r.maps["bob"][media[0].r.SSRC()]
	for _, i := range []int{len(media) - 1, len(media) - 2} {
		bob.rtp = nil
		bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m.SSRC, []uint16{media[i].r.Seq()}), r.now)
		if len(bob.rtp) != 1 {
			t.Fatalf("%d packets", len(bob.rtp))
		}
		if g, o := bob.rtp[0].r, media[i].r; g.PT() != ptVP9RTX || g.Marker() != o.Marker() || !bytes.Equal(g.Payload[2:], o.Payload) || g.Extension(extDD) != nil {
			t.Errorf("marker %v, was %v; payload %x, was %x", g.Marker(), o.Marker(), g.Payload[:8], o.Payload[:6])
		}
	}
	if len(gapless(t, carol.on("alice-v0"), codec.VP9)) == 0 {
		t.Error("carol got nothing")
	}
}

func TestRetransmittedMarker(t *testing.T) {
	r := newRoom(t)
	alice, bob := newCamera(r, "alice", codec.VP9), r.join("bob")
	for _, c := range r.all {
		c.e.SetMedia(codecsOffer())
	}
	bob.e.SetConstraints(want(180), r.now)
	alice.run(10, 0)
	media := bob.on("alice-v0")
	m := r.maps["bob"][media[0].r.SSRC()]
	bob.rtp = nil
	bob.e.ReceiveRTCP(packet.AppendNACK(nil, 77, m.SSRC, []uint16{media[len(media)-2].r.Seq(), media[len(media)-1].r.Seq()}), r.now)
	if len(bob.rtp) != 2 || bob.rtp[0].r.Marker() || !bob.rtp[1].r.Marker() {
		t.Fatalf("%d packets", len(bob.rtp))
	}
}

// Simulcast of a codec without any numbers of its own changes its encoding at key frames all the same.
func TestH264Simulcast(t *testing.T) {
	r := newRoom(t)
	alice, bob := newCamera(r, "alice", codec.H264), r.join("bob")
	for _, c := range r.all {
		c.e.SetMedia(codecsOffer())
	}
	for _, h := range []int{180, 720, 360, 720} {
		bob.e.SetConstraints(want(h), r.now)
		alice.run(30, 0, 1, 2)
	}
	media := bob.on("alice-v0")
	var got []byte
	for i, f := range gapless(t, media, codec.H264) {
		if enc := media[i].r.Payload[6]; f.Key && (len(got) == 0 || got[len(got)-1] != enc) {
			got = append(got, enc)
		}
	}
	if !bytes.Equal(got, []byte{0, 2, 1, 2}) {
		t.Errorf("encodings %v", got)
	}
}

// The codec changes on a running SSRC: the stream goes on with the first key frame of the new one.
func TestCodecChangesInMidCall(t *testing.T) {
	r := newRoom(t)
	alice, bob := newCamera(r, "alice", codec.H264), r.join("bob")
	for _, c := range r.all {
		c.e.SetMedia(codecsOffer())
	}
	bob.e.SetConstraints(want(180), r.now)
	alice.run(20, 0)
	for _, c := range []codec.Codec{codec.VP9, codec.H264, codec.VP9} {
		alice.codec, alice.spatial = c, 1
		alice.run(20, 0) // the key frame comes when it is asked for
	}
	media := bob.on("alice-v0")
	var pts []uint8
	for i, g := range media {
		if i > 0 && g.r.Seq() != media[i-1].r.Seq()+1 {
			t.Fatalf("seq %d after %d", g.r.Seq(), media[i-1].r.Seq())
		}
		if len(pts) == 0 || pts[len(pts)-1] != g.r.PT() {
			pts = append(pts, g.r.PT())
			var f codec.Frame
			new(codec.Reader).Read(map[uint8]codec.Codec{ptVP9: codec.VP9, ptH264: codec.H264}[g.r.PT()], g.r.Payload, nil, 0, &f)
			if !f.Key {
				t.Fatalf("packet %d: %d does not begin with a key frame", i, g.r.PT())
			}
		}
	}
	if !bytes.Equal(pts, []byte{ptH264, ptVP9, ptH264, ptVP9}) {
		t.Errorf("payload types %v", pts)
	}
	if len(media) < 80 {
		t.Errorf("%d packets", len(media))
	}
}

// End-to-end encrypted VP8 is noise behind its clear bytes, ten of a key frame and three of any other one: it is
// switched and thinned by descriptor or picture id, and every byte behind arrives as it was.
func TestEncryptedEndToEnd(t *testing.T) {
	for _, pictures := range []bool{false, true} {
		r := newRoom(t)
		alice, bob := r.join("alice"), r.join("bob")
		alice.pictures = pictures
		noise := map[string]bool{}
		alice.alter = func(p []byte) {
			q, err := packet.ParseRTP(p)
			if err != nil {
				t.Fatal(err)
			}
			from := len(q.Payload) - 200
			for i := from; i < len(q.Payload); i++ {
				q.Payload[i] = byte(rand.Uint32())
			}
			noise[string(q.Payload[from:])] = true
		}
		for _, h := range []int{180, 720, 360} {
			bob.e.SetConstraints(want(h), r.now)
			alice.stream(40, 0, 1, 2)
		}
		media := bob.on("alice-v0")
		continuous(t, thinned(media, pictures), pictures)
		if h := heights(media); !slices.Equal(h, []int{180, 720, 360}) {
			t.Errorf("heights %v", h)
		}
		for i, g := range media {
			if !noise[string(g.r.Payload[len(g.r.Payload)-200:])] {
				t.Fatalf("packet %d is not as it was sent", i)
			}
		}
	}
}

// A visitor watches: what it sends goes nowhere, what it asks of senders goes through.
func TestVisitor(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	victor := r.enter("victor", nil, Capabilities{Rewriting: true, Visitor: true})
	victor.e.SetSources(nil, r.now) // it may have none: control refuses them
	victor.e.Connected(r.now)
	victor.e.ChannelOpened(r.now)
	for e := range r.c.Endpoints() {
		e.SetConstraints(want(180), r.now)
	}
	for range 20 {
		alice.audio(30)
		alice.stream(1, 0)
		victor.audio(0)
		victor.stream(1, 0)
	}
	continuous(t, victor.on("alice-v0"), false)
	for _, g := range slices.Concat(bob.rtp, alice.rtp) {
		if m := r.maps["bob"][g.r.SSRC()]; m.Owner == "victor" {
			t.Fatal("a visitor was heard")
		}
	}
	if len(alice.rtp) != 0 {
		t.Errorf("alice got %d packets of a visitor", len(alice.rtp))
	}
	r.pass(time.Second)
	alice.rtcp = nil
	victor.e.ReceiveRTCP(packet.AppendPLI(nil, 9, victor.on("alice-v0")[0].r.SSRC()), r.now)
	if len(alice.rtcpOf(packet.TypePSF, packet.FormatPLI)) != 1 {
		t.Error("the visitor's request for a key frame did not reach alice")
	}
	r.pass(time.Second)
	if log := r.take("bob speaker"); slices.ContainsFunc(log, func(l string) bool { return l == "bob speaker victor []" }) {
		t.Errorf("%q", log)
	}
}
