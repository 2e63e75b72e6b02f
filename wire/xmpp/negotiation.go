package xmpp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"mellium.im/sasl"

	"plenum/wire/jid"
)

// Framing is how a stream is cut into elements.
type Framing uint8

// A stream is over WebSocket, one element per message (RFC 7395), or over TCP.
const (
	WebSocket Framing = iota
	TCP
)

// maxIterations bounds the work that a server can ask of a client with SCRAM.
const maxIterations = 1_000_000

var (
	// ErrNegotiation is returned when the peer does something else than the negotiation needs.
	ErrNegotiation = errors.New("negotiation failed")
	// ErrMechanisms is returned when the server offers no mechanism that the client may use.
	ErrMechanisms = errors.New("no common authentication mechanism")
	// ErrClosed is returned when the peer ends the stream in order.
	ErrClosed = errors.New("stream closed by peer")
)

// A SASLError is the <failure/> of a SASL negotiation, and a Go error.
type SASLError struct{ Condition, Text string }

func (e SASLError) Error() string {
	if e.Text == "" {
		return "authentication failed: " + e.Condition
	}
	return "authentication failed: " + e.Condition + ": " + e.Text
}

// NegotiationConfig says who logs in where.
type NegotiationConfig struct {
	Domain  string // of the server
	Framing Framing

	// User and Password log in with SCRAM or PLAIN; without a User the login is ANONYMOUS.
	User, Password string
	// Mechanisms are those that may be used, best first. Default: SCRAM-SHA-256, SCRAM-SHA-1, PLAIN with a
	// User, else ANONYMOUS. PLAIN shows the password to whoever reads the connection.
	Mechanisms []string

	Resource string // asked for; empty lets the server choose

	// StreamManagement enables XEP-0198 with resumption once bound. With a PreviousID a stream is resumed
	// instead of bound, Handled being the number of stanzas received on it, and bound anew when that fails.
	StreamManagement bool
	PreviousID       string
	Handled          uint32
}

// A Negotiation is the client's side of what comes before the first stanza: stream header or <open/>, SASL,
// bind or resume, stream management. It is a pure machine: elements in, bytes out.
//
//	open → features → auth ⇄ challenge → success → open → features → bind → [enable] → done
//	                                                              ↘ resume ─────────↗
type Negotiation struct {
	cfg   NegotiationConfig
	state negotiationState
	sasl  *sasl.Negotiator // nil for ANONYMOUS
	proof bool             // SCRAM: the server has yet to prove that it knows the password

	jid     jid.JID
	early   []*Element
	resumed bool
	smID    string
	handled uint32
}

type negotiationState uint8

const (
	wantOpen negotiationState = iota
	wantFeatures
	wantSuccess
	wantOpenAgain
	wantFeaturesAgain
	wantResumed
	wantBound
	wantEnabled
	negotiated
	broken
)

const bindID = "_bind_auth_2" // as Jitsi's client calls it

// maxEarly limits the stanzas that a server sends before it has answered bind.
const maxEarly = 64

// NewNegotiation returns a negotiation that has not begun.
func NewNegotiation(cfg NegotiationConfig) *Negotiation {
	if cfg.Mechanisms == nil {
		cfg.Mechanisms = []string{"ANONYMOUS"}
		if cfg.User != "" {
			cfg.Mechanisms = []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"}
		}
	}
	return &Negotiation{cfg: cfg}
}

// Start returns what the client sends first.
func (n *Negotiation) Start() [][]byte {
	if n.cfg.Framing == TCP {
		return [][]byte{Header{To: n.cfg.Domain, Version: "1.0"}.Append(nil)}
	}
	return element(New(NSFraming, "open", "to", n.cfg.Domain, "version", "1.0"))
}

// Step takes what the server sent, a stream header or <open/> included, and returns what to send: each item
// is one WebSocket message. After done the next element is not the negotiation's; after an error it is over.
func (n *Negotiation) Step(in *Element) (out [][]byte, done bool, err error) {
	out, err = n.step(in)
	if err != nil {
		n.state = broken
	}
	return out, n.state == negotiated, err
}

func (n *Negotiation) step(in *Element) (out [][]byte, err error) {
	if e, ok := ParseStreamError(in); ok {
		return nil, e
	}
	if in.Is(NSFraming, "close") {
		return nil, ErrClosed
	}
	switch {
	case (n.state == wantOpen || n.state == wantOpenAgain) && (in.Is(NSStream, "stream") || in.Is(NSFraming, "open")):
		n.state++
	case n.state == wantFeatures && in.Is(NSStream, "features"):
		out, err = n.authenticate(in)
	case n.state == wantSuccess && in.Space == NSSASL:
		out, err = n.answer(in)
	case n.state == wantFeaturesAgain && in.Is(NSStream, "features"):
		out, err = n.bindOrResume(in)
	case n.state == wantResumed && in.Space == NSSM && (in.Name == "resumed" || in.Name == "failed"):
		out, err = n.afterResume(in)
	case n.state == wantBound && in.Is(NSClient, "iq") && in.Attr("id") == bindID:
		out, err = n.bound(in)
	case n.state == wantEnabled && in.Space == NSSM && (in.Name == "enabled" || in.Name == "failed"):
		if in.Name == "enabled" && isTrue(in.Attr("resume")) {
			n.smID = in.Attr("id")
		}
		n.state = negotiated
	case n.state > wantFeaturesAgain && n.state < negotiated && (in.IsStanza() || in.Space == NSSM):
		if len(n.early) == maxEarly {
			return nil, ErrTooLarge
		}
		if in.IsStanza() {
			n.early = append(n.early, in)
		}
	default:
		err = fmt.Errorf("unexpected %s: %w", in.Name, ErrNegotiation)
	}
	return out, err
}

// authenticate chooses a mechanism and sends its first message.
func (n *Negotiation) authenticate(features *Element) ([][]byte, error) {
	var offered []string
	for m := range features.Child(NSSASL, "mechanisms").Children {
		offered = append(offered, m.Text())
	}
	i := slices.IndexFunc(n.cfg.Mechanisms, func(m string) bool { return slices.Contains(offered, m) })
	if i < 0 {
		return nil, fmt.Errorf("offered %.200q: %w", offered, ErrMechanisms)
	}
	auth := New(NSSASL, "auth", "mechanism", n.cfg.Mechanisms[i])
	n.state = wantSuccess
	switch n.cfg.Mechanisms[i] {
	case "ANONYMOUS":
		return element(auth), nil
	case "PLAIN":
		n.sasl = n.client(sasl.Plain)
	case "SCRAM-SHA-1":
		n.sasl, n.proof = n.client(sasl.ScramSha1), true
	case "SCRAM-SHA-256":
		n.sasl, n.proof = n.client(sasl.ScramSha256), true
	default:
		return nil, fmt.Errorf("%s: %w", n.cfg.Mechanisms[i], ErrMechanisms)
	}
	_, first, err := n.sasl.Step(nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNegotiation, err)
	}
	return element(auth.AddText(base64.StdEncoding.EncodeToString(first))), nil
}

func (n *Negotiation) client(m sasl.Mechanism) *sasl.Negotiator {
	return sasl.NewClient(m, sasl.Credentials(func() (user, password, identity []byte) {
		return []byte(n.cfg.User), []byte(n.cfg.Password), nil
	}))
}

// answer goes on with SASL.
func (n *Negotiation) answer(in *Element) ([][]byte, error) {
	switch in.Name {
	case "challenge", "success":
	case "failure":
		e := SASLError{Condition: UndefinedCondition, Text: in.ChildNamed("text").Text()}
		for c := range in.Children {
			if c.Name != "text" {
				e.Condition = c.Name
			}
		}
		return nil, e
	default:
		return nil, fmt.Errorf("unexpected %s: %w", in.Name, ErrNegotiation)
	}
	var data []byte
	if t := in.Text(); t != "" && t != "=" {
		var err error
		if data, err = base64.StdEncoding.DecodeString(t); err != nil {
			return nil, fmt.Errorf("%s: %w", in.Name, ErrNegotiation)
		}
	}
	var response []byte
	if n.proof && (in.Name == "challenge" || len(data) > 0) {
		if err := n.checkScram(data); err != nil {
			return nil, err
		}
		more, r, err := n.sasl.Step(data)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNegotiation, err)
		}
		n.proof, response = more, r
	}
	if in.Name == "challenge" {
		return element(New(NSSASL, "response").AddText(base64.StdEncoding.EncodeToString(response))), nil
	}
	if n.proof {
		return nil, fmt.Errorf("server has not proved that it knows the password: %w", ErrNegotiation)
	}
	n.state = wantOpenAgain
	return n.Start(), nil
}

// checkScram refuses a first message of the server that sasl would not get to the end of.
func (n *Negotiation) checkScram(challenge []byte) error {
	if n.sasl.State()&sasl.StepMask != sasl.AuthTextSent {
		return nil
	}
	for field := range bytes.SplitSeq(challenge, []byte(",")) {
		if len(field) < 3 || field[1] != '=' {
			return fmt.Errorf("scram challenge: %w", ErrNegotiation)
		}
		if field[0] == 'i' {
			if i, err := strconv.Atoi(string(field[2:])); err != nil || i < 1 || i > maxIterations {
				return fmt.Errorf("scram iterations: %w", ErrNegotiation)
			}
		}
	}
	return nil
}

// bindOrResume ends the second features.
func (n *Negotiation) bindOrResume(features *Element) ([][]byte, error) {
	managed := features.Child(NSSM, "sm") != nil
	n.cfg.StreamManagement = n.cfg.StreamManagement && managed
	if managed && n.cfg.PreviousID != "" {
		n.state = wantResumed
		return element(New(NSSM, "resume", "previd", n.cfg.PreviousID).SetInt("h", int64(n.cfg.Handled))), nil
	}
	return n.bind(), nil
}

func (n *Negotiation) bind() [][]byte {
	n.state = wantBound
	bind := New(NSBind, "bind")
	if n.cfg.Resource != "" {
		bind.Add(New(NSBind, "resource").AddText(n.cfg.Resource))
	}
	return element(IQ("set", bindID, "", "", bind))
}

func (n *Negotiation) afterResume(in *Element) ([][]byte, error) {
	if in.Name == "failed" {
		return n.bind(), nil
	}
	h, err := strconv.ParseUint(in.Attr("h"), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("resumed: %w", ErrNegotiation)
	}
	n.state, n.resumed, n.smID, n.handled = negotiated, true, n.cfg.PreviousID, uint32(h)
	return nil, nil
}

func (n *Negotiation) bound(in *Element) ([][]byte, error) {
	if e, failed := ParseError(in); failed {
		return nil, e
	}
	j, err := jid.Parse(in.Child(NSBind, "bind").Child(NSBind, "jid").Text())
	if err != nil {
		return nil, fmt.Errorf("bind: %w: %w", ErrNegotiation, err)
	}
	n.jid = j
	if !n.cfg.StreamManagement {
		n.state = negotiated
		return nil, nil
	}
	n.state = wantEnabled
	return element(New(NSSM, "enable", "resume", "true")), nil
}

// JID returns the address that was bound. It is zero on a resumed stream, which keeps its own.
func (n *Negotiation) JID() jid.JID { return n.jid }

// Resumed reports whether the stream of PreviousID goes on, and how many stanzas the server had got on it.
func (n *Negotiation) Resumed() (handled uint32, ok bool) { return n.handled, n.resumed }

// Managed returns the id to resume the stream with, or the empty string.
func (n *Negotiation) Managed() string { return n.smID }

// Early returns the stanzas that came before the negotiation was done; Jitsi's server tells of its services so.
// With stream management they are not counted, as they came before it was enabled.
func (n *Negotiation) Early() []*Element { return n.early }

func element(e *Element) [][]byte { return [][]byte{e.Append(nil)} }

func isTrue(s string) bool { return s == "true" || s == "1" }
