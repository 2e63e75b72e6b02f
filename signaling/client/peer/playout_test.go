package peer

import (
	"slices"
	"testing"
	"time"
)

// What a listener hears of a stream that is even, late for a while, lossy, or wanders.
func TestPlayout(t *testing.T) {
	const n, frame = 500, 20 * time.Millisecond
	start := time.Now()
	for _, tt := range []struct {
		name  string
		delay func(i int) time.Duration
		lose  func(i int) bool
		made  [2]time.Duration // least and most
	}{
		{"even", func(int) time.Duration { return 50 * time.Millisecond }, nil, [2]time.Duration{0, 0}},
		{"a quarter lost", func(int) time.Duration { return 0 }, func(i int) bool { return i%4 == 1 }, [2]time.Duration{2490 * time.Millisecond, 2500 * time.Millisecond}},
		{"a hole of 300 ms in the path", func(i int) time.Duration {
			return max(0, 300*time.Millisecond-max(0, time.Duration(i-200)*frame)) * time.Duration(min(1, i/200))
		}, nil, [2]time.Duration{200 * time.Millisecond, 300 * time.Millisecond}},
		{"jitter of 30 ms", func(i int) time.Duration { return time.Duration(i*7%4) * 10 * time.Millisecond }, nil, [2]time.Duration{0, 0}},
		{"jitter of 90 ms, learnt", func(i int) time.Duration { return time.Duration(i*7%10) * 10 * time.Millisecond }, nil, [2]time.Duration{10 * time.Millisecond, 100 * time.Millisecond}},
	} {
		var p playout
		lost := int64(0)
		last := time.Time{}
		for i := range n {
			at := start.Add(time.Duration(i)*frame + tt.delay(i))
			if at.Before(last) {
				at = last
			}
			last = at
			if tt.lose != nil && tt.lose(i) {
				lost++
				continue
			}
			p.arrive(uint32(i*960), 48000, lost, at)
			lost = 0
		}
		if p.made < tt.made[0] || p.made > tt.made[1] || p.expected < (n-1)*frame {
			t.Errorf("%s: %v of %v made up, want %v", tt.name, p.made, p.expected, tt.made)
		}
	}
}

// A camera behind a narrow uplink sends the low layers, and takes the highest on only when there is some to spare.
func TestCameraRate(t *testing.T) {
	for _, tt := range []struct {
		total int
		on    []bool
		want  []int
	}{
		{-1, []bool{false, false, false}, []int{200_000, 500_000, 1_500_000}},
		{-1, []bool{false}, []int{200_000}},
		{1_000_000, []bool{true, true, false}, []int{200_000, 500_000, 0}},
		{1_350_000, []bool{true, true, true}, []int{200_000, 500_000, 600_000}},
		{1_350_000, []bool{true, true, false}, []int{200_000, 500_000, 0}},
		{300_000, []bool{true, true, true}, []int{200_000, 0, 0}},
		{0, []bool{true, true, true}, []int{30_000, 0, 0}},
	} {
		if got := cameraRate(tt.total, tt.on); !slices.Equal(got, tt.want) {
			t.Errorf("%d: %d, want %d", tt.total, got, tt.want)
		}
	}
}
