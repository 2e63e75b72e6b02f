package muc

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// A view is what one client believes about the room, from what it was sent alone.
type view struct {
	in     bool
	roster map[string]string // nick -> last SourceInfo with affiliation
}

// apply does with a presence what a client does.
func (v *view) apply(e *xmpp.Element) {
	if e.Name != "presence" || e.Attr("type") == "error" {
		return
	}
	nick := jid.MustParse(e.Attr("from")).Resource()
	x := e.Child(nsUser, "x")
	self := false
	for c := range x.Children {
		self = self || c.Attr("code") == "110"
	}
	if e.Attr("type") == "unavailable" {
		delete(v.roster, nick)
		if self {
			v.in = false
			clear(v.roster)
		}
		return
	}
	v.roster[nick] = e.ChildNamed("SourceInfo").Text() + x.Child(nsUser, "item").Attr("affiliation")
	if self {
		v.in = true
	}
}

// TestRosters: whatever people do, all who are in agree on who is in, with which presence, and that is
// what the room thinks; everybody who is in has seen the focus first.
func TestRosters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New(testConfig())
		views := make(map[jid.JID]*view)
		addresses := []string{"focus@auth.meet.local/focus"}
		for i := range 5 {
			addresses = append(addresses, fmt.Sprintf("u%d@meet.local/a", i), fmt.Sprintf("u%d@meet.local/b", i))
		}
		for _, a := range addresses {
			views[jid.MustParse(a)] = &view{roster: make(map[string]string)}
		}
		serial := 0
		deliver := func(out Output) {
			for _, d := range out.Deliveries {
				for _, to := range d.To {
					if to != d.Except {
						views[to].apply(d.Stanza.Element)
					}
				}
			}
		}
		who := rapid.SampledFrom(addresses)
		nickOf := func(j jid.JID) string { // two people share a nick, so that conflicts occur
			switch j.Local() {
			case "focus":
				return meet.FocusNick
			case "u3", "u4":
				return "same"
			}
			return j.Local()
		}
		presence := func(t *rapid.T, typ string, join bool) {
			from := jid.MustParse(who.Draw(t, "who"))
			serial++
			p := xmpp.Presence(typ, "", "", testRoom+"/"+nickOf(from), xmpp.New("", "SourceInfo").AddText(fmt.Sprint(serial)))
			if join {
				p.Add(xmpp.New(nsMUC, "x"))
			}
			deliver(r.Handle(start, Sender{JID: from}, p))
		}
		t.Repeat(map[string]func(*rapid.T){
			"join":     func(t *rapid.T) { presence(t, "", true) },
			"presence": func(t *rapid.T) { presence(t, "", false) },
			"leave":    func(t *rapid.T) { presence(t, "unavailable", false) },
			"gone": func(t *rapid.T) {
				from := jid.MustParse(who.Draw(t, "who"))
				*views[from] = view{roster: make(map[string]string)}
				deliver(r.Gone(from))
			},
			"affiliate": func(t *rapid.T) {
				to := jid.MustParse(who.Draw(t, "whom")).Bare()
				a := rapid.SampledFrom([]Affiliation{Owner, Member, None, Outcast}).Draw(t, "affiliation")
				q := xmpp.New(nsAdmin, "query").Add(xmpp.New(nsAdmin, "item", "affiliation", string(a), "jid", to.String()))
				deliver(r.Handle(start, Sender{JID: jid.MustParse(addresses[0])}, xmpp.IQ("set", "1", "", testRoom, q)))
			},
			"kick": func(t *rapid.T) {
				nick := nickOf(jid.MustParse(who.Draw(t, "whom")))
				q := xmpp.New(nsAdmin, "query").Add(xmpp.New(nsAdmin, "item", "role", "none", "nick", nick))
				deliver(r.Handle(start, Sender{JID: jid.MustParse(addresses[0])}, xmpp.IQ("set", "1", "", testRoom, q)))
			},
			"": func(t *rapid.T) {
				truth := make(map[string]string)
				for _, o := range r.order {
					truth[o.nick] = textOf(o) + string(o.affiliation)
				}
				for j, v := range views {
					if v.in != (r.jids[j] != nil) {
						t.Fatalf("%s believes to be in: %v", j, v.in)
					}
					if v.in && !maps.Equal(v.roster, truth) {
						t.Fatalf("%s sees %v, the room has %v", j, v.roster, truth)
					}
				}
				var all []jid.JID
				for _, o := range r.order {
					all = append(all, o.JID)
					if r.nicks[o.nick] != o || r.jids[o.JID] != o {
						t.Fatalf("%s is not where it should be", o.nick)
					}
				}
				if !slices.Equal(all, r.everybody) || len(r.nicks) != len(all) || len(r.jids) != len(all) {
					t.Fatalf("indices disagree: %v %v", all, r.everybody)
				}
			},
		})
	})
}

func textOf(o *occupant) string {
	for _, c := range o.children {
		if c.Name == "SourceInfo" {
			return c.Text()
		}
	}
	return ""
}

// TestBounds: what people can make a room keep is bounded.
func TestBounds(t *testing.T) {
	cfg := testConfig()
	cfg.Focus = jid.JID{}
	r := New(cfg)
	ann := Sender{JID: jid.MustParse("ann@meet.local/r"), Service: true}
	r.affiliations[ann.JID.Bare()] = Owner
	errors := func(out Output) (n int) {
		for _, d := range out.Deliveries {
			if d.Stanza.Element.Attr("type") == "error" {
				n++
			}
		}
		return n
	}
	join := xmpp.Presence("", "", "", testRoom+"/ann", xmpp.New(nsMUC, "x"))
	if errors(r.Handle(start, ann, join)) != 0 {
		t.Fatal("cannot join")
	}
	big := func(n int) string { return string(make([]byte, 0, n)) + fmt.Sprintf("%0*d", n, 0) }
	many := xmpp.Presence("", "", "", testRoom+"/ann")
	for range maxPresenceChildren + 1 {
		many.Add(xmpp.New("", "a"))
	}
	for name, st := range map[string]*xmpp.Element{
		"presence":      xmpp.Presence("", "", "", testRoom+"/ann", xmpp.New("", "email").AddText(big(cfg.MaxPresenceBytes+40<<10))),
		"many children": many,
		"message":       xmpp.Message("groupchat", "", "", testRoom, xmpp.New("", "body").AddText(big(70<<10))),
		"subject":       xmpp.Message("groupchat", "", "", testRoom, xmpp.New("", "subject").AddText(big(70<<10))),
		"metadata": xmpp.Message("", "", "", testMetadata.String(),
			xmpp.New(meet.NS, "room_metadata").AddText(`{"key":"a","data":"`+big(40<<10)+`"}`)),
	} {
		if errors(r.Handle(start, ann, st)) != 1 {
			t.Errorf("%s: too large and not refused", name)
		}
	}
	if o := r.nicks["ann"]; o == nil || len(o.children) != 0 {
		t.Error("a refused presence has replaced the last one")
	}
	for range 100 {
		r.Handle(start.Add(time.Second), ann, xmpp.Message("groupchat", "", "", testRoom, xmpp.New("", "body").AddText(big(60<<10))))
	}
	if len(r.history) == 0 || r.historyBytes > maxHistoryBytes {
		t.Errorf("history: %d messages, %d bytes", len(r.history), r.historyBytes)
	}
	for i := range 2 * maxMetadataKeys {
		r.Handle(start, ann, xmpp.Message("", "", "", testMetadata.String(),
			xmpp.New(meet.NS, "room_metadata").AddText(fmt.Sprintf(`{"key":"k%d","data":1}`, i))))
	}
	if len(r.metadata) != maxMetadataKeys {
		t.Errorf("%d metadata keys", len(r.metadata))
	}
	for i := range maxAffiliations + 10 {
		q := xmpp.New(nsAdmin, "query").Add(xmpp.New(nsAdmin, "item", "affiliation", "member", "jid", fmt.Sprintf("m%d@meet.local", i)))
		r.Handle(start, ann, xmpp.IQ("set", "1", "", testRoom, q))
	}
	if len(r.affiliations) != maxAffiliations {
		t.Errorf("%d affiliations", len(r.affiliations))
	}
}

// FuzzHandle: no stanza makes a room fail, and whatever leaves it has a sender and a receiver and is XML
// again.
func FuzzHandle(f *testing.F) {
	for _, s := range []string{
		`<presence xmlns="jabber:client" to="golden@conference.meet.local/bob"><x xmlns="http://jabber.org/protocol/muc"><password>p</password></x></presence>`,
		`<presence xmlns="jabber:client" to="golden@conference.meet.local/ann" type="unavailable"><status>x</status></presence>`,
		`<iq xmlns="jabber:client" type="set" id="1" to="golden@conference.meet.local"><query xmlns="http://jabber.org/protocol/muc#admin"><item nick="bob" role="none"><reason>r</reason></item></query></iq>`,
		`<iq xmlns="jabber:client" type="set" id="1" to="golden@conference.meet.local"><query xmlns="http://jabber.org/protocol/muc#admin"><item affiliation="outcast" jid="ann@meet.local"/></query></iq>`,
		`<iq xmlns="jabber:client" type="set" id="1" to="golden@conference.meet.local"><query xmlns="http://jabber.org/protocol/muc#owner"><destroy><reason/></destroy></query></iq>`,
		`<iq xmlns="jabber:client" type="set" id="1" to="golden@conference.meet.local"><query xmlns="http://jabber.org/protocol/muc#owner"><x xmlns="jabber:x:data" type="submit"><field var="muc#roomconfig_roomsecret"><value>s</value></field></x></query></iq>`,
		`<iq xmlns="jabber:client" type="get" id="1" to="golden@conference.meet.local/focus"><query xmlns="http://jabber.org/protocol/disco#info"/></iq>`,
		`<iq xmlns="jabber:client" type="result" id="aaaaaaaaaaaaaaaaaaaaaaaa" to="golden@conference.meet.local/focus"/>`,
		`<message xmlns="jabber:client" type="groupchat" to="golden@conference.meet.local"><body>b</body><nick xmlns="http://jabber.org/protocol/nick">n</nick></message>`,
		`<message xmlns="jabber:client" to="metadata.meet.local"><room_metadata xmlns="http://jitsi.org/jitmeet">{"key":"k","data":{}}</room_metadata></message>`,
	} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, who uint8) {
		st, err := xmpp.Parse(b, xmpp.Limits{})
		if err != nil {
			return
		}
		r := New(testConfig())
		senders := []Sender{
			{JID: jid.MustParse("focus@auth.meet.local/focus"), Service: true},
			{JID: jid.MustParse("ann@meet.local/r")},
			{JID: jid.MustParse("bob@meet.local/r")},
			{JID: jid.MustParse("eve@meet.local/r")},
		}
		for i, nick := range []string{meet.FocusNick, "ann", "bob"} {
			r.Handle(start, senders[i], xmpp.Presence("", "", "", testRoom+"/"+nick, xmpp.New(nsMUC, "x")))
		}
		r.affiliations[senders[1].JID.Bare()] = Owner
		r.nicks["ann"].affiliation = Owner
		for range 2 { // the same again meets what it has changed
			for _, d := range r.Handle(start, senders[who%4], st).Deliveries {
				e := d.Stanza.Element
				if _, err := jid.Parse(e.Attr("from")); err != nil && e.Attr("type") != "error" || len(d.To) == 0 {
					t.Fatalf("nowhere from or to: %s", e)
				}
				if _, err := xmpp.Parse(d.Stanza.Frame().Bytes, xmpp.Limits{Bytes: 1 << 20, Elements: 1 << 16, Depth: 40, Attrs: 80}); err != nil {
					t.Fatalf("%v: %s", err, e)
				}
			}
		}
	})
}
