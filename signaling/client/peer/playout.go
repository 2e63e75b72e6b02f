package peer

import "time"

// A playout says what a listener would have heard of one audio stream, after the model of NetEq: sound is held back by
// as much as the network varies, for 97 of 100 packets. What is lost is made up; what comes later than that is waited
// for with made-up sound, and from then on everything is that much later, until the queue has been played away a little
// faster.
type playout struct {
	expected time.Duration // that should have been heard
	made     time.Duration // of it made up

	started bool
	ts      int64             // unwrapped
	last    uint32            // timestamp
	base    [2]time.Duration  // shortest transit in this and in the previous epoch
	epoch   time.Time         // of base[0]
	first   time.Time         // arrival of the first packet
	hold    time.Duration     // by how much sound is held back now
	delays  [delayBins]uint32 // how many packets were so late, in steps; halved from time to time
	n       uint32
}

const (
	delayStep  = 10 * time.Millisecond
	delayBins  = 100
	baseEpoch  = 10 * time.Second // over which the shortest transit is looked for
	minHold    = 40 * time.Millisecond
	playFaster = 8 // an eighth faster
	forget     = 400
	resync     = 10 * time.Second
)

// arrive takes a packet in its turn; lost is how many before it have not come.
func (p *playout) arrive(ts uint32, clock int64, lost int64, now time.Time) {
	const frame = 20 * time.Millisecond
	if d := time.Duration(int32(ts-p.last)) * time.Second / time.Duration(clock); d < -resync || d > resync {
		p.started = false // another clock
	}
	if !p.started {
		p.ts, p.started, p.last, p.first, p.epoch, p.hold = 0, true, ts, now, now, minHold
		p.base = [2]time.Duration{0, 0}
	}
	p.ts += int64(int32(ts - p.last))
	p.last = ts
	transit := now.Sub(p.first) - time.Duration(p.ts)*time.Second/time.Duration(clock)
	if now.Sub(p.epoch) > baseEpoch {
		p.base[1], p.base[0], p.epoch = p.base[0], transit, now
	}
	p.base[0] = min(p.base[0], transit)
	late := transit - min(p.base[0], p.base[1])
	p.expected += frame * time.Duration(1+lost)
	p.made += frame * time.Duration(lost)
	if late > p.hold {
		p.made += late - p.hold
		p.hold = late
	} else if target := p.target(); p.hold > target {
		p.hold = max(target, p.hold-frame/playFaster)
	} else {
		p.hold = min(target, p.hold+frame/playFaster)
	}
	p.delays[min(int(late/delayStep), delayBins-1)]++
	if p.n++; p.n >= forget {
		p.n = 0
		for i := range p.delays {
			p.n += p.delays[i] / 2
			p.delays[i] /= 2
		}
	}
}

// recover takes a packet that was thought lost, and came in time or not.
func (p *playout) recover(ts uint32, clock int64, now time.Time) {
	transit := now.Sub(p.first) - time.Duration(p.ts+int64(int32(ts-p.last)))*time.Second/time.Duration(clock)
	if transit-min(p.base[0], p.base[1]) <= p.hold {
		p.made -= min(p.made, 20*time.Millisecond)
	}
}

// target is by how much sound should be held back.
func (p *playout) target() time.Duration {
	over := p.n * 3 / 100
	for i := delayBins - 1; i >= 0; i-- {
		if p.delays[i] > over {
			return max(minHold, time.Duration(i+1)*delayStep)
		}
		over -= p.delays[i]
	}
	return minHold
}
