package estimate

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"plenum/bridge/packet"
	"plenum/bridge/receive"
)

var start = time.Unix(1_700_000_000, 0)

// exchange sends n packets of a kind each 10 ms and has them all acknowledged 30 ms later.
func exchange(e *Estimator, fb *receive.Feedback, now time.Time, n int, kind Kind) time.Time {
	for range n {
		now = now.Add(10 * time.Millisecond)
		fb.Arrive(e.Sent(1000, kind, now), 1, false, now.Add(20*time.Millisecond))
	}
	tell(e, fb, now.Add(30*time.Millisecond))
	return now
}

func tell(e *Estimator, fb *receive.Feedback, now time.Time) (ok bool) {
	for fb.Pending() {
		p, _, _ := packet.NextRTCP(fb.Append(nil, 1, now))
		ok = e.Feedback(p.Body, now)
	}
	return ok
}

func TestUnknown(t *testing.T) {
	e := New(start)
	if e.Known() || e.Bitrate() != Unlimited || e.Budget() != Unlimited {
		t.Error("something is known of nothing")
	}
	e.REMB(700_000, start)
	if e.Bitrate() != 700_000 || e.Stats().Source != "remb" {
		t.Errorf("%+v", e.Stats())
	}
	// Transport-wide feedback is better.
	exchange(e, receive.NewFeedback(start), start, 50, Video)
	if s := e.Stats(); s.Source != "transport-cc" || e.Bitrate() < 700_000 || s.RTT < 20*time.Millisecond || s.RTT > 600*time.Millisecond {
		t.Errorf("%+v", s)
	}
}

func TestREMB(t *testing.T) {
	for _, c := range []struct {
		bps  uint64
		want int64
	}{{0, Min}, {1, Min}, {1_000_000, 1_000_000}, {math.MaxUint64, Max}} {
		e := New(start)
		if e.REMB(c.bps, start); e.Bitrate() != c.want {
			t.Errorf("%d is taken as %d", c.bps, e.Bitrate())
		}
		if e.Tick(start.Add(time.Minute)); e.Known() {
			t.Error("an estimate of a minute ago")
		}
	}
}

// A receiver that falls silent is not flooded with what it could take once.
func TestSilence(t *testing.T) {
	e := New(start)
	now := exchange(e, receive.NewFeedback(start), start, 100, Video)
	before := e.Bitrate()
	for range 500 {
		now = now.Add(20 * time.Millisecond)
		e.Sent(1000, Video, now)
		e.Tick(now)
	}
	if got := e.Bitrate(); got > before/4 || got < Min {
		t.Errorf("%d bit/s after ten seconds without feedback, %d before", got, before)
	}
	// Without sending nothing is expected.
	e = New(start)
	now = exchange(e, receive.NewFeedback(start), start, 100, Video)
	before = e.Bitrate()
	e.Tick(now.Add(time.Hour))
	if e.Bitrate() != before {
		t.Error("forgotten although nothing was sent")
	}
}

// TestDeaf has a receiver that mentions video only, as some do: sound is then left out, and is not taken for lost.
func TestDeaf(t *testing.T) {
	e, fb, now := New(start), receive.NewFeedback(start), start
	for i := range 2 * deafAfter {
		now = now.Add(10 * time.Millisecond)
		if e.Mentions(Audio) {
			e.Sent(100, Audio, now)
		}
		fb.Arrive(e.Sent(1000, Video, now), 1, false, now.Add(20*time.Millisecond))
		if i%10 == 0 {
			tell(e, fb, now.Add(20*time.Millisecond))
		}
	}
	if s := e.Stats(); s.Loss > 0 || s.LossCuts > 0 {
		t.Errorf("sound is taken for lost: %+v", s)
	}
	if e.Mentions(Audio) || !e.Mentions(Video) || !e.Mentions(Padding) {
		t.Error("sound is still numbered")
	}
}

func TestBogusFeedback(t *testing.T) {
	e, fb := New(start), receive.NewFeedback(start)
	now := exchange(e, fb, start, 100, Video)
	before := *e
	body := func(base, count uint16, chunks ...byte) []byte {
		b := make([]byte, 16)
		binary.BigEndian.PutUint16(b[8:], base)
		binary.BigEndian.PutUint16(b[10:], count)
		return append(b, chunks...)
	}
	for name, b := range map[string][]byte{
		"empty":                nil,
		"short":                make([]byte, 15),
		"no packets":           body(1, 0),
		"no chunks":            body(1, 5),
		"no deltas":            body(1, 5, 0x20, 5),
		"an empty run":         body(1, 5, 0, 0, 0, 0),
		"a reserved symbol":    body(1, 5, 0x60, 5, 0, 0, 0, 0, 0, 0),
		"too many packets":     body(1, 65535, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff, 0x1f, 0xff),
		"never sent":           body(5000, 5, 0x20, 5, 0, 0, 0, 0, 0),
		"some of it not":       body(99, 5, 0x20, 5, 0, 0, 0, 0, 0),
		"before the first one": body(0, 5, 0x20, 5, 0, 0, 0, 0, 0),
	} {
		if e.Feedback(b, now) {
			t.Errorf("%s: believed", name)
		}
	}
	if e.stats.Bogus != 11 {
		t.Errorf("%d counted", e.stats.Bogus)
	}
	e.stats.Bogus = 0
	if e.bitrate != before.bitrate || e.history.reported != before.history.reported || e.loss != before.loss || e.delay != before.delay {
		t.Error("something has changed")
	}
	// The same once more says nothing new.
	b := body(50, 20, 0x20, 20, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	for range 1000 {
		e.Feedback(b, now)
	}
	if e.bitrate > 1.1*before.bitrate {
		t.Errorf("repeated feedback raises the estimate to %.0f", e.bitrate)
	}
}

func FuzzFeedback(f *testing.F) {
	fb := receive.NewFeedback(start)
	for i := range 40 {
		if i%7 != 3 {
			fb.Arrive(uint16(i+1), 1, false, start.Add(time.Duration(i)*9*time.Millisecond))
		}
	}
	p, _, _ := packet.NextRTCP(fb.Append(nil, 1, start.Add(time.Second)))
	f.Add(p.Body, uint8(1))
	f.Add(append([]byte(nil), 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 20, 0xff, 0xff, 0xff, 0, 0x40, 20, 0x80, 0, 0x7f, 0xff), uint8(3))
	f.Fuzz(func(t *testing.T, body []byte, times uint8) {
		e := New(start)
		now := start
		for range 100 {
			now = now.Add(10 * time.Millisecond)
			e.Sent(1000, Video, now)
		}
		for range times % 8 {
			now = now.Add(50 * time.Millisecond)
			e.Feedback(body, now)
			e.Tick(now)
			if b := e.Budget(); b < Min || b > Max && b != Unlimited {
				t.Fatalf("%d bit/s", b)
			}
			if n := e.Padding(now); n < 0 || n > 1<<20 {
				t.Fatalf("%d bytes of padding", n)
			}
			e.Probing(now)
			if math.IsNaN(e.bitrate) || math.IsNaN(e.delay.threshold) {
				t.Fatal("not a number")
			}
		}
	})
}

// TestHistory keeps what is on the way, as far as it may.
func TestHistory(t *testing.T) {
	e, fb, now := New(start), receive.NewFeedback(start), start
	for _, want := range []int{deafHistory, maxHistory} {
		for range 10_000 {
			now = now.Add(100 * time.Microsecond)
			e.Sent(1000, Video, now)
		}
		if n := len(e.history.ring); n != want {
			t.Errorf("%d packets are remembered, want %d", n, want)
		}
		fb.Arrive(e.Sent(1000, Video, now), 1, false, now)
		if !tell(e, fb, now) {
			t.Fatal("refused")
		}
	}
	e, fb = New(start), receive.NewFeedback(start)
	for range 50 {
		now = exchange(e, fb, now, 20, Video)
	}
	if n := len(e.history.ring); n > 4*minHistory*2 {
		t.Errorf("%d packets are remembered of 100 a second", n)
	}
}

func TestDoesNotAllocate(t *testing.T) {
	e, fb, now := New(start), receive.NewFeedback(start), start
	for range 100 {
		now = exchange(e, fb, now, 20, Video)
	}
	var buf [1500]byte
	if n := testing.AllocsPerRun(200, func() {
		for range 20 {
			now = now.Add(5 * time.Millisecond)
			fb.Arrive(e.Sent(1000, Video, now), 1, false, now)
		}
		p, _, _ := packet.NextRTCP(fb.Append(buf[:0], 1, now))
		if !e.Feedback(p.Body, now) {
			t.Fatal("refused")
		}
		e.Tick(now)
		e.Probing(now)
		e.Padding(now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSent(b *testing.B) {
	e, now := New(start), start
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		e.Sent(1000, Video, now)
	}
}

func BenchmarkFeedback(b *testing.B) {
	e, fb, now := New(start), receive.NewFeedback(start), start
	var buf [1500]byte
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range 20 {
			now = now.Add(5 * time.Millisecond)
			fb.Arrive(e.Sent(1000, Video, now), 1, false, now)
		}
		p, _, _ := packet.NextRTCP(fb.Append(buf[:0], 1, now))
		b.StartTimer()
		e.Feedback(p.Body, now)
	}
}

// TestOutage has a receiver of three voices come back after 20 s of silence: with its first word half of what there was is
// believed again, and as much as is wanted soon after, be that much or a thumbnail.
func TestOutage(t *testing.T) {
	for _, want := range []int64{2_000_000, 250_000} {
		e, fb, now := New(start), receive.NewFeedback(start), start
		e.Want(want)
		pass := func(d time.Duration, heard bool) {
			send := func(n int, kind Kind) {
				if s := e.Sent(n, kind, now); heard {
					fb.Arrive(s, 1, false, now.Add(20*time.Millisecond))
				}
			}
			for i := 0; i < int(d/(5*time.Millisecond)); i++ {
				now = now.Add(5 * time.Millisecond)
				if i%4 == 0 {
					for range 3 {
						send(60, Audio)
					}
				}
				if e.Probing(now) {
					if n := e.Padding(now); n > 0 {
						send(min(n, 1200), Padding)
					}
				}
				if i%20 == 0 {
					e.Tick(now)
					if heard {
						tell(e, fb, now.Add(20*time.Millisecond))
					}
				}
			}
		}
		pass(5*time.Second, true)
		before := e.Bitrate()
		pass(20*time.Second, false)
		if got := e.Bitrate(); got > 100_000 || !e.Silent() {
			t.Errorf("%d bit/s after the silence", got)
		}
		pass(200*time.Millisecond, true)
		if got := e.Bitrate(); got < min(before/2, want) || e.Silent() {
			t.Errorf("%d bit/s with the first word, %d before", got, before)
		}
		pass(time.Second, true)
		if got := e.Bitrate(); got < want-want/20 {
			t.Errorf("%d bit/s a second later, %d are wanted", got, want)
		}
	}
}
