// Package xmpp is XML as XMPP uses it: elements as trees, a strict parser with limits, streams over TCP,
// stanzas and their errors, and the client's side of a stream's negotiation. It turns bytes into values and
// back and has no sockets, no goroutines and no clock; sessions, rooms and clients bring those.
package xmpp

// A Frame is a stanza that was serialised once, to be sent as it is to any number of receivers.
// Nobody changes it after NewFrame.
type Frame struct {
	Bytes   []byte
	Counted bool // an iq, message or presence: counts in stream management
}

// NewFrame serialises e.
func NewFrame(e *Element) *Frame {
	return &Frame{Bytes: e.Append(nil), Counted: e.IsStanza()}
}
