package speaker

import (
	"testing"
	"time"
)

// TestRanking has five hundred unmuted microphones, three or four of whom speak.
func TestRanking(t *testing.T) {
	r := NewRanking[int](3)
	scores := make([]Score, 500)
	now := time.Unix(1_700_000_000, 0)
	speak := func(d time.Duration, who ...int) (loud map[int]int, most int) {
		loud = map[int]int{}
		for end := now.Add(d); now.Before(end); now = now.Add(20 * time.Millisecond) {
			n := 0
			for id := range scores {
				level := uint8(70 + id%9) // background
				for _, w := range who {
					if id == w {
						level = 30
					}
				}
				if r.Loud(id, &scores[id], level, now) {
					loud[id]++
					n++
				}
			}
			most = max(most, n)
		}
		return loud, most
	}
	speak(time.Second)
	loud, most := speak(2*time.Second, 7, 150, 480)
	if most > 6 { // a place may change hands within one round
		t.Errorf("%d at once", most)
	}
	for _, id := range []int{7, 150, 480} {
		if loud[id] < 96 {
			t.Errorf("%d is heard in %d packets of 100", id, loud[id])
		}
	}
	loud, _ = speak(time.Second, 7, 150, 480)
	if len(loud) != 3 {
		t.Errorf("%d are heard beside three who speak", len(loud)-3)
	}
	// A fourth, no louder than they are, has to wait; when one of them has ended it is heard at once.
	loud, _ = speak(time.Second, 7, 150, 480, 300)
	if loud[300] != 0 {
		t.Error("four are heard")
	}
	loud, _ = speak(time.Second, 7, 150, 300)
	if loud[300] < 46 {
		t.Errorf("the next one is heard in %d packets of 50", loud[300])
	}
}

func TestRankingDoesNotAllocate(t *testing.T) {
	r := NewRanking[string](3)
	var s [5]Score
	now := time.Unix(1_700_000_000, 0)
	if n := testing.AllocsPerRun(100, func() {
		now = now.Add(20 * time.Millisecond)
		for i, id := range []string{"a", "b", "c", "d", "e"} {
			r.Loud(id, &s[i], uint8(10*i), now)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
