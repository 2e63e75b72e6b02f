package muc

import (
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// granted are the permissions that a person without a token gets when it becomes moderator, as
// Prosody with Jitsi's plugins grants them.
var granted = meet.Permissions("transcription", "livestreaming", "live-translation-subscribe", "outbound-call", "recording",
	"flip", "live-translation", "send-groupchat", "create-polls")

// adminRequest answers muc#admin: affiliations and kicks. It reports whether st is one.
func (r *Room) adminRequest(from Sender, o *occupant, st *xmpp.Element) bool {
	q := st.Child(nsAdmin, "query")
	switch {
	case q == nil:
		return false
	case o == nil || o.affiliation != Owner:
		r.refuse(from.JID, st, forbidden)
	case st.Attr("type") == "get":
		r.listAffiliations(o, st, q)
	default:
		r.setItems(o, st, q)
	}
	return true
}

func (r *Room) listAffiliations(o *occupant, st, q *xmpp.Element) {
	wanted := Affiliation(q.Child(nsAdmin, "item").Attr("affiliation"))
	list := xmpp.New(nsAdmin, "query")
	for bare, a := range r.affiliations {
		if a == wanted {
			list.Add(xmpp.New(nsAdmin, "item", "affiliation", string(a), "jid", bare.String()))
		}
	}
	r.answer(o.JID, xmpp.Result(st, list).SetAttr("to", o.JID.String()))
}

func (r *Room) setItems(actor *occupant, st, q *xmpp.Element) {
	n := 0
	for item := range q.Children {
		if n++; n > maxItems || !item.Is(nsAdmin, "item") {
			r.refuse(actor.JID, st, badRequest)
			return
		}
		if why, ok := r.setItem(actor, item); !ok {
			r.refuse(actor.JID, st, why)
			return
		}
	}
	if n == 0 {
		r.refuse(actor.JID, st, badRequest)
		return
	}
	r.answer(actor.JID, xmpp.Result(st).SetAttr("to", actor.JID.String()))
}

func (r *Room) setItem(actor *occupant, item *xmpp.Element) (why xmpp.StanzaError, ok bool) {
	reason := item.Child(nsAdmin, "reason")
	if reason != nil {
		reason = xmpp.New(nsUser, "reason").AddText(reason.Text())
	}
	if nick := item.Attr("nick"); nick != "" && item.Attr("role") == "none" {
		return r.kick(actor, nick, reason)
	}
	a := Affiliation(item.Attr("affiliation"))
	bare, err := jid.Parse(item.Attr("jid"))
	switch a {
	case Owner, Member, None, Outcast:
	case "admin": // Jitsi has no admins
		return notAllowed, false
	default:
		return badRequest, false
	}
	if err != nil {
		return malformed, false
	}
	return r.affiliate(actor, bare.Bare(), a, reason)
}

// affiliate grants or revokes. Whoever it concerns is shown to everybody anew; if nobody in the room has
// this JID, the room is told by a message, as Prosody does.
func (r *Room) affiliate(actor *occupant, bare jid.JID, a Affiliation, reason *xmpp.Element) (why xmpp.StanzaError, ok bool) {
	switch {
	case r.cfg.Brewery, !r.cfg.Focus.IsZero() && bare == r.cfg.Focus:
		return notAllowed, false
	case a == None:
		delete(r.affiliations, bare)
	case len(r.affiliations) >= maxAffiliations && r.affiliations[bare] == "":
		return xmpp.StanzaError{Condition: xmpp.ResourceConstraint}, false
	default:
		r.affiliations[bare] = a
	}
	present := false
	for _, o := range append([]*occupant(nil), r.order...) {
		if o.JID.Bare() != bare {
			continue
		}
		present = true
		was := o.affiliation.role()
		o.affiliation, o.seen = a, nil
		if a == Outcast {
			r.remove(o, departure{code: "301", actor: actor, reason: reason})
			continue
		}
		all := &Stanza{Element: r.presence(o).Add(r.item(o, details(actor, true, reason)))}
		own := r.own(o, r.item(o, details(actor, false, reason)))
		if was != Moderator && a == Owner {
			own.Element.Add(granted)
		}
		r.sendExcept(o, all)
		r.send(o.self, own)
		r.emit(Changed, o, "")
	}
	if !present {
		r.send(r.everybody, r.affiliationNote(bare, a))
	}
	return why, true
}

func (r *Room) affiliationNote(bare jid.JID, a Affiliation) *Stanza {
	item := xmpp.New(nsUser, "item", "jid", bare.String(), "affiliation", string(a))
	return &Stanza{Element: xmpp.Message("", "", r.cfg.JID.String(), "", xmpp.New(nsUser, "x").Add(item))}
}

// kick puts an occupant out. It does not keep what it was to the room.
func (r *Room) kick(actor *occupant, nick string, reason *xmpp.Element) (why xmpp.StanzaError, ok bool) {
	o := r.nicks[nick]
	switch {
	case o == nil:
		return noSuchItem, false
	case nick == meet.FocusNick && !r.cfg.Focus.IsZero():
		return notAllowed, false
	}
	bare := o.JID.Bare()
	delete(r.affiliations, bare)
	if !r.cfg.Brewery {
		o.affiliation = None
	}
	r.sendExcept(o, r.affiliationNote(bare, None))
	r.remove(o, departure{code: "307", actor: actor, reason: reason})
	return why, true
}

func details(actor *occupant, full bool, reason *xmpp.Element) []*xmpp.Element {
	return []*xmpp.Element{actorFor(actor, full), reason}
}

// ownerRequest answers muc#owner: the configuration form, to the degree that clients and a stock Jicofo
// use it, and the end of the room. It reports whether st is one.
func (r *Room) ownerRequest(from Sender, o *occupant, st *xmpp.Element) bool {
	q := st.Child(nsOwner, "query")
	if q == nil {
		return false
	}
	if o == nil || o.affiliation != Owner {
		r.refuse(from.JID, st, forbidden)
		return true
	}
	done := xmpp.Result(st).SetAttr("to", from.JID.String())
	form := q.Child(nsData, "x")
	switch {
	case st.Attr("type") == "get":
		r.answer(from.JID, done.Add(xmpp.New(nsOwner, "query").Add(r.form())))
	case q.Child(nsOwner, "destroy") != nil:
		r.answer(from.JID, done)
		r.destroy(q.Child(nsOwner, "destroy").Child(nsOwner, "reason").Text())
	case form == nil:
		r.refuse(from.JID, st, badRequest)
	default:
		changed := form.Attr("type") == "submit" && r.configure(form)
		r.answer(from.JID, done)
		if changed { // clients then ask for the room's information again
			x := xmpp.New(nsUser, "x").Add(xmpp.New(nsUser, "status", "code", "104"))
			r.send(r.everybody, &Stanza{Element: xmpp.Message("groupchat", "", r.cfg.JID.String(), "", x)})
		}
	}
	return true
}

func (r *Room) form() *xmpp.Element {
	members := "0"
	if r.membersOnly {
		members = "1"
	}
	return xmpp.New(nsData, "x", "type", "form").Add(
		xmpp.New(nsData, "title").AddText("Configuration for "+r.cfg.JID.String()),
		field("FORM_TYPE", "hidden", nsRoomConfig),
		field("muc#roomconfig_roomname", "text-single", r.cfg.JID.Local()),
		field("muc#roomconfig_roomsecret", "text-private", r.password),
		field("muc#roominfo_meetingId", "text-single", r.cfg.MeetingID),
		field("muc#roomconfig_membersonly", "boolean", members),
		field("muc#roomconfig_whois", "list-single", "anyone", option("moderators"), option("anyone")),
	)
}

// maxPassword is the longest password in bytes; longer ones are cut, and then match nothing.
const maxPassword = 1024

// configure applies a submitted form and reports whether that changed anything. Fields that are absent
// keep their value; fields that Jitsi cannot change (whois) are passed over.
func (r *Room) configure(form *xmpp.Element) (changed bool) {
	password, members, open := r.password, r.membersOnly, false
	for f := range form.Children {
		value := f.Child(nsData, "value").Text()
		switch on := value == "1" || value == "true"; f.Attr("var") {
		case "muc#roomconfig_roomsecret":
			password = value[:min(len(value), maxPassword)]
		case "muc#roomconfig_passwordprotectedroom":
			open = !on
		case "muc#roomconfig_membersonly":
			members = on
		}
	}
	if open { // wins over a secret in the same form
		password = ""
	}
	changed = password != r.password || members != r.membersOnly
	r.password, r.membersOnly = password, members
	return changed
}

// field makes one field of a data form (XEP-0004).
func field(name, typ, value string, options ...*xmpp.Element) *xmpp.Element {
	f := xmpp.New(nsData, "field", "type", typ, "var", name).Add(options...)
	return f.Add(xmpp.New(nsData, "value").AddText(value))
}

func option(value string) *xmpp.Element {
	return xmpp.New(nsData, "option").Add(xmpp.New(nsData, "value").AddText(value))
}
