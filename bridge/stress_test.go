package bridge

import (
	"testing"
	"time"

	"plenum/bridge/udp"
)

// Stress is what the bridge runs out of first, and is told apart.
func TestStress(t *testing.T) {
	start := time.Now()
	media := func(busy [2]time.Duration, bytes, datagrams, drops uint64) mediaStats {
		return mediaStats{SocketDrops: drops, Cores: []coreCounters{
			{Busy: busy[0], Out: udp.Counters{Bytes: bytes, Datagrams: datagrams}}, {Busy: busy[1]},
		}}
	}
	var l load
	const step = 10 * time.Second
	if s, _ := l.measure(start, media([2]time.Duration{time.Hour, 0}, 1<<40, 0, 5), 1000); s != (stress{}) {
		t.Errorf("what was before the first measurement is %+v", s)
	}
	for i, tt := range []struct {
		busy             time.Duration // of the second core, in a step
		bytes, datagrams uint64
		drops            uint64
		uplink           uint64
		core, up         float64
	}{
		{uplink: 10_000_000},
		{busy: 1700 * time.Millisecond, core: 0.2},
		{busy: 6800 * time.Millisecond, core: 0.8},
		{bytes: 9_500_000 - 28_000, datagrams: 1000, uplink: 10_000_000, up: 0.8},
		{busy: 1700 * time.Millisecond, drops: 1, core: 1},
		{bytes: 9_500_000},
	} {
		before := l
		now := start.Add(time.Duration(i+1) * step)
		m := media([2]time.Duration{before.busy[0], before.busy[1] + tt.busy}, before.sent+tt.bytes, tt.datagrams, before.dropped+tt.drops)
		s, _ := l.measure(now, m, tt.uplink)
		if !near(s.Core, tt.core) || !near(s.Uplink, tt.up) {
			t.Errorf("%d: %+v, want core %v, uplink %v", i, s, tt.core, tt.up)
		}
		if s.most() < max(s.Machine, tt.core, tt.up)-0.01 {
			t.Errorf("%d: most of %+v is %v", i, s, s.most())
		}
		if again, _ := l.measure(now.Add(time.Second), m, tt.uplink); again != s {
			t.Errorf("%d: %+v a second later", i, again)
		}
	}
}

func near(a, b float64) bool { return a-b < 0.01 && b-a < 0.01 }
