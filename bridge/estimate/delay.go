package estimate

import "math"

const (
	groupSpan = 5_000      // µs: what is sent within is one group
	baseSpan  = 10_000_000 // µs over which the shortest way is looked for, and half of that before
	trendSize = 20         // groups

	smoothing = 0.9
	gain      = 4.0
	overFor   = 10_000 // µs of overuse before it counts

	minThreshold, maxThreshold = 6.0, 600.0 // ms
	thresholdUp, thresholdDown = 0.0087, 0.039

	// smallQueue is a queue that is not worth a reaction, in µs: timers and radio make as much.
	smallQueue = 25_000
	// standing is a queue that is always too long, in µs, if it stays for standingFor.
	standing    = 100_000
	standingFor = 300_000
)

// delay finds the queue on the path: by how much packets take longer than they did at best, and whether that grows. A
// group of packets is judged by its fastest one, so that a large picture is not mistaken for a queue.
type delay struct {
	base, before micros // the shortest way in this span and in the last one
	baseFrom     micros // when this span began
	known        bool

	sent  micros // first packet of the group that is being collected
	best  micros // the shortest way of it
	least micros // likewise, without what our own burst explains
	open  bool

	queue   micros // of the last group
	shortAt micros // when the last group left whose queue was no long one

	// Queues that came and went by themselves are the path's way: noise is how long they were of late.
	peak    micros // of the queue since it was last gone
	learned micros
	ours    bool // we have sent less because of it
	noise   micros

	trend     trend
	threshold float64 // ms
	updated   micros  // when the threshold was
	overSince micros
	longSince micros // since when the queue is a standing one
	last      float64

	over bool // the queue grows, or stands
}

// add takes a packet that was sent at a time of ours and arrived at one of the receiver's, behind a burst of ours of that
// length.
func (d *delay) add(sent, arrival, burst micros) {
	way := arrival - sent
	if d.open && sent-d.sent < groupSpan && sent >= d.sent {
		d.best, d.least = min(d.best, way), min(d.least, way-burst)
		return
	}
	d.flush()
	d.open, d.sent, d.best, d.least = true, sent, way, way-burst
}

// flush ends the group that is being collected.
func (d *delay) flush() {
	if !d.open {
		return
	}
	d.open = false
	d.rebase()
	d.queue = max(d.least-min(d.base, d.before), 0)
	if d.queue < standing {
		d.shortAt = d.sent
	}
	d.detect()
}

// rebase keeps the shortest way of the last ten to twenty seconds: clocks drift and routes change.
func (d *delay) rebase() {
	switch {
	case !d.known || d.best-d.base > 60_000_000 || d.base-d.best > 60_000_000:
		*d = delay{known: true, base: d.best, before: d.best, baseFrom: d.sent, threshold: 12.5, best: d.best, least: d.least, sent: d.sent}
	case d.sent-d.baseFrom > baseSpan:
		d.before, d.base, d.baseFrom = d.base, d.best, d.sent
	default:
		d.base = min(d.base, d.best)
	}
}

// detect looks whether the queue grows (as in draft-ietf-rmcat-gcc §5.4) and is long enough to matter.
func (d *delay) detect() {
	d.learn()
	slope, n := d.trend.add(float64(d.sent)/1000, float64(d.queue)/1000)
	m := slope * float64(min(n, 60)) * gain
	d.adapt(m)
	switch {
	case n < trendSize/2 || m <= d.threshold || slope < d.last-0.01:
		if m <= d.threshold {
			d.overSince = 0
		}
		d.over = false
	case d.overSince == 0:
		d.overSince = d.sent
	case d.sent-d.overSince >= overFor && d.queue > max(smallQueue, d.usual()):
		d.over = true
	}
	d.last = slope
	// One that does not shrink though it is long is our fault as well.
	switch {
	case d.queue < max(standing, d.usual()) || slope < -0.05:
		d.longSince = 0
	case d.queue >= max(bigQueue, d.usual()) && slope > 0.05 && n > trendSize/2:
		d.over = true
	case d.longSince == 0:
		d.longSince = d.sent
	case d.sent-d.longSince >= standingFor:
		d.over = true
	}
}

// learn keeps how long queues are that pass by themselves.
func (d *delay) learn() {
	d.noise -= d.noise * min(d.sent-d.learned, 1_000_000) / noiseFor
	d.learned = d.sent
	switch {
	case d.queue > max(goneQueue, d.noise/3):
		d.peak = max(d.peak, d.queue)
	case d.peak > 0:
		if !d.ours {
			d.noise = min(max(d.noise, d.peak), maxNoise)
		}
		d.peak, d.ours = 0, false
	}
}

// usual is a queue that is nothing special on this path.
func (d *delay) usual() micros { return d.noise + d.noise/2 }

const (
	goneQueue = 12_000     // µs: a queue shorter than this is none
	noiseFor  = 12_000_000 // µs, about, for which a passing queue is remembered
	maxNoise  = 80_000     // µs
)

// adapt moves the threshold after the noise, so that a path with much jitter is not called congested.
func (d *delay) adapt(m float64) {
	if d.updated == 0 {
		d.updated = d.sent
	}
	a := math.Abs(m)
	if a < d.threshold+15 {
		k := thresholdDown
		if a > d.threshold {
			k = thresholdUp
		}
		ms := float64(min(d.sent-d.updated, 100_000)) / 1000
		d.threshold = min(max(d.threshold+k*(a-d.threshold)*ms, minThreshold), maxThreshold)
	}
	d.updated = d.sent
}

// trend is a line through the last groups, smoothed.
type trend struct {
	x, y     [trendSize]float64 // ms
	n        int
	smoothed float64
}

// add takes a point and returns the slope of the line and how many points there were. Both times are in ms.
func (t *trend) add(x, y float64) (slope float64, n int) {
	if t.n == 0 {
		t.smoothed = y
	}
	t.smoothed = smoothing*t.smoothed + (1-smoothing)*y
	t.x[t.n%trendSize], t.y[t.n%trendSize] = x, t.smoothed
	t.n++
	k := min(t.n, trendSize)
	var mx, my float64
	for i := range k {
		mx += t.x[i]
		my += t.y[i]
	}
	mx, my = mx/float64(k), my/float64(k)
	var num, den float64
	for i := range k {
		dx := t.x[i] - mx
		num += dx * (t.y[i] - my)
		den += dx * dx
	}
	if den == 0 {
		return 0, t.n
	}
	return num / den, t.n
}
