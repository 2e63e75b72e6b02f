package conference

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"plenum/bridge/packet"
)

// remb makes a receiver's own estimate.
func remb(bps int) []byte {
	e := 0
	for bps >= 1<<18 {
		bps >>= 1
		e++
	}
	return []byte{0x80 | packet.FormatREMB, packet.TypePSF, 0, 5, 0, 0, 0, 9, 0, 0, 0, 0, 'R', 'E', 'M', 'B',
		1, byte(e<<2 | bps>>16), byte(bps >> 8), byte(bps), 0, 0, 0, 1}
}

// TestNoiseChangesNothing has estimates that vary by a tenth around every rate there is: layers stay as they are.
func TestNoiseChangesNothing(t *testing.T) {
	worst := uint64(0)
	for rate := 200_000; rate <= 2_600_000; rate = rate * 5 / 4 {
		r := newRoom(t)
		cam, bob := r.camera("alice"), r.join("bob")
		bob.e.SetConstraints(want(720), r.now)
		rnd := rand.New(rand.NewPCG(uint64(rate), 1))
		noisy := func(d time.Duration) {
			for end := r.now.Add(d); r.now.Before(end); {
				r.play(100*time.Millisecond, cam)
				bob.e.ReceiveRTCP(remb(int(float64(rate)*(0.9+0.2*rnd.Float64()))), r.now)
			}
		}
		noisy(10 * time.Second)
		before := bob.e.down.changes
		noisy(30 * time.Second)
		changes := bob.e.down.changes - before
		worst = max(worst, changes)
		if changes > 2 {
			t.Errorf("%d kbit/s: %d changes in half a minute", rate/1000, changes)
		}
		if got := bob.e.down.taken; float64(got) > 0.95*float64(rate) {
			t.Errorf("%d kbit/s are taken of %d", got/1000, rate/1000)
		}
	}
	t.Log("at most", worst, "changes")
}

// TestAllAreSeen gives a receiver of ten cameras less and less: as long as there is enough for the lowest layer of all,
// all are seen, and what is on stage is better than the rest.
func TestAllAreSeen(t *testing.T) {
	r := newRoom(t)
	var cams []*sender
	for i := range 10 {
		cams = append(cams, r.camera(EndpointID(fmt.Sprint("c", i))))
	}
	bob := r.join("bob")
	q := want(720)
	q.OnStageSources = &[]string{"c3-v0"}
	bob.e.SetConstraints(q, r.now)
	play := func(d time.Duration, rate int) {
		for end := r.now.Add(d); r.now.Before(end); {
			for _, c := range cams {
				r.play(10*time.Millisecond, c)
			}
			bob.e.ReceiveRTCP(remb(rate), r.now)
		}
	}
	for _, rate := range []int{8_000_000, 2_000_000, 1_000_000, 400_000} {
		play(6*time.Second, rate)
		if n := len(bob.e.forwarded); n != 10 {
			t.Errorf("%d kbit/s: %d of 10 are forwarded", rate/1000, n)
		}
		if got := bob.e.down.taken; float64(got) > 1.06*float64(rate) { // what there is may cost a little more before it goes
			t.Errorf("%d kbit/s: %d are taken", rate/1000, got/1000)
		}
	}
	// The one on stage is the last to go.
	play(6*time.Second, 130_000)
	if n := len(bob.e.forwarded); n == 0 || n == 10 || bob.e.forwarded[0] != "c3-v0" {
		t.Errorf("forwarded %v", bob.e.forwarded)
	}
}
