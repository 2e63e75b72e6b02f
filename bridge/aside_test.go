package bridge

import (
	"testing"
	"time"
)

func TestAside(t *testing.T) {
	var a aside
	now := time.Now()
	// pass lets a second go by with so many wake-ups, each with one report, and says how often on has changed.
	pass := func(wakes int, alone bool) (changes int) {
		for range wakes {
			now = now.Add(time.Second / time.Duration(wakes))
			if a.change(now, 1, alone) {
				changes++
			}
		}
		return changes
	}
	if n := pass(100, true); n != 0 || a.on {
		t.Errorf("few receivers: %d changes, on %v", n, a.on)
	}
	if n := pass(1000, false); n != 0 || a.on {
		t.Errorf("much media: %d changes, on %v", n, a.on)
	}
	if n := pass(1000, true); n != 1 || !a.on {
		t.Errorf("many receivers: %d changes, on %v", n, a.on)
	}
	if n := pass(200, true); n != 0 || !a.on {
		t.Errorf("woken less often for them: %d changes, on %v", n, a.on)
	}
	if n := pass(50, true); n != 1 || a.on {
		t.Errorf("few again: %d changes, on %v", n, a.on)
	}
	now = now.Add(time.Hour)
	a.wakes = 1000 // all in the hour
	if a.change(now, 1, true) {
		t.Error("rare wake-ups add up")
	}
}
