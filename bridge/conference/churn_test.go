package conference

import (
	"fmt"
	"testing"
)

// TestChurn has thousands join one after the other while somebody stays who does not know rewriting: it gets the
// media of the last one as it got that of the first, and nothing grows with those who are gone.
func TestChurn(t *testing.T) {
	r := newRoom(t)
	bob := r.joinWith("bob", nil, false)
	bob.e.SetConstraints(want(180), r.now)
	for i := range 3 * maxOutputs / 2 {
		id := EndpointID(fmt.Sprint("n", i))
		a := r.join(id)
		r.maps["bob"] = map[SSRC]Mapping{a.base + 1: {Source: string(id) + "-v0"}}
		bob.rtp = bob.rtp[:0]
		a.stream(2, 0)
		a.audio(20)
		r.flush()
		audio := 0
		for _, g := range bob.rtp {
			if g.r.SSRC() == a.base {
				audio++
			}
		}
		if audio == 0 || len(bob.on(string(id)+"-v0")) == 0 {
			t.Fatalf("of number %d come %d packets of audio, %d in all", i, audio, len(bob.rtp))
		}
		r.c.Remove(id, r.now)
		bob.rtcp, r.log = nil, nil
	}
	if n := len(bob.e.outputs); n > maxOutputs {
		t.Errorf("%d outputs are remembered", n)
	}
}
