//go:build linux

package conference

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plenum/bridge/packet"
)

const (
	talkers = 3
	noisy   = 20 // microphones that are on beside theirs
	cameras = 5
	keyEach = 25 // steps
)

// A crowd is a large room: three talk, some forgot to mute, five show themselves, everybody wants to see all of them.
type crowd struct {
	*room
	bufs  []packet.Buf
	steps int

	// What each took of the processor; keys are those of flushes that had key frames.
	flushes, ticks, keys []time.Duration
}

func newCrowd(t testing.TB, n int) *crowd {
	x := &crowd{room: newRoom(t), bufs: make([]packet.Buf, talkers+noisy+2*cameras)}
	for i := range n {
		c := x.joinWith(EndpointID(fmt.Sprint("p", i)), &noLeg{}, true)
		c.e.SetConstraints(want(180), x.now)
		if i < n-cameras {
			c.e.SetVideoType(string(c.id)+"-v0", "none", x.now)
		}
		x.now = x.now.Add(10 * time.Millisecond)
		x.c.Tick(x.now)
	}
	for range 200 {
		x.step()
	}
	x.room.log, x.flushes, x.ticks, x.keys = nil, nil, nil, nil
	return x
}

// step is twenty milliseconds.
func (x *crowd) step() {
	for i, c := range x.all[:talkers+noisy] {
		level := byte(70)
		if i < talkers {
			level = 25
		}
		c.writeAudio(&x.bufs[i], level)
		c.e.ReceiveRTP(&x.bufs[i], x.now)
	}
	for i, c := range x.all[len(x.all)-cameras:] {
		for part := range 2 {
			b := &x.bufs[talkers+noisy+2*i+part]
			c.compose(b, 0, part == 0, part == 1, x.steps%keyEach == 0, 1042)
			c.e.ReceiveRTP(b, x.now)
		}
	}
	begin := worked()
	x.c.Flush(x.now)
	flushed := worked()
	x.now = x.now.Add(20 * time.Millisecond)
	x.c.Tick(x.now)
	x.flushes, x.ticks = append(x.flushes, flushed-begin), append(x.ticks, worked()-flushed)
	if x.steps%keyEach == 0 {
		x.keys = append(x.keys, flushed-begin)
	}
	x.steps++
}

// worked is how much processor time the thread has had: the machine may be busy with something else.
func worked() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

func middle(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// TestCrowd has five hundred in one room: they hear the three who talk and see the five who are seen; what a packet and an
// endpoint cost grows with their number and not with its square, and nothing is allocated while nobody comes or goes.
func TestCrowd(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	small, large := newCrowd(t, 50), newCrowd(t, 500)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (after.HeapAlloc - before.HeapAlloc) / 550; each > 60<<10 {
		t.Errorf("%d bytes for each", each)
	} else {
		t.Logf("%d bytes for each, with the test's own", each)
	}

	const steps = 100
	sent := large.c.stats.PacketsOut
	for range steps {
		small.step()
		large.step()
	}
	if n, want := int(large.c.stats.PacketsOut-sent), steps*499*(talkers+2*cameras); n < want*99/100 || n > want*101/100 {
		t.Errorf("%d packets went out, not %d", n, want)
	}
	for i, c := range large.all[:talkers+noisy] {
		if takers := len(large.c.sources[string(c.id)+"-a0"].takers); i < talkers && takers != 499 {
			t.Errorf("%s, who talks, is heard by %d", c.id, takers)
		}
	}
	t.Logf("50: Flush %v, Tick %v; 500: Flush %v, Tick %v, at most %v and %v, key frames %v", middle(small.flushes), middle(small.ticks),
		middle(large.flushes), middle(large.ticks), slices.Max(large.flushes), slices.Max(large.ticks), slices.Min(large.keys))
	if f, k := middle(large.flushes), middle(large.ticks); f > 40*middle(small.flushes) || k > 40*middle(small.ticks) {
		t.Error("ten times as many cost more than forty times as much")
	}
	if k, f := slices.Min(large.keys), middle(large.flushes); k > 3*f {
		t.Errorf("a key frame of each camera costs %v, other frames %v", k, f)
	}
	if n := testing.AllocsPerRun(50, large.step); n > 5 { // the test's own
		t.Errorf("%v allocations in 20 ms", n)
	}
}

// One operation is twenty milliseconds of a room of five hundred.
func BenchmarkCrowd(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	x := newCrowd(b, 500)
	sent := x.c.stats.PacketsOut
	b.ReportAllocs()
	for b.Loop() {
		x.step()
	}
	b.ReportMetric(float64(middle(x.flushes).Microseconds()), "µs/Flush")
	b.ReportMetric(float64(middle(x.ticks).Microseconds()), "µs/Tick")
	b.ReportMetric(float64(slices.Max(x.ticks).Microseconds()), "µs/Tick-max")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(x.c.stats.PacketsOut-sent), "ns/packet")
}

// TestManyVanish cuts most of a large room off at once: everybody hears of it within a second, and no tick tells more than
// packets can wait for.
func TestManyVanish(t *testing.T) {
	r := newRoom(t)
	const n = 300
	for i := range n {
		r.joinWith(EndpointID(fmt.Sprint("p", i)), &noLeg{}, true)
	}
	r.c.Tick(r.now)
	end := r.now.Add(silentStart + time.Second)
	most, all := 0, 0
	for r.now.Before(end) {
		r.log = nil
		next := r.c.Tick(r.now)
		told := len(r.log)
		all, most = all+told, max(most, told)
		r.now = next
	}
	if all < n*n || most > roundWork+n {
		t.Errorf("%d of %d were told, at most %d at once", all, n*n, most)
	}
}
