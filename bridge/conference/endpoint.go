package conference

import (
	"slices"
	"strings"
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/codec"
	"plenum/bridge/receive"
)

const (
	maxSources    = 50 // of one endpoint
	maxEncodings  = 4  // of one source
	maxVideoTypes = 64 // remembered for sources that are not signalled yet
	inactiveAfter = 8 * time.Second
	silentStart   = 15 * time.Second
)

// An Endpoint is one participant: what it sends and what it gets.
type Endpoint struct {
	c    *Conference
	id   EndpointID
	leg  Leg
	caps Capabilities

	connected bool // keys are there
	channel   bool // the bridge channel has been open
	created   time.Time
	heard     time.Time
	inactive  bool // as last told to everybody

	// what it sends
	formats    [128]format
	ext        Extensions
	sources    []*source
	streams    map[SSRC]stream
	videoTypes map[string]string
	muted      [2]bool // by Kind
	feedback   *receive.Feedback
	fed        bool // on the conference's list
	packetsIn  uint64
	bytesIn    uint64

	// what it gets
	settings   allocate.Settings
	audio      AudioSubscription
	outputs    map[SSRC]*output // every SSRC that was ever sent to it, media only
	slots      [2][]*output     // by Kind: those in use or to be used again
	mids       [2]int           // by Kind: mids given out
	gets       map[*source]*output
	wants      map[*source]int // effective max heights other than 0
	forwarded  []string        // as last told
	down       downlink
	rtxBudget  int
	rtxFilled  time.Time
	repairRoom float64 // bytes
	repairedAt time.Time
	rtcpBudget int
	rtcpFilled time.Time
	packetsOut uint64
	bytesOut   uint64
}

// A format is one negotiated payload type.
type format struct {
	known bool
	codec codec.Codec
	clock uint32
	rtx   uint8 // payload type of its retransmissions, or of what it retransmits; 0 none
}

// A stream says what an incoming SSRC is.
type stream struct {
	source   *source
	encoding int
	rtx      bool
}

// AddEndpoint adds an endpoint whose media goes to leg. An endpoint that has the id already is removed first.
func (c *Conference) AddEndpoint(id EndpointID, leg Leg, caps Capabilities, now time.Time) *Endpoint {
	c.Remove(id, now)
	e := &Endpoint{
		c: c, id: id, leg: leg, caps: caps, created: now,
		streams: map[SSRC]stream{}, videoTypes: map[string]string{},
		feedback: receive.NewFeedback(now),
		audio:    AudioSubscription{All: true},
		outputs:  map[SSRC]*output{}, gets: map[*source]*output{}, wants: map[*source]int{},
	}
	c.endpoints[id] = e
	c.order = append(c.order, e)
	c.spoken = nil
	c.changed(now)
	return e
}

// Remove takes an endpoint with all its sources out of the conference. An unknown id is ignored.
func (c *Conference) Remove(id EndpointID, now time.Time) {
	e := c.endpoints[id]
	if e == nil {
		return
	}
	for len(e.sources) > 0 {
		e.dropSource(e.sources[len(e.sources)-1])
	}
	for _, r := range c.order { // its slots do not wait for its return
		for _, slots := range r.slots {
			for _, o := range slices.Clone(slots) {
				if o.owner == id {
					o.retire()
				}
			}
		}
	}
	for _, o := range e.outputs {
		o.unbind()
	}
	for src := range e.wants {
		src.want(e, 0)
	}
	e.include(-1)
	delete(c.endpoints, id)
	c.order = slices.DeleteFunc(c.order, func(o *Endpoint) bool { return o == e })
	c.speech.Remove(id)
	if c.dominant == id {
		c.dominant = ""
	}
	c.spoken = nil
	c.changed(now)
}

// ID is the endpoint's name.
func (e *Endpoint) ID() EndpointID { return e.id }

// SetMedia adds payload types and header extensions.
func (e *Endpoint) SetMedia(m Media) {
	for _, p := range m.PayloadTypes {
		if p.PT > 127 {
			continue
		}
		f := format{known: true, codec: codec.Parse(p.Codec), clock: uint32(max(p.Clockrate, 0))}
		if f.codec == codec.RTX && p.RTXFor < 128 {
			f.rtx = p.RTXFor
			e.formats[p.RTXFor].rtx = p.PT
		} else {
			f.rtx = e.formats[p.PT].rtx
		}
		e.formats[p.PT] = f
	}
	set := func(dst *uint8, id uint8) {
		if id != 0 {
			*dst = id
		}
	}
	set(&e.ext.AudioLevel, m.Extensions.AudioLevel)
	set(&e.ext.AbsSendTime, m.Extensions.AbsSendTime)
	set(&e.ext.TransportCC, m.Extensions.TransportCC)
	set(&e.ext.MID, m.Extensions.MID)
	set(&e.ext.DependencyDescriptor, m.Extensions.DependencyDescriptor)
}

// SetSources replaces everything that the endpoint sends. Sources beyond the limits, or with names or SSRCs that
// are taken, are left out.
func (e *Endpoint) SetSources(sources []Source, now time.Time) {
	c := e.c
	empty := !slices.ContainsFunc(e.sources, func(s *source) bool { return s.kind == Video })
	for _, old := range slices.Clone(e.sources) {
		if !slices.ContainsFunc(sources, func(s Source) bool { return old.is(s) }) {
			e.dropSource(old)
		}
	}
	for _, s := range sources {
		if src := c.sources[s.Name]; src != nil {
			if src.owner == e && s.VideoType != "" && src.signalledType != s.VideoType {
				src.signalledType = s.VideoType
				src.setVideoType(s.VideoType)
			}
			continue
		}
		if len(e.sources) >= maxSources || len(s.Encodings) == 0 || len(s.Encodings) > maxEncodings {
			c.log.Warn("source refused", "endpoint", string(e.id), "encodings", len(s.Encodings))
			continue
		}
		if slices.ContainsFunc(s.Encodings, func(n Encoding) bool {
			return e.streams[n.SSRC].source != nil || n.RTX != 0 && e.streams[n.RTX].source != nil
		}) {
			c.log.Warn("ssrc is taken", "endpoint", string(e.id))
			continue
		}
		e.addSource(s, empty)
	}
	c.changed(now)
}

// addSource adds a source. tell says that its owner hears what is wanted of it even if that is nothing.
func (e *Endpoint) addSource(s Source, tell bool) {
	src := &source{c: e.c, name: s.Name, kind: s.Kind, owner: e, signalledType: s.VideoType, heights: map[int]int{}}
	if tell {
		src.told = untold
	}
	src.setVideoType(s.VideoType)
	if t, ok := e.videoTypes[s.Name]; ok {
		src.setVideoType(t)
	}
	for i, n := range s.Encodings {
		clock := uint32(90000)
		if s.Kind == Audio {
			clock = 48000
		}
		enc := &encoding{Encoding: n, stream: receive.Stream{SSRC: n.SSRC, Clock: clock, Repair: s.Kind == Video}}
		enc.spatial = 1
		for sid := range enc.heights {
			enc.heights[sid] = 180 << (i + sid)
		}
		src.encodings = append(src.encodings, enc)
		e.streams[n.SSRC] = stream{source: src, encoding: i}
		if n.RTX != 0 {
			e.streams[n.RTX] = stream{source: src, encoding: i, rtx: true}
		}
	}
	e.sources = append(e.sources, src)
	e.c.sources[s.Name] = src
	if s.Kind == Audio {
		src.stale = true
	}
}

// dropSource ends a source. Slots keep its name, for the case that it returns.
func (e *Endpoint) dropSource(src *source) {
	for len(src.takers) > 0 {
		src.takers[len(src.takers)-1].unbind()
	}
	for _, r := range e.c.order {
		delete(r.wants, src)
	}
	for ssrc, s := range e.streams {
		if s.source == src {
			delete(e.streams, ssrc)
		}
	}
	delete(e.c.sources, src.name)
	e.c.loud.Forget(src)
	e.c.pending = slices.DeleteFunc(e.c.pending, func(s *source) bool { return s == src })
	e.sources = slices.DeleteFunc(e.sources, func(s *source) bool { return s == src })
}

// SetForceMute drops what the endpoint sends, by kind.
func (e *Endpoint) SetForceMute(audio, video bool, now time.Time) {
	e.muted = [2]bool{Audio: audio, Video: video}
	if audio {
		e.c.speech.Remove(e.id)
	}
	e.c.changed(now)
}

// SetInitialLastN limits the number of video sources until the client says how many it wants.
func (e *Endpoint) SetInitialLastN(n int) {
	if !e.settings.Started() {
		e.settings.SetLastN(n)
	}
}

// SetVideoType notes what a video source is now: "camera", "desktop", "desktop_high_fps", or "none" and
// "disabled" for nothing, in any case. The source may be signalled later.
func (e *Endpoint) SetVideoType(name, videoType string, now time.Time) {
	videoType = strings.ToLower(videoType)
	if _, ok := e.videoTypes[name]; !ok && len(e.videoTypes) >= maxVideoTypes {
		return
	}
	e.videoTypes[name] = videoType
	src := e.c.sources[name]
	if src == nil || src.owner != e || src.kind != Video {
		return
	}
	label := src.label
	src.setVideoType(videoType)
	if src.label != label {
		for _, o := range src.takers {
			if o.e.caps.Rewriting && o.e.channel {
				o.e.tell(Video, []Mapping{o.mapping()})
			}
		}
	}
	e.c.changed(now)
}

// SetConstraints applies what the receiver asks for. Absent fields stay as they were. It keeps r.
func (e *Endpoint) SetConstraints(r allocate.Request, now time.Time) {
	e.settings.Apply(r)
	e.c.allocate([]*Endpoint{e}, now)
}

// SetLastN changes how many video sources the receiver gets, and nothing else.
func (e *Endpoint) SetLastN(n int, now time.Time) {
	e.settings.SetLastN(n)
	e.c.allocate([]*Endpoint{e}, now)
}

// SetAudioSubscription chooses which audio sources the receiver gets. It keeps s.
func (e *Endpoint) SetAudioSubscription(s AudioSubscription, now time.Time) {
	e.include(-1)
	e.audio = s
	e.include(1)
	for _, src := range e.c.sources {
		if src.kind == Audio {
			src.stale = true
		}
	}
	for _, o := range slices.Clone(e.slots[Audio]) {
		if o.source != nil && !e.hears(o.source) {
			o.unbind()
		}
	}
	for _, o := range e.outputs {
		if o.kind == Audio && o.source != nil && !e.hears(o.source) {
			o.unbind()
		}
	}
}

// include counts the sources that the endpoint asks for by name.
func (e *Endpoint) include(n int) {
	for _, name := range e.audio.Include {
		if e.c.included[name] += n; e.c.included[name] <= 0 {
			delete(e.c.included, name)
		}
	}
}

func (e *Endpoint) hears(src *source) bool {
	switch {
	case src.owner == e || slices.Contains(e.audio.Exclude, src.name):
		return false
	case slices.Contains(e.audio.Include, src.name):
		return true
	}
	return e.audio.All
}

// ChannelOpened says that the bridge channel to the client is open, for the first time or again; the client is
// told everything that is so now.
func (e *Endpoint) ChannelOpened(now time.Time) {
	c, ev := e.c, e.c.cfg.Events
	first := !e.channel
	e.channel = true
	for _, src := range e.sources {
		if src.kind == Video {
			src.told = src.maxHeight()
			ev.SenderSourceConstraints(e.id, src.name, src.told)
		}
	}
	ev.ForwardedSources(e.id, e.forwarded)
	for _, kind := range [2]Kind{Video, Audio} {
		m := c.scratch.mappings[:0]
		for _, o := range e.slots[kind] {
			if o.source != nil {
				m = append(m, o.mapping())
			}
		}
		c.scratch.mappings = m
		e.tell(kind, m)
	}
	for _, o := range c.order {
		if o.inactive {
			ev.Connectivity(e.id, o.id, false)
		}
	}
	if c.dominant != "" {
		ev.DominantSpeaker(e.id, c.dominant, c.previous(), false)
	}
	if first {
		e.freshen()
		c.changed(now)
	}
}

// tell sends a map of one kind, unless it is empty.
func (e *Endpoint) tell(kind Kind, m []Mapping) {
	switch {
	case len(m) == 0 || !e.caps.Rewriting:
	case kind == Video:
		e.c.cfg.Events.VideoSourcesMap(e.id, m)
	default:
		e.c.cfg.Events.AudioSourcesMap(e.id, m)
	}
}

// Connected says that media can be sent: the keys are there.
func (e *Endpoint) Connected(now time.Time) {
	e.connected = true
	e.down.begin(&e.c.spare, now)
	e.freshen()
	e.c.changed(now)
}

// freshen makes all audio sources look at this receiver with their next packet.
func (e *Endpoint) freshen() {
	for _, src := range e.c.sources {
		if src.kind == Audio {
			src.stale = true
		}
	}
}

// Moved says that packets go to the endpoint by another way from now on.
func (e *Endpoint) Moved(now time.Time) {
	if e.down.est != nil {
		e.down.est.Moved(now)
	}
}

// Heard says that something authenticated came from the endpoint, be it only consent.
func (e *Endpoint) Heard(now time.Time) { e.heard = now }

// ready reports whether media of that kind may be sent to the endpoint. A rewriting receiver must be able to
// hear the maps.
func (e *Endpoint) ready() bool { return e.connected && (e.channel || !e.caps.Rewriting) }

// isActive is the connectivity as of now.
func (e *Endpoint) isActive(now time.Time) bool {
	if e.heard.IsZero() {
		return now.Sub(e.created) <= silentStart
	}
	return now.Sub(e.heard) <= inactiveAfter
}

// poll tells everybody when the endpoint's connectivity has changed, and returns how many it has told.
func (e *Endpoint) poll(now time.Time) (told int) {
	if e.caps.Visitor || e.isActive(now) != e.inactive {
		return 0
	}
	e.inactive = !e.inactive
	for _, to := range e.c.order {
		if to.channel {
			e.c.cfg.Events.Connectivity(to.id, e.id, !e.inactive)
			told++
		}
	}
	return told
}
