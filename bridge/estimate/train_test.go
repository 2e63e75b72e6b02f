package estimate

import (
	"testing"
	"time"
)

// TestTrains: pictures that leave at once show what the narrow hop carries, though far less is wanted of it; what waits for
// a busy receiver now and then shows nothing more.
func TestTrains(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name     string
		path     path
		from, to float64 // Mbit/s
	}{
		{"2 Mbit/s", path{rate: 2e6, queue: 300 * ms, delay: 20 * ms}, 1.8, 2.1},
		{"10 Mbit/s", path{rate: 10e6, queue: 300 * ms, delay: 20 * ms}, 8.5, 10.5},
		{"10 Mbit/s and 5 % lost", path{rate: 10e6, queue: 300 * ms, delay: 20 * ms, loss: 0.05}, 8.5, 10.5},
		{"1 Gbit/s", path{rate: 1e9, queue: 300 * ms, delay: 5 * ms}, 50, 1000},
	} {
		w := newWorld(c.path)
		f := newFlow(w, 1500e3)
		v, wait := f.pass(20 * time.Second)
		f.log(t, c.name, v, wait)
		if got := float64(f.e.Burst()) / 1e6; got < c.from || got > c.to {
			t.Errorf("%s: %.2f Mbit/s by trains, not %v to %v", c.name, got, c.from, c.to)
		}
		if s := f.e.Stats(); s.Bitrate > 4e6 {
			t.Errorf("%s: an estimate of %d, though less is wanted", c.name, s.Bitrate)
		}
		f.e.Moved(w.now)
		if got := f.e.Burst(); got != 0 {
			t.Errorf("%s: another path is believed to carry %d", c.name, got)
		}
	}
}

// TestTrainsMemory: one of the slowest counts, and the last two if they are slower.
func TestTrainsMemory(t *testing.T) {
	var tr trains
	n, at := int64(1), uint32(0)
	send := func(span micros) { // judged when the next begins
		at += 33_000
		for i := range 6 {
			tr.add(n, &record{at: at, size: 1000}, micros(at)+span*micros(i)/5)
			n++
		}
	}
	for i := range minTrains {
		send(10_000)
		if tr.rate != 0 {
			t.Fatalf("%d trains are believed", i)
		}
	}
	send(0)
	slow := tr.rate
	if slow < 3e6 || slow > 4e6 {
		t.Fatalf("5000 bytes in 10 ms are %.0f", slow)
	}
	for range 6 {
		send(0)
	}
	if tr.rate > slow*1.01 {
		t.Errorf("two slow trains of eight are not believed: %.0f", tr.rate)
	}
	send(0)
	fast := tr.rate
	if fast < 100e6 {
		t.Errorf("the last slow one of eight holds everything back: %.0f", fast)
	}
	send(10_000)
	send(0)
	if tr.rate < fast {
		t.Errorf("one slow train changes the path: %.0f", tr.rate)
	}
	send(10_000)
	send(10_000)
	send(0)
	if tr.rate > slow*1.01 {
		t.Errorf("two in a row do not: %.0f", tr.rate)
	}
	// Packets that left at other times, and few bytes, are no train.
	tr = trains{}
	for range 100 {
		at += 5_000
		tr.add(n, &record{at: at, size: 1000}, micros(at))
		tr.add(n+1, &record{at: at, size: trainBytes - 1}, micros(at))
		n += 2
	}
	if tr.count != 0 {
		t.Errorf("%d of what were none", tr.count)
	}
}
