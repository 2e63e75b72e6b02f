package colibri

import (
	"fmt"
	"strconv"
	"strings"

	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// FenceAttr is the attribute of <conference-modify/> with ConferenceModify.Fence.
const FenceAttr = "fencing-token"

// ParseModify reads <conference-modify/>. Elements it does not know are skipped, as bridges do.
func ParseModify(e *xmpp.Element) (ConferenceModify, error) {
	if !e.Is(NS, "conference-modify") {
		return ConferenceModify{}, malformed("no conference-modify")
	}
	m := ConferenceModify{
		MeetingID: e.Attr("meeting-id"), Name: e.Attr("name"), Create: isTrue(e.Attr("create")), Expire: isTrue(e.Attr("expire")),
	}
	if v, ok := e.LookupAttr("rtcstats-enabled"); ok {
		on := isTrue(v)
		m.RTCStats = &on
	}
	if v, ok := e.LookupAttr(FenceAttr); ok {
		token, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return ConferenceModify{}, malformed("fencing token")
		}
		m.Fence = &token
	}
	for c := range e.Children {
		switch {
		case c.Is(NS, "endpoint"), c.Is(NS, "relay"):
			if err := parseLeg(c, &m.Endpoints, &m.Relays); err != nil {
				return ConferenceModify{}, err
			}
		case c.Is(NS, "connects"):
			m.Connects = true
		}
	}
	if err := m.check(); err != nil {
		return ConferenceModify{}, err
	}
	return m, nil
}

// Element returns <conference-modify/>.
func (m ConferenceModify) Element() *xmpp.Element {
	e := xmpp.New(NS, "conference-modify", "meeting-id", m.MeetingID, "name", m.Name)
	if m.RTCStats != nil {
		e.SetAttr("rtcstats-enabled", strconv.FormatBool(*m.RTCStats))
	}
	if m.Fence != nil {
		e.SetAttr(FenceAttr, strconv.FormatUint(*m.Fence, 10))
	}
	e.SetAttr("create", flag(m.Create)).SetAttr("expire", flag(m.Expire))
	for _, x := range m.Endpoints {
		e.Add(x.element())
	}
	for _, x := range m.Relays {
		e.Add(x.element())
	}
	if m.Connects {
		e.Add(xmpp.New(NS, "connects"))
	}
	return e
}

// parseLeg reads an <endpoint/> or a <relay/>, of a request or of an answer, and appends it where it belongs.
func parseLeg(e *xmpp.Element, endpoints *[]Endpoint, relays *[]Relay) error {
	if e.Is(NS, "relay") {
		r, err := parseRelay(e)
		if err == nil {
			*relays = append(*relays, r)
		}
		return err
	}
	x, err := parseEndpoint(e)
	if err == nil {
		*endpoints = append(*endpoints, x)
	}
	return err
}

// ParseModified reads <conference-modified/>.
func ParseModified(e *xmpp.Element) (ConferenceModified, error) {
	if !e.Is(NS, "conference-modified") {
		return ConferenceModified{}, malformed("no conference-modified")
	}
	var m ConferenceModified
	var err error
	for c := range e.Children {
		switch {
		case c.Is(NS, "endpoint"), c.Is(NS, "relay"):
			if err := parseLeg(c, &m.Endpoints, &m.Relays); err != nil {
				return ConferenceModified{}, err
			}
		case c.Is(NS, "sources"):
			if m.Sources, err = parseSources(c); err != nil {
				return ConferenceModified{}, err
			}
		}
	}
	if err := m.check(); err != nil {
		return ConferenceModified{}, err
	}
	return m, nil
}

// Element returns <conference-modified/>.
func (m ConferenceModified) Element() *xmpp.Element {
	e := xmpp.New(NS, "conference-modified")
	for _, x := range m.Endpoints {
		e.Add(x.element())
	}
	for _, x := range m.Relays {
		e.Add(x.element())
	}
	return e.Add(m.Sources.element())
}

func parseEndpoint(e *xmpp.Element) (Endpoint, error) {
	x := Endpoint{
		ID: e.Attr("id"), StatsID: e.Attr("stats-id"), MUCRole: e.Attr("muc-role"),
		Create: isTrue(e.Attr("create")), Expire: isTrue(e.Attr("expire")),
	}
	for c := range e.Children {
		var err error
		switch {
		case c.Is(NS, "media"):
			var m Media
			m, err = parseMedia(c)
			x.Media = append(x.Media, m)
		case c.Is(NS, "transport"):
			x.Transport, err = parseTransport(c)
		case c.Is(NS, "sources"):
			x.Sources, err = parseSources(c)
		case c.Is(NS, "force-mute"):
			x.ForceMute = &ForceMute{Audio: isTrue(c.Attr("audio")), Video: isTrue(c.Attr("video"))}
		case c.Is(NS, "capability"):
			x.Capabilities = append(x.Capabilities, c.Attr("name"))
		case c.Is(NS, "initial-last-n"):
			var n int
			n, err = strconv.Atoi(c.Attr("value"))
			x.InitialLastN = &n
		}
		if err != nil {
			return Endpoint{}, fmt.Errorf("endpoint %.64s: %w: %w", x.ID, ErrMalformed, err)
		}
	}
	return x, nil
}

func (x Endpoint) element() *xmpp.Element {
	e := xmpp.New(NS, "endpoint", "id", x.ID, "create", flag(x.Create), "expire", flag(x.Expire), "stats-id", x.StatsID, "muc-role", x.MUCRole)
	for _, m := range x.Media {
		e.Add(m.element())
	}
	e.Add(x.Transport.element(), x.Sources.element())
	if f := x.ForceMute; f != nil {
		e.Add(xmpp.New(NS, "force-mute", "audio", flag(f.Audio), "video", flag(f.Video)))
	}
	for _, c := range x.Capabilities {
		e.Add(xmpp.New(NS, "capability", "name", c))
	}
	if x.InitialLastN != nil {
		e.Add(xmpp.New(NS, "initial-last-n").SetInt("value", int64(*x.InitialLastN)))
	}
	return e
}

func parseRelay(e *xmpp.Element) (Relay, error) {
	x := Relay{ID: e.Attr("id"), MeshID: e.Attr("mesh-id"), Create: isTrue(e.Attr("create")), Expire: isTrue(e.Attr("expire"))}
	for c := range e.Children {
		var err error
		switch {
		case c.Is(NS, "media"):
			var m Media
			m, err = parseMedia(c)
			x.Media = append(x.Media, m)
		case c.Is(NS, "transport"):
			x.Transport, err = parseTransport(c)
		case c.Is(NS, "endpoints"):
			for d := range c.Children {
				if !d.Is(NS, "endpoint") {
					continue
				}
				var n Endpoint
				if n, err = parseEndpoint(d); err != nil {
					break
				}
				x.Endpoints = append(x.Endpoints, n)
			}
		}
		if err != nil {
			return Relay{}, fmt.Errorf("relay %.64s: %w: %w", x.ID, ErrMalformed, err)
		}
	}
	return x, nil
}

func (x Relay) element() *xmpp.Element {
	e := xmpp.New(NS, "relay", "id", x.ID, "create", flag(x.Create), "expire", flag(x.Expire), "mesh-id", x.MeshID)
	for _, m := range x.Media {
		e.Add(m.element())
	}
	e.Add(x.Transport.element())
	if len(x.Endpoints) > 0 {
		list := xmpp.New(NS, "endpoints")
		for _, n := range x.Endpoints {
			list.Add(n.element())
		}
		e.Add(list)
	}
	return e
}

func parseMedia(e *xmpp.Element) (Media, error) {
	m := Media{Type: strings.ToLower(e.Attr("type"))}
	for c := range e.Children {
		switch {
		case c.Is(jingle.NSRTP, "payload-type"):
			p, err := jingle.ParsePayloadType(c)
			if err != nil {
				return Media{}, err
			}
			m.PayloadTypes = append(m.PayloadTypes, p)
		case c.Is(jingle.NSHeader, "rtp-hdrext"):
			h, err := jingle.ParseHeaderExtension(c)
			if err != nil {
				return Media{}, err
			}
			m.Extensions = append(m.Extensions, h)
		case c.Is(jingle.NSHeader, "extmap-allow-mixed"):
			m.ExtmapAllowMixed = true
		}
	}
	return m, nil
}

func (m Media) element() *xmpp.Element {
	e := xmpp.New(NS, "media", "type", m.Type)
	for _, p := range m.PayloadTypes {
		e.Add(p.Element())
	}
	for _, h := range m.Extensions {
		e.Add(h.Element())
	}
	if m.ExtmapAllowMixed {
		e.Add(xmpp.New(jingle.NSHeader, "extmap-allow-mixed"))
	}
	return e
}

func parseTransport(e *xmpp.Element) (*Transport, error) {
	t := &Transport{
		ICEControlling: isTrue(e.Attr("ice-controlling")), UseUniquePort: isTrue(e.Attr("use-unique-port")), ICERestart: isTrue(e.Attr("ice-restart")),
	}
	for c := range e.Children {
		switch {
		case c.Is(jingle.NSICE, "transport"):
			ice, err := jingle.ParseTransport(c)
			if err != nil {
				return nil, err
			}
			t.ICE = &ice
		case c.Is(NS, "sctp"):
			t.SCTP = &SCTP{Role: strings.ToLower(c.Attr("role"))}
			if s := c.Attr("port"); s != "" {
				port, err := strconv.ParseUint(s, 10, 16)
				if err != nil {
					return nil, malformed("sctp port")
				}
				t.SCTP.Port = int(port)
			}
		}
	}
	return t, nil
}

func (t *Transport) element() *xmpp.Element {
	if t == nil {
		return nil
	}
	e := xmpp.New(NS, "transport", "ice-controlling", flag(t.ICEControlling), "use-unique-port", flag(t.UseUniquePort), "ice-restart", flag(t.ICERestart))
	if t.ICE != nil {
		e.Add(t.ICE.Element())
	}
	if t.SCTP != nil {
		e.Add(xmpp.New(NS, "sctp", "role", t.SCTP.Role, "port", positive(t.SCTP.Port)))
	}
	return e
}

func parseSources(e *xmpp.Element) (*Sources, error) {
	s := &Sources{}
	for c := range e.Children {
		if !c.Is(NS, "media-source") {
			continue
		}
		m := MediaSource{ID: c.Attr("id"), Type: strings.ToLower(c.Attr("type")), Synthetic: isTrue(c.Attr("synthetic"))}
		for d := range c.Children {
			switch {
			case d.Is(jingle.NSSource, "source"):
				source, err := jingle.ParseSource(d)
				if err != nil {
					return nil, err
				}
				m.Sources = append(m.Sources, source)
			case d.Is(jingle.NSSource, "ssrc-group"):
				group, err := jingle.ParseSourceGroup(d)
				if err != nil {
					return nil, err
				}
				m.Groups = append(m.Groups, group)
			}
		}
		s.Media = append(s.Media, m)
	}
	return s, nil
}

func (s *Sources) element() *xmpp.Element {
	if s == nil {
		return nil
	}
	e := xmpp.New(NS, "sources")
	for _, m := range s.Media {
		x := xmpp.New(NS, "media-source", "type", m.Type, "id", m.ID, "synthetic", flag(m.Synthetic))
		for _, source := range m.Sources {
			x.Add(source.Element())
		}
		for _, group := range m.Groups {
			x.Add(group.Element())
		}
		e.Add(x)
	}
	return e
}
