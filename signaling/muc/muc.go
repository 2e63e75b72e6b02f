// Package muc is one chat room (XEP-0045 as Jitsi uses it) as a pure machine: a stanza goes in, the
// stanzas that leave the room come out. It has no I/O, clock, log or goroutine and knows neither
// sessions nor bridges; the actor of a room in package signaling is the only one who drives it.
//
//	           Handle(now, sender, stanza)
//	session ───────────────►┌────────┐ Deliveries: stanza → real JIDs
//	focus   ───────────────►│  Room  │───────────────────────────────► sessions
//	           Gone, Destroy└────────┘ Events: Entered, Changed, Left… ─► focus
//
// The focus is an occupant like any other: with nick "focus" and the real JID Config.Focus. Our own
// focus has no session, so the actor takes what is delivered to that JID; a stock Jicofo has one.
package muc

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// Namespaces of rooms; those of Jitsi are in package meet.
const (
	nsMUC        = meet.NSMUC
	nsUser       = meet.NSMUCUser
	nsAdmin      = meet.NSMUCAdmin
	nsOwner      = meet.NSMUCOwner
	nsData       = meet.NSForm
	nsRoomConfig = meet.NSMUC + "#roomconfig"
	nsOccupantID = "urn:xmpp:occupant-id:0"
	nsHints      = "urn:xmpp:hints"
	nsNick       = "http://jabber.org/protocol/nick"
)

// Config says what kind of room it is. JID and Key are required, all else has a default.
type Config struct {
	JID       jid.JID // address of the room, bare
	Key       []byte  // secret of this room for occupant ids and for the ids of IQs that pass through; 32 random bytes
	MeetingID string  // unique id of the meeting (a UUID) in room info and owner form

	// Focus is the bare JID of the focus. Nobody else may take the nick "focus", and nobody gets in
	// before it. Zero: a room without focus.
	Focus jid.JID

	// Brewery makes a room of services: only senders with an account enter, each of them is owner,
	// whoever comes first creates the room, and there is no room information to hide.
	Brewery bool

	// Metadata is the address from which room metadata comes. Zero: none.
	Metadata jid.JID

	// Services makes a JSON array of TURN and STUN servers, shown to each joiner in its first metadata
	// message only. Nil: none.
	Services func(now time.Time) json.RawMessage

	MaxOccupants     int // default 500, the focus and services not counted against it
	MaxHeld          int // joins waiting for the focus; default 500, as in Prosody's plugin
	MaxHistory       int // messages replayed to a joiner; default 20, and never more than 256 KiB
	MaxPresenceBytes int // one presence as it leaves the room; default 32 KiB
	MaxMessageBytes  int // one message as it leaves the room; default 64 KiB
	MaxMetadataBytes int // all metadata of the room; default 32 KiB
}

func (c *Config) fill() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.MaxOccupants, 500)
	def(&c.MaxHeld, 500)
	def(&c.MaxHistory, 20)
	def(&c.MaxPresenceBytes, 32<<10)
	def(&c.MaxMessageBytes, 64<<10)
	def(&c.MaxMetadataBytes, 32<<10)
}

// Limits that no room needs to change.
const (
	maxPresenceChildren = 96
	maxAffiliations     = 4096
	maxHistoryBytes     = 256 << 10
	maxMetadataKeys     = 64
	maxItems            = 512 // in one muc#admin request
)

// An Affiliation is what a person is to the room, inside or not.
type Affiliation string

// Affiliations that Jitsi uses; none is the zero value of the map that keeps them, not of the type.
const (
	Owner   Affiliation = "owner"
	Member  Affiliation = "member"
	None    Affiliation = "none"
	Outcast Affiliation = "outcast"
)

// A Role is what an occupant may do while it is in the room. It follows from the affiliation.
type Role string

// Roles that Jitsi uses.
const (
	Moderator   Role = "moderator"
	Participant Role = "participant"
)

func (a Affiliation) role() Role {
	if a == Owner {
		return Moderator
	}
	return Participant
}

// A Sender is who sends a stanza to the room, as its session knows it.
type Sender struct {
	JID     jid.JID // full
	Service bool    // logged in with an account of this deployment: a bridge, a recorder, a focus
	Region  string  // from the edge's header only; empty when unknown
	Family  string  // of the address that its socket comes from, "ipv4" or "ipv6"; empty when unknown
}

// A Stanza is an element on its way out, serialised at most once however many it goes to.
type Stanza struct {
	Element *xmpp.Element // not to be modified
	frame   *xmpp.Frame
}

// Frame returns the serialised stanza. It is not safe for concurrent use: the room's goroutine calls it.
func (s *Stanza) Frame() *xmpp.Frame {
	if s.frame == nil {
		s.frame = xmpp.NewFrame(s.Element)
	}
	return s.frame
}

// A Delivery is one stanza for some real JIDs.
type Delivery struct {
	To     []jid.JID // shared and read only
	Except jid.JID   // one of To that does not get it; zero: none
	Stanza *Stanza
}

// Kind says what an Event is about.
type Kind uint8

// Kinds of events.
const (
	Entered   Kind = iota + 1 // somebody is in the room
	Changed                   // presence or role of somebody in the room
	Left                      // somebody is no longer in the room; Reason tells why, if known
	Metadata                  // the room's metadata
	Destroyed                 // the room has ended; nobody is in it any more
)

// An Event tells the focus what happened in the room.
type Event struct {
	Kind     Kind
	Nick     string
	JID      jid.JID
	Region   string
	Family   string
	Role     Role
	Presence *xmpp.Element // the last presence as everybody sees it, of Entered and Changed; read only
	Reason   string
	Silent   bool              // of Left: the session is gone, or another has taken its place; nobody said so
	Metadata meet.RoomMetadata // all of it; read only
}

// Output is what one call leaves to do, in order. Its slices are valid until the next call to the room.
type Output struct {
	Deliveries []Delivery
	Events     []Event
}

// An occupant is somebody in the room.
type occupant struct {
	Sender
	nick        string
	affiliation Affiliation
	id          string          // XEP-0421
	stanzaID    string          // id of the last presence, which the real server keeps
	children    []*xmpp.Element // of the last presence, cleaned; relayed as they are
	seen        *Stanza         // the presence as others see it; nil when it has to be built anew
	self        []jid.JID       // its JID alone, for deliveries
	muted       string          // last legacy start-muted policy, so that a repeated presence pushes nothing
}

// A Room is a chat room. It belongs to one goroutine.
type Room struct {
	cfg          Config
	nicks        map[string]*occupant
	jids         map[jid.JID]*occupant
	order        []*occupant // by time of entry
	everybody    []jid.JID   // of order; grows in place, is replaced when somebody leaves
	affiliations map[jid.JID]Affiliation
	held         []held
	created      time.Time // when the second occupant came in: the start of the meeting
	password     string
	membersOnly  bool
	subject      *Stanza // as late joiners get it
	history      []*Stanza
	historyBytes int
	metadata     map[string]json.RawMessage
	serial       uint64 // of message ids
	out          Output
}

// New makes an empty room.
func New(cfg Config) *Room {
	cfg.fill()
	r := &Room{
		cfg:          cfg,
		nicks:        make(map[string]*occupant),
		jids:         make(map[jid.JID]*occupant),
		affiliations: make(map[jid.JID]Affiliation),
		metadata:     make(map[string]json.RawMessage),
	}
	r.subject = &Stanza{Element: xmpp.New("", "message", "from", cfg.JID.String(), "type", "groupchat").Add(xmpp.New("", "subject"))}
	return r
}

// Handle takes one stanza that is addressed to the room, to an occupant of it, or to its metadata
// address. It never fails: what is wrong with a stanza is answered to its sender.
func (r *Room) Handle(now time.Time, from Sender, st *xmpp.Element) Output {
	r.reset()
	to, err := jid.Parse(st.Attr("to"))
	if err != nil || from.JID.IsZero() {
		r.refuse(from.JID, st, malformed)
		return r.out
	}
	switch {
	case !st.Is("", st.Name): // not in jabber:client
	case st.Name == "presence":
		r.onPresence(now, from, to, st)
	case st.Name == "iq":
		r.onIQ(from, to, st)
	case st.Name == "message" && !r.cfg.Metadata.IsZero() && to.Bare() == r.cfg.Metadata:
		r.onMetadata(from, st)
	case st.Name == "message":
		r.onMessage(now, from, to, st)
	}
	return r.out
}

// Gone removes whoever has this real JID: its session is closed for good. A JID that was made for an
// anonymous session never comes back, so what it was to the room is forgotten too.
func (r *Room) Gone(who jid.JID) Output {
	r.reset()
	r.unhold(who)
	if o := r.jids[who]; o != nil {
		r.remove(o, departure{silent: true})
		if !o.Service {
			delete(r.affiliations, who.Bare())
		}
	}
	return r.out
}

// Destroy ends the room and tells everybody in it why.
func (r *Room) Destroy(reason string) Output {
	r.reset()
	r.destroy(reason)
	return r.out
}

// Len returns how many are in the room, the focus included.
func (r *Room) Len() int { return len(r.order) }

// Members returns how many are in the room or wait for the focus to come, the focus not counted.
func (r *Room) Members() int {
	n := len(r.order) + len(r.held)
	if r.focusIsIn() {
		n--
	}
	return n
}

// Address returns the real JID behind a nick.
func (r *Room) Address(nick string) (jid.JID, bool) {
	o := r.nicks[nick]
	if o == nil {
		return jid.JID{}, false
	}
	return o.JID, true
}

// Nick returns the nick of a real JID.
func (r *Room) Nick(who jid.JID) (string, bool) {
	o := r.jids[who]
	if o == nil {
		return "", false
	}
	return o.nick, true
}

// Snapshot is the state of a room for people who look for a fault. It holds no secrets.
type Snapshot struct {
	MeetingID   string     `json:"meeting_id"`
	Created     time.Time  `json:"created,omitzero"`
	Locked      bool       `json:"locked"`
	MembersOnly bool       `json:"members_only"`
	Held        int        `json:"held"`
	History     int        `json:"history"`
	Occupants   []Occupant `json:"occupants"`
}

// An Occupant is one line of a Snapshot.
type Occupant struct {
	Nick        string      `json:"nick"`
	JID         string      `json:"jid"`
	Affiliation Affiliation `json:"affiliation"`
	Role        Role        `json:"role"`
	Region      string      `json:"region,omitempty"`
}

// Snapshot returns a copy of the room's state.
func (r *Room) Snapshot() Snapshot {
	s := Snapshot{
		MeetingID: r.cfg.MeetingID, Created: r.created, Locked: r.password != "", MembersOnly: r.membersOnly,
		Held: len(r.held), History: len(r.history),
	}
	for _, o := range r.order {
		s.Occupants = append(s.Occupants, Occupant{o.nick, o.JID.String(), o.affiliation, o.affiliation.role(), o.Region})
	}
	return s
}

func (r *Room) reset() {
	clear(r.out.Deliveries) // so that an idle room does not keep the last burst alive
	clear(r.out.Events)
	r.out.Deliveries, r.out.Events = r.out.Deliveries[:0], r.out.Events[:0]
}

func (r *Room) send(to []jid.JID, s *Stanza) {
	if len(to) > 0 {
		r.out.Deliveries = append(r.out.Deliveries, Delivery{To: to, Stanza: s})
	}
}

func (r *Room) sendExcept(o *occupant, s *Stanza) {
	if n := len(r.everybody); n > 1 || n == 1 && r.everybody[0] != o.JID {
		r.out.Deliveries = append(r.out.Deliveries, Delivery{To: r.everybody, Except: o.JID, Stanza: s})
	}
}

func (r *Room) answer(to jid.JID, e *xmpp.Element) { r.send([]jid.JID{to}, &Stanza{Element: e}) }

// refuse answers a stanza with an error. Errors and results are never answered, nor are stanzas
// without a sender.
func (r *Room) refuse(to jid.JID, st *xmpp.Element, e xmpp.StanzaError) {
	switch t := st.Attr("type"); {
	case to.IsZero(), t == "error", st.Name == "iq" && t == "result":
		return
	}
	reply := xmpp.ErrorReply(st, e)
	reply.SetAttr("to", to.String())
	r.answer(to, reply)
}

func (r *Room) emit(kind Kind, o *occupant, reason string) {
	e := Event{Kind: kind, Nick: o.nick, JID: o.JID, Region: o.Region, Family: o.Family, Role: o.affiliation.role(), Reason: reason}
	if kind != Left {
		e.Presence = r.seen(o).Element
	}
	r.out.Events = append(r.out.Events, e)
}

func (r *Room) focusIsIn() bool { return !r.cfg.Focus.IsZero() && r.nicks[meet.FocusNick] != nil }

func (r *Room) affiliation(from Sender) Affiliation {
	switch bare := from.JID.Bare(); {
	case r.cfg.Brewery, !r.cfg.Focus.IsZero() && bare == r.cfg.Focus:
		return Owner
	default:
		if a, ok := r.affiliations[bare]; ok {
			return a
		}
		return None
	}
}

// sign makes n printable characters that nobody without the room's key can make for these parts.
func (r *Room) sign(n int, parts ...string) string {
	m := hmac.New(sha256.New, r.cfg.Key)
	for _, p := range parts {
		m.Write([]byte(p))
		m.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))[:n]
}

func (r *Room) newID() string {
	r.serial++
	return r.sign(24, "message", strconv.FormatUint(r.serial, 10))
}

// occupantAddress is room/nick. Nicks have been checked when their occupant entered.
func (r *Room) occupantAddress(nick string) string { return r.cfg.JID.String() + "/" + nick }

// Reasons for refusing a stanza. Clients act on conditions and, for noRoom, on the very text.
var (
	malformed     = xmpp.StanzaError{Type: "modify", Condition: "jid-malformed"}
	badRequest    = xmpp.StanzaError{Type: "modify", Condition: "bad-request"}
	notAcceptable = xmpp.StanzaError{Type: "modify", Condition: "not-acceptable", Text: "You are not currently connected to this chat"}
	tooLarge      = xmpp.StanzaError{Type: "modify", Condition: "policy-violation", Text: "The stanza is too large"}
	forbidden     = xmpp.StanzaError{Type: "auth", Condition: "forbidden"}
	notAllowed    = xmpp.StanzaError{Type: "cancel", Condition: "not-allowed"}
	noSuchItem    = xmpp.StanzaError{Type: "cancel", Condition: "item-not-found"}
	unavailable   = xmpp.StanzaError{Type: "cancel", Condition: "service-unavailable"}
)

// NoRoom is the answer to a join of a room that does not exist. Its text makes the client ask for the
// conference again and retry.
var NoRoom = xmpp.StanzaError{Type: "cancel", Condition: "not-allowed", Text: "Room creation is restricted"}
