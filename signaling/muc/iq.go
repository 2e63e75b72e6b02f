package muc

import (
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

func (r *Room) onIQ(from Sender, to jid.JID, st *xmpp.Element) {
	o := r.jids[from.JID]
	switch nick := to.Resource(); {
	case nick != "":
		r.routeIQ(from, o, nick, st)
	case !st.IsRequest():
		// an answer to the room, which asks nothing
	case r.ownerRequest(from, o, st), r.adminRequest(from, o, st):
	case st.Child(xmpp.NSDisco, "query") != nil && st.Attr("type") == "get":
		r.discoInfo(from, o, st)
	case st.Child(xmpp.NSItems, "query") != nil && st.Attr("type") == "get":
		r.discoItems(from, o, st)
	case st.Child(xmpp.NSPing, "ping") != nil && o != nil:
		r.answer(from.JID, xmpp.Result(st).SetAttr("to", from.JID.String()))
	case o == nil:
		r.refuse(from.JID, st, notAcceptable)
	default:
		r.refuse(from.JID, st, unavailable)
	}
}

// signLen is the length of the signature in front of the id of an IQ that passes through the room.
const signLen = 20

// routeIQ passes an IQ from occupant to occupant.
//
// Ids are unique only to the connection that made them, and clients match answers by id alone. So a request gets a new id, in which the room signs who asked whom under which id; an
// answer passes only if its id carries that signature. Nothing has to be remembered or to expire: nobody
// can answer what it was not asked, however many requests are open.
func (r *Room) routeIQ(from Sender, o *occupant, nick string, st *xmpp.Element) {
	target := r.nicks[nick]
	request := st.IsRequest()
	switch {
	case o == nil:
		r.refuse(from.JID, st, notAcceptable)
		return
	case target == nil:
		r.refuse(from.JID, st, noSuchItem)
		return
	case request && target == o && st.Child(xmpp.NSPing, "ping") != nil: // XEP-0410: am I still in?
		r.answer(from.JID, xmpp.Result(st).SetAttr("to", from.JID.String()))
		return
	}
	id := st.Attr("id")
	switch t := st.Attr("type"); {
	case request && id != "":
		id = r.sign(signLen, "iq", o.JID.String(), target.JID.String(), id) + id
	case (t == "result" || t == "error") && len(id) > signLen:
		sign, original := id[:signLen], id[signLen:]
		if sign != r.sign(signLen, "iq", target.JID.String(), o.JID.String(), original) {
			return
		}
		id = original
	default:
		r.refuse(from.JID, st, badRequest)
		return
	}
	out := st.Clone()
	out.SetAttr("id", id).SetAttr("from", r.occupantAddress(o.nick)).SetAttr("to", target.JID.String())
	r.send(target.self, &Stanza{Element: out})
}

// discoInfo describes the room to those who are in it (XEP-0045, 6.4). The client takes
// the meeting's id, its start and the lock from here.
func (r *Room) discoInfo(from Sender, o *occupant, st *xmpp.Element) {
	if o == nil && !(r.cfg.Brewery && from.Service) {
		r.refuse(from.JID, st, forbidden)
		return
	}
	info := meet.RoomInfo{
		Name: r.cfg.JID.Local(), MeetingID: r.cfg.MeetingID, Created: r.created,
		Password: r.password != "", MembersOnly: r.membersOnly, Occupants: len(r.order),
	}
	q := info.Element().SetAttr("node", st.Child(xmpp.NSDisco, "query").Attr("node"))
	r.answer(from.JID, xmpp.Result(st, q).SetAttr("to", from.JID.String()))
}

// discoItems lists nobody: rooms hide who is in them, and those inside know it from presence.
func (r *Room) discoItems(from Sender, o *occupant, st *xmpp.Element) {
	if o == nil {
		r.refuse(from.JID, st, forbidden)
		return
	}
	r.answer(from.JID, xmpp.Result(st, xmpp.New(xmpp.NSItems, "query")).SetAttr("to", from.JID.String()))
}
