package conference

import (
	"testing"
	"time"
)

// TestOutage loses everything for twenty seconds, as behind a lift's doors: the picture is there again with the sound, and in
// full size within seconds.
func TestOutage(t *testing.T) {
	r, cam, v := opened(t, pipe{bps: 5e6, queue: 300 * time.Millisecond, delay: 25 * time.Millisecond})
	r.play(10*time.Second, cam, v)
	v.look(t, "before", 10*time.Second)
	v.down.loss, v.up.loss = 1, 1
	r.play(20*time.Second, cam, v)
	v.look(t, "nothing", 20*time.Second)
	v.down.loss, v.up.loss = 0, 0
	r.play(1500*time.Millisecond, cam, v)
	if l := v.look(t, "at once", 1500*time.Millisecond); l.frames < 20 {
		t.Errorf("%d pictures in the first second and a half", l.frames)
	}
	r.play(3500*time.Millisecond, cam, v)
	v.look(t, "soon", 3500*time.Millisecond)
	r.play(5*time.Second, cam, v)
	if l := v.look(t, "later", 5*time.Second); l.height != 720 || l.frames < 140 {
		t.Error("not as before")
	}
}
