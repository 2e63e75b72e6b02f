package conference

import (
	"encoding/binary"
	"testing"
	"time"

	"plenum/bridge/packet"
)

// TestNACKFlood asks for everything again and again: what goes out is bounded, by number and by what the way carries, and
// others get theirs.
func TestNACKFlood(t *testing.T) {
	r, cam, v := opened(t, pipe{bps: 3e6, queue: 300 * time.Millisecond, delay: 10 * time.Millisecond})
	carol := r.join("carol")
	carol.e.SetConstraints(want(720), r.now)
	r.play(5*time.Second, cam, v)
	var ssrc SSRC
	for s := range v.videos {
		ssrc = s
	}
	var all []uint16
	for i := range uint16(500) {
		all = append(all, v.e.outputs[ssrc].stream.Newest()-499+i)
	}
	flood := packet.AppendNACK(nil, 77, ssrc, all)
	before, heard := r.c.stats, len(carol.rtp)
	for range 100 {
		for range 50 {
			v.e.ReceiveRTCP(flood, r.now)
		}
		r.play(10*time.Millisecond, cam, v)
	}
	s := r.c.stats
	sent, asked := s.Retransmitted-before.Retransmitted, s.NACKsIn-before.NACKsIn
	t.Logf("%d packets were asked for, %d sent again, %d said to be under way, %d compounds dropped", asked, sent,
		s.RetransmitRepeated-before.RetransmitRepeated, s.RTCPDropped-before.RTCPDropped)
	if sent > rtxBurst+rtxPerSec*11/10 || asked < 10*sent || s.RTCPDropped == before.RTCPDropped {
		t.Error("requests are not bounded")
	}
	if _, n := v.e.down.pace.Waiting(); n > 512<<10 {
		t.Errorf("%d bytes wait", n)
	}
	if n := len(carol.rtp) - heard; n < 150 {
		t.Errorf("carol got %d packets in that second", n)
	}
}

// TestRepairOnce asks twice for what is on its way: it is sent once, and again after a round trip.
func TestRepairOnce(t *testing.T) {
	r, cam, v := opened(t, pipe{delay: 50 * time.Millisecond})
	r.play(3*time.Second, cam, v)
	var ssrc SSRC
	for s := range v.videos {
		ssrc = s
	}
	seq := v.e.outputs[ssrc].stream.Newest()
	for i, pause := range []time.Duration{0, 20 * time.Millisecond, 20 * time.Millisecond, 150 * time.Millisecond} {
		r.pass(pause)
		before := r.c.stats.Retransmitted
		v.e.ReceiveRTCP(packet.AppendNACK(nil, 77, ssrc, []uint16{seq}), r.now)
		if sent := r.c.stats.Retransmitted - before; sent != map[int]uint64{0: 1, 3: 1}[i] {
			t.Errorf("request %d brings %d packets", i, sent)
		}
	}
}

// TestBogusReports sends what no browser sends: nothing changes but the counters.
func TestBogusReports(t *testing.T) {
	r, cam, v := opened(t, pipe{delay: 5 * time.Millisecond})
	r.play(2*time.Second, cam, v)
	before := v.e.down.est.Bitrate()
	bogus := r.c.stats.BogusFeedback
	b := []byte{0x80 | packet.FormatTransportCC, packet.TypeRTPF, 0, 5, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 0, 0x20, 5, 0, 0}
	binary.BigEndian.PutUint16(b[12:], 40_000) // never sent
	for range 10 {
		v.e.ReceiveRTCP(b, r.now)
		v.e.ReceiveRTCP(remb(0), r.now) // counts nothing beside transport-wide feedback
	}
	if got := v.e.down.est.Bitrate(); got != before || r.c.stats.BogusFeedback != bogus+10 {
		t.Errorf("%d bit/s after, %d before, %d counted", got, before, r.c.stats.BogusFeedback-bogus)
	}
	// A receiver that says zero gets sound, and no more than one picture at its slowest.
	carol := r.join("carol")
	carol.e.SetConstraints(want(720), r.now)
	carol.e.ReceiveRTCP(remb(0), r.now)
	r.play(3*time.Second, cam, v)
	audio, video := 0, 0
	for _, g := range carol.rtp {
		if g.r.PT() == ptOpus {
			audio++
		} else if g.at.After(r.now.Add(-2 * time.Second)) {
			video += len(g.r.Data)
		}
	}
	if audio < 130 || video > 2*60_000/8 {
		t.Errorf("%d packets of audio, %d bytes of video in two seconds", audio, video)
	}
}
