package muc

import (
	"time"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

func (r *Room) onMessage(now time.Time, from Sender, to jid.JID, st *xmpp.Element) {
	o, typ := r.jids[from.JID], st.Attr("type")
	switch {
	case typ == "error": // about something that could not be delivered; nobody waits for it
	case o == nil:
		r.refuse(from.JID, st, notAcceptable)
	case to.Resource() != "":
		r.private(o, to.Resource(), st)
	case typ != "groupchat": // invitations come with the lobby
		r.refuse(from.JID, st, unavailable)
	case st.Child("", "subject") != nil && st.Child("", "body") == nil:
		r.setSubject(now, o, st)
	default:
		r.groupchat(now, o, st)
	}
}

// groupchat goes to everybody, the sender included: it learns the message's id that way.
func (r *Room) groupchat(now time.Time, o *occupant, st *xmpp.Element) {
	id := st.Attr("id")
	if id == "" {
		id = r.newID()
	}
	// A name in the message would let anybody speak as somebody else.
	m := r.relayed(o, st, id, "", func(c *xmpp.Element) bool { return c.Is(nsNick, "nick") })
	if len(m.Frame().Bytes) > r.cfg.MaxMessageBytes {
		r.refuse(o.JID, st, tooLarge)
		return
	}
	r.send(r.everybody, m)
	if worthKeeping(st) {
		r.keep(r.delayed(now, m))
	}
}

// worthKeeping reports whether late joiners get the message: what has a body, and what asks to be
// stored (reactions). JSON messages do not; clients would ignore them when delayed.
func worthKeeping(st *xmpp.Element) bool {
	return st.Child(nsHints, "no-store") == nil && (st.Child("", "body") != nil || st.Child(nsHints, "store") != nil)
}

// private is passed to one occupant. It gets no id: Prosody gives none.
func (r *Room) private(o *occupant, nick string, st *xmpp.Element) {
	target := r.nicks[nick]
	switch {
	case st.Attr("type") == "groupchat":
		r.refuse(o.JID, st, badRequest)
		return
	case target == nil:
		r.refuse(o.JID, st, noSuchItem)
		return
	}
	m := r.relayed(o, st, st.Attr("id"), target.JID.String(), func(c *xmpp.Element) bool { return c.Is(nsUser, "x") }, xmpp.New(nsUser, "x"))
	if len(m.Frame().Bytes) > r.cfg.MaxMessageBytes {
		r.refuse(o.JID, st, tooLarge)
		return
	}
	r.send(target.self, m)
}

// relayed is a message as it leaves the room: from the occupant, its children as they are except those
// to drop, and the room's own after them.
func (r *Room) relayed(o *occupant, st *xmpp.Element, id, to string, drop func(*xmpp.Element) bool, add ...*xmpp.Element) *Stanza {
	m := xmpp.Message(st.Attr("type"), id, r.occupantAddress(o.nick), to)
	m.Nodes = make([]xmpp.Node, 0, len(st.Nodes)+2)
	for c := range st.Children {
		if !c.Is(nsOccupantID, "occupant-id") && !c.Is(xmpp.NSDelay, "delay") && !drop(c) {
			m.Add(c)
		}
	}
	return &Stanza{Element: m.Add(add...).Add(r.occupantID(o))}
}

func (r *Room) delayed(now time.Time, m *Stanza) *Stanza {
	return &Stanza{Element: m.Element.Clone().Add(xmpp.New(xmpp.NSDelay, "delay",
		"from", r.cfg.JID.String(), "stamp", now.UTC().Format("2006-01-02T15:04:05Z")))}
}

// keep adds to the history; the oldest messages make room.
func (r *Room) keep(m *Stanza) {
	r.history = append(r.history, m)
	r.historyBytes += len(m.Frame().Bytes)
	for len(r.history) > r.cfg.MaxHistory || r.historyBytes > maxHistoryBytes {
		r.historyBytes -= len(r.history[0].Frame().Bytes)
		r.history[0] = nil
		r.history = r.history[1:]
	}
}

func (r *Room) setSubject(now time.Time, o *occupant, st *xmpp.Element) {
	if o.affiliation != Owner {
		r.refuse(o.JID, st, forbidden)
		return
	}
	m := xmpp.Message("groupchat", st.Attr("id"), r.occupantAddress(o.nick), "")
	s := &Stanza{Element: m.Add(xmpp.New("", "subject").AddText(st.Child("", "subject").Text()))}
	if len(s.Frame().Bytes) > r.cfg.MaxMessageBytes {
		r.refuse(o.JID, st, tooLarge)
		return
	}
	r.subject = r.delayed(now, s)
	r.send(r.everybody, s)
}
