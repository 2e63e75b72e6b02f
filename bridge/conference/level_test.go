package conference

import (
	"bytes"
	"testing"
	"time"

	"plenum/bridge/packet"
)

// The parts of a frame leave equally long, and what is in them is what came.
func TestLevel(t *testing.T) {
	r := newRoom(t)
	alice, bob := r.join("alice"), r.join("bob")
	bob.e.SetConstraints(want(720), r.now)
	r.pass(33 * time.Millisecond)
	alice.frame(2, 6, true)
	r.flush()
	for _, tc := range []struct{ in, out []int }{
		{[]int{1041, 1041, 1042, 1042}, []int{1042, 1042, 1042, 1042}},
		{[]int{1042, 1041, 1042, 1041}, []int{1042, 1042, 1042, 1041}}, // the last may be shorter
		{[]int{1040, 1042}, []int{1040, 1042}},
		{[]int{1041}, []int{1041}},
	} {
		r.pass(33 * time.Millisecond)
		bob.rtp = nil
		bufs := make([]packet.Buf, len(tc.in))
		var payloads [][]byte
		for i, size := range tc.in {
			alice.compose(&bufs[i], 2, i == 0, i == len(tc.in)-1, false, size)
			p, err := packet.ParseRTP(bytes.Clone(bufs[i].Data))
			if err != nil {
				t.Fatal(err)
			}
			payloads = append(payloads, p.Payload)
		}
		for i := range bufs {
			alice.e.ReceiveRTP(&bufs[i], r.now)
		}
		r.c.Flush(r.now)
		if len(bob.rtp) != len(tc.in) {
			t.Fatalf("%v: %d packets arrive", tc.in, len(bob.rtp))
		}
		first := len(bob.rtp[0].r.Data)
		for i, g := range bob.rtp {
			if got := len(g.r.Data) - first; got != tc.out[i]-tc.out[0] {
				t.Errorf("%v: packet %d is %d bytes longer than the first", tc.in, i, got)
			}
			if !bytes.Equal(g.r.Payload, payloads[i]) {
				t.Errorf("%v: packet %d has another payload", tc.in, i)
			}
		}
	}
}
