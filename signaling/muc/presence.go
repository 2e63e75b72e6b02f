package muc

import (
	"crypto/subtle"
	"slices"
	"time"

	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// Answers to a join. The client tells its user by the condition alone.
var (
	nickTaken     = xmpp.StanzaError{Type: "cancel", Condition: "conflict"}
	nickChange    = xmpp.StanzaError{Type: "cancel", Condition: "not-allowed", Text: "Nick name changes are not allowed"}
	nickMalformed = xmpp.StanzaError{Type: "modify", Condition: "jid-malformed", Text: "Nick names are letters, digits and underscores"}
	roomFull      = xmpp.StanzaError{Type: "cancel", Condition: "service-unavailable", Text: "The room is full"}
	needsPassword = xmpp.StanzaError{Type: "auth", Condition: "not-authorized"}
	needsMember   = xmpp.StanzaError{Type: "auth", Condition: "registration-required"}
)

// bridgeNick owns the bridge's own sources in every offer, so nobody may be called that.
const bridgeNick = "jvb"

// A held join waits for the focus.
type held struct {
	from Sender
	to   jid.JID
	st   *xmpp.Element
}

func (r *Room) onPresence(now time.Time, from Sender, to jid.JID, st *xmpp.Element) {
	o := r.jids[from.JID]
	switch st.Attr("type") {
	case "unavailable":
		r.unhold(from.JID)
		if o != nil {
			r.remove(o, departure{st: st})
		}
		return
	case "":
	default: // errors, probes and subscriptions do not concern a room
		return
	}
	join := st.Child(nsMUC, "x")
	switch nick := to.Resource(); {
	case nick == "":
		r.refuse(from.JID, st, malformed)
	case o != nil && o.nick != nick:
		r.refuse(from.JID, st, nickChange)
	case o != nil:
		r.update(now, o, st, join != nil)
	case join == nil:
		r.refuse(from.JID, st, notAcceptable)
	case r.mustWait(from):
		r.hold(held{from, to, st})
	default:
		r.join(now, from, nick, st)
	}
	if r.focusIsIn() && len(r.held) > 0 {
		waiting := r.held
		r.held = nil
		for _, h := range waiting {
			r.join(now, h.from, h.to.Resource(), h.st)
		}
	}
}

// mustWait holds every join until the focus is in: clients take a room
// without focus for one that has just lost it.
func (r *Room) mustWait(from Sender) bool {
	return !r.cfg.Focus.IsZero() && from.JID.Bare() != r.cfg.Focus && !r.focusIsIn()
}

func (r *Room) hold(h held) {
	r.unhold(h.from.JID) // the newer presence counts
	if len(r.held) >= r.cfg.MaxHeld {
		r.refuse(h.from.JID, h.st, roomFull)
		return
	}
	r.held = append(r.held, h)
}

func (r *Room) unhold(who jid.JID) {
	r.held = slices.DeleteFunc(r.held, func(h held) bool { return h.from.JID == who })
}

func (r *Room) join(now time.Time, from Sender, nick string, st *xmpp.Element) {
	if why, ok := r.admit(from, nick, st.Child(nsMUC, "x")); !ok {
		r.refuse(from.JID, st, why)
		return
	}
	o := &occupant{
		Sender: from, nick: nick, affiliation: r.affiliation(from),
		id:   r.sign(32, "occupant", from.JID.Bare().String()),
		self: []jid.JID{from.JID},
	}
	if !r.take(o, st) {
		r.refuse(from.JID, st, tooLarge)
		return
	}
	if old := r.nicks[nick]; old != nil { // the same person on a new connection: admit has made sure
		r.remove(old, departure{})
	}
	// 100: the room shows real JIDs, 201: it has just been made. A client never sees 201, because it
	// would start to configure the room.
	codes := []string{"100"}
	if len(r.order) == 0 && from.Service {
		codes = []string{"201", "100"}
	}
	r.sendExcept(o, r.seen(o))
	for _, other := range r.order {
		r.send(o.self, r.seen(other))
	}
	r.nicks[nick], r.jids[from.JID] = o, o
	r.order = append(r.order, o)
	r.everybody = append(r.everybody, from.JID)
	if len(r.order) == 2 && r.created.IsZero() {
		r.created = now
	}
	r.welcome(now, o, codes)
	r.emit(Entered, o, "")
	r.startMuted(o)
}

// admit checks a join. On refusal it returns the reason.
func (r *Room) admit(from Sender, nick string, join *xmpp.Element) (why xmpp.StanzaError, ok bool) {
	isFocus := !r.cfg.Focus.IsZero() && from.JID.Bare() == r.cfg.Focus
	holder := r.nicks[nick]
	switch {
	case r.cfg.Brewery && !from.Service:
		return forbidden, false
	case !r.cfg.Brewery && !meet.IsEndpoint(nick):
		return nickMalformed, false
	case !r.cfg.Focus.IsZero() && (nick == meet.FocusNick && !isFocus || nick == bridgeNick):
		return nickTaken, false
	case holder != nil && holder.JID.Bare() != from.JID.Bare():
		return nickTaken, false
	case isFocus:
		return why, true
	}
	affiliation := r.affiliation(from)
	if affiliation == Outcast {
		return forbidden, false
	}
	if r.password != "" || r.membersOnly {
		given := join.Child(nsMUC, "password")
		right := given != nil && r.password != "" && subtle.ConstantTimeCompare([]byte(given.Text()), []byte(r.password)) == 1
		switch {
		case right: // also lets a person past the members' list
		case r.membersOnly && affiliation == None:
			return needsMember, false
		case r.password != "":
			return needsPassword, false
		}
	}
	if holder == nil && !from.Service && len(r.order) > r.cfg.MaxOccupants { // the focus is one of order
		return roomFull, false
	}
	return why, true
}

// welcome sends what a joiner gets after the presences of the others, in Prosody's order:
// metadata before its own presence, because start-muted and TURN count only then.
func (r *Room) welcome(now time.Time, o *occupant, codes []string) {
	r.sendMetadata(now, o)
	r.send(o.self, r.own(o, nil, codes...))
	for _, m := range r.history {
		r.send(o.self, m)
	}
	r.send(o.self, r.subject)
}

// update takes a further presence. A join of somebody who is in already is answered in full again: the
// client has lost its view of the room.
func (r *Room) update(now time.Time, o *occupant, st *xmpp.Element, again bool) {
	if !r.take(o, st) {
		r.refuse(o.JID, st, tooLarge)
		return
	}
	r.sendExcept(o, r.seen(o))
	if again {
		for _, other := range r.order {
			if other != o {
				r.send(o.self, r.seen(other))
			}
		}
		r.welcome(now, o, []string{"100"})
	} else {
		r.send(o.self, r.own(o, nil))
	}
	r.emit(Changed, o, "")
	r.startMuted(o)
}

// take keeps the children of a presence and builds what others see of it. It reports false, and keeps
// what was, when the presence is beyond the limits.
func (r *Room) take(o *occupant, st *xmpp.Element) bool {
	was := *o
	o.children = make([]*xmpp.Element, 0, len(st.Nodes)+1)
	region := o.Region
	for c := range st.Children {
		switch {
		case c.Is(nsMUC, "x"), c.Is(nsUser, "x"), c.Is(nsOccupantID, "occupant-id"), c.Is(meet.NS, "permissions"):
			continue // said by the room alone
		case c.Name == "identity":
			continue // said by the server alone, from a token
		case c.Name == "jitsi_participant_region" && region != "":
			continue // the edge knows better
		}
		o.children = append(o.children, c)
	}
	if region != "" {
		o.children = append(o.children, xmpp.New("", "jitsi_participant_region").AddText(region))
	}
	o.stanzaID, o.seen = st.Attr("id"), nil
	if len(o.children) > maxPresenceChildren || len(r.seen(o).Frame().Bytes) > r.cfg.MaxPresenceBytes {
		*o = was
		return false
	}
	return true
}

// seen is the presence of o as others get it. It is kept for those who come later.
func (r *Room) seen(o *occupant) *Stanza {
	if o.seen == nil {
		o.seen = &Stanza{Element: r.presence(o).Add(r.item(o, nil))}
	}
	return o.seen
}

// own is the presence of o as it gets it itself.
func (r *Room) own(o *occupant, item *xmpp.Element, codes ...string) *Stanza {
	if item == nil {
		item = r.item(o, nil)
	}
	return &Stanza{Element: r.presence(o).SetAttr("to", o.JID.String()).Add(withStatus(item, append(codes, "110")...))}
}

// presence is everything but the muc#user element, of which there has to be exactly one.
func (r *Room) presence(o *occupant) *xmpp.Element {
	p := xmpp.New("", "presence", "from", r.occupantAddress(o.nick), "id", o.stanzaID)
	p.Nodes = make([]xmpp.Node, 0, len(o.children)+3)
	return p.Add(o.children...).Add(r.occupantID(o))
}

func (r *Room) occupantID(o *occupant) *xmpp.Element {
	return xmpp.New(nsOccupantID, "occupant-id", "id", o.id)
}

// item is the muc#user element with affiliation, role and real JID of o; detail goes into the item.
func (r *Room) item(o *occupant, detail []*xmpp.Element) *xmpp.Element {
	return xmpp.New(nsUser, "x").Add(xmpp.New(nsUser, "item",
		"affiliation", string(o.affiliation), "role", string(o.affiliation.role()), "jid", o.JID.String()).Add(detail...))
}

// withStatus returns a copy of a muc#user element with status codes after the item.
func withStatus(x *xmpp.Element, codes ...string) *xmpp.Element {
	x = x.Clone()
	for _, code := range codes {
		x.Add(xmpp.New(nsUser, "status", "code", code))
	}
	return x
}

// A departure says how somebody leaves.
type departure struct {
	st      *xmpp.Element // its own unavailable presence, if there was one
	code    string        // 307 for a kick
	actor   *occupant
	reason  *xmpp.Element // of the actor
	destroy *xmpp.Element // the room ends
	silent  bool          // its session is gone: nobody to tell
}

// remove takes o out of the room and tells everybody.
func (r *Room) remove(o *occupant, d departure) {
	delete(r.nicks, o.nick)
	delete(r.jids, o.JID)
	i := slices.Index(r.order, o)
	r.order = slices.Delete(r.order, i, i+1)
	r.everybody = slices.Concat(r.everybody[:i], r.everybody[i+1:]) // deliveries may hold the old one

	bye := func(actor *xmpp.Element, codes ...string) *Stanza {
		p := xmpp.New("", "presence", "from", r.occupantAddress(o.nick), "type", "unavailable")
		if d.st != nil { // what clients read of it
			p.Add(d.st.Child("", "status"), d.st.ChildNamed("ignore"))
		}
		item := xmpp.New(nsUser, "item", "affiliation", string(o.affiliation), "role", "none", "jid", o.JID.String())
		item.Add(actor, d.reason)
		x := xmpp.New(nsUser, "x").Add(item, d.destroy)
		if d.code != "" {
			x.Add(xmpp.New(nsUser, "status", "code", d.code))
		}
		return &Stanza{Element: p.Add(r.occupantID(o), withStatus(x, codes...))}
	}
	if !d.silent {
		own := bye(actorFor(d.actor, false), "110")
		own.Element.SetAttr("to", o.JID.String())
		r.send(o.self, own)
	}
	r.send(r.everybody, bye(actorFor(d.actor, true)))
	reason := d.reason.Text()
	if reason == "" && d.st != nil {
		reason = d.st.Child("", "status").Text()
	}
	r.emit(Left, o, reason)
	r.out.Events[len(r.out.Events)-1].Silent = d.st == nil && d.actor == nil
}

// actorFor names who did it; everybody but the one it was done to also gets the real JID.
func actorFor(o *occupant, full bool) *xmpp.Element {
	if o == nil {
		return nil
	}
	a := xmpp.New(nsUser, "actor", "nick", o.nick)
	if full {
		a.SetAttr("jid", o.JID.String())
	}
	return a
}

func (r *Room) destroy(reason string) {
	d := xmpp.New(nsUser, "destroy")
	if reason != "" {
		d.Add(xmpp.New(nsUser, "reason").AddText(reason))
	}
	for _, h := range r.held {
		r.refuse(h.from.JID, h.st, NoRoom)
	}
	r.held = nil
	for _, o := range r.order {
		item := xmpp.New(nsUser, "item", "affiliation", string(None), "role", "none")
		p := xmpp.New("", "presence", "from", r.occupantAddress(o.nick), "to", o.JID.String(), "type", "unavailable")
		r.send(o.self, &Stanza{Element: p.Add(r.occupantID(o), xmpp.New(nsUser, "x").Add(item, d, xmpp.New(nsUser, "status", "code", "110")))})
		r.emit(Left, o, reason)
	}
	r.order, r.everybody = nil, nil
	clear(r.nicks)
	clear(r.jids)
	clear(r.affiliations)
	r.out.Events = append(r.out.Events, Event{Kind: Destroyed, Reason: reason})
}
