package focus

import (
	"strings"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/jingle"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// maxCredentialBytes bounds ufrag, pwd and fingerprint (RFC 8839, 5.4).
const maxCredentialBytes = 256

// A session is a Jingle session with one participant and its endpoint on a bridge.
type session struct {
	sid     string
	bridge  *bridge
	state   state
	sources jingle.EndpointSources // what the participant sends
	// published is what clients without rewriting are told of it; signaled is what this one was told, by owner.
	published jingle.EndpointSources
	signaled  map[string]jingle.EndpointSources
}

type state int

const (
	allocating state = iota // the bridge was asked
	offered                 // session-initiate was sent
	active                  // the client accepted
)

// stanza answers an IQ that an occupant sent to the focus.
func (c *Conference) stanza(now time.Time, from string, iq *xmpp.Element) {
	p := c.participant(from)
	if !iq.IsRequest() {
		return
	}
	payload := iq.First()
	switch {
	case p == nil:
		c.refuse(from, iq, xmpp.StanzaError{Condition: xmpp.ItemNotFound})
	case payload == nil || iq.Attr("type") != "set":
		c.refuse(from, iq, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
	case payload.Is(jingle.NS, "jingle"):
		s, err := jingle.Parse(payload)
		if err != nil {
			c.refuse(from, iq, badRequest(err.Error()))
			return
		}
		if err := c.jingle(now, p, s, func() { c.do(Reply{from, xmpp.Result(iq)}) }); err != nil {
			c.refuse(from, iq, *err)
		}
	case payload.Name == "mute" && strings.HasPrefix(payload.Space, meet.NSMute):
		c.mute(p, iq, payload)
	default:
		c.refuse(from, iq, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
	}
}

func (c *Conference) refuse(nick string, iq *xmpp.Element, e xmpp.StanzaError) {
	c.do(Reply{nick, xmpp.ErrorReply(iq, e)})
}

func badRequest(text string) xmpp.StanzaError {
	return xmpp.StanzaError{Condition: xmpp.BadRequest, Text: text}
}

// notActive answers what belongs to a session that is over, or never was.
func notActive() *xmpp.StanzaError {
	return &xmpp.StanzaError{
		Condition: xmpp.ItemNotFound, Text: "jingle session no longer active",
		App: []*xmpp.Element{xmpp.New(jingle.NSErrors, "unknown-session")},
	}
}

// jingle carries out one action of a client. It calls accept for the empty result, or returns the error.
func (c *Conference) jingle(now time.Time, p *participant, in jingle.Session, accept func()) *xmpp.StanzaError {
	s := p.session
	if in.Action == jingle.SessionTerminate {
		return c.terminated(now, p, in, accept)
	}
	if s == nil || s.sid != in.SID || s.state == allocating {
		return notActive()
	}
	if in.Action != jingle.SessionAccept && s.state != active {
		return &xmpp.StanzaError{Condition: xmpp.UnexpectedRequest, Type: "wait", Text: "session not accepted yet"}
	}
	switch in.Action {
	case jingle.SessionAccept:
		return c.accepted(p, in, accept)
	case jingle.SessionInfo:
		if in.Bridge != nil && in.Bridge.ICERestart {
			return c.restartICE(now, p, in, accept)
		}
		accept() // ice-state and the like: nothing to do
	case jingle.TransportInfo:
		// The client's answer to an ICE restart. Candidates it never sends.
		if t, err := remoteTransport(in); err == nil && t.Generation > 0 {
			c.update(p, colibri.Endpoint{Transport: &colibri.Transport{ICE: t}}, nil)
		}
		accept()
	case jingle.SourceAdd, jingle.SourceRemove:
		return c.changeSources(p, in, accept)
	default:
		return &xmpp.StanzaError{Condition: xmpp.FeatureNotImplemented}
	}
	return nil
}

func (c *Conference) accepted(p *participant, in jingle.Session, accept func()) *xmpp.StanzaError {
	s := p.session
	if s.state == active {
		return &xmpp.StanzaError{Condition: xmpp.UnexpectedRequest, Text: "session is active"}
	}
	t, fault := remoteTransport(in)
	if fault == nil {
		s.sources, fault = c.addSources(p, jingle.EndpointSources{Owner: p.Nick}, contentSources(in))
	}
	if fault != nil {
		// The error ends the session on the client's side too.
		p.uninvited = true
		c.release(p)
		return fault
	}
	s.state = active
	c.publish(p)
	e := colibri.Endpoint{Transport: &colibri.Transport{ICE: t}, Sources: bridgeSources(s.sources)}
	for _, content := range in.Contents {
		if content.InitialLastN != nil {
			e.InitialLastN = content.InitialLastN
		}
	}
	c.update(p, e, nil)
	accept()
	return nil
}

// remoteTransport returns the client's transport as the bridge wants it.
func remoteTransport(in jingle.Session) (*jingle.Transport, *xmpp.StanzaError) {
	t := in.Transport()
	ok := t != nil && len(t.Ufrag) <= maxCredentialBytes && t.Pwd != "" && len(t.Pwd) <= maxCredentialBytes && len(t.Fingerprints) > 0
	if ok {
		for _, f := range t.Fingerprints {
			ok = ok && f.Value != "" && len(f.Value) <= maxCredentialBytes
		}
	}
	if !ok {
		err := badRequest("no transport with ufrag, pwd and fingerprint")
		return nil, &err
	}
	remote := *t
	remote.RTCPMux = true
	remote.WebSockets = nil
	return &remote, nil
}

// terminated handles a client's session-terminate: the end, or the wish for a new session after ICE
// failed. An error to the latter makes the client reload the page, so the only ones are those that
// keep it from asking again and again; who asks too soon, as a client does that tried ICE twice, waits.
func (c *Conference) terminated(now time.Time, p *participant, in jingle.Session, accept func()) *xmpp.StanzaError {
	s := p.session
	restart := in.Bridge != nil && in.Bridge.Restart
	if s == nil || s.sid != in.SID {
		coming := s == nil && !p.uninvited && c.people() >= c.cfg.MinParticipants || s != nil && s.state != active
		if restart && coming {
			accept() // it crossed with the new offer that it asks for
			return nil
		}
		return notActive()
	}
	if !restart {
		accept()
		p.uninvited = true
		c.release(p)
		return nil
	}
	wait := p.restarts.early(now, c.cfg.RestartEvery)
	if fault := c.mayRestart(now, wait, s, in.Bridge, &p.restarts); fault != nil {
		return fault
	}
	accept()
	p.restartCount++
	if wait > 0 {
		p.waiting = true
		c.setTimer(now, timerRestart+p.Nick, wait)
	}
	c.release(p) // reconcile invites again
	return nil
}

func (c *Conference) restartICE(now time.Time, p *participant, in jingle.Session, accept func()) *xmpp.StanzaError {
	s := p.session
	if fault := c.mayRestart(now, 0, s, in.Bridge, &p.iceTries); fault != nil {
		return fault
	}
	accept()
	c.update(p, colibri.Endpoint{Transport: &colibri.Transport{ICERestart: true}}, func(_ time.Time, e colibri.Endpoint) {
		if e.Transport == nil || e.Transport.ICE == nil {
			c.end(p, "success", "moving") // refused; a new session is the other way
			return
		}
		info := jingle.Session{Action: jingle.TransportInfo, SID: s.sid, Contents: []jingle.Content{
			{Name: "audio", Creator: "initiator", Transport: e.Transport.ICE},
		}}
		c.ask(p, "set", info.Element(), nil)
	})
	return nil
}

// mayRestart reports why not, if the restart is made after wait.
func (c *Conference) mayRestart(now time.Time, wait time.Duration, s *session, b *jingle.BridgeSession, l *limiter) *xmpp.StanzaError {
	if b.ID != s.bridge.id {
		return &xmpp.StanzaError{Condition: xmpp.ItemNotFound, Text: "invalid bridge session id"}
	}
	c.cfg.Fleet.Trouble(now, s.bridge.jid)
	if !l.allow(now.Add(wait), c.cfg.RestartEvery, c.cfg.RestartBurst) {
		return &xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "rate-limited"}
	}
	return nil
}

// end terminates p's session on both sides.
func (c *Conference) end(p *participant, condition, text string) {
	if p.session != nil {
		c.terminate(p, condition, text)
		c.release(p)
	}
}

// terminate tells the client, if it knows of the session. It carries no initiator, as Jicofo's.
func (c *Conference) terminate(p *participant, condition, text string) {
	if p.session.state == allocating {
		return
	}
	t := jingle.Session{Action: jingle.SessionTerminate, SID: p.session.sid, Reason: &jingle.Reason{Condition: condition, Text: text}}
	c.ask(p, "set", t.Element(), nil)
}
