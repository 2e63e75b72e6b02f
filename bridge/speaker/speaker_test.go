package speaker

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// stage plays scripted levels: everybody sends a level each 20 ms, the detector ticks each 20 ms.
type stage struct {
	Detector[string]
	now     time.Time
	start   time.Time
	changes []string // "SPEAKER@ms"
}

func newStage() *stage {
	t := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &stage{now: t, start: t}
}

// play runs d with the level that each speaker has as a function of the frame number; a negative one is not sent.
func (s *stage) play(d time.Duration, level func(id string, frame int) int, ids ...string) {
	for frame := 0; frame < int(d/(20*time.Millisecond)); frame++ {
		s.now = s.now.Add(20 * time.Millisecond)
		for _, id := range ids {
			if l := level(id, frame); l >= 0 {
				s.Observe(id, uint8(l), s.now)
			}
		}
		if s.Tick(s.now) {
			who, _ := s.Dominant()
			s.changes = append(s.changes, fmt.Sprintf("%s@%d", who, s.now.Sub(s.start).Milliseconds()))
		}
	}
}

// speech is a talking voice: loud with a syllable's dip, over a noise floor of 75.
func speech(frame int) int {
	if frame%23 < 2 {
		return 48
	}
	return 20 + frame%7
}

func only(who string) func(string, int) int {
	return func(id string, frame int) int {
		if id == who {
			return speech(frame)
		}
		return 75 + frame%3
	}
}

func TestChangeIsTimely(t *testing.T) {
	s := newStage()
	s.play(3*time.Second, only("ann"), "ann", "bob", "cid")
	if who, ok := s.Dominant(); !ok || who != "ann" {
		t.Fatalf("dominant %q, changes %v", who, s.changes)
	}
	for _, next := range []string{"bob", "cid", "ann", "cid"} {
		at := s.now
		n := len(s.changes)
		s.play(4*time.Second, only(next), "ann", "bob", "cid")
		if len(s.changes) != n+1 {
			t.Fatalf("%s took over with changes %v", next, s.changes[n:])
		}
		var ms int64
		fmt.Sscanf(s.changes[n][4:], "%d", &ms)
		delay := s.start.Add(time.Duration(ms) * time.Millisecond).Sub(at)
		if s.changes[n][:3] != next || delay < 300*time.Millisecond || delay > 1200*time.Millisecond {
			t.Errorf("%s took over after %v: %v", next, delay, s.changes[n])
		}
	}
	if got, want := s.Recent(nil), []string{"ann", "bob"}; !slices.Equal(got, want) {
		t.Errorf("recent %v, want %v", got, want)
	}
}

func TestClicksDoNotFlap(t *testing.T) {
	s := newStage()
	s.play(2*time.Second, only("ann"), "ann", "bob")
	n := len(s.changes)
	// Ann pauses, Bob clicks: two loud frames, four times a second.
	s.play(5*time.Second, func(id string, frame int) int {
		if id == "bob" && frame%12 < 2 {
			return 5
		}
		return 80
	}, "ann", "bob")
	if len(s.changes) != n {
		t.Errorf("clicks changed the speaker: %v", s.changes[n:])
	}
}

func TestNobodyUntilSomebodySpeaks(t *testing.T) {
	s := newStage()
	s.play(2*time.Second, func(_ string, frame int) int {
		if frame == 40 {
			return 0 // one click
		}
		return 127
	}, "ann", "bob")
	if who, ok := s.Dominant(); ok {
		t.Errorf("%s is dominant in silence", who)
	}
}

func TestInterruptionNeedsThePause(t *testing.T) {
	s := newStage()
	s.play(3*time.Second, only("ann"), "ann", "bob")
	n := len(s.changes)
	s.play(3*time.Second, func(_ string, frame int) int { return speech(frame) }, "ann", "bob")
	if len(s.changes) != n {
		t.Errorf("talking over somebody changed the speaker: %v", s.changes[n:])
	}
}

func TestSpeakerWhoStopsSending(t *testing.T) {
	s := newStage()
	s.play(3*time.Second, only("ann"), "ann", "bob")
	s.play(3*time.Second, func(id string, frame int) int {
		if id == "ann" {
			return -1 // muted: nothing is sent
		}
		return speech(frame)
	}, "ann", "bob")
	if who, _ := s.Dominant(); who != "bob" {
		t.Errorf("dominant %q after Ann's packets ended; %v", who, s.changes)
	}
}

func TestRemove(t *testing.T) {
	s := newStage()
	s.play(3*time.Second, only("ann"), "ann", "bob")
	s.play(3*time.Second, only("bob"), "ann", "bob")
	s.Remove("ann")
	if got := s.Recent(nil); len(got) != 0 {
		t.Errorf("recent %v", got)
	}
	s.Remove("bob")
	if who, ok := s.Dominant(); ok {
		t.Errorf("%s is dominant after leaving", who)
	}
	s.play(3*time.Second, only("cid"), "cid")
	if who, _ := s.Dominant(); who != "cid" {
		t.Errorf("dominant %q", who)
	}
}

func TestRecentIsBounded(t *testing.T) {
	s := newStage()
	var ids []string
	for i := range MaxRecent + 5 {
		ids = append(ids, fmt.Sprintf("%03d", i))
	}
	for _, id := range ids {
		s.play(2*time.Second, only(id), ids...)
	}
	got := s.Recent(nil)
	if len(got) != MaxRecent || got[0] != ids[len(ids)-2] || slices.Contains(got, ids[len(ids)-1]) {
		t.Errorf("recent %v", got)
	}
}

func TestForgotten(t *testing.T) {
	s := newStage()
	s.play(time.Second, only("ann"), "ann")
	s.now = s.now.Add(2 * forget)
	s.Tick(s.now)
	if len(s.speakers) > 1 {
		t.Fatal("speaker kept")
	}
	s.now = s.now.Add(2 * forget)
	s.Tick(s.now)
	if len(s.speakers) != 0 {
		t.Error("speaker kept")
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	s := newStage()
	s.play(time.Second, only("ann"), "ann", "bob")
	if n := testing.AllocsPerRun(1000, func() {
		s.now = s.now.Add(20 * time.Millisecond)
		s.Observe("ann", 20, s.now)
		s.Observe("bob", 90, s.now)
		s.Tick(s.now)
	}); n != 0 {
		t.Errorf("%v allocations per level", n)
	}
}

func BenchmarkTick500(b *testing.B) {
	s := newStage()
	var ids []string
	for i := range 500 {
		ids = append(ids, fmt.Sprint(i))
	}
	s.play(time.Second, only("3"), ids...)
	for b.Loop() {
		s.now = s.now.Add(Interval)
		for _, id := range ids[:20] {
			s.Observe(id, 30, s.now)
		}
		s.Tick(s.now)
	}
}
