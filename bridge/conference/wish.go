package conference

import (
	"slices"
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/project"
)

// changed says that an input of allocation is new. Allocation follows at once, or in a burst of changes with the
// next Flush or Tick.
func (c *Conference) changed(now time.Time) {
	c.stale = true
	c.reallocate(now)
}

// maxRound is how many receivers are looked at in one go, and roundWork how many pairs of receiver and source, which is a
// millisecond or two; the rest follows with the next Flush or Tick, so that packets do not wait for hundreds of receivers.
const (
	maxRound  = 64
	roundWork = 8192
)

// reallocate does allocation for everybody, a part of the receivers at a time, and not more often than the
// conference's size allows.
func (c *Conference) reallocate(now time.Time) {
	if c.next == 0 || c.next >= len(c.order) {
		pause := max(20*time.Millisecond, time.Duration(len(c.order))*500*time.Microsecond)
		if since := now.Sub(c.allocatedAt); since >= 0 && since < pause && len(c.order) > 3 {
			return
		}
		c.stale, c.next = false, 0
		c.allocatedAt, c.nextAll = now, now.Add(5*time.Second)
	}
	end := min(c.next+min(maxRound, max(roundWork/(len(c.scratch.sources)+1), 8)), len(c.order))
	c.allocate(c.order[c.next:end], now)
	if c.next = end; end == len(c.order) {
		c.next = 0
	}
}

// wake allocates for those who want a source of which an encoding has just begun. It cannot wait: the encoding's
// first packet, which is in the batch, begins a key frame. In a large conference the rest ask for another.
func (c *Conference) wake(now time.Time) {
	for _, src := range c.pending {
		if !src.woken {
			continue
		}
		src.woken = false
		receivers := c.scratch.receivers[:0]
		for _, e := range c.order {
			if e.wants[src] != 0 && len(receivers) < maxRound {
				receivers = append(receivers, e)
			}
		}
		c.scratch.receivers = receivers
		c.allocate(receivers, now)
		clear(receivers)
	}
}

// speechOrder lists the endpoints, the last speaker first, those who never spoke in order of joining.
func (c *Conference) speechOrder() []*Endpoint {
	if c.spoken != nil || len(c.order) == 0 {
		return c.spoken
	}
	c.spoken = make([]*Endpoint, 0, len(c.order))
	add := func(e *Endpoint) {
		if e != nil && !slices.Contains(c.spoken, e) {
			c.spoken = append(c.spoken, e)
		}
	}
	add(c.endpoints[c.dominant])
	for _, id := range c.speech.Recent(nil) {
		add(c.endpoints[id])
	}
	first := len(c.spoken)
	for _, e := range c.order {
		if !slices.Contains(c.spoken[:first], e) {
			c.spoken = append(c.spoken, e)
		}
	}
	return c.spoken
}

// allocate decides what the given receivers get, and tells them and the senders what is new.
func (c *Conference) allocate(receivers []*Endpoint, now time.Time) {
	all := c.scratch.sources[:0]
	for _, e := range c.speechOrder() {
		for _, src := range e.sources {
			if src.kind == Video && src.enabled && !e.muted[Video] {
				all = append(all, allocate.Source{Name: src.name, Owner: string(e.id), Desktop: src.desktop, Enabled: true, Layers: src.choices(now)})
			}
		}
	}
	c.scratch.sources = all
	for _, e := range receivers {
		e.allocate(all, now)
	}
	for _, e := range c.order {
		for _, src := range e.sources {
			if src.kind != Video {
				continue
			}
			if h := src.maxHeight(); h != src.told && e.channel {
				src.told = h
				c.cfg.Events.SenderSourceConstraints(e.id, src.name, h)
			}
			c.askKey(src, now)
		}
	}
}

// allocate decides what one receiver gets.
func (e *Endpoint) allocate(all []allocate.Source, now time.Time) {
	c := e.c
	mine := c.scratch.choices[:0]
	for _, s := range all {
		if s.Owner != string(e.id) {
			mine = append(mine, s)
		}
	}
	c.scratch.choices = mine
	d := &e.down
	if d.est == nil || !d.est.Known() {
		d.limit = e.budget(now)
	}
	limit := d.limit
	for i := range mine {
		mine[i].Current = 1 + e.layer(c.sources[mine[i].Name])
	}
	results := c.scratch.allocator.Allocate(c.scratch.results[:0], &e.settings, mine, limit)
	c.scratch.results = results
	d.used, d.taken, d.ideal = limit, 0, 0
	for _, r := range results {
		d.taken += r.Bitrate
		d.ideal += r.Ideal
	}
	if d.est != nil {
		want := d.ideal + d.ideal/8 + d.beside.BPS(now)
		if c.ceiling > 0 {
			want = min(want, c.ceiling) // nothing is probed for what may not be sent
		}
		d.est.Want(want)
	}
	c.round++
	for _, r := range results {
		if r.Wanted {
			src := c.sources[r.Name]
			src.round = c.round
			src.want(e, r.Effective.MaxHeight)
		}
	}
	// What is not wanted any more may give its slot to what is, so that comes first.
	for src := range e.wants {
		if src.round != c.round {
			src.want(e, 0)
		}
	}
	for src, o := range e.gets {
		if src.kind == Video && src.round != c.round {
			o.stream.SetTarget(-1, 0)
		}
	}
	names, maps := c.scratch.names[:0], c.scratch.mappings[:0]
	for _, r := range results {
		if !r.Wanted || !e.channel && e.caps.Rewriting {
			continue
		}
		src := c.sources[r.Name]
		o, fresh := e.slot(src, true, now)
		if o == nil {
			continue
		}
		if fresh {
			maps = append(maps, o.mapping())
		}
		if r.Layer < 0 || !e.ready() {
			o.stream.SetTarget(-1, 0)
			continue
		}
		encoding, layer := r.Layer>>6, r.Layer&0x3f
		if layer&7 == src.encodings[encoding].top {
			layer |= project.AllLayers
		}
		waited := o.stream.Waiting()
		before, was := o.stream.Target()
		if before != encoding || was != layer {
			d.changes++
		}
		o.stream.SetTarget(encoding, layer)
		if o.stream.Waiting() && d.est != nil && d.est.Congested() && o.tooMuch(r.Bitrate) {
			o.stream.Drop()
		}
		switch {
		case !o.stream.Waiting():
		case o.stream.Current() == encoding && src.encodings[encoding].described:
			// Another spatial layer: the descriptor says where one may switch, which may be soon.
			if !waited {
				o.askAt = now.Add(switchPatience)
			}
		case (!waited || before != encoding) && !src.keyInBatch(encoding):
			o.askAt = time.Time{}
			src.keys.Ask(encoding)
		}
		names = append(names, src.name)
	}
	if e.channel && e.caps.Rewriting { // free slots are given out ahead of time
		for _, r := range results {
			if len(e.slots[Video]) >= c.cfg.VideoSlots {
				break
			}
			src := c.sources[r.Name]
			if r.Wanted || !src.enabled {
				continue
			}
			if o, fresh := e.slot(src, false, now); fresh {
				maps = append(maps, o.mapping())
			}
		}
	}
	c.scratch.names, c.scratch.mappings = names, maps
	e.tell(Video, maps)
	if !sameSet(names, e.forwarded) {
		e.forwarded = append(e.forwarded[:0], names...)
		if e.channel {
			c.cfg.Events.ForwardedSources(e.id, e.forwarded)
		}
	}
}

// layer is what the endpoint is to get of a source as things are, -1 nothing; as in choices.
func (e *Endpoint) layer(src *source) int {
	o := e.gets[src]
	if o == nil {
		return -1
	}
	encoding, layer := o.stream.Target()
	if encoding < 0 {
		return -1
	}
	if layer&7 == project.AllLayers {
		layer = layer&^7 | src.encodings[encoding].top
	}
	return encoding<<6 | layer
}

// tooMuch reports whether the least that can go out until the target's key frame comes is more than the target.
func (o *output) tooMuch(bps int64) bool {
	current := o.stream.Current()
	target, _ := o.stream.Target()
	if current <= target {
		return false
	}
	for _, l := range o.source.layers {
		if l.Index>>6 == current {
			return l.Bitrate > bps+bps/4 // the first is the lowest
		}
	}
	return false
}

// switchPatience is how long a change of the spatial layer may wait for a frame that allows it before a key frame is
// asked for.
const switchPatience = 250 * time.Millisecond

// keyInBatch reports whether a key frame of that encoding waits for the next fan-out.
func (src *source) keyInBatch(encoding int) bool {
	return slices.ContainsFunc(src.batch, func(p project.Packet) bool { return p.Encoding == encoding && p.Frame.Key })
}

func sameSet(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}
