package conference

import (
	"time"
)

const (
	busyTick  = 20 * time.Millisecond // while media flows
	idleTick  = 100 * time.Millisecond
	busyAfter = 500 * time.Millisecond

	reportEvery  = 500 * time.Millisecond
	speakerEvery = 300 * time.Millisecond
	pollEvery    = 500 * time.Millisecond
)

// Tick does what is due by time alone and returns when it wants to be called again.
func (c *Conference) Tick(now time.Time) (next time.Time) {
	if len(c.paced) > 0 {
		c.paceAll(now)
		if len(c.paced) > 0 {
			defer func() { next = earlier(next, now.Add(paceTick)) }()
		}
		if now.Before(c.nextTick) && !c.stale {
			return c.nextTick
		}
	}
	c.nextTick = c.tick(now)
	return c.nextTick
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// tick does all but pacing.
func (c *Conference) tick(now time.Time) (next time.Time) {
	for _, e := range c.order {
		c.sendFeedback(e, now)
		if e.down.est != nil {
			e.tickDownlink(now)
		}
		for _, src := range e.sources {
			if src.kind == Audio {
				c.tickAudio(src, now)
			} else {
				c.tickVideo(src, now)
			}
		}
	}
	if !now.Before(c.nextReports) {
		c.nextReports = now.Add(reportEvery)
		for _, e := range c.order {
			c.sendReports(e, now)
		}
	}
	if !now.Before(c.nextSpeaker) {
		c.nextSpeaker = now.Add(speakerEvery)
		c.tickSpeaker(now)
	}
	if !now.Before(c.nextPoll) {
		c.nextPoll = now.Add(pollEvery)
		for told, i := 0, 0; i < len(c.order); i++ {
			if told += c.order[i].poll(now); told >= roundWork {
				c.nextPoll = now // the rest with the next tick: many may go at once
				break
			}
		}
	}
	if c.stale || c.next > 0 || !now.Before(c.nextAll) {
		c.reallocate(now)
	}
	c.follow(now)
	if c.stale || c.next > 0 || now.Sub(c.lastMedia) < busyAfter {
		return now.Add(busyTick)
	}
	return now.Add(idleTick)
}

func (c *Conference) tickAudio(src *source, now time.Time) {
	if src.holding == 0 {
		return
	}
	for _, o := range src.takers {
		if !o.hold.IsZero() {
			c.unhold(o, now)
		}
	}
}

func (c *Conference) tickVideo(src *source, now time.Time) {
	if src.liveness(now) {
		c.stale = true
	}
	for _, enc := range src.encodings {
		if enc.stream.Expecting() {
			c.nack(src.owner, enc, now)
		}
	}
	for _, o := range src.takers {
		if o.stream.Waiting() && !now.Before(o.askAt) {
			encoding, _ := o.stream.Target()
			src.keys.StillWaiting(encoding, now)
		}
	}
	c.askKey(src, now)
}

func (c *Conference) tickSpeaker(now time.Time) {
	if !c.speech.Tick(now) {
		return
	}
	id, ok := c.speech.Dominant()
	if !ok || id == c.dominant || c.endpoints[id] == nil {
		return
	}
	c.dominant = id
	c.spoken = nil
	c.stats.SpeakerChanges++
	previous := c.previous()
	for _, e := range c.order {
		if e.channel {
			c.cfg.Events.DominantSpeaker(e.id, id, previous, false)
		}
	}
	c.stale = true
}

// previous lists recent speakers before the dominant one.
func (c *Conference) previous() []EndpointID {
	all := c.speech.Recent(c.scratch.previous[:0])
	out := all[:0]
	for _, id := range all {
		if id != c.dominant && c.endpoints[id] != nil {
			out = append(out, id)
		}
	}
	c.scratch.previous = out
	return out
}
