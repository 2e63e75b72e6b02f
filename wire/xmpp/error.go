package xmpp

import "strings"

// Conditions of stanza errors (RFC 6120, 8.3.3) that Jitsi's clients act on.
const (
	BadRequest            = "bad-request"
	Conflict              = "conflict"
	FeatureNotImplemented = "feature-not-implemented"
	Forbidden             = "forbidden"
	InternalServerError   = "internal-server-error"
	ItemNotFound          = "item-not-found"
	JIDMalformed          = "jid-malformed"
	NotAcceptable         = "not-acceptable"
	NotAllowed            = "not-allowed"
	NotAuthorized         = "not-authorized"
	RecipientUnavailable  = "recipient-unavailable"
	RegistrationRequired  = "registration-required"
	RemoteServerTimeout   = "remote-server-timeout"
	ResourceConstraint    = "resource-constraint"
	ServiceUnavailable    = "service-unavailable"
	UndefinedCondition    = "undefined-condition"
	UnexpectedRequest     = "unexpected-request"
)

// A StanzaError is the <error/> of a stanza, and a Go error.
type StanzaError struct {
	Type      string     // auth, cancel, continue, modify, wait; empty means the usual one of the condition
	Condition string     // empty means undefined-condition
	Text      string     // English, for people
	App       []*Element // conditions of the application
}

// usualType is what RFC 6120 recommends; all conditions that are not here are "cancel".
var usualType = map[string]string{
	BadRequest: "modify", JIDMalformed: "modify", NotAcceptable: "modify", "policy-violation": "modify", "redirect": "modify",
	Forbidden: "auth", NotAuthorized: "auth", RegistrationRequired: "auth",
	RecipientUnavailable: "wait", RemoteServerTimeout: "wait", ResourceConstraint: "wait", UnexpectedRequest: "wait",
}

func (e StanzaError) Error() string {
	if e.Text == "" {
		return e.condition()
	}
	return e.condition() + ": " + e.Text
}

func (e StanzaError) condition() string {
	if e.Condition == "" {
		return UndefinedCondition
	}
	return e.Condition
}

// Element returns <error/>.
func (e StanzaError) Element() *Element {
	typ := e.Type
	if typ == "" {
		typ = usualType[e.condition()]
	}
	if typ == "" {
		typ = "cancel"
	}
	x := New(NSClient, "error", "type", typ).Add(New(NSStanzas, e.condition()))
	if e.Text != "" {
		x.Add(New(NSStanzas, "text").AddText(e.Text))
	}
	return x.Add(e.App...)
}

// ErrorReply makes the error answer to any stanza: same name and id, addresses exchanged. The payload is not repeated.
// Callers do not answer results and errors (RFC 6120, 8.3.1).
func ErrorReply(req *Element, e StanzaError) *Element {
	return stanza(req.Name, "error", req.Attr("id"), req.Attr("to"), req.Attr("from"), []*Element{e.Element()})
}

// ParseError returns the error of a stanza of type error. A stanza of another type has none.
func ParseError(stanza *Element) (StanzaError, bool) {
	if stanza == nil || stanza.Attr("type") != "error" {
		return StanzaError{}, false
	}
	x := stanza.Child(NSClient, "error")
	e := StanzaError{Type: x.Attr("type"), Condition: UndefinedCondition}
	for c := range x.Children {
		switch {
		case c.Is(NSStanzas, "text"):
			e.Text = strings.TrimSpace(c.Text())
		case c.namespace() == NSStanzas:
			e.Condition = c.Name
		default:
			e.App = append(e.App, c)
		}
	}
	return e, true
}

// A StreamError is what ends a stream (RFC 6120, 4.9), and a Go error.
type StreamError struct{ Condition, Text string }

func (e StreamError) Error() string {
	if e.Text == "" {
		return "stream error " + e.Condition
	}
	return "stream error " + e.Condition + ": " + e.Text
}

// Element returns <stream:error/>.
func (e StreamError) Element() *Element {
	x := New(NSStream, "error").Add(New(NSStreams, e.Condition))
	if e.Text != "" {
		x.Add(New(NSStreams, "text").AddText(e.Text))
	}
	return x
}

// ParseStreamError returns the error in e, and whether e is a stream error.
func ParseStreamError(e *Element) (StreamError, bool) {
	if !e.Is(NSStream, "error") {
		return StreamError{}, false
	}
	s := StreamError{Condition: UndefinedCondition}
	for c := range e.Children {
		switch {
		case c.Is(NSStreams, "text"):
			s.Text = strings.TrimSpace(c.Text())
		case c.namespace() == NSStreams:
			s.Condition = c.Name
		}
	}
	return s, true
}
