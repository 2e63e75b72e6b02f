// Package meet holds the stanza pieces that are Jitsi Meet's own: the conference request, room names, what
// presences, messages and the room's description carry. It turns them into values and back; who may send
// what is decided by the rooms that use it.
package meet

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"plenum/wire/xmpp"
)

// Namespaces.
const (
	NS           = "http://jitsi.org/jitmeet"
	NSFocus      = "http://jitsi.org/protocol/focus"
	NSStartMuted = "http://jitsi.org/jitmeet/start-muted"
	NSMute       = "http://jitsi.org/jitmeet/" // followed by the kind: audio, video, desktop
	NSMUC        = "http://jabber.org/protocol/muc"
	NSMUCUser    = "http://jabber.org/protocol/muc#user"
	NSMUCAdmin   = "http://jabber.org/protocol/muc#admin"
	NSMUCOwner   = "http://jabber.org/protocol/muc#owner"
	NSForm       = "jabber:x:data"
)

// FocusNick is the nick of the focus in every room. Clients tell the bridge's session from that of a peer by it.
const FocusNick = "focus"

// maxJSONBytes limits JSON in stanzas before it is parsed.
const maxJSONBytes = 64 << 10

// ErrMalformed is returned for an element that is not the one asked for, or lacks what it must have.
var ErrMalformed = errors.New("malformed jitsi meet element")

func malformed(what string) error { return fmt.Errorf("%s: %w", what, ErrMalformed) }

// A Property is a name with a value.
type Property struct{ Name, Value string }

// IsEndpoint reports whether s may be the nick of a participant, which is its endpoint id everywhere.
func IsEndpoint(s string) bool {
	for i := range len(s) {
		c := s[i]
		alphanumeric := '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !alphanumeric && (c != '_' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// Permissions makes the element that tells a client in its own presence what it may do.
func Permissions(names ...string) *xmpp.Element {
	e := xmpp.New(NS, "permissions")
	for _, name := range names {
		e.Add(xmpp.New(NS, "p", "name", name, "val", "true"))
	}
	return e
}

// ConferenceProperties makes the element that the focus shows in its presence. Each one replaces all before.
func ConferenceProperties(properties []Property) *xmpp.Element {
	e := xmpp.New(NSFocus, "conference-properties")
	for _, p := range properties {
		e.Add(xmpp.New(NSFocus, "property", "key", p.Name, "value", p.Value))
	}
	return e
}

// ParseConferenceProperties reads that element.
func ParseConferenceProperties(e *xmpp.Element) ([]Property, error) {
	if !e.Is(NSFocus, "conference-properties") {
		return nil, malformed("no conference-properties")
	}
	var properties []Property
	for c := range e.Children {
		if c.Is(NSFocus, "property") && c.Attr("key") != "" {
			properties = append(properties, Property{c.Attr("key"), c.Attr("value")})
		}
	}
	return properties, nil
}

// Versions makes the element with the version of the focus.
func Versions(focus string) *xmpp.Element {
	return xmpp.New(NS, "versions").Add(xmpp.New(NS, "component", "name", "focus").AddText(focus))
}

// BridgeNotAvailable makes the element by which the focus says that there is no bridge for the room.
func BridgeNotAvailable() *xmpp.Element { return xmpp.New(NSFocus, "bridgeNotAvailable") }

// StartMuted is the policy for who joins next; in a moderator's presence it is the older form of room metadata.
type StartMuted struct {
	Audio bool `json:"audio"`
	Video bool `json:"video"`
}

// ParseStartMuted reads <startmuted/>.
func ParseStartMuted(e *xmpp.Element) (StartMuted, error) {
	if !e.Is(NSStartMuted, "startmuted") {
		return StartMuted{}, malformed("no startmuted")
	}
	return StartMuted{e.Attr("audio") == "true", e.Attr("video") == "true"}, nil
}

// Element returns <startmuted/>.
func (s StartMuted) Element() *xmpp.Element {
	return xmpp.New(NSStartMuted, "startmuted", "audio", boolean(s.Audio), "video", boolean(s.Video))
}

// A Mute asks the focus to mute somebody, and tells somebody that they are muted.
type Mute struct {
	Kind  string // "audio", "video" or "desktop"
	JID   string // whom, in a request
	Actor string // who asked for it, in what the victim gets; empty for the focus itself
	On    bool
}

// ParseMute reads <mute/>. A text that is neither true nor false is malformed.
func ParseMute(e *xmpp.Element) (Mute, error) {
	if e == nil || e.Name != "mute" {
		return Mute{}, malformed("no mute")
	}
	kind, ok := strings.CutPrefix(e.Space, NSMute)
	text := strings.TrimSpace(e.Text())
	if !ok || kind != "audio" && kind != "video" && kind != "desktop" || text != "true" && text != "false" {
		return Mute{}, malformed("mute")
	}
	return Mute{kind, e.Attr("jid"), e.Attr("actor"), text == "true"}, nil
}

// Element returns <mute/>.
func (m Mute) Element() *xmpp.Element {
	return xmpp.New(NSMute+m.Kind, "mute", "jid", m.JID, "actor", m.Actor).AddText(boolean(m.On))
}

// SourceInfo is the state of a participant's sources by name, as its presence shows it. It is the only
// carrier of mute state between clients; a source that is not there counts as muted.
type SourceInfo map[string]SourceState

// SourceState is the state of one source.
type SourceState struct {
	Muted     bool   `json:"muted"`
	VideoType string `json:"videoType,omitempty"` // "desktop"; empty for a camera
}

// ParseSourceInfo reads <SourceInfo/>, which clients send without namespace.
func ParseSourceInfo(e *xmpp.Element) (SourceInfo, error) {
	if e == nil || e.Name != "SourceInfo" {
		return nil, malformed("no SourceInfo")
	}
	text := e.Text()
	s := SourceInfo{}
	if len(text) > maxJSONBytes || json.Unmarshal([]byte(text), &s) != nil {
		return nil, malformed("SourceInfo")
	}
	if s == nil { // null
		s = SourceInfo{}
	}
	return s, nil
}

// Element returns <SourceInfo/>.
func (s SourceInfo) Element() *xmpp.Element {
	if s == nil {
		s = SourceInfo{}
	}
	return xmpp.New("", "SourceInfo").AddText(marshal(s))
}

func boolean(v bool) string {
	if v {
		return "true"
	}
	return "false"
}

// marshal writes JSON without escapes that only HTML needs; XML has its own. Values are ours, so it cannot fail.
func marshal(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("meet: json: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
