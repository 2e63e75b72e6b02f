// Package focus is a conference as a pure machine: it invites participants, places them on bridges,
// and keeps both sides in step. It is what Jicofo is to Prosody and the bridges, without a connection,
// a clock, a goroutine or a log of its own: an actor feeds it events and carries out the actions it
// returns, in order. It knows nothing of MUC rules; package muc is the room.
//
//	occupant ── Jingle ── session ── endpoint ── bridge (one colibri2 conference each)
package focus

import (
	"io"
	"net/netip"
	"time"

	"plenum/signaling/fleet"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// Config says what a conference needs to know from outside. Room, Self, MeetingID and Fleet are required.
type Config struct {
	// Room is the bare JID of the room.
	Room jid.JID
	// Self is the focus's real JID with resource; it is the initiator that clients see.
	Self jid.JID
	// MeetingID names the conference on bridges; it is the meetingId of the room's disco form.
	MeetingID string
	// Version is shown in the focus's presence. Default "plenum".
	Version string
	// Properties are further conference properties, shown in the focus's presence as they are.
	Properties map[string]string

	// Fleet chooses bridges and is told of those that fail. It is shared by all conferences of a shard.
	Fleet Fleet
	// Caps remembers what client versions can do. It is shared by all conferences of a shard; nil asks everybody.
	Caps Caps
	// SessionID returns the id of the n-th media session, from 0, of an occupant. Default: a random one.
	SessionID func(who jid.JID, n int) string
	// Rand makes session ids. Default crypto/rand.Reader.
	Rand io.Reader

	// VideoCodecs are offered in this order; known are "AV1", "VP8", "H264" and "VP9". Default DefaultVideoCodecs.
	VideoCodecs []string
	// NoRED leaves out redundant audio, which is offered to clients that know http://jitsi.org/opus-red. Bridges pass it on
	// to those who lose packets, and plain audio to others.
	NoRED bool
	// NoMID leaves out the sdes:mid header extension and the bridge's rtp-mid-demux (docker's Jicofo does).
	NoMID bool
	// NoRewriting signals every source over Jingle even to clients that know SSRC rewriting.
	NoRewriting bool
	// NoAutoOwner leaves the room without a moderator unless somebody arrives as one.
	NoAutoOwner bool
	// MaxAudioSenders and MaxVideoSenders bound how many unmuted sources a conference has of each kind; clients
	// are told in the focus's presence when no more are taken. Those that send already are left alone, and so
	// are sources that come with the session. Default no limit.
	MaxAudioSenders, MaxVideoSenders int
	// MinParticipants is how many occupants it takes until anybody is invited. Default 2.
	MinParticipants int

	// CapsTimeout is how long an invitation waits for a client's features. Default 2 s; afterwards audio,
	// video and SCTP without rewriting are assumed.
	CapsTimeout time.Duration
	// EmptyTimeout ends a conference that nobody joined. Default 15 s.
	EmptyTimeout time.Duration
	// LonelyTimeout is how long the last participant keeps a session. Default 20 s.
	LonelyTimeout time.Duration
	// BridgeTimeout is how long a bridge may take to answer. Default 15 s.
	BridgeTimeout time.Duration
	// RestartEvery and RestartBurst limit session restarts and, with a budget of its own, ICE restarts of one
	// participant: no two within the first, no more than the second in a minute. A session asked for sooner comes
	// later. Default 5 s and 5.
	RestartEvery time.Duration
	RestartBurst int
}

// DefaultVideoCodecs are offered when Config names none, in Jicofo's order. Not to be modified.
var DefaultVideoCodecs = []string{"AV1", "VP8", "H264", "VP9"}

// A Fleet is what a conference asks of the bridges' registry; *fleet.Fleet is one. Its methods are
// called during Step and must not block.
type Fleet interface {
	// Select returns the bridge for one more endpoint and counts it as placed there. It reports false when there is none.
	Select(now time.Time, r fleet.Request) (fleet.Choice, bool)
	// Leave reports whether a conference should move away from a bridge, and can.
	Leave(now time.Time, bridge jid.JID) bool
	// Failed keeps a bridge out of the choice for a while; graceful means that it refused because it is shutting down.
	Failed(now time.Time, bridge jid.JID, graceful bool)
	// Serves notes at which addresses clients are told to reach a bridge.
	Serves(bridge jid.JID, at []netip.AddrPort)
	// Trouble notes that a client has lost its connection to a bridge.
	Trouble(now time.Time, bridge jid.JID)
}

// Caps remembers the features behind a caps hash that was verified (XEP-0115).
type Caps interface {
	Features(ver string) (features []string, ok bool)
	Remember(ver string, features []string)
}

// An Occupant is a member of the room as the focus sees it. Virtual occupants, the focus itself among
// them, are not announced to the machine.
type Occupant struct {
	Nick   string  // the endpoint's id
	JID    jid.JID // real full JID
	Region string  // of the edge that the occupant's socket came through; empty when unknown
	Family string  // fleet.Family of the address that its socket comes from; empty when unknown
	Owner  bool    // affiliation owner, which makes a moderator
	Hidden bool    // of the recorders' domain: neither counted nor made owner
	// Presence has the children of the last presence. It is not modified.
	Presence []*xmpp.Element
}

// An Event is something that happened to the conference.
type Event interface{ event() }

type (
	// Opened: the room exists. It comes first; the answer has the focus's presence.
	Opened struct{}
	// Joined: an occupant is in, its own presence is on its way to it.
	Joined struct{ Occupant }
	// Changed: presence, role or affiliation of an occupant changed. It carries the whole new state.
	Changed struct{ Occupant }
	// Left: an occupant is gone, whatever the reason.
	Left struct{ Nick string }
	// Stanza is an IQ get or set that an occupant sent to room/focus.
	Stanza struct {
		From string // nick
		IQ   *xmpp.Element
	}
	// Answer is the result or error to a SendIQ; IQ is nil when the occupant's connection dropped it.
	Answer struct {
		ID RequestID
		IQ *xmpp.Element
	}
	// BridgeAnswer is the result or error to a BridgeRequest; IQ is nil after the request's timeout.
	BridgeAnswer struct {
		ID RequestID
		IQ *xmpp.Element
	}
	// BridgeLost: a bridge said that it leaves or was found dead. No BridgeAnswer needs to follow for its requests.
	BridgeLost struct{ Bridge jid.JID }
	// BridgeBack: a bridge can be asked again that could not for a while. What it was asked meanwhile may be lost.
	BridgeBack struct{ Bridge jid.JID }
	// BridgesChanged: a bridge appeared, became usable again, or is no longer to be used.
	BridgesChanged struct{}
	// TimerFired: a timer set by SetTimer ran out.
	TimerFired struct{ Key string }
)

func (Opened) event()         {}
func (Joined) event()         {}
func (Changed) event()        {}
func (Left) event()           {}
func (Stanza) event()         {}
func (Answer) event()         {}
func (BridgeAnswer) event()   {}
func (BridgeLost) event()     {}
func (BridgeBack) event()     {}
func (BridgesChanged) event() {}
func (TimerFired) event()     {}

// A RequestID pairs a request of one conference with its answer. Ids are never used twice by a
// Conference; the actor maps them to stanza ids.
type RequestID uint64

// An Action is something for the actor to do. Actions are carried out in order.
type Action interface{ action() }

type (
	// SendIQ sends an IQ of Type "get" or "set" with Payload from room/focus to an occupant, by its real JID.
	// The answer comes back as Answer with the same ID; answers that nobody waits for are ignored.
	SendIQ struct {
		To      string // nick
		ID      RequestID
		Type    string
		Payload *xmpp.Element
	}
	// Reply sends the answer to a Stanza: a whole IQ with id, type, to and from set.
	Reply struct {
		To string // nick
		IQ *xmpp.Element
	}
	// SetPresence replaces the children of the focus's presence, which goes out to all occupants.
	SetPresence struct{ Children []*xmpp.Element }
	// Affiliate makes an occupant owner in the name of the focus.
	Affiliate struct{ Nick, Affiliation string }
	// BridgeRequest sends an IQ get with Payload to a bridge. Requests to one bridge keep their order and do
	// not wait for each other. The answer comes as BridgeAnswer, without IQ after Timeout; ID 0 wants none.
	BridgeRequest struct {
		Bridge  jid.JID
		ID      RequestID
		Payload *xmpp.Element
		Timeout time.Duration
	}
	// SetTimer starts a timer, replacing a running one of the same key.
	SetTimer struct {
		Key   string
		After time.Duration
	}
	// CancelTimer stops a timer; one that fires nevertheless is ignored.
	CancelTimer struct{ Key string }
	// Stop: the conference is over and its bridges are told. The actor drops the machine.
	Stop struct{}
)

func (SendIQ) action()        {}
func (Reply) action()         {}
func (SetPresence) action()   {}
func (Affiliate) action()     {}
func (BridgeRequest) action() {}
func (SetTimer) action()      {}
func (CancelTimer) action()   {}
func (Stop) action()          {}
