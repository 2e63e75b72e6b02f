package estimate

import "math"

const (
	lossSpan    = 500_000 // µs of one look at losses
	lossPackets = 25      // that it needs at least
	lossMargin  = 0.08    // more than the path's own that is not looked into
	// retry is how long a path that has lost as much with less to carry is believed to lose by itself, in µs.
	trialRest = 5_000_000
)

// loss tells what a full queue or a policer drops from what the path loses whatever is sent. It does that by trying:
// when more is lost than usual it sends a little less than what arrived. If that ends the loss, there was too much; if
// not, the rate is given back and the loss is the path's own.
type loss struct {
	packets, lost int // of this look
	from          micros
	next          int64 // packets of this look were sent from here on
	recent        float64
	own           float64

	trial    bool
	saved    float64 // bitrate before the trial
	before   float64 // loss before the trial
	worse    int     // looks in a row with more than the own loss
	restTill micros
	quietAt  micros // of the last queue
}

func (l *loss) add(gone bool) {
	l.packets++
	if gone {
		l.lost++
	}
}

// undo takes a loss back: the packet was only late.
func (l *loss) undo() { l.lost = max(l.lost-1, 0) }

// disturbed says that a queue overflowed: losses about that time say nothing of the path itself.
func (l *loss) disturbed(at micros) {
	l.quietAt = at
	l.trial = false
	l.worse = 0
}

// judgeLoss ends a look when there is enough to see.
func (e *Estimator) judgeLoss(at micros) {
	l := &e.loss
	if l.from == 0 {
		l.from = at
	}
	if l.trial && e.history.reported <= l.next { // nothing of what was sent since has been told of
		l.packets, l.lost, l.from = 0, 0, at
		return
	}
	if at-l.from < lossSpan || l.packets < lossPackets {
		return
	}
	n := float64(l.packets)
	p := float64(l.lost) / n
	l.packets, l.lost, l.from = 0, 0, at
	l.recent += (p - l.recent) / 2
	if p < 0.001 && l.recent < 0.005 {
		l.recent = 0
	}
	if at-l.quietAt < 1_000_000 && l.quietAt != 0 || e.delay.over {
		return
	}
	noise := 2.5 * math.Sqrt(max(l.own*(1-l.own), 0.01*0.99)/n)
	switch {
	case l.trial:
		l.trial = false
		if p < l.before/2 {
			// There was too much, and there is no longer.
			e.capacity, e.capacityAt = e.bitrate, at
			if e.raised != 0 {
				e.probes.failed()
			}
			return
		}
		l.own = p
		e.bitrate = max(e.bitrate, l.saved)
		l.restTill = at + trialRest
	case p <= l.own+lossMargin+noise:
		l.own += (p - l.own) / 8
		l.worse = 0
	case at < l.restTill && p < 2*l.own+0.1:
		l.own += (p - l.own) / 4
	default:
		// Bursts come and go: a second look, unless very much is lost.
		if l.worse++; l.worse < 2 && p < 0.2 {
			return
		}
		l.worse = 0
		arriving := e.arrived.over(400_000)
		to := 0.95 * arriving
		if arriving == 0 || to >= e.bitrate {
			return
		}
		l.trial, l.saved, l.before, l.next = true, e.bitrate, p-l.own, e.history.next
		e.stats.LossCuts++
		e.bitrate = max(to, Min)
	}
}
