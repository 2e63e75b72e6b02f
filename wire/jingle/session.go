package jingle

import (
	"fmt"
	"strconv"

	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// Namespaces of Jitsi's extensions of a session.
const (
	NSColibri2 = "jitsi:colibri2" // initial-last-n
	NSTrace    = "jitsi:opentelemetry"
)

// Actions of a session that clients and the focus use.
const (
	SessionInitiate  = "session-initiate"
	SessionAccept    = "session-accept"
	SessionInfo      = "session-info"
	SessionTerminate = "session-terminate"
	SourceAdd        = "source-add"
	SourceRemove     = "source-remove"
	TransportInfo    = "transport-info"
)

// Limits on one session stanza. A client's answer to an ICE restart has a content per m-line.
const (
	maxContents     = 1024
	maxPayloadTypes = 128
	maxExtensions   = 64
	maxSources      = 256 // of one content
	maxGroups       = 128 // of one content
)

// A Session is one <jingle/>: what the focus offers, and what a client answers and reports.
type Session struct {
	Action, SID string
	// Initiator and Responder are JIDs as text: nobody verifies them.
	Initiator, Responder string

	Contents   []Content
	Bundle     []string // content names of the BUNDLE group
	Reason     *Reason
	Bridge     *BridgeSession
	StartMuted *meet.StartMuted
	ICEState   string            // of session-info, "failed"
	Sources    []EndpointSources // of json-message
	// Trace is <traceparent/>, which a client copies from the offer into its answer. It is not interpreted.
	Trace *xmpp.Element
}

// A Content is one media line. Media is empty when there is no description, as in a client's data content.
type Content struct {
	Name, Creator, Senders string
	Media                  string // "audio", "video", "application"
	MaxPTime               int    // ms of audio in a packet; 0 when not signalled
	PayloadTypes           []PayloadType
	Extensions             []HeaderExtension
	ExtmapAllowMixed       bool
	// RTCPMux is the <rtcp-mux/> of the description, without which browsers reject the offer; that of the
	// transport is Transport.RTCPMux.
	RTCPMux bool
	Sources []Source
	Groups  []SourceGroup
	// InitialLastN is how many videos the client wants at first; nil when it does not say.
	InitialLastN *int
	Transport    *Transport
	SCTP         *SCTPMap // in the transport
}

// An SCTPMap announces SCTP for a data channel.
type SCTPMap struct {
	Port     int
	Protocol string // "webrtc-datachannel"
	Streams  int
}

// A Reason says why a session ends.
type Reason struct{ Condition, Text string }

// A BridgeSession names the bridge session that an offer is for, or, from a client, the one to restart.
type BridgeSession struct {
	ID, Region          string
	Restart, ICERestart bool
}

// Parse reads <jingle/>. Unknown children and contents' unknown parts are left out.
func Parse(e *xmpp.Element) (Session, error) {
	if !e.Is(NS, "jingle") {
		return Session{}, wrong(e, "jingle")
	}
	s := Session{Action: e.Attr("action"), SID: e.Attr("sid"), Initiator: e.Attr("initiator"), Responder: e.Attr("responder")}
	if s.Action == "" || s.SID == "" {
		return Session{}, fmt.Errorf("jingle without action or sid: %w", ErrElement)
	}
	for x := range e.Children {
		var err error
		switch {
		case x.Is(NS, "content"):
			if len(s.Contents) == maxContents {
				return Session{}, fmt.Errorf("contents: %w", ErrTooMany)
			}
			var c Content
			if c, err = parseContent(x); err == nil {
				s.Contents = append(s.Contents, c)
			}
		case x.Is(NSGroup, "group") && x.Attr("semantics") == "BUNDLE":
			for c := range x.Children {
				if c.Name == "content" && len(s.Bundle) < maxContents {
					s.Bundle = append(s.Bundle, c.Attr("name"))
				}
			}
		case x.Is(NS, "reason"):
			s.Reason = parseReason(x)
		case x.Is(meet.NSFocus, "bridge-session"):
			s.Bridge = &BridgeSession{x.Attr("id"), x.Attr("region"), x.Attr("restart") == "true", x.Attr("ice-restart") == "true"}
		case x.Is(meet.NSFocus, "ice-state"):
			s.ICEState = x.Text()
		case x.Is(meet.NSStartMuted, "startmuted"):
			m, _ := meet.ParseStartMuted(x) // it is one
			s.StartMuted = &m
		case x.Is(meet.NS, "json-message"):
			s.Sources, err = ParseSources([]byte(x.Text()))
		case x.Is(NSTrace, "traceparent"):
			s.Trace = x
		}
		if err != nil {
			return Session{}, err
		}
	}
	return s, nil
}

// Element returns <jingle/>.
func (s Session) Element() *xmpp.Element {
	e := xmpp.New(NS, "jingle", "action", s.Action, "sid", s.SID, "initiator", s.Initiator, "responder", s.Responder)
	e.Add(s.Reason.element())
	for _, c := range s.Contents {
		e.Add(c.Element())
	}
	if s.Bundle != nil {
		g := xmpp.New(NSGroup, "group", "semantics", "BUNDLE")
		for _, name := range s.Bundle {
			g.Add(xmpp.New(NSGroup, "content", "name", name))
		}
		e.Add(g)
	}
	if s.StartMuted != nil {
		e.Add(s.StartMuted.Element())
	}
	if b := s.Bridge; b != nil {
		e.Add(xmpp.New(meet.NSFocus, "bridge-session", "id", b.ID, "region", b.Region, "restart", yes(b.Restart), "ice-restart", yes(b.ICERestart)))
	}
	if s.ICEState != "" {
		e.Add(xmpp.New(meet.NSFocus, "ice-state").AddText(s.ICEState))
	}
	if len(s.Sources) > 0 {
		e.Add(xmpp.New(meet.NS, "json-message").AddText(string(AppendSources(nil, s.Sources))))
	}
	return e.Add(s.Trace)
}

// Content returns the first content of that name, or nil.
func (s *Session) Content(name string) *Content {
	for i := range s.Contents {
		if s.Contents[i].Name == name {
			return &s.Contents[i]
		}
	}
	return nil
}

// Transport returns the first transport with ICE credentials, or nil. All contents of a bundle repeat the same one.
func (s *Session) Transport() *Transport {
	for i := range s.Contents {
		if t := s.Contents[i].Transport; t != nil && t.Ufrag != "" {
			return t
		}
	}
	return nil
}

func parseContent(e *xmpp.Element) (Content, error) {
	c := Content{Name: e.Attr("name"), Creator: e.Attr("creator"), Senders: e.Attr("senders")}
	for x := range e.Children {
		var err error
		switch {
		case x.Is(NSRTP, "description"):
			err = c.parseDescription(x)
		case x.Is(NSICE, "transport"):
			var t Transport
			if t, err = ParseTransport(x); err == nil {
				c.Transport = &t
				c.SCTP, err = parseSCTP(x.Child(NSSCTP, "sctpmap"))
			}
		case x.Is(NSColibri2, "initial-last-n"):
			// The one number here that may be negative: -1 is no limit.
			n, bad := strconv.ParseInt(x.Attr("value"), 10, 32)
			if bad != nil || n < -1 {
				err = fmt.Errorf("initial-last-n: %w", ErrElement)
			}
			c.InitialLastN = new(int)
			*c.InitialLastN = int(n)
		}
		if err != nil {
			return Content{}, fmt.Errorf("content %.32q: %w", c.Name, err)
		}
	}
	return c, nil
}

func (c *Content) parseDescription(e *xmpp.Element) (err error) {
	c.Media = e.Attr("media")
	ptime, err := optional(e, "maxptime", 1<<16)
	if err != nil {
		return err
	}
	c.MaxPTime = int(ptime)
	for x := range e.Children {
		switch {
		case x.Is(NSRTP, "payload-type"):
			c.PayloadTypes, err = parseInto(c.PayloadTypes, maxPayloadTypes, x, ParsePayloadType)
		case x.Is(NSHeader, "rtp-hdrext"):
			c.Extensions, err = parseInto(c.Extensions, maxExtensions, x, ParseHeaderExtension)
		case x.Is(NSSource, "source"):
			c.Sources, err = parseInto(c.Sources, maxSources, x, ParseSource)
		case x.Is(NSSource, "ssrc-group"):
			c.Groups, err = parseInto(c.Groups, maxGroups, x, ParseSourceGroup)
		case x.Is(NSHeader, "extmap-allow-mixed"):
			c.ExtmapAllowMixed = true
		case x.Is(NSRTP, "rtcp-mux"):
			c.RTCPMux = true
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func parseInto[T any](list []T, limit int, e *xmpp.Element, parse func(*xmpp.Element) (T, error)) ([]T, error) {
	if len(list) == limit {
		return nil, fmt.Errorf("%s: %w", e.Name, ErrTooMany)
	}
	v, err := parse(e)
	if err != nil {
		return nil, err
	}
	return append(list, v), nil
}

func parseSCTP(e *xmpp.Element) (*SCTPMap, error) {
	if e == nil {
		return nil, nil
	}
	port, err := number(e, "number", 65535)
	if err != nil {
		return nil, err
	}
	streams, err := optional(e, "streams", 65535)
	if err != nil {
		return nil, err
	}
	return &SCTPMap{int(port), e.Attr("protocol"), int(streams)}, nil
}

// Element returns <content/>.
func (c Content) Element() *xmpp.Element {
	e := xmpp.New(NS, "content", "creator", c.Creator, "name", c.Name, "senders", c.Senders)
	if c.InitialLastN != nil {
		e.Add(xmpp.New(NSColibri2, "initial-last-n", "value", strconv.Itoa(*c.InitialLastN)))
	}
	if c.Media != "" {
		e.Add(c.description())
	}
	if c.Transport != nil {
		t := c.Transport.Element()
		if c.SCTP != nil {
			t.Add(xmpp.New(NSSCTP, "sctpmap", "number", strconv.Itoa(c.SCTP.Port), "protocol", c.SCTP.Protocol, "streams", strconv.Itoa(c.SCTP.Streams)))
		}
		e.Add(t)
	}
	return e
}

func (c Content) description() *xmpp.Element {
	d := xmpp.New(NSRTP, "description", "media", c.Media, "maxptime", positive(c.MaxPTime))
	for _, p := range c.PayloadTypes {
		d.Add(p.Element())
	}
	for _, s := range c.Sources {
		d.Add(s.Element())
	}
	for _, g := range c.Groups {
		d.Add(g.Element())
	}
	for _, h := range c.Extensions {
		d.Add(h.Element())
	}
	if c.ExtmapAllowMixed {
		d.Add(xmpp.New(NSHeader, "extmap-allow-mixed"))
	}
	if c.RTCPMux {
		d.Add(xmpp.New(NSRTP, "rtcp-mux"))
	}
	return d
}

func parseReason(e *xmpp.Element) *Reason {
	r := &Reason{}
	for c := range e.Children {
		if c.Name == "text" {
			r.Text = c.Text()
		} else if r.Condition == "" {
			r.Condition = c.Name
		}
	}
	return r
}

func (r *Reason) element() *xmpp.Element {
	if r == nil {
		return nil
	}
	e := xmpp.New(NS, "reason")
	if r.Condition != "" {
		e.Add(xmpp.New(NS, r.Condition))
	}
	if r.Text != "" {
		e.Add(xmpp.New(NS, "text").AddText(r.Text))
	}
	return e
}

func yes(b bool) string {
	if b {
		return "true"
	}
	return ""
}
