package conference

import (
	"fmt"
	"testing"
	"time"

	"plenum/bridge/packet"
)

const ptRED = 112

func redOffer() Media {
	m := offer()
	m.PayloadTypes = append(m.PayloadTypes, PayloadType{PT: ptRED, Codec: "red", Clockrate: 48000})
	return m
}

// redundantPacket makes the next packet of audio with the one before it.
func (c *client) redundantPacket(level byte) []byte {
	p := c.audioPacket(level, 0)
	p[1] = ptRED
	n := byte(c.seq[0])
	return append(p, 0x80|ptOpus, 960>>6, 960<<2&0xff, 2, ptOpus, n-1, n-1, n, n, n)
}

// TestRedundancy sends redundant audio to three: one who loses nothing gets it plain, one who loses something as it came,
// one who does not know the format plain. What only looks like it is not touched.
func TestRedundancy(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		r := newRoom(t)
		alice := r.join("alice")
		alice.e.SetMedia(redOffer())
		watch := func(id EndpointID, loss float64) *viewer {
			down := newPipe(1)
			down.loss = loss
			return r.watch(id, down, newPipe(2))
		}
		bob, carol, dave := watch("bob", 0), watch("carol", 0.05), watch("dave", 0)
		bob.e.SetMedia(redOffer())
		carol.e.SetMedia(redOffer())
		got := map[*viewer]map[uint8]int{bob: {}, carol: {}, dave: {}}
		last := map[*viewer]uint16{}
		for i := range 600 {
			p := alice.redundantPacket(30)
			if encrypted {
				for j := len(p) - 8; j < len(p); j++ {
					p[j] ^= byte(i * (j + 7)) // all but the first byte
				}
			}
			alice.send(p)
			r.flush()
			r.pass(20 * time.Millisecond)
			for v, types := range got {
				for _, f := range v.down.flying {
					if x, err := packet.ParseRTP(f.b); err == nil && !packet.IsRTCP(f.b) && i >= 300 {
						types[x.PT()]++
						if x.PT() == ptOpus && string(x.Payload) != string([]byte{byte(x.Seq() + 1), byte(x.Seq() + 1), byte(x.Seq() + 1)}) {
							t.Fatalf("packet %d is %x", x.Seq(), x.Payload)
						}
						if last[v] != 0 && x.Seq() != last[v]+1 && v != carol {
							t.Fatalf("packet %d after %d", x.Seq(), last[v])
						}
						last[v] = x.Seq()
					}
				}
				v.step()
			}
		}
		if encrypted {
			if got[bob][ptOpus]+got[carol][ptOpus]+got[dave][ptOpus] > 0 {
				t.Error("encrypted audio was taken apart")
			}
			continue
		}
		if got[bob][ptOpus] < 290 || got[bob][ptRED] > 0 || got[dave][ptOpus] < 290 || got[dave][ptRED] > 0 {
			t.Errorf("without loss %v, without the format %v", got[bob], got[dave])
		}
		if got[carol][ptRED] < 200 || got[carol][ptOpus] > 0 {
			t.Errorf("with loss %v", got[carol])
		}
	}
}

// TestLoudest has forty unmuted microphones in a room, three of whom speak: they are heard, whole, and nobody else.
func TestLoudest(t *testing.T) {
	r := newRoom(t)
	var all []*client
	for i := range 40 {
		all = append(all, r.join(EndpointID(fmt.Sprint("p", i))))
	}
	speaks := map[int]bool{3: true, 17: true, 30: true}
	round := func(n int) {
		for range n {
			for i, c := range all {
				level := byte(70)
				if speaks[i] {
					level = 25
				}
				c.audio(level)
			}
			r.flush()
			r.pass(20 * time.Millisecond)
		}
	}
	round(100)
	heard := func() map[string]int {
		m := map[string]int{}
		last := map[SSRC]uint16{}
		for _, g := range all[0].rtp {
			m[r.maps["p0"][g.r.SSRC()].Source]++
			if n := last[g.r.SSRC()]; n != 0 && g.r.Seq() != n+1 {
				t.Fatalf("%s: packet %d after %d", r.maps["p0"][g.r.SSRC()].Source, g.r.Seq(), n)
			}
			last[g.r.SSRC()] = g.r.Seq()
		}
		return m
	}
	all[0].rtp = nil
	round(100)
	if m := heard(); len(m) != 3 || m["p3-a0"] < 99 || m["p17-a0"] < 99 || m["p30-a0"] < 99 {
		t.Errorf("heard %v", m)
	}
	// One ends, another begins: heard from its first packets on.
	delete(speaks, 17)
	speaks[22] = true
	round(100)
	all[0].rtp = nil
	round(100)
	if m := heard(); len(m) != 3 || m["p22-a0"] < 99 {
		t.Errorf("heard %v", m)
	}
	// Who is asked for by name is heard, loud or not.
	all[0].e.SetAudioSubscription(AudioSubscription{Include: []string{"p5-a0"}}, r.now)
	round(100)
	all[0].rtp = nil
	round(50)
	if m := heard(); len(m) != 1 || m["p5-a0"] < 49 {
		t.Errorf("heard %v", m)
	}
	if r.c.stats.Quiet == 0 {
		t.Error("not counted")
	}
	r.c.Remove("p0", r.now)
	if len(r.c.included) != 0 {
		t.Error("somebody who is gone still asks by name")
	}
}
