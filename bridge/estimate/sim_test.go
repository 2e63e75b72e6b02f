package estimate

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"

	"plenum/bridge/packet"
	"plenum/bridge/receive"
)

// A path is a simulated network in one direction with one narrow hop; feedback comes back after the same delay.
type path struct {
	rate   float64       // bits per second
	queue  time.Duration // before it drops
	delay  time.Duration // one way
	jitter time.Duration // random, without overtaking
	wander time.Duration // the delay goes up and down by so much, in straight lines of twice that
	loss   float64
	// police drops what exceeds rate over a bucket of this many bytes, and queues nothing.
	police float64
}

// An event is something that happens at a time: f runs then.
type event struct {
	at  time.Time
	seq int
	f   func()
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() any     { o := *h; x := o[len(o)-1]; *h = o[:len(o)-1]; return x }

// A world is simulated time with one path that all flows share.
type world struct {
	now    time.Time
	path   path
	rnd    *rand.Rand
	events events
	n      int
	free   time.Time // when the hop has sent what waits
	bucket float64
	filled time.Time
	last   time.Time // arrival, so that nothing overtakes
}

func newWorld(p path) *world {
	start := time.Unix(1_700_000_000, 0)
	return &world{now: start, free: start, filled: start, path: p, rnd: rand.New(rand.NewPCG(1, 2))}
}

func (w *world) at(t time.Time, f func()) {
	w.n++
	heap.Push(&w.events, event{t, w.n, f})
}

func (w *world) run(until time.Time) {
	for len(w.events) > 0 && !w.events[0].at.After(until) {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.f()
	}
	w.now = until
}

// carry takes n bytes over the path; it reports false when they are lost, and else calls f when they arrive. wait is
// how long they stood in the queue.
func (w *world) carry(n int, f func(wait time.Duration)) bool {
	p := &w.path
	bits := float64(n) * 8
	if p.police > 0 {
		w.bucket = min(w.bucket+w.now.Sub(w.filled).Seconds()*p.rate/8, p.police)
		w.filled = w.now
		if w.bucket < float64(n) {
			return false
		}
		w.bucket -= float64(n)
		w.free = w.now
	} else {
		if w.free.Before(w.now) {
			w.free = w.now
		}
		if w.free.Sub(w.now) > p.queue {
			return false
		}
		w.free = w.free.Add(time.Duration(bits / p.rate * float64(time.Second)))
	}
	wait := w.free.Sub(w.now)
	if w.rnd.Float64() < p.loss {
		return false
	}
	at := w.free.Add(p.delay)
	if p.jitter > 0 {
		at = at.Add(time.Duration(w.rnd.Int64N(int64(p.jitter))))
	}
	if p.wander > 0 {
		step := 2 * p.wander
		k, part := w.now.UnixNano()/int64(step), float64(w.now.UnixNano()%int64(step))/float64(step)
		unit := func(k int64) float64 { return rand.New(rand.NewPCG(uint64(k), 7)).Float64() }
		at = at.Add(time.Duration((unit(k)*(1-part) + unit(k+1)*part) * float64(p.wander)))
	}
	if at.Before(w.last) {
		at = w.last
	}
	w.last = at
	w.at(at, func() { f(wait) })
	return true
}

// A flow is one receiver with its estimator: audio at all times, and video of whatever layer fits.
type flow struct {
	w      *world
	e      *Estimator
	fb     *receive.Feedback
	layers []float64 // bits per second to choose from, rising; nil takes exactly what there is
	layer  int

	sent, got     [3]int // bytes by kind
	lostAudio     int
	maxWait       time.Duration
	bits          float64
	changes       int
	enough        time.Time // since when there has been enough for the next layer
	feedbackEvery time.Duration
	lossy         float64 // share of feedback that is lost
}

func newFlow(w *world, layers ...float64) *flow {
	f := &flow{w: w, e: New(w.now), fb: receive.NewFeedback(w.now), layers: layers, feedbackEvery: 50 * time.Millisecond}
	top := 20e6
	if len(layers) > 0 {
		top = layers[len(layers)-1]
	}
	f.e.Want(int64(top*1.1) + 60_000)
	f.tick()
	f.feedback()
	return f
}

const step = 5 * time.Millisecond

// tick is what a conference does every few milliseconds.
func (f *flow) tick() {
	w := f.w
	f.e.Tick(w.now)
	ms := w.now.UnixMilli()
	if ms%20 == 0 {
		f.send(110, Audio)
	}
	if ms%35 == 0 {
		f.video(35 * time.Millisecond)
	}
	if f.e.Probing(w.now) {
		for n := f.e.Padding(w.now); n > 0; n -= 1000 {
			f.send(max(min(n, 1000), 100), Padding)
		}
	}
	w.at(w.now.Add(step), f.tick)
}

func (f *flow) video(d time.Duration) {
	w := f.w
	budget := f.e.Budget() - 60_000
	if !f.e.Known() {
		budget = 0 // the path is not known before the first probe, and video has not begun
	}
	bits := float64(budget)
	if f.layers != nil {
		// What a conference's allocation does: down at once, up when it has been enough for a while.
		for f.layer > 0 && f.layers[f.layer-1] > bits {
			f.layer--
		}
		if f.layer == len(f.layers) || f.layers[f.layer]*1.1 > bits {
			f.enough = w.now
		} else if w.now.Sub(f.enough) > time.Second {
			f.layer++
		}
		bits = 0
		if f.layer > 0 {
			bits = f.layers[f.layer-1]
		}
	}
	if bits != f.bits {
		f.changes++
	}
	f.bits = bits
	n := int(bits * d.Seconds() / 8)
	for ; n > 0; n -= 1050 {
		f.send(min(n, 1050), Video)
	}
}

func (f *flow) send(n int, k Kind) {
	w := f.w
	seq := f.e.Sent(n, k, w.now)
	n += Overhead
	f.sent[k] += n
	if !w.carry(n, func(wait time.Duration) {
		f.got[k] += n
		f.maxWait = max(f.maxWait, wait)
		f.fb.Arrive(seq, 1, false, w.now)
	}) && k == Audio {
		f.lostAudio++
	}
}

func (f *flow) feedback() {
	w := f.w
	for f.fb.Pending() {
		b := f.fb.Append(nil, 1, w.now)
		if len(b) == 0 {
			break
		}
		p, _, ok := packet.NextRTCP(b)
		if !ok {
			panic("feedback of our own making")
		}
		if w.rnd.Float64() < f.lossy {
			continue
		}
		w.at(w.now.Add(w.path.delay), func() {
			if !f.e.Feedback(p.Body, w.now) {
				panic("refused feedback of our own making")
			}
		})
	}
	w.at(w.now.Add(f.feedbackEvery), f.feedback)
}

// pass lets d go by and returns the bits per second of video that arrived in it, and the longest wait.
func (f *flow) pass(d time.Duration) (video float64, wait time.Duration) {
	before := f.got[Video]
	f.maxWait = 0
	f.w.run(f.w.now.Add(d))
	return float64(f.got[Video]-before) * 8 / d.Seconds(), f.maxWait
}

func (f *flow) log(t *testing.T, what string, video float64, wait time.Duration) {
	t.Helper()
	s := f.e.Stats()
	t.Logf("%-12s %5.2f Mbit/s of video arrive, wait up to %3d ms; estimate %.2f, queue %d ms, loss %.3f (own %.3f), cuts %d+%d, probes %d of %d",
		what, video/1e6, wait.Milliseconds(), float64(s.Bitrate)/1e6, s.Queue.Milliseconds(), s.Loss, s.OwnLoss, s.Cuts, s.LossCuts, s.Found, s.Probes)
}

var cameras = []float64{100e3, 200e3, 350e3, 500e3, 900e3, 1500e3, 2500e3}

// TestPaths has the estimate find what each path carries, and stay there: the video that arrives once it has settled,
// without a queue that a talk would suffer from.
func TestPaths(t *testing.T) {
	for _, c := range []struct {
		name      string
		path      path
		layers    []float64
		low, high float64       // Mbit/s of video between the 10th and the 40th second
		wait      time.Duration // the longest in that time
		changes   int           // of the layer in that time
	}{
		{"all that there is", path{rate: 3e6, queue: 500 * time.Millisecond, delay: 20 * time.Millisecond}, nil, 2.4, 3, 200 * time.Millisecond, 1e6},
		{"wide", path{rate: 100e6, queue: time.Second, delay: 10 * time.Millisecond}, cameras, 2.5, 2.7, 20 * time.Millisecond, 0},
		{"DSL", path{rate: 1e6, queue: 500 * time.Millisecond, delay: 20 * time.Millisecond}, cameras, 0.5, 1, 100 * time.Millisecond, 2},
		{"600 kbit/s", path{rate: 600e3, queue: time.Second, delay: 30 * time.Millisecond}, cameras, 0.33, 0.6, 120 * time.Millisecond, 6},
		{"2 % loss", path{rate: 3e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, loss: 0.02}, cameras, 1.4, 2.7, 100 * time.Millisecond, 2},
		{"10 % loss", path{rate: 3e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, loss: 0.10}, cameras, 1.3, 2.7, 100 * time.Millisecond, 2},
		{"much loss and nothing else", path{rate: 50e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, loss: 0.20}, cameras, 1.9, 2.7, 20 * time.Millisecond, 2},
		{"satellite", path{rate: 2e6, queue: 500 * time.Millisecond, delay: 300 * time.Millisecond}, cameras, 1.2, 2, 150 * time.Millisecond, 4},
		{"jitter", path{rate: 3e6, queue: 300 * time.Millisecond, delay: 40 * time.Millisecond, jitter: 30 * time.Millisecond}, cameras, 1.4, 2.7, 100 * time.Millisecond, 6},
		{"hotel", path{rate: 2e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, wander: 40 * time.Millisecond, loss: 0.01}, cameras, 1.2, 2, 150 * time.Millisecond, 6},
		{"3G", path{rate: 780e3, queue: 500 * time.Millisecond, delay: 75 * time.Millisecond, wander: 40 * time.Millisecond, loss: 0.005}, cameras, 0.3, 0.78, 250 * time.Millisecond, 6},
		{"a short queue", path{rate: 1.2e6, queue: 30 * time.Millisecond, delay: 20 * time.Millisecond}, cameras, 0.75, 1.2, 50 * time.Millisecond, 2},
		{"a policer", path{rate: 1.2e6, police: 20_000, delay: 20 * time.Millisecond}, cameras, 0.8, 1.2, 20 * time.Millisecond, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFlow(newWorld(c.path), c.layers...)
			video, wait := f.pass(10 * time.Second)
			f.log(t, "at first", video, wait)
			f.changes = 0
			video, wait = f.pass(30 * time.Second)
			f.log(t, "then", video, wait)
			if m := video / 1e6; m < c.low || m > c.high {
				t.Errorf("%.2f Mbit/s of video", m)
			}
			if wait > c.wait {
				t.Errorf("packets wait %v", wait)
			}
			if f.changes > c.changes {
				t.Errorf("%d changes of the layer", f.changes)
			}
			if c.path.loss == 0 && f.lostAudio > 8 {
				t.Errorf("%d packets of audio lost", f.lostAudio)
			}
		})
	}
}

// TestStep takes four fifths of the path away, and gives them back (ladder step 26): three seconds later there is no queue
// to speak of, twenty seconds later everything is as it was.
func TestStep(t *testing.T) {
	for _, delay := range []time.Duration{5 * time.Millisecond, 30 * time.Millisecond, 150 * time.Millisecond} {
		f := newFlow(newWorld(path{rate: 3e6, queue: 2 * time.Second, delay: delay}), cameras...)
		before, wait := f.pass(15 * time.Second)
		f.log(t, "3", before, wait)
		before, _ = f.pass(5 * time.Second)
		f.w.path.rate = 600e3
		video, wait := f.pass(3 * time.Second)
		f.log(t, "0.6", video, wait)
		video, wait = f.pass(5 * time.Second)
		f.log(t, "0.6 later", video, wait)
		if wait > 200*time.Millisecond {
			t.Errorf("after three seconds packets wait %v", wait)
		}
		if video < 300e3 {
			t.Errorf("%.0f bit/s of video on 600 kbit/s", video)
		}
		if f.lostAudio > 0 {
			t.Errorf("%d packets of audio lost", f.lostAudio)
		}
		f.pass(10 * time.Second)
		f.w.path.rate = 3e6
		video, wait = f.pass(15 * time.Second)
		f.log(t, "3 again", video, wait)
		video, wait = f.pass(5 * time.Second)
		f.log(t, "3 later", video, wait)
		if video < 0.95*before {
			t.Errorf("%.0f bit/s of video after twenty seconds, %.0f before", video, before)
		}
	}
}

// TestTwo shares a path between two receivers: neither starves, and together they leave little of it.
func TestTwo(t *testing.T) {
	w := newWorld(path{rate: 3e6, queue: 500 * time.Millisecond, delay: 30 * time.Millisecond})
	a := newFlow(w)
	w.run(w.now.Add(10 * time.Second))
	b := newFlow(w)
	w.run(w.now.Add(30 * time.Second))
	a.got, b.got = [3]int{}, [3]int{}
	a.maxWait = 0
	w.run(w.now.Add(30 * time.Second))
	first, second := float64(a.got[Video])*8/30e6, float64(b.got[Video])*8/30e6
	t.Logf("%.2f and %.2f Mbit/s, packets wait up to %v", first, second, a.maxWait)
	if min(first, second) < 0.6 || first+second < 2.2 {
		t.Errorf("%.2f and %.2f Mbit/s", first, second)
	}
	if a.maxWait > 350*time.Millisecond {
		t.Errorf("packets wait %v", a.maxWait)
	}
}

// TestQuiet sends sound for a minute and nothing else: what was known before is still believed, and no more than that.
func TestQuiet(t *testing.T) {
	f := newFlow(newWorld(path{rate: 3e6, queue: 500 * time.Millisecond, delay: 20 * time.Millisecond}), cameras...)
	f.pass(20 * time.Second)
	before := f.e.Bitrate()
	f.layers, f.layer = []float64{1}, 0
	f.e.Want(60_000)
	f.pass(time.Minute)
	if got := f.e.Bitrate(); float64(got) < 0.8*float64(before) || float64(got) > 1.05*float64(before) {
		t.Errorf("%d bit/s after a minute of sound, %d before", got, before)
	}
}

// TestLostFeedback loses a third of what comes back.
func TestLostFeedback(t *testing.T) {
	f := newFlow(newWorld(path{rate: 3e6, queue: 500 * time.Millisecond, delay: 20 * time.Millisecond}), cameras...)
	f.lossy = 0.33
	f.pass(10 * time.Second)
	video, wait := f.pass(20 * time.Second)
	f.log(t, "lossy", video, wait)
	if video < 1.4e6 || wait > 150*time.Millisecond {
		t.Errorf("%.0f bit/s, packets wait %v", video, wait)
	}
}

// TestStall has nothing arrive for half a second every ten seconds, as when the receiver's processor or radio is busy: the
// estimate survives it.
func TestStall(t *testing.T) {
	f := newFlow(newWorld(path{rate: 3e6, queue: 2 * time.Second, delay: 20 * time.Millisecond}), cameras...)
	f.pass(10 * time.Second)
	f.got = [3]int{}
	for range 4 {
		f.pass(9500 * time.Millisecond)
		f.w.last = f.w.now.Add(500 * time.Millisecond)
		f.pass(500 * time.Millisecond)
	}
	video := float64(f.got[Video]) * 8 / 40
	f.log(t, "stalls", video, 0)
	if video < 1.1e6 {
		t.Errorf("%.0f bit/s of video", video)
	}
}

// TestCut has nothing arrive for twenty seconds, and less of a path after that: pictures are there again within a second,
// and nobody waits for them long.
func TestCut(t *testing.T) {
	for _, rate := range []float64{3e6, 600e3, 250e3} {
		f := newFlow(newWorld(path{rate: 3e6, queue: time.Second, delay: 30 * time.Millisecond}), cameras...)
		f.pass(20 * time.Second)
		f.w.path.loss = 1
		f.pass(20 * time.Second)
		f.w.path = path{rate: rate, queue: time.Second, delay: 60 * time.Millisecond}
		f.pass(300 * time.Millisecond)
		f.enough = time.Time{} // a conference does not wait either
		video, wait := f.pass(time.Second)
		f.log(t, "at once", video, wait)
		if video < 80e3 || wait > 600*time.Millisecond {
			t.Errorf("%.0f bit/s of video at once on %.0f, packets wait %v", video, rate, wait)
		}
		f.pass(5 * time.Second)
		video, wait = f.pass(10 * time.Second)
		f.log(t, "later", video, wait)
		if video < 0.4*rate || wait > 200*time.Millisecond {
			t.Errorf("%.0f bit/s of video later on %.0f, packets wait %v", video, rate, wait)
		}
	}
}

// TestMoved takes a way that is a tenth of a second longer, as from a cable to radio: nothing is less because of that.
func TestMoved(t *testing.T) {
	f := newFlow(newWorld(path{rate: 5e6, queue: time.Second, delay: 10 * time.Millisecond}), cameras...)
	f.pass(20 * time.Second)
	before, _ := f.pass(5 * time.Second)
	f.w.path.delay = 110 * time.Millisecond
	f.e.Moved(f.w.now)
	video, wait := f.pass(10 * time.Second)
	f.log(t, "moved", video, wait)
	if video < 0.95*before || f.e.Stats().Cuts > 0 {
		t.Errorf("%.0f bit/s of video, %.0f before", video, before)
	}
}

// TestHeldUp has packets be held up for up to 200 ms about every second, and then all arrive at once, which looks to a probe
// that was on its way as if the path carried any amount.
func TestHeldUp(t *testing.T) {
	const ms = time.Millisecond
	fooled, longest, video := 0, time.Duration(0), 0.0
	const calls = 20
	for seed := range uint64(calls) {
		w := newWorld(path{rate: 1.5e6, queue: 500 * ms, delay: 50 * ms, loss: 0.02})
		w.rnd = rand.New(rand.NewPCG(seed, 3))
		f := newFlow(w, cameras...)
		f.pass(5 * time.Second)
		f.maxWait, f.got = 0, [3]int{}
		highest := 0.0
		for end := w.now.Add(40 * time.Second); w.now.Before(end); {
			d := time.Duration(500+w.rnd.IntN(1000)) * ms
			for range d / (50 * ms) {
				w.run(w.now.Add(50 * ms))
				highest = max(highest, f.e.bitrate)
			}
			w.last = w.now.Add(time.Duration(50+w.rnd.IntN(150)) * ms)
		}
		if highest > 1.3*w.path.rate {
			fooled++
		}
		longest = max(longest, f.maxWait)
		video += float64(f.got[Video]) * 8 / 40 / calls
	}
	t.Logf("%d of %d are fooled, packets wait up to %v, %.0f bit/s of video", fooled, calls, longest, video)
	if fooled > 1 || longest > 300*ms || video < 700e3 {
		t.Fail()
	}
}

// TestNotOurs has a path that carries a gigabit, and delays that come and go for reasons of its own: pictures do not go dark
// because of that.
func TestNotOurs(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name      string
		gap, hold int // held up each so often, for how long at most; both in ms
		wander    time.Duration
		dark      float64 // percent of the time
	}{
		{"a busy machine", 500, 200, 0, 3},
		{"a very busy one", 500, 500, 0, 5},
		{"delay goes up and down by 100 ms", 1000, 100, 100 * ms, 3},
		{"delay goes up and down by 300 ms", 1000, 100, 300 * ms, 4},
	} {
		dark, all, video := 0, 0, 0.0
		const calls = 10
		for seed := range uint64(calls) {
			w := newWorld(path{rate: 1e9, queue: 500 * ms, delay: 2 * ms, wander: c.wander})
			w.rnd = rand.New(rand.NewPCG(seed, 3))
			f := newFlow(w, cameras...)
			for end := w.now.Add(40 * time.Second); w.now.Before(end); {
				for range (c.gap/2 + w.rnd.IntN(c.gap)) / 25 {
					w.run(w.now.Add(25 * ms))
					if all++; f.bits == 0 {
						dark++
					}
				}
				w.last = w.now.Add(time.Duration(w.rnd.IntN(c.hold)) * ms)
			}
			video += float64(f.got[Video]) * 8 / 40 / calls
		}
		share := 100 * float64(dark) / float64(all)
		t.Logf("%s: dark for %.1f %% of the time, %.2f Mbit/s", c.name, share, video/1e6)
		if share > c.dark || video < 2.2e6 {
			t.Errorf("%s: dark for %.1f %% of the time, %.2f Mbit/s", c.name, share, video/1e6)
		}
	}
}
