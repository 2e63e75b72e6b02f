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
	loss   float64
	// police drops what exceeds rate over a bucket of this many bytes, and queues nothing.
	police float64
}

// An arrivalEvent is something that happens at a time: f runs then.
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
	waits         []time.Duration
	bits          float64
	audio         int
	changes       int
	lastBits      float64
	credit        float64
	stepped       time.Time
	feedbackEvery time.Duration
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
		if f.layer < len(f.layers) && f.layers[f.layer]*1.1 < bits {
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

func TestExplore(t *testing.T) {
	for _, c := range []struct {
		name string
		path path
	}{
		{"wide", path{rate: 100e6, queue: time.Second, delay: 10 * time.Millisecond}},
		{"dsl", path{rate: 1e6, queue: 500 * time.Millisecond, delay: 20 * time.Millisecond}},
		{"600k", path{rate: 600e3, queue: time.Second, delay: 30 * time.Millisecond}},
		{"loss2", path{rate: 3e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, loss: 0.02}},
		{"loss10", path{rate: 3e6, queue: 200 * time.Millisecond, delay: 30 * time.Millisecond, loss: 0.10}},
		{"satellite", path{rate: 2e6, queue: 500 * time.Millisecond, delay: 300 * time.Millisecond}},
		{"jitter", path{rate: 3e6, queue: 300 * time.Millisecond, delay: 40 * time.Millisecond, jitter: 30 * time.Millisecond}},
		{"policer", path{rate: 1.2e6, police: 20_000, delay: 20 * time.Millisecond}},
		{"short", path{rate: 1.2e6, queue: 25 * time.Millisecond, delay: 20 * time.Millisecond}},
	} {
		for _, l := range [][]float64{nil, cameras} {
			t.Run(c.name, func(t *testing.T) {
				f := newFlow(newWorld(c.path), l...)
				for _, s := range []string{"1s", "2s", "5s", "10s", "30s"} {
					d, _ := time.ParseDuration(s)
					v, w := f.pass(d)
					f.log(t, s, v, w)
				}
				t.Log("audio lost", f.lostAudio, "changes", f.changes)
			})
		}
	}
	for _, l := range [][]float64{nil, cameras} {
		t.Run("step", func(t *testing.T) {
			f := newFlow(newWorld(path{rate: 3e6, queue: 2 * time.Second, delay: 30 * time.Millisecond}), l...)
			v, w := f.pass(15 * time.Second)
			f.log(t, "3", v, w)
			f.w.path.rate = 600e3
			for range 6 {
				v, w = f.pass(time.Second)
				f.log(t, "0.6", v, w)
			}
			v, w = f.pass(15 * time.Second)
			f.log(t, "0.6 on", v, w)
			f.w.path.rate = 3e6
			for range 10 {
				v, w = f.pass(2 * time.Second)
				f.log(t, "3", v, w)
			}
			t.Log("audio lost", f.lostAudio, "changes", f.changes)
		})
	}
}
