package conference

import (
	"testing"
	"time"

	"plenum/bridge/packet"
)

// TestPacedKeyFrames: a key frame of 720p is spread where the path would have to queue it, and goes out at once where
// pictures have shown that it need not be, whatever the estimate, which stays near what is wanted.
func TestPacedKeyFrames(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		pipe pipe
		at   bool // once
		wait time.Duration
	}{
		{"3 Mbit/s", pipe{bps: 3e6, queue: 300 * ms, delay: 20 * ms}, false, 80 * ms},
		{"100 Mbit/s", pipe{bps: 100e6, queue: 300 * ms, delay: 20 * ms}, true, 10 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, cam, v := opened(t, c.pipe)
			r.play(15*time.Second, cam, v)
			if l := v.look(t, "before", 15*time.Second); l.height != 720 {
				t.Fatal("not in full size")
			}
			for range 3 {
				before := r.c.stats.Paced
				for ssrc := range v.videos {
					v.e.ReceiveRTCP(packet.AppendPLI(nil, 9, ssrc), r.now)
				}
				r.play(time.Second, cam, v)
				if paced := r.c.stats.Paced - before; c.at != (paced == 0) {
					t.Errorf("%d packets waited", paced)
				}
			}
			if l := v.look(t, "after", 3*time.Second); l.wait > c.wait || l.freezes > 0 || l.lostAudio > 0 {
				t.Error("it was too much at a time")
			}
		})
	}
}
