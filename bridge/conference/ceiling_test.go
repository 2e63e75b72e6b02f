package conference

import (
	"testing"
	"time"
)

// TestCeiling holds back the video of all receivers, those with a wide path too, and lets it go again.
func TestCeiling(t *testing.T) {
	r, cam, v := opened(t, pipe{delay: 5 * time.Millisecond})
	r.play(5*time.Second, cam, v)
	if l := v.look(t, "free", 5*time.Second); l.height != 720 {
		t.Fatal("not in full size")
	}
	r.c.SetCeiling(300_000, r.now)
	r.play(2*time.Second, cam, v)
	v.look(t, "changing", 2*time.Second)
	r.play(5*time.Second, cam, v)
	if l := v.look(t, "held back", 5*time.Second); l.height != 180 || l.mbps > 0.33 || l.frames < 140 || l.lostAudio > 0 {
		t.Error("not as much as may be sent")
	}
	late := r.watch("late", newPipe(3), newPipe(4)) // knows nothing of its path yet
	r.play(400*time.Millisecond, cam, v, late)
	late.e.SetConstraints(want(720), r.now)
	r.play(3*time.Second, cam, v, late)
	if l := late.look(t, "late", 3*time.Second); l.height > 180 || l.mbps > 0.4 {
		t.Error("somebody who comes later is not held back")
	}
	r.c.SetCeiling(0, r.now)
	r.play(8*time.Second, cam, v, late)
	if l := v.look(t, "free again", 8*time.Second); l.height != 720 {
		t.Error("not in full size again")
	}
}
