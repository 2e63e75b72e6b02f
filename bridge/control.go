package bridge

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"plenum/bridge/conference"
	"plenum/bridge/ice"
	"plenum/bridge/transport"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

const (
	sctpPort = 5000

	// maxQueued is how many requests for one conference may wait. A focus has a few in flight; more than
	// this is answered resource-constraint.
	maxQueued = 4096
)

// A control turns colibri2 requests into conferences. Requests for one conference are carried out strictly
// in the order in which they came, also those that come before it exists; conferences do not wait for
// each other.
//
//	XMPP ──┐                ┌─ lane m1: request, request, … ──► core that owns m1
//	       ├─ submit ───────┤
//	HTTP ──┘                └─ lane m2: request, …          ──► core that owns m2
type control struct {
	b   *Bridge
	log *slog.Logger

	lanes sync.WaitGroup // goroutines that work lanes off

	mu       sync.Mutex
	closed   bool
	meetings map[string]*meeting // by meeting id; also those whose creation waits in their lane
	channels map[string]*meeting // conferences that exist, by the id in the URLs of the bridge channel
}

// A meeting is one conference on this bridge, with the requests that wait for it.
type meeting struct {
	b  *Bridge
	id string // meeting-id

	lane []func() // guarded by control.mu; the first is being carried out while busy
	busy bool     // guarded by control.mu

	live atomic.Pointer[live] // nil: there is no such conference

	fence uint64 // lane: that of the newest owner that was heard
}

// live is a conference that exists. Its lane alone creates, changes and ends it.
type live struct {
	b       *Bridge
	meeting *meeting
	name    string // of the room; may be empty
	channel string // id in the URLs of the bridge channel
	created time.Time
	log     *slog.Logger
	core    *core

	// Used on core only.
	conf     *conference.Conference
	views    map[string][]string // whose video each endpoint gets
	speakers []string            // former ones and the dominant

	audioSSRC, videoSSRC uint32 // of the bridge's feedback

	mu        sync.RWMutex
	endpoints map[string]*member // written in the lane

	stats atomic.Pointer[conference.Stats] // as of the last tick
	paths atomic.Pointer[paths]            // likewise
	told  time.Time                        // when clients last heard of their estimates; on core
}

// A member is one participant of a conference on this bridge: an endpoint of colibri2.
type member struct {
	live    *live
	id      string
	statsID string
	visitor bool
	sctp    bool
	created time.Time
	secret  string // of the colibri WebSocket
	peer    *peer
	media   conference.Media // lane
	channel channel

	connected, failed atomic.Bool  // of the transport
	heard             atomic.Int64 // unix nanoseconds of the last sign of life; 0: none

	// Owned by the core.
	engine   *conference.Endpoint // nil before it is added and after it is removed
	forwards bucket               // of messages to other clients
}

func newControl(b *Bridge) *control {
	return &control{b: b, log: b.log, meetings: map[string]*meeting{}, channels: map[string]*meeting{}}
}

// submit queues a request and calls done once with its outcome, from another goroutine or, when it is refused
// at once, from this one. The order of answers for one conference is that of the calls.
func (c *control) submit(req colibri.ConferenceModify, done func(colibri.ConferenceModified, error)) {
	c.enqueue(req.MeetingID, func(m *meeting) {
		start := c.b.cfg.Now()
		answer, end, err := c.guarded(m, req, start)
		c.b.metrics.request(err != nil, err != nil && stanzaError(err).Condition == xmpp.InternalServerError, c.b.cfg.Now().Sub(start))
		done(answer, err)
		if end {
			c.expire(m)
		}
	}, func(err error) { done(colibri.ConferenceModified{}, err) })
}

// guarded is modify; a broken invariant costs one request, not the bridge.
func (c *control) guarded(m *meeting, req colibri.ConferenceModify, now time.Time) (answer colibri.ConferenceModified, end bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			c.log.Error("colibri request panicked", "panic", r, "conference", c.b.hash(req.Name))
			err = xmpp.StanzaError{Condition: xmpp.InternalServerError, Text: "Failed to handle the request."}
		}
	}()
	return c.modify(m, req, now)
}

// enqueue runs f in the lane of a meeting, or refuses.
func (c *control) enqueue(id string, f func(*meeting), refuse func(error)) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		refuse(xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: "Shutting down"})
		return
	}
	m := c.meetings[id]
	if m == nil {
		m = &meeting{b: c.b, id: id}
		c.meetings[id] = m
	}
	if len(m.lane) >= maxQueued {
		c.mu.Unlock()
		refuse(xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "Too many requests for one conference"})
		return
	}
	c.queueLocked(m, func() { f(m) })
	c.mu.Unlock()
}

func (c *control) queueLocked(m *meeting, f func()) {
	m.lane = append(m.lane, f)
	if !m.busy {
		m.busy = true
		c.lanes.Go(func() { c.work(m) })
	}
}

// work carries out what is in the lane of m and ends when it is empty.
func (c *control) work(m *meeting) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(m.lane) > 0 {
		f := m.lane[0]
		m.lane[0] = nil
		m.lane = m.lane[1:]
		c.mu.Unlock()
		f()
		c.mu.Lock()
	}
	m.lane, m.busy = nil, false
	if m.live.Load() == nil {
		delete(c.meetings, m.id)
	}
}

// close refuses all requests from now on, ends all conferences and waits for all lanes.
func (c *control) close() {
	c.mu.Lock()
	c.closed = true
	for _, m := range c.meetings {
		c.queueLocked(m, func() { c.expire(m) })
	}
	c.mu.Unlock()
	c.lanes.Wait()
}

// conferences returns those that exist.
func (c *control) conferences() []*live {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*live
	for _, m := range c.meetings {
		if l := m.live.Load(); l != nil {
			out = append(out, l)
		}
	}
	return out
}

// endpoint finds who a WebSocket of the bridge channel is for; nil if there is none.
func (c *control) endpoint(channel, id string) *member {
	c.mu.Lock()
	m := c.channels[channel]
	c.mu.Unlock()
	if m == nil {
		return nil
	}
	l := m.live.Load()
	if l == nil {
		return nil
	}
	return l.endpoint(id)
}

// modify carries out one request. End says that the conference is over once the answer has been sent.
func (c *control) modify(m *meeting, req colibri.ConferenceModify, now time.Time) (answer colibri.ConferenceModified, end bool, err error) {
	if req.Fence != nil {
		switch {
		case *req.Fence < m.fence:
			return answer, false, refused(xmpp.Conflict, "The room has a newer owner")
		case *req.Fence > m.fence && req.Create: // what is there was the former owner's
			c.expire(m)
		}
		m.fence = *req.Fence
	}
	l := m.live.Load()
	switch {
	case req.Create && l != nil:
		return answer, false, refused(xmpp.Conflict, "Conference already exists for ID: "+m.id, colibri.Error{Reason: colibri.ConferenceAlreadyExists})
	case !req.Create && l == nil:
		return answer, false, refused(xmpp.ItemNotFound, "Conference not found for ID: "+m.id, colibri.Error{Reason: colibri.ConferenceNotFound})
	case req.Create && c.b.state.closing():
		return answer, false, refused(xmpp.ServiceUnavailable, "In graceful shutdown", colibri.Error{Reason: colibri.GracefulShutdown})
	case req.Create && req.Name != "":
		if _, err := jid.Parse(req.Name); err != nil {
			return answer, false, refused(xmpp.BadRequest, "Invalid conference name (not a JID)")
		}
	}
	if req.Create {
		if l, err = c.create(m, req, now); err != nil {
			return answer, false, err
		}
	}
	// On an error a new conference stays: requests that are already queued behind its creation must not find
	// it missing. It ends like any empty one.
	if err := shape(req); err != nil {
		return answer, false, err
	}
	created := req.Create
	for _, e := range req.Endpoints {
		a, err := l.apply(e, now)
		if err != nil {
			return answer, false, err
		}
		created = created || e.Create
		answer.Endpoints = append(answer.Endpoints, a)
	}
	if created {
		answer.Sources = &colibri.Sources{Media: []colibri.MediaSource{
			{ID: "jvb-a0", Type: "audio", Sources: []jingle.Source{{SSRC: l.audioSSRC, Name: "jvb-a0"}}},
			{ID: "jvb-v0", Type: "video", Sources: []jingle.Source{{SSRC: l.videoSSRC, Name: "jvb-v0"}}},
		}}
	}
	return answer, req.Expire || !req.Create && l.empty(), nil
}

// shape refuses what one request may not contain.
func shape(req colibri.ConferenceModify) error {
	unsupported := func(text string) error {
		return refused(xmpp.FeatureNotImplemented, text, colibri.Error{Reason: colibri.FeatureNotImplemented})
	}
	switch {
	case len(req.Endpoints) > 0 && len(req.Relays) > 0:
		return unsupported("Using both 'relay' and 'endpoint' in a request")
	case len(req.Relays) > 1:
		return unsupported("Updating more than one 'relay' in a request.")
	case len(req.Relays) == 1:
		return refused(xmpp.FeatureNotImplemented, "Octo is disabled in configuration.")
	case len(req.Endpoints) > 1 && slices.ContainsFunc(req.Endpoints, substantial):
		return unsupported("Creating or updating media, sources or transport for more than one endpoint in a request.")
	}
	return nil
}

// substantial reports whether e does more than expire or force-mute.
func substantial(e colibri.Endpoint) bool {
	return e.Create || len(e.Media) > 0 || e.Transport != nil || e.Sources != nil
}

func refused(condition, text string, reason ...colibri.Error) error {
	e := xmpp.StanzaError{Condition: condition, Text: text}
	for _, r := range reason {
		e.App = append(e.App, r.Elements()...)
	}
	return e
}

// create makes a conference on the core that has the least to do.
func (c *control) create(m *meeting, req colibri.ConferenceModify, now time.Time) (*live, error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("conference id: %w", err)
	}
	l := &live{
		b: c.b, meeting: m, name: req.Name, created: now,
		channel:   hex.EncodeToString(random[:8]),
		audioSSRC: binary.BigEndian.Uint32(random[8:]) | 1, // not 0
		videoSSRC: binary.BigEndian.Uint32(random[12:])&^1 | 2,
		core:      c.b.media.leastLoaded(),
		endpoints: map[string]*member{},
		views:     map[string][]string{},
	}
	l.log = c.log.With("conference", c.b.hash(req.Name))
	l.conf = conference.New(conference.Config{
		Events: l, AudioSSRC: l.audioSSRC, VideoSSRC: l.videoSSRC, Log: l.log,
	}, now)
	l.core.attach(l.conf)
	m.live.Store(l)
	c.mu.Lock()
	c.channels[l.channel] = m
	c.mu.Unlock()
	c.b.metrics.conferencesCreated.Add(1)
	l.log.Info("conference created", "meeting", m.id)
	return l, nil
}

// expire ends the conference of m, if there is one. It runs in m's lane.
func (c *control) expire(m *meeting) {
	l := m.live.Load()
	if l == nil {
		return
	}
	l.mu.RLock()
	ids := slices.Collect(maps.Keys(l.endpoints))
	l.mu.RUnlock()
	for _, id := range ids {
		l.remove(id)
	}
	m.live.Store(nil)
	c.mu.Lock()
	delete(c.channels, l.channel)
	c.mu.Unlock()
	l.do(func(time.Time) {
		s := l.conf.Stats()
		c.b.metrics.conferenceEnded(&s)
	})
	l.core.detach(l.conf)
	c.b.metrics.conferencesCompleted.Add(1)
	c.b.metrics.conferenceSeconds.Add(int64(c.b.cfg.Now().Sub(l.created).Seconds()))
	l.log.Info("conference ended", "meeting", m.id)
}

// do runs f on the core, in order. It reports whether f is going to run.
func (l *live) do(f func(now time.Time)) bool { return l.core.doIn(l.conf, f) }

// crashed is told on the core that a conference has panicked: it is ended, and the focus, which finds it
// missing, starts it anew.
func (c *control) crashed(cf room, _ any) {
	for _, l := range c.conferences() {
		if room(l.conf) == cf {
			c.enqueue(l.meeting.id, func(m *meeting) {
				if m.live.Load() == l {
					c.expire(m)
				}
			}, func(error) {})
		}
	}
}

func (l *live) endpoint(id string) *member {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.endpoints[id]
}

func (l *live) empty() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.endpoints) == 0
}

// apply carries out one endpoint of a request and returns its part of the answer.
func (l *live) apply(req colibri.Endpoint, now time.Time) (colibri.Endpoint, error) {
	answer := colibri.Endpoint{ID: req.ID}
	if req.Expire {
		answer.Expire = true
		l.remove(req.ID)
		return answer, nil
	}
	e := l.endpoint(req.ID)
	if req.Create {
		if err := l.creatable(req, e); err != nil {
			return answer, err
		}
		var err error
		if e, err = l.add(req, now); err != nil {
			return answer, err
		}
	} else if e == nil {
		if !substantial(req) {
			return answer, nil // somebody who has just left is muted: no reason to restart a conference
		}
		return answer, refused(xmpp.ItemNotFound, "Endpoint not found for ID: "+req.ID, colibri.Error{Reason: colibri.UnknownEndpoint, Endpoint: req.ID})
	}
	if e.visitor && hasSources(req) {
		return answer, refused(xmpp.BadRequest, "Attempt to set sources for visitor endpoint "+req.ID)
	}
	e.update(req)
	if req.Create || req.Transport != nil && req.Transport.ICERestart {
		answer.Transport = e.describe(req)
	}
	return answer, nil
}

const visitor = "visitor" // a muc-role

func hasSources(req colibri.Endpoint) bool { return req.Sources != nil && len(req.Sources.Media) > 0 }

// creatable checks a request to create an endpoint; e is the one that has its id.
func (l *live) creatable(req colibri.Endpoint, e *member) error {
	switch {
	case !req.Has(colibri.SourceNames):
		return refused(xmpp.BadRequest, "Source name support is mandatory.")
	case e != nil:
		return refused(xmpp.Conflict, "Endpoint with ID "+req.ID+" already exists")
	case req.Transport == nil:
		return refused(xmpp.BadRequest, "Attempt to create endpoint "+req.ID+" with no <transport>")
	}
	if req.MUCRole == visitor && hasSources(req) {
		return refused(xmpp.BadRequest, "Attempt to set sources for visitor endpoint "+req.ID)
	}
	if s := req.Transport.SCTP; s != nil {
		if s.Role != "" && s.Role != "server" {
			return refused(xmpp.FeatureNotImplemented, "Unsupported SCTP role: "+strings.ToUpper(s.Role))
		}
		if s.Port != 0 && s.Port != sctpPort {
			return refused(xmpp.BadRequest, "Specific SCTP port requested, not supported.")
		}
	}
	return nil
}

// add creates an endpoint with its transport.
func (l *live) add(req colibri.Endpoint, now time.Time) (*member, error) {
	e := &member{
		live: l, id: req.ID, statsID: req.StatsID, created: now,
		visitor: req.MUCRole == visitor,
		sctp:    req.Transport.SCTP != nil && !l.b.cfg.NoSCTP,
		secret:  secret(),
	}
	e.channel.e = e
	p, err := l.b.media.newPeer(l.core, e.peerConfig(req.Transport.ICEControlling))
	if err != nil {
		l.log.Error("endpoint without transport", "endpoint", req.ID, "err", err)
		return nil, xmpp.StanzaError{Condition: xmpp.InternalServerError, Text: "Failed to create a transport."}
	}
	e.peer = p
	l.mu.Lock()
	l.endpoints[e.id] = e
	l.mu.Unlock()
	caps := conference.Capabilities{
		Rewriting: req.Has(colibri.SSRCRewriting),
		MIDDemux:  req.Has(colibri.SSRCRewriting) && req.Has(colibri.MIDDemux),
		Visitor:   e.visitor,
	}
	l.do(func(now time.Time) {
		e.engine = l.conf.AddEndpoint(conference.EndpointID(e.id), p, caps, now)
		p.attach(&heard{e.engine, e})
	})
	l.b.metrics.endpoints.Add(1)
	if e.visitor {
		l.b.metrics.visitors.Add(1)
	}
	return e, nil
}

// heard is the engine's endpoint as the transport feeds it, with an eye on whether the client lives.
type heard struct {
	*conference.Endpoint
	m *member
}

// Heard implements what peer calls for each sign of life, at most every heardEvery.
func (h *heard) Heard(now time.Time) {
	h.m.alive()
	h.Endpoint.Heard(now)
}

// remove takes an endpoint out, if it is there.
func (l *live) remove(id string) {
	l.mu.Lock()
	e := l.endpoints[id]
	delete(l.endpoints, id)
	l.mu.Unlock()
	if e == nil {
		return
	}
	e.channel.close()
	l.do(func(now time.Time) {
		if e.engine != nil {
			l.conf.Remove(conference.EndpointID(id), now)
			delete(l.views, id)
			e.engine = nil
		}
	})
	e.peer.close()
}

// update applies all parts of req but the creation, in the order that the Java bridge keeps.
func (e *member) update(req colibri.Endpoint) {
	if len(req.Media) > 0 {
		e.media = mediaOf(e.media, req.Media)
		m := conference.Media{PayloadTypes: slices.Clone(e.media.PayloadTypes), Extensions: e.media.Extensions}
		e.do(func(x *conference.Endpoint, now time.Time) { x.SetMedia(m) })
	}
	if req.InitialLastN != nil {
		n := *req.InitialLastN
		e.do(func(x *conference.Endpoint, now time.Time) { x.SetInitialLastN(n) })
	}
	if t := req.Transport; t != nil && t.ICE != nil {
		if err := e.peer.setRemote(remoteOf(*t.ICE)); err != nil {
			// An error here would make the focus restart everybody on this bridge: this one endpoint's
			// connection fails by itself, and its client asks for a new one.
			e.live.log.Warn("unusable transport", "endpoint", e.id, "err", err)
		}
	}
	if req.Sources != nil {
		sources := sourcesOf(*req.Sources)
		e.do(func(x *conference.Endpoint, now time.Time) { x.SetSources(sources, now) })
	}
	if f := req.ForceMute; f != nil {
		audio, video := f.Audio, f.Video
		e.do(func(x *conference.Endpoint, now time.Time) { x.SetForceMute(audio, video, now) })
	}
}

// do runs f on the core, unless the endpoint is gone by then. It reports whether f is going to run.
func (e *member) do(f func(x *conference.Endpoint, now time.Time)) bool {
	return e.live.do(func(now time.Time) {
		if e.engine != nil {
			f(e.engine, now)
		}
	})
}

// describe returns the transport of an answer.
func (e *member) describe(req colibri.Endpoint) *colibri.Transport {
	d := e.peer.describe()
	if m := e.live.b.metrics; !req.Create && e.connected.Load() {
		var err error
		if d, err = e.peer.restartICE(); err != nil {
			e.live.log.Warn("no ice restart", "endpoint", e.id, "err", err)
			return nil // refused; the focus re-invites
		}
		m.iceRestarts.Add(1)
	} else if !req.Create {
		m.iceRestartsEarly.Add(1) // what there is, is as good as new
	}
	ice := transportOf(d)
	if base := e.live.b.channelURL(); base != "" {
		ice.WebSockets = []string{base + "/colibri-ws/" + e.live.b.cfg.RelayID + "/" + e.live.channel + "/" + url.PathEscape(e.id) + "?pwd=" + e.secret}
	}
	t := &colibri.Transport{ICE: &ice}
	if e.sctp && req.Create {
		t.SCTP = &colibri.SCTP{Port: sctpPort, Role: "server"}
	}
	return t
}

// peerConfig wires the transport's reports to this endpoint.
func (e *member) peerConfig(controlling bool) peerConfig {
	return peerConfig{
		Controlling: controlling,
		SCTP:        e.sctp,
		Conference:  e.live.conf,
		OnMessage:   e.channel.dataMessage,
		OnChannel:   e.channel.dataOpen,
		OnState:     e.stateChanged,
		Log:         e.live.log.With("endpoint", e.id),
	}
}

// stateChanged is called on the core when the transport gets on, or does not.
func (e *member) stateChanged(s transport.State, err error) {
	m := e.live.b.metrics
	switch s {
	case transport.Connected:
		e.failed.Store(false)
		e.alive()
		if !e.connected.Swap(true) {
			m.iceSucceeded.Add(1)
		}
	case transport.Failed:
		e.failed.Store(true)
		if errors.Is(err, transport.ErrICE) {
			m.iceFailed.Add(1)
		} else {
			m.dtlsFailed.Add(1)
		}
	}
}

// transportOf is our side of a transport as signaling names it.
func transportOf(d description) jingle.Transport {
	t := jingle.Transport{
		Ufrag: d.Ufrag, Pwd: d.Pwd, Generation: d.Generation, RTCPMux: true,
		Fingerprints: []jingle.Fingerprint{{Hash: d.Fingerprint.Hash, Setup: d.Setup, Value: d.Fingerprint.Value}},
	}
	for i, c := range d.Candidates {
		x := jingle.Candidate{
			ID: "c" + strconv.Itoa(i+1), Foundation: c.Foundation, Component: 1, Priority: c.Priority,
			Protocol: "udp", Type: c.Type, IP: c.Addr.Addr().String(), Port: int(c.Addr.Port()),
		}
		if c.Related.IsValid() {
			x.RelIP, x.RelPort = c.Related.Addr().String(), int(c.Related.Port())
		}
		t.Candidates = append(t.Candidates, x)
	}
	return t
}

// remoteOf is the other side's. Candidates that are not UDP over IP are left out: its own checks tell as much.
func remoteOf(t jingle.Transport) remote {
	r := remote{Ufrag: t.Ufrag, Pwd: t.Pwd, Generation: t.Generation}
	for _, f := range t.Fingerprints {
		r.Fingerprints = append(r.Fingerprints, transport.Fingerprint{Hash: f.Hash, Value: f.Value})
		r.Setup = f.Setup
	}
	for _, c := range t.Candidates {
		addr, err := netip.ParseAddr(c.IP)
		if err == nil && strings.EqualFold(c.Protocol, "udp") && c.Component == 1 && c.Port > 0 && c.Port <= 0xffff {
			r.Candidates = append(r.Candidates, ice.Candidate{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(c.Port)), Priority: c.Priority})
		}
	}
	return r
}

// mediaOf adds what is negotiated to m. Payload types and extensions are only ever added.
func mediaOf(m conference.Media, media []colibri.Media) conference.Media {
	m.PayloadTypes = slices.Clone(m.PayloadTypes)
	for _, x := range media {
		for _, p := range x.PayloadTypes {
			pt := conference.PayloadType{PT: p.ID, Codec: p.Name, Clockrate: p.Clockrate}
			for _, param := range p.Parameters {
				if param.Name == "apt" {
					apt, _ := strconv.ParseUint(param.Value, 10, 7)
					pt.RTXFor = uint8(apt)
				}
			}
			i := slices.IndexFunc(m.PayloadTypes, func(q conference.PayloadType) bool { return q.PT == pt.PT })
			if i >= 0 {
				m.PayloadTypes[i] = pt
			} else {
				m.PayloadTypes = append(m.PayloadTypes, pt)
			}
		}
		for _, h := range x.Extensions {
			switch h.URI {
			case "urn:ietf:params:rtp-hdrext:ssrc-audio-level":
				m.Extensions.AudioLevel = h.ID
			case "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time":
				m.Extensions.AbsSendTime = h.ID
			case "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01":
				m.Extensions.TransportCC = h.ID
			case "urn:ietf:params:rtp-hdrext:sdes:mid":
				m.Extensions.MID = h.ID
			case "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension":
				m.Extensions.DependencyDescriptor = h.ID
			}
		}
	}
	return m
}

// sourcesOf translates a full list of sources. Encodings are those of the SIM group in its order, or every
// SSRC that is not the RTX of another one; RTX SSRCs come from the FID groups.
func sourcesOf(s colibri.Sources) []conference.Source {
	out := make([]conference.Source, 0, len(s.Media))
	for _, m := range s.Media {
		src := conference.Source{Name: m.ID, Kind: conference.Audio}
		if m.Type == "video" {
			src.Kind = conference.Video
		}
		rtx := map[uint32]uint32{}     // by primary
		primary := map[uint32]uint32{} // by RTX
		var ssrcs []uint32
		for _, g := range m.Groups {
			switch {
			case g.Semantics == "FID" && len(g.SSRCs) == 2:
				rtx[g.SSRCs[0]], primary[g.SSRCs[1]] = g.SSRCs[1], g.SSRCs[0]
			case g.Semantics == "SIM" && ssrcs == nil:
				ssrcs = g.SSRCs
			}
		}
		for _, x := range m.Sources {
			if x.VideoType != "" {
				src.VideoType = strings.ToLower(x.VideoType)
			}
		}
		if ssrcs == nil {
			for _, x := range m.Sources {
				if _, isRTX := primary[x.SSRC]; !isRTX && !slices.Contains(ssrcs, x.SSRC) {
					ssrcs = append(ssrcs, x.SSRC)
				}
			}
		}
		for _, ssrc := range ssrcs {
			src.Encodings = append(src.Encodings, conference.Encoding{SSRC: ssrc, RTX: rtx[ssrc]})
		}
		out = append(out, src)
	}
	return out
}

// secret makes the password of an endpoint's WebSocket: 24 letters.
func secret() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" // 6 bits of each byte
	var b [24]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	for i := range b {
		b[i] = letters[b[i]&63]
	}
	return string(b[:])
}

// sweep removes what nobody took care to remove.
func (c *control) sweep(now time.Time) {
	for _, l := range c.conferences() {
		var stale []*member
		l.mu.RLock()
		for _, e := range l.endpoints {
			if e.stale(now) {
				stale = append(stale, e)
			}
		}
		empty := len(l.endpoints) == len(stale)
		l.mu.RUnlock()
		if len(stale) == 0 && (!empty || now.Sub(l.created) < c.b.cfg.EmptyTimeout) {
			continue
		}
		c.enqueue(l.meeting.id, func(m *meeting) {
			if m.live.Load() != l {
				return
			}
			for _, e := range stale {
				if l.endpoint(e.id) == e && e.stale(now) {
					l.log.Info("endpoint expired", "endpoint", e.id, "failed", e.failed.Load())
					l.remove(e.id)
				}
			}
			if l.empty() && now.Sub(l.created) >= c.b.cfg.EmptyTimeout {
				c.expire(m)
			}
		}, func(error) {})
	}
}

// stale reports whether the endpoint may be removed without being asked: its ICE failed, it has been silent
// for too long, or it was never heard.
func (e *member) stale(now time.Time) bool {
	if heard := e.heard.Load(); heard != 0 {
		return now.Sub(time.Unix(0, heard)) > e.live.b.cfg.SilenceTimeout
	}
	return e.failed.Load() || now.Sub(e.created) > e.live.b.cfg.UnheardTimeout
}

// stanzaError returns what a peer hears of err.
func stanzaError(err error) xmpp.StanzaError {
	var s xmpp.StanzaError
	switch {
	case errors.As(err, &s):
		return s
	case errors.Is(err, colibri.ErrMalformed):
		return xmpp.StanzaError{Condition: xmpp.BadRequest, Text: err.Error()}
	default:
		return xmpp.StanzaError{Condition: xmpp.InternalServerError, Text: "Failed to handle the request."}
	}
}
