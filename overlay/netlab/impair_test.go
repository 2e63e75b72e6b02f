package netlab

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_700_000_000, 0)

// An arrival is a packet that came out, told by its number.
type arrival struct {
	n  uint32
	at time.Duration
}

// flow pushes count packets of size bytes at even intervals and returns what comes out, each at the time it is due.
func flow(imp Impairment, count, size int, every time.Duration) ([]arrival, Stats) {
	e := NewEngine(imp, 0, start)
	var out []arrival
	pop := func(until time.Time) {
		for next := e.Next(); !next.IsZero() && !next.After(until); next = e.Next() {
			data, _, ok := e.Pop(next)
			if !ok {
				panic("nothing to pop when it was due")
			}
			out = append(out, arrival{binary.BigEndian.Uint32(data), next.Sub(start)})
		}
	}
	data := make([]byte, size)
	for i := range count {
		now := start.Add(time.Duration(i) * every)
		pop(now)
		binary.BigEndian.PutUint32(data, uint32(i))
		e.Push(now, data, i)
	}
	pop(start.Add(time.Hour))
	return out, e.Stats()
}

func TestEngineDoesNothing(t *testing.T) {
	out, stats := flow(Impairment{}, 100, 100, time.Millisecond)
	for i, a := range out {
		if a.n != uint32(i) || a.at != time.Duration(i)*time.Millisecond {
			t.Fatalf("packet %d comes out as %d at %v", i, a.n, a.at)
		}
	}
	if want := (Stats{In: 100, Out: 100, Bytes: 100 * 100}); stats != want {
		t.Errorf("stats %+v, want %+v", stats, want)
	}
}

// TestEngineLoss compares shares with what was asked for, within five standard deviations of independent draws.
func TestEngineLoss(t *testing.T) {
	const count = 50_000
	for _, p := range []float64{0, 0.001, 0.01, 0.1, 0.5, 1} {
		for seed := range uint64(3) {
			_, stats := flow(Impairment{Loss: p, Seed: seed}, count, 100, time.Millisecond)
			bound := 5 * math.Sqrt(p*(1-p)/count)
			if got := float64(stats.Lost) / count; math.Abs(got-p) > bound {
				t.Errorf("loss %v, seed %d: %v lost, more than %v away", p, seed, got, bound)
			}
		}
	}
	for name, imp := range map[string]Impairment{"duplicates": {Duplicate: 0.05, Seed: 7}, "reordered": {Reorder: 0.05, Seed: 7}} {
		_, stats := flow(imp, count, 100, time.Millisecond)
		if got := float64(stats.Duplicated+stats.Reordered) / count; math.Abs(got-0.05) > 5*math.Sqrt(0.05*0.95/count) {
			t.Errorf("%s: share %v, want 0.05", name, got)
		}
	}
}

// TestEngineLossIsIndependent looks for memory between neighbours, and between the kinds of draws.
func TestEngineLossIsIndependent(t *testing.T) {
	const count, p = 200_000, 0.1
	pairs := 0
	e := NewEngine(Impairment{Loss: p, Seed: 3}, 0, start)
	before := false
	for n := range uint64(count) {
		lost := e.lost(n)
		if lost && before {
			pairs++
		}
		before = lost
	}
	if got := float64(pairs) / count; math.Abs(got-p*p) > 5*math.Sqrt(p*p/count) {
		t.Errorf("neighbours are both lost in %v of cases, want %v", got, p*p)
	}
	both := 0
	for n := range uint64(count) {
		if unit(1, lossDraw, n) < p && unit(1, duplicateDraw, n) < p {
			both++
		}
	}
	if got := float64(both) / count; math.Abs(got-p*p) > 5*math.Sqrt(p*p/count) {
		t.Errorf("two kinds of draws agree in %v of cases, want %v", got, p*p)
	}
}

func TestEngineBursts(t *testing.T) {
	const count = 400_000
	out, stats := flow(Impairment{Burst: Burst{Every: 200, Length: 8}, Seed: 1}, count, 100, time.Millisecond)
	runs, next := 0, uint32(0)
	for _, a := range out {
		if a.n != next {
			runs++
		}
		next = a.n + 1
	}
	if got, want := float64(stats.Lost)/count, 8.0/208; math.Abs(got-want) > want/10 {
		t.Errorf("share lost %v, want %v", got, want)
	}
	if got := float64(stats.Lost) / float64(runs); math.Abs(got-8) > 0.8 {
		t.Errorf("a run is %v packets long, want 8", got)
	}
	_, half := flow(Impairment{Burst: Burst{Every: 200, Length: 8, Loss: 0.5}, Seed: 1}, count, 100, time.Millisecond)
	if got := float64(half.Lost) / float64(stats.Lost); math.Abs(got-0.5) > 0.05 {
		t.Errorf("bad runs lose a share of %v, want 0.5", got)
	}
}

// TestEngineRepeats: what happens to a packet is a matter of seed and number, not of time or of the other parts.
func TestEngineRepeats(t *testing.T) {
	numbers := func(imp Impairment, every time.Duration) []uint32 {
		var all []uint32
		out, _ := flow(imp, 5000, 200, every)
		for _, a := range out {
			all = append(all, a.n)
		}
		slices.Sort(all)
		return all
	}
	imp := Impairment{Loss: 0.05, Burst: Burst{Every: 100}, Seed: 42}
	want := numbers(imp, time.Millisecond)
	if got := numbers(imp, 17*time.Microsecond); !slices.Equal(got, want) {
		t.Error("another pace loses other packets")
	}
	more := imp
	more.Delay, more.Jitter, more.Reorder = time.Second, time.Second, 0.1
	if got := numbers(more, time.Millisecond); !slices.Equal(got, want) {
		t.Error("with delay and reordering other packets are lost")
	}
	imp.Seed++
	if got := numbers(imp, time.Millisecond); slices.Equal(got, want) {
		t.Error("another seed loses the same packets")
	}
}

func TestEngineDelay(t *testing.T) {
	const delay, jitter = 50 * time.Millisecond, 20 * time.Millisecond
	out, _ := flow(Impairment{Delay: delay, Jitter: jitter, Seed: 5}, 20_000, 100, time.Millisecond)
	lo, hi, sum := time.Hour, time.Duration(0), time.Duration(0)
	for i, a := range out {
		if a.n != uint32(i) {
			t.Fatalf("packet %d came as number %d: jitter reorders", a.n, i)
		}
		if i > 0 && a.at-out[i-1].at < time.Millisecond/2-time.Microsecond {
			t.Fatalf("packets %d and %d, sent 1 ms apart, arrive %v apart", i-1, i, a.at-out[i-1].at)
		}
		d := a.at - time.Duration(i)*time.Millisecond
		lo, hi, sum = min(lo, d), max(hi, d), sum+d
	}
	mean := sum / time.Duration(len(out))
	if lo < delay || lo > delay+jitter/20 || hi > delay+jitter || hi < delay+jitter*19/20 || (mean-delay-jitter/2).Abs() > jitter/20 {
		t.Errorf("delays from %v to %v, mean %v; want %v to %v", lo, hi, mean, delay, delay+jitter)
	}
}

func TestEngineReorders(t *testing.T) {
	out, stats := flow(Impairment{Delay: 10 * time.Millisecond, Reorder: 0.1, ReorderBy: 5 * time.Millisecond, Seed: 9}, 10_000, 100, time.Millisecond)
	late, top := uint64(0), uint32(0)
	for _, a := range out {
		if a.n < top {
			late++
		}
		top = max(top, a.n)
		if d := a.at - time.Duration(a.n)*time.Millisecond; d < 10*time.Millisecond || d > 15*time.Millisecond {
			t.Fatalf("packet %d took %v", a.n, d)
		}
	}
	// Of five packets' time at most, the first fifth overtakes nobody.
	if late < stats.Reordered*6/10 || late > stats.Reordered {
		t.Errorf("%d came late, %d were held back", late, stats.Reordered)
	}
}

func TestEngineRate(t *testing.T) {
	const size = 1250                                                                                               // 10 kbit
	out, stats := flow(Impairment{Rate: 10 * Mbit, Queue: 50 * time.Millisecond}, 3000, size, 500*time.Microsecond) // twice the rate
	for i, a := range out[1:] {
		if gap := a.at - out[i].at; gap != time.Millisecond {
			t.Fatalf("packets %d and %d leave %v apart, want 1 ms", out[i].n, a.n, gap)
		}
		if wait := a.at - time.Duration(a.n)*500*time.Microsecond; wait > 52*time.Millisecond {
			t.Fatalf("packet %d waited %v", a.n, wait)
		}
	}
	if out[0].at != time.Millisecond {
		t.Errorf("the first packet left after %v, want the millisecond it takes", out[0].at)
	}
	if want := uint64(1450); stats.Dropped < want-5 || stats.Dropped > want+5 {
		t.Errorf("%d dropped, want about %d: half of all, but for what waits", stats.Dropped, want)
	}
}

func TestEngineMTU(t *testing.T) {
	e := NewEngine(Impairment{MTU: 1280}, 28, start)
	e.Push(start, make([]byte, 1252), 1)
	e.Push(start, make([]byte, 1253), 2)
	if s := e.Stats(); s.Queued != 1 || s.TooLarge != 1 {
		t.Errorf("%+v, want one through and one too large", s)
	}
}

func TestEngineCarries(t *testing.T) {
	e := NewEngine(Impairment{Loss: 1, Delay: time.Second, Rate: 8 * Kbit}, 0, start)
	e.Push(start, make([]byte, 100), 1) // lost, but it had its turn of 100 ms
	e.Carry(start, make([]byte, 10), 2)
	if at := e.Next().Sub(start); at != time.Second+110*time.Millisecond || e.n != 1 {
		t.Errorf("carried to %v as number %d, want 1.11 s and no number", at, e.n)
	}
}

func TestEngineSet(t *testing.T) {
	e := NewEngine(Impairment{Delay: time.Second}, 0, start)
	e.Push(start, []byte{1}, 1)
	e.Set(Impairment{Delay: time.Millisecond}, start)
	e.Push(start, []byte{2}, 2)
	for want := 1; want <= 2; want++ {
		if _, tag, ok := e.Pop(start.Add(time.Second)); !ok || tag != want {
			t.Fatalf("popped %d, %v, want %d: a shorter path is no reason to overtake", tag, ok, want)
		}
	}
	// Ten packets of a millisecond each wait; at twice the rate the eleventh waits half as long.
	e = NewEngine(Impairment{Rate: 10 * Mbit}, 0, start)
	for range 10 {
		e.Push(start, make([]byte, 1250), 0)
	}
	e.Set(Impairment{Rate: 20 * Mbit}, start)
	if wait := e.free; wait != 5*time.Millisecond {
		t.Errorf("the backlog is %v, want 5 ms", wait)
	}
}

func TestValidate(t *testing.T) {
	for _, imp := range []Impairment{{Loss: 1.5}, {Loss: -0.1}, {Loss: math.NaN()}, {Delay: -1}, {Rate: -1}, {Queue: -1}, {MTU: -1},
		{Burst: Burst{Every: math.Inf(1)}}, {Burst: Burst{Loss: 2}}, {Reorder: 2}, {Duplicate: -1}, {Jitter: -1}} {
		if err := imp.Validate(); !errors.Is(err, ErrImpairment) {
			t.Errorf("%+v: %v", imp, err)
		}
	}
	if err := (Impairment{Loss: 1, Burst: Burst{Every: 10, Length: 2}, Delay: 1, Rate: 1}).Validate(); err != nil {
		t.Error(err)
	}
}

// TestEngineKeepsCount drives engines at random and checks at every step: nothing is lost from the books, nothing comes
// early, order holds unless reordering was asked for, and what is inside is bounded.
func TestEngineKeepsCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := rapid.Float64Range(0, 1)
		ms := rapid.Int64Range(0, 200)
		draw := func() Impairment {
			return Impairment{
				Loss: share.Draw(t, "loss") / 2, Duplicate: share.Draw(t, "duplicate"),
				Burst:  Burst{Every: float64(ms.Draw(t, "every")), Length: float64(ms.Draw(t, "length"))},
				Delay:  time.Duration(ms.Draw(t, "delay")) * time.Millisecond,
				Jitter: time.Duration(ms.Draw(t, "jitter")) * time.Millisecond,
				Rate:   Bitrate(rapid.SampledFrom([]int64{0, 1, 64_000, 10_000_000}).Draw(t, "rate")),
				Queue:  time.Duration(ms.Draw(t, "queue")) * time.Millisecond,
				MTU:    rapid.SampledFrom([]int{0, 500}).Draw(t, "mtu"),
				Seed:   rapid.Uint64().Draw(t, "seed"),
			}
		}
		imp := draw()
		reorder := rapid.Bool().Draw(t, "reorder")
		if reorder {
			imp.Reorder = 0.3
		}
		e := NewEngine(imp, 28, start)
		now, last := start, -1
		var due time.Time
		pushed := make(map[int]time.Time)
		for i := range rapid.IntRange(1, 300).Draw(t, "packets") {
			switch rapid.IntRange(0, 20).Draw(t, "what") {
			case 0:
				next := draw()
				next.Reorder = imp.Reorder
				e.Set(next, now)
			case 1, 2, 3, 4, 5:
				now = now.Add(time.Duration(ms.Draw(t, "pause")) * time.Millisecond)
			}
			pushed[i] = now
			push := e.Push
			if rapid.IntRange(0, 9).Draw(t, "carry") == 0 {
				push = e.Carry
			}
			push(now, make([]byte, rapid.IntRange(0, 1500).Draw(t, "size")), i)
			for {
				next := e.Next()
				_, tag, ok := e.Pop(now)
				if ok != (!next.IsZero() && !next.After(now)) {
					t.Fatalf("Next says %v, Pop at %v says %v", next, now, ok)
				}
				if !ok {
					break
				}
				if next.Before(due) {
					t.Fatal("time runs back")
				}
				due = next
				if next.Before(pushed[tag]) {
					t.Fatalf("packet %d comes before it was sent", tag)
				}
				if !reorder && tag < last {
					t.Fatalf("packet %d comes after %d", tag, last)
				}
				last = tag
			}
			s := e.Stats()
			if s.In+s.Duplicated != s.Out+s.Lost+s.Dropped+s.TooLarge+s.Queued {
				t.Fatalf("packets vanish: %+v", s)
			}
		}
	})
}

func TestEngineIsBounded(t *testing.T) {
	e := NewEngine(Impairment{Delay: time.Hour, Duplicate: 1}, 0, start)
	for range maxQueued {
		e.Push(start, []byte{0}, 0)
	}
	if s := e.Stats(); s.Queued > maxQueued || s.Dropped != maxQueued/2 {
		t.Errorf("%+v, want no more than %d inside", s, maxQueued)
	}
}

func TestEngineAllocatesNothing(t *testing.T) {
	e := NewEngine(Impairment{Loss: 0.01, Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Rate: 100 * Mbit, Reorder: 0.01}, 28, start)
	now, data := start, make([]byte, 1200)
	step := func() {
		now = now.Add(100 * time.Microsecond)
		e.Push(now, data, 0)
		for {
			if _, _, ok := e.Pop(now); !ok {
				break
			}
		}
	}
	for range 1000 {
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// BenchmarkEngine is one packet in and out of a path of 100 Mbit/s with 50 ms and everything that can go wrong.
func BenchmarkEngine(b *testing.B) {
	for _, size := range []int{180, 1200} {
		b.Run(map[int]string{180: "180B", 1200: "1200B"}[size], func(b *testing.B) {
			e := NewEngine(Impairment{Loss: 0.01, Burst: Burst{Every: 500}, Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond,
				Rate: 100 * Mbit, Reorder: 0.01, Duplicate: 0.001}, 28, start)
			now, data := start, make([]byte, size)
			every := transmit(size+28, 100*Mbit)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(every)
				e.Push(now, data, 0)
				for {
					if _, _, ok := e.Pop(now); !ok {
						break
					}
				}
			}
		})
	}
}
