package focus

import (
	"net/netip"
	"slices"
	"time"

	"plenum/signaling/fleet"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// stumble is how long a bridge's failure is held against it: the second one within this time takes
// it out of everybody's choice.
const stumble = time.Minute

// bridgeOwner owns the bridge's own sources in an offer; no participant may be called that.
const bridgeOwner = "jvb"

// A bridge is the conference's part on one bridge: a colibri2 session. It lives as long as it has endpoints.
type bridge struct {
	jid       jid.JID
	id        string // names it to clients, who hand it back when they want a restart
	region    string
	version   string
	reason    string // why it was chosen
	created   bool   // the request that creates the conference was sent
	endpoints map[string]*session
	feedback  jingle.EndpointSources // the bridge's own sources, owner "jvb"
}

// allocate chooses a bridge for p and asks it for an endpoint. It reports false when there is no bridge.
//
// The two first participants are asked for together: only the first request creates the conference, and
// the second does not wait for the answer.
func (c *Conference) allocate(now time.Time, p *participant) bool {
	choice, ok := c.cfg.Fleet.Select(now, fleet.Request{Region: p.Region, Families: c.families(p), Conference: c.inUse()})
	if !ok {
		return false
	}
	s := &session{sid: c.sessionID(p)}
	s.bridge = c.bridgeFor(choice)
	p.session = s
	s.bridge.endpoints[p.Nick] = s

	f := *p.features
	e := colibri.Endpoint{
		ID: p.Nick, StatsID: p.statsID(), Create: true, Sources: &colibri.Sources{}, Capabilities: []string{colibri.SourceNames},
		Transport: &colibri.Transport{ICEControlling: true},
	}
	for _, m := range c.media(f) {
		e.Media = append(e.Media, colibri.Media{Type: m.Media, PayloadTypes: m.PayloadTypes, Extensions: m.Extensions, ExtmapAllowMixed: true})
	}
	if f.sctp {
		e.Transport.SCTP = &colibri.SCTP{}
	}
	if f.rewriting {
		e.Capabilities = append(e.Capabilities, colibri.SSRCRewriting)
	}
	if f.mid {
		e.Capabilities = append(e.Capabilities, colibri.MIDDemux)
	}
	modify := colibri.ConferenceModify{Endpoints: []colibri.Endpoint{e}}
	if !s.bridge.created {
		s.bridge.created = true
		modify.Create, modify.Name, modify.RTCStats = true, c.cfg.Room.String(), new(bool)
	}
	c.askBridge(s.bridge, modify, func(now time.Time, iq *xmpp.Element) {
		if p.session != s {
			return // gone meanwhile; its end was sent after this request
		}
		if iq == nil || iq.Attr("type") != "result" {
			c.allocationFailed(now, p, iq)
			return
		}
		c.allocated(now, p, s, iq)
	})
	return true
}

// bridgeFor finds or begins the conference's part on a bridge. Bridges of one conference are not
// connected to each other yet, so another bridge means that everybody moves.
func (c *Conference) bridgeFor(choice fleet.Choice) *bridge {
	for _, b := range c.bridges {
		if b.jid == choice.Bridge {
			return b
		}
	}
	for _, b := range slices.Clone(c.bridges) {
		c.abandon(b, true)
	}
	b := &bridge{jid: choice.Bridge, id: c.uuid(), region: choice.Region, version: choice.Version, reason: choice.Reason, endpoints: map[string]*session{}}
	c.bridges = append(c.bridges, b)
	return b
}

// allocated completes the offer with what the bridge answered and sends it.
func (c *Conference) allocated(now time.Time, p *participant, s *session, iq *xmpp.Element) {
	modified, err := colibri.ParseModified(iq.Child(colibri.NS, "conference-modified"))
	i := slices.IndexFunc(modified.Endpoints, func(e colibri.Endpoint) bool { return e.ID == p.Nick })
	if err != nil || i < 0 || modified.Endpoints[i].Transport == nil || modified.Endpoints[i].Transport.ICE == nil {
		c.bridgeFailed(now, s.bridge, true)
		return
	}
	if modified.Sources != nil {
		s.bridge.feedback = feedbackSources(*modified.Sources)
	}
	c.cfg.Fleet.Serves(s.bridge.jid, addresses(*modified.Endpoints[i].Transport.ICE))
	port := 0
	if t := modified.Endpoints[i].Transport; t.SCTP != nil && p.features.sctp {
		port = t.SCTP.Port
	}
	s.state = offered
	offer := c.offer(p, s, *modified.Endpoints[i].Transport.ICE, port)
	s.signaled = map[string]jingle.EndpointSources{}
	for _, told := range offer.Sources[1:] {
		s.signaled[told.Owner] = told
	}
	c.ask(p, "set", offer.Element(), func(_ time.Time, iq *xmpp.Element) {
		// No answer counts as taken: slow clients are late.
		if p.session == s && s.state == offered && iq != nil && iq.Attr("type") == "error" {
			p.uninvited = true
			c.release(p)
		}
	})
}

// addresses are those of a bridge's own candidates.
func addresses(t jingle.Transport) []netip.AddrPort {
	var all []netip.AddrPort
	for _, k := range t.Candidates {
		ip, err := netip.ParseAddr(k.IP)
		if err == nil && k.Protocol == "udp" && k.Type != "relay" && 0 < k.Port && k.Port <= 65535 {
			all = append(all, netip.AddrPortFrom(ip.Unmap(), uint16(k.Port)))
		}
	}
	return all
}

// feedbackSources turns the bridge's sources into the ones that clients get on their sending media lines.
func feedbackSources(sources colibri.Sources) jingle.EndpointSources {
	f := jingle.EndpointSources{Owner: bridgeOwner}
	for _, m := range sources.Media {
		for _, s := range m.Sources {
			if s.Name == "" {
				s.Name = m.ID
			}
			if m.Type == "video" {
				s.VideoType, s.MSID = "camera", "mixedmslabel mixedlabelvideo0"
				f.Video.Sources = append(f.Video.Sources, s)
			} else {
				s.MSID = "mixedmslabel mixedlabelaudio0"
				f.Audio.Sources = append(f.Audio.Sources, s)
			}
		}
	}
	return f
}

// allocationFailed acts on the error to an allocation, as Jicofo does.
func (c *Conference) allocationFailed(now time.Time, p *participant, iq *xmpp.Element) {
	b := p.session.bridge
	e, isError := xmpp.ParseError(iq)
	reason, _ := colibri.ParseError(e)
	switch {
	case !isError: // timeout
		c.bridgeFailed(now, b, true)
	case e.Condition == xmpp.BadRequest:
		p.uninvited = true
		c.release(p)
	case reason.Reason == colibri.ConferenceNotFound, e.Condition == xmpp.Conflict:
		c.bridgeFailed(now, b, false)
	case reason.Reason == colibri.GracefulShutdown:
		c.cfg.Fleet.Failed(now, b.jid, true)
		c.abandon(b, true)
	default: // also item-not-found of the brewery room, for a bridge that has just left
		c.bridgeFailed(now, b, true)
	}
}

// update sends a change of p's endpoint. What goes wrong with one endpoint ends its session; anything
// else means that the bridge and we disagree on the whole conference.
func (c *Conference) update(p *participant, e colibri.Endpoint, done func(now time.Time, e colibri.Endpoint)) {
	s := p.session
	e.ID, e.StatsID = p.Nick, p.statsID()
	c.askBridge(s.bridge, colibri.ConferenceModify{Endpoints: []colibri.Endpoint{e}}, func(now time.Time, iq *xmpp.Element) {
		if p.session != s || iq == nil {
			return // a late update is not worth anybody's session
		}
		if e, isError := xmpp.ParseError(iq); isError {
			reason, _ := colibri.ParseError(e)
			switch {
			case reason.Reason == colibri.UnknownEndpoint:
				c.end(p, "success", "moving") // and reconcile invites again
			case e.Condition == xmpp.BadRequest:
				// Jicofo would restart everybody on that bridge. What the client sent does not deserve that.
				p.uninvited = true
				c.end(p, "general-error", "jingle session failed")
			default:
				c.bridgeFailed(now, s.bridge, false)
			}
			return
		}
		if done == nil {
			return
		}
		var answer colibri.Endpoint
		if m, err := colibri.ParseModified(iq.Child(colibri.NS, "conference-modified")); err == nil && len(m.Endpoints) > 0 {
			answer = m.Endpoints[0]
		}
		done(now, answer)
	})
}

// bridgeFailed takes a conference away from a bridge; everybody there is invited again. A fatal failure
// keeps the bridge out of everybody's choice, and so does the second one of any kind.
func (c *Conference) bridgeFailed(now time.Time, b *bridge, fatal bool) {
	last, before := c.stumbled[b.jid]
	c.stumbled[b.jid] = now
	if fatal || before && now.Sub(last) < stumble {
		c.cfg.Fleet.Failed(now, b.jid, false)
	}
	c.abandon(b, true)
}

func (c *Conference) bridgeLost(now time.Time, lost jid.JID) {
	for _, b := range slices.Clone(c.bridges) {
		if b.jid == lost {
			c.abandon(b, false)
		}
	}
}

// bridgeBack tells a bridge again what it may not have heard. One that was started anew answers that it knows
// nothing of the conference, or of somebody, and those are invited anew.
func (c *Conference) bridgeBack(back jid.JID) {
	for _, p := range c.participants {
		switch s := p.session; {
		case s == nil || s.bridge.jid != back:
		case s.state == allocating:
			c.release(p)
		case s.state == active:
			c.update(p, colibri.Endpoint{Sources: bridgeSources(s.sources)}, nil)
		}
	}
}

// abandon ends all sessions on b with "moving"; reconcile places them anew. A bridge that is still
// there is told to forget the conference.
func (c *Conference) abandon(b *bridge, tell bool) {
	for _, p := range c.participants {
		if s := p.session; s != nil && s.bridge == b {
			c.terminate(p, "success", "moving")
			p.session = nil
			c.changed = append(c.changed, p.Nick)
		}
	}
	clear(b.endpoints)
	c.drop(b, tell)
}

// release ends the endpoint behind p's session. The last one ends the conference on that bridge.
func (c *Conference) release(p *participant) {
	s := p.session
	if s == nil {
		return
	}
	p.session = nil
	c.changed = append(c.changed, p.Nick)
	delete(s.bridge.endpoints, p.Nick)
	if len(s.bridge.endpoints) == 0 {
		c.drop(s.bridge, true)
		return
	}
	c.askBridge(s.bridge, colibri.ConferenceModify{Endpoints: []colibri.Endpoint{{ID: p.Nick, Expire: true}}}, nil)
}

// drop forgets a bridge without endpoints, with all answers that it owes.
func (c *Conference) drop(b *bridge, tell bool) {
	c.bridges = slices.DeleteFunc(c.bridges, func(x *bridge) bool { return x == b })
	c.expectNothing(b)
	if tell {
		c.askBridge(b, colibri.ConferenceModify{Expire: true}, nil)
	}
}

func (c *Conference) askBridge(b *bridge, m colibri.ConferenceModify, handle func(now time.Time, iq *xmpp.Element)) {
	m.MeetingID = c.cfg.MeetingID
	var id RequestID
	if handle != nil {
		id = c.expect(b, handle)
	}
	c.do(BridgeRequest{Bridge: b.jid, ID: id, Payload: m.Element(), Timeout: c.cfg.BridgeTimeout})
}

func (p *participant) statsID() string {
	for _, e := range p.Presence {
		if e.Name == "stats-id" {
			return e.Text()
		}
	}
	return ""
}

func (c *Conference) sessionID(p *participant) string {
	n := p.sessions
	p.sessions++
	if c.cfg.SessionID == nil {
		return c.random(6)
	}
	return c.cfg.SessionID(p.JID, n)
}
