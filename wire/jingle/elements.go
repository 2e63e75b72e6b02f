package jingle

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"plenum/wire/xmpp"
)

// Namespaces of Jingle's parts.
const (
	NS         = "urn:xmpp:jingle:1"
	NSErrors   = "urn:xmpp:jingle:errors:1"
	NSRTP      = "urn:xmpp:jingle:apps:rtp:1"
	NSFeedback = "urn:xmpp:jingle:apps:rtp:rtcp-fb:0"
	NSHeader   = "urn:xmpp:jingle:apps:rtp:rtp-hdrext:0"
	NSSource   = "urn:xmpp:jingle:apps:rtp:ssma:0"
	NSGroup    = "urn:xmpp:jingle:apps:grouping:0"
	NSICE      = "urn:xmpp:jingle:transports:ice-udp:1"
	NSDTLS     = "urn:xmpp:jingle:apps:dtls:0"
	NSSCTP     = "urn:xmpp:jingle:transports:dtls-sctp:1"
	NSColibri  = "http://jitsi.org/protocol/colibri" // of <web-socket/>
)

// Limits on one description; what a browser sends is far below.
const (
	maxParameters   = 64
	maxFeedback     = 32
	maxCandidates   = 64
	maxFingerprints = 8
	maxWebSockets   = 8
	maxGroup        = 32
)

var (
	// ErrElement is returned for an element that is not the one asked for, or lacks what it must have.
	ErrElement = errors.New("malformed jingle element")
	// ErrTooMany is returned when an element repeats a child more often than any client does.
	ErrTooMany = errors.New("too many jingle elements")
)

// ParsePayloadType reads <payload-type/>.
func ParsePayloadType(e *xmpp.Element) (PayloadType, error) {
	if !e.Is(NSRTP, "payload-type") {
		return PayloadType{}, wrong(e, "payload-type")
	}
	id, err := number(e, "id", 127)
	if err != nil {
		return PayloadType{}, err
	}
	n := numbers{e: e}
	p := PayloadType{ID: uint8(id), Name: e.Attr("name"), Clockrate: int(n.optional("clockrate", 1<<31-1)), Channels: int(n.optional("channels", 255))}
	if n.err != nil {
		return PayloadType{}, n.err
	}
	for c := range e.Children {
		switch {
		case c.Is(NSRTP, "parameter"):
			if len(p.Parameters) == maxParameters {
				return PayloadType{}, ErrTooMany
			}
			p.Parameters = append(p.Parameters, Parameter{c.Attr("name"), c.Attr("value")})
		case c.Is(NSFeedback, "rtcp-fb"):
			if len(p.Feedback) == maxFeedback {
				return PayloadType{}, ErrTooMany
			}
			p.Feedback = append(p.Feedback, Feedback{c.Attr("type"), c.Attr("subtype")})
		}
	}
	return p, nil
}

// Element returns <payload-type/>.
func (p PayloadType) Element() *xmpp.Element {
	e := xmpp.New(NSRTP, "payload-type", "id", strconv.Itoa(int(p.ID)), "name", p.Name, "clockrate", positive(p.Clockrate), "channels", positive(p.Channels))
	for _, m := range p.Parameters {
		e.Add(xmpp.New(NSRTP, "parameter", "name", m.Name, "value", m.Value))
	}
	for _, f := range p.Feedback {
		e.Add(xmpp.New(NSFeedback, "rtcp-fb", "type", f.Type, "subtype", f.Subtype))
	}
	return e
}

// Parameter returns the value of a format parameter, or the empty string.
func (p PayloadType) Parameter(name string) string {
	for _, m := range p.Parameters {
		if m.Name == name {
			return m.Value
		}
	}
	return ""
}

// ParseHeaderExtension reads <rtp-hdrext/>.
func ParseHeaderExtension(e *xmpp.Element) (HeaderExtension, error) {
	if !e.Is(NSHeader, "rtp-hdrext") {
		return HeaderExtension{}, wrong(e, "rtp-hdrext")
	}
	id, err := number(e, "id", 255)
	if err != nil {
		return HeaderExtension{}, err
	}
	uri := e.Attr("uri")
	if id == 0 || uri == "" {
		return HeaderExtension{}, fmt.Errorf("rtp-hdrext: %w", ErrElement)
	}
	return HeaderExtension{ID: uint8(id), URI: uri}, nil
}

// Element returns <rtp-hdrext/>.
func (h HeaderExtension) Element() *xmpp.Element {
	return xmpp.New(NSHeader, "rtp-hdrext", "id", strconv.Itoa(int(h.ID)), "uri", h.URI)
}

// ParseTransport reads an ICE-UDP <transport/> with the fingerprints and web-socket addresses in it.
func ParseTransport(e *xmpp.Element) (Transport, error) {
	if !e.Is(NSICE, "transport") {
		return Transport{}, wrong(e, "transport")
	}
	n := numbers{e: e}
	t := Transport{Ufrag: e.Attr("ufrag"), Pwd: e.Attr("pwd"), Generation: int(n.optional("ice-generation", 1<<31-1))}
	if n.err != nil {
		return Transport{}, n.err
	}
	for c := range e.Children {
		switch {
		case c.Is(NSICE, "rtcp-mux"):
			t.RTCPMux = true
		case c.Is(NSICE, "candidate"):
			if len(t.Candidates) == maxCandidates {
				return Transport{}, ErrTooMany
			}
			candidate, err := ParseCandidate(c)
			if err != nil {
				return Transport{}, err
			}
			t.Candidates = append(t.Candidates, candidate)
		case c.Is(NSDTLS, "fingerprint"):
			if len(t.Fingerprints) == maxFingerprints {
				return Transport{}, ErrTooMany
			}
			t.Fingerprints = append(t.Fingerprints, Fingerprint{
				Hash: c.Attr("hash"), Setup: c.Attr("setup"), Value: strings.TrimSpace(c.Text()), Cryptex: c.Attr("cryptex") == "true",
			})
		case c.Is(NSColibri, "web-socket"):
			if len(t.WebSockets) == maxWebSockets {
				return Transport{}, ErrTooMany
			}
			if url := c.Attr("url"); url != "" {
				t.WebSockets = append(t.WebSockets, url)
			}
		}
	}
	return t, nil
}

// Element returns <transport/>. The client reads fingerprint and web-socket by their own namespaces.
func (t Transport) Element() *xmpp.Element {
	e := xmpp.New(NSICE, "transport", "ufrag", t.Ufrag, "pwd", t.Pwd, "ice-generation", positive(t.Generation))
	if t.RTCPMux {
		e.Add(xmpp.New(NSICE, "rtcp-mux"))
	}
	for _, f := range t.Fingerprints {
		e.Add(f.element())
	}
	for _, url := range t.WebSockets {
		e.Add(xmpp.New(NSColibri, "web-socket", "url", url))
	}
	for _, c := range t.Candidates {
		e.Add(c.Element())
	}
	return e
}

func (f Fingerprint) element() *xmpp.Element {
	e := xmpp.New(NSDTLS, "fingerprint", "hash", f.Hash, "setup", f.Setup)
	if f.Cryptex {
		e.SetAttr("cryptex", "true")
	}
	return e.AddText(f.Value)
}

// ParseCandidate reads <candidate/>. A candidate without address is an error; unknown types and protocols are kept.
func ParseCandidate(e *xmpp.Element) (Candidate, error) {
	if !e.Is(NSICE, "candidate") {
		return Candidate{}, wrong(e, "candidate")
	}
	n := numbers{e: e}
	c := Candidate{
		ID: e.Attr("id"), Foundation: e.Attr("foundation"), Component: int(n.optional("component", 256)),
		Generation: int(n.optional("generation", 1<<31-1)), Network: int(n.optional("network", 1<<31-1)),
		Priority: uint32(n.optional("priority", 1<<32-1)), Protocol: e.Attr("protocol"), Type: e.Attr("type"),
		IP: e.Attr("ip"), Port: int(n.optional("port", 65535)),
		RelIP: e.Attr("rel-addr"), RelPort: int(n.optional("rel-port", 65535)), TCPType: e.Attr("tcptype"),
	}
	if n.err != nil {
		return Candidate{}, n.err
	}
	if c.IP == "" {
		return Candidate{}, fmt.Errorf("candidate: %w", ErrElement)
	}
	return c, nil
}

// Element returns <candidate/>.
func (c Candidate) Element() *xmpp.Element {
	return xmpp.New(NSICE, "candidate",
		"component", strconv.Itoa(c.Component), "foundation", c.Foundation, "generation", strconv.Itoa(c.Generation), "id", c.ID,
		"network", strconv.Itoa(c.Network), "priority", strconv.FormatUint(uint64(c.Priority), 10), "protocol", c.Protocol, "type", c.Type,
		"ip", c.IP, "port", strconv.Itoa(c.Port), "rel-addr", c.RelIP, "rel-port", positive(c.RelPort), "tcptype", c.TCPType)
}

// ParseSource reads <source/> (XEP-0339); its msid is a <parameter/>.
func ParseSource(e *xmpp.Element) (Source, error) {
	if !e.Is(NSSource, "source") {
		return Source{}, wrong(e, "source")
	}
	ssrc, err := parseSSRC(e)
	if err != nil {
		return Source{}, err
	}
	s := Source{SSRC: ssrc, Name: e.Attr("name"), VideoType: e.Attr("videoType")}
	for c := range e.Children {
		if c.Name == "parameter" && c.Attr("name") == "msid" {
			s.MSID = c.Attr("value")
		}
	}
	return s, nil
}

// Element returns <source/>.
func (s Source) Element() *xmpp.Element {
	e := xmpp.New(NSSource, "source", "ssrc", strconv.FormatUint(uint64(s.SSRC), 10), "name", s.Name, "videoType", s.VideoType)
	if s.MSID != "" {
		e.Add(xmpp.New(NSSource, "parameter", "name", "msid", "value", s.MSID))
	}
	return e
}

// ParseSourceGroup reads <ssrc-group/>.
func ParseSourceGroup(e *xmpp.Element) (SourceGroup, error) {
	if !e.Is(NSSource, "ssrc-group") {
		return SourceGroup{}, wrong(e, "ssrc-group")
	}
	g := SourceGroup{Semantics: e.Attr("semantics")}
	if g.Semantics == "" {
		return SourceGroup{}, fmt.Errorf("ssrc-group: semantics: %w", ErrElement)
	}
	for c := range e.Children {
		if !c.Is(NSSource, "source") {
			continue
		}
		if len(g.SSRCs) == maxGroup {
			return SourceGroup{}, ErrTooMany
		}
		ssrc, err := parseSSRC(c)
		if err != nil {
			return SourceGroup{}, err
		}
		g.SSRCs = append(g.SSRCs, ssrc)
	}
	return g, nil
}

// Element returns <ssrc-group/>.
func (g SourceGroup) Element() *xmpp.Element {
	e := xmpp.New(NSSource, "ssrc-group", "semantics", g.Semantics)
	for _, ssrc := range g.SSRCs {
		e.Add(xmpp.New(NSSource, "source", "ssrc", strconv.FormatUint(uint64(ssrc), 10)))
	}
	return e
}

// parseSSRC reads the attribute ssrc: 1 to 2³²-1, as the client drops any other.
func parseSSRC(e *xmpp.Element) (uint32, error) {
	v, err := number(e, "ssrc", 1<<32-1)
	if err == nil && v == 0 {
		err = fmt.Errorf("%s ssrc: %w", e.Name, ErrElement)
	}
	return uint32(v), err
}

func wrong(e *xmpp.Element, want string) error {
	if e == nil {
		return fmt.Errorf("no %s: %w", want, ErrElement)
	}
	return fmt.Errorf("%s in place of %s: %w", e.Name, want, ErrElement)
}

// number reads a decimal attribute that must be there and at most max.
func number(e *xmpp.Element, name string, max uint64) (uint64, error) {
	v, err := strconv.ParseUint(e.Attr(name), 10, 64)
	if err != nil || v > max {
		return 0, fmt.Errorf("%s %s: %w", e.Name, name, ErrElement)
	}
	return v, nil
}

// optional is number for an attribute that may be absent, which is 0.
func optional(e *xmpp.Element, name string, max uint64) (uint64, error) {
	if e.Attr(name) == "" {
		return 0, nil
	}
	return number(e, name, max)
}

// numbers reads several optional attributes of e and keeps the first error.
type numbers struct {
	e   *xmpp.Element
	err error
}

func (n *numbers) optional(name string, max uint64) uint64 {
	v, err := optional(n.e, name, max)
	if n.err == nil {
		n.err = err
	}
	return v
}

// positive formats n, or returns the empty string when there is nothing to say.
func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(n)
}
