package bridge

import (
	"testing"
	"time"
)

// TestUplinkIsKept has receivers want two and a half times the uplink, some of them much and most little: within three
// seconds no ten seconds exceed it by 5 %, most of it is used, and nothing is held back once there is room.
func TestUplinkIsKept(t *testing.T) {
	const most, sound = 300_000_000, 100_000
	wanted := make([]int64, 0, 400)
	for i := range 400 {
		wanted = append(wanted, []int64{400_000, 700_000, 2_500_000, 4_000_000}[i%4])
	}
	now := time.Now()
	var u uplink
	var sent uint64
	var rates []float64
	second := func(receivers int) {
		rate := int64(0)
		for _, w := range wanted[:receivers] {
			if u.ceiling > 0 {
				w = min(w, u.ceiling)
			}
			// Layers are steps: what does not fit is not sent at all.
			rate += w/150_000*150_000 + sound
		}
		d := 900*time.Millisecond + time.Duration(len(rates)%3)*100*time.Millisecond // counters come at times of their own
		now = now.Add(d)
		sent += uint64(float64(rate) * d.Seconds() / 8)
		rates = append(rates, float64(rate)/most)
		u.next(now, sent, most, receivers)
	}
	for range 60 {
		second(400)
	}
	for i := 3; i+10 <= len(rates); i++ {
		sum := 0.0
		for _, r := range rates[i : i+10] {
			sum += r / 10
		}
		if sum > 1.05 || sum < 0.75 {
			t.Fatalf("from second %d on %.0f %% of the uplink are used: %.2f", i, 100*sum, rates[i:i+10])
		}
	}
	if r := rates[0]; r < 2 {
		t.Fatalf("only %.2f are wanted", r)
	}
	for range 80 {
		second(40)
	}
	if u.ceiling != 0 {
		t.Errorf("held back to %d with %.2f of the uplink in use", u.ceiling, rates[len(rates)-1])
	}
	u = uplink{}
	for i, sent := range []uint64{1 << 40, 1 << 40, 1 << 30} { // what was before the first measurement, nothing, a new count
		if c := u.next(now.Add(time.Duration(i)*time.Second), sent, most, 10); c != 0 {
			t.Errorf("%d: a ceiling of %d for nothing", i, c)
		}
	}
}
