package meet

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
	"golang.org/x/text/unicode/norm"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// maxRoomBytes keeps a room name within what the local part of a JID may have.
const maxRoomBytes = 1023

// ErrRoomName is returned for text that cannot name a room.
var ErrRoomName = errors.New("invalid room name")

// Room is the address of a room by what a link calls it and the tenant in it: ROOM@conference.DOMAIN, or
// ROOM@conference.TENANT.DOMAIN. It is what a room is known by everywhere, edges and shards alike.
func Room(raw, tenant, domain string) (jid.JID, error) {
	name, err := roomName(raw)
	if err != nil {
		return jid.JID{}, err
	}
	if tenant != "" {
		domain = strings.ToLower(tenant) + "." + domain
	}
	room, err := jid.New(name, "conference."+domain, "")
	if err != nil {
		return jid.JID{}, ErrRoomName
	}
	return room, nil
}

// roomName turns what stands in a link into the local part of a room's address, as the client does: decoded,
// NFKC, lower case, encoded as in a URL, lower case again. Names that already are so come back as they are.
func roomName(s string) (string, error) {
	if len(s) > maxRoomBytes {
		return "", ErrRoomName
	}
	if plain, err := url.PathUnescape(s); err == nil && utf8.ValidString(plain) {
		s = plain
	} else if !utf8.ValidString(s) {
		return "", ErrRoomName
	}
	s = norm.NFKC.String(s)
	s = cases.Lower(language.Und).String(s)
	s = escape(s)
	// Of what URLs leave as it is, the apostrophe may not be in a JID (RFC 7622, 3.3.1).
	if s == "" || len(s) > maxRoomBytes || strings.Contains(s, "'") {
		return "", ErrRoomName
	}
	return s, nil
}

// escape is JavaScript's encodeURIComponent, in lower case.
func escape(s string) string {
	const hex = "0123456789abcdef"
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		c := s[i]
		if 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-_.!~*'()", c) >= 0 {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

// reserved are the first parts of paths that are not rooms.
var reserved = map[string]bool{
	"about": true, "colibri-relay-ws": true, "colibri-ws": true, "conference-request": true, "config.js": true, "css": true, "debug": true,
	"external_api.js": true, "favicon.ico": true, "fonts": true, "health": true, "http-bind": true, "images": true, "index.html": true,
	"interface_config.js": true, "lang": true, "libs": true, "manifest.json": true, "metrics": true, "pwa-worker.js": true, "robots.txt": true,
	"sounds": true, "static": true, "xmpp-websocket": true, ".well-known": true,
}

// ReservedName reports whether a name, in any case, is a path of the web server and so cannot be a room or a tenant.
func ReservedName(s string) bool { return reserved[strings.ToLower(s)] }

// RoomInfo is what a room says of itself to those in it (disco#info).
type RoomInfo struct {
	Name        string
	MeetingID   string // uuid of this meeting
	Created     time.Time
	Lobby       string // JID of the lobby, if there is one
	Password    bool
	MembersOnly bool
	Occupants   int // 0 is left out
}

// Element returns the answer to a disco#info request.
func (r RoomInfo) Element() *xmpp.Element {
	e := xmpp.New(xmpp.NSDisco, "query").Add(xmpp.New(xmpp.NSDisco, "identity", "category", "conference", "type", "text", "name", r.Name))
	feature := func(name string) { e.Add(xmpp.New(xmpp.NSDisco, "feature", "var", name)) }
	for _, name := range []string{xmpp.NSDisco, NSMUC, "muc_nonanonymous", "muc_hidden", "muc_temporary", "muc_unmoderated"} {
		feature(name)
	}
	feature(choose(r.Password, "muc_passwordprotected", "muc_unsecured"))
	feature(choose(r.MembersOnly, "muc_membersonly", "muc_open"))
	form := xmpp.New(NSForm, "x", "type", "result")
	field := func(name, value string) {
		if value != "" {
			form.Add(xmpp.New(NSForm, "field", "var", name).Add(xmpp.New(NSForm, "value").AddText(value)))
		}
	}
	// A main room has no muc#roominfo_isbreakout: the client takes any value of it for true.
	field("FORM_TYPE", NSMUC+"#roominfo")
	field("muc#roominfo_meetingId", r.MeetingID)
	if !r.Created.IsZero() {
		field("muc#roominfo_created_timestamp", strconv.FormatInt(r.Created.UnixMilli(), 10))
	}
	field("muc#roominfo_lobbyroom", r.Lobby)
	if r.Occupants > 0 {
		field("muc#roominfo_occupants", strconv.Itoa(r.Occupants))
	}
	return e.Add(form)
}

// ParseRoomInfo reads such an answer.
func ParseRoomInfo(e *xmpp.Element) (RoomInfo, error) {
	if !e.Is(xmpp.NSDisco, "query") {
		return RoomInfo{}, malformed("no room information")
	}
	r := RoomInfo{Name: e.Child(xmpp.NSDisco, "identity").Attr("name")}
	for c := range e.Children {
		if c.Is(xmpp.NSDisco, "feature") {
			switch c.Attr("var") {
			case "muc_passwordprotected":
				r.Password = true
			case "muc_membersonly":
				r.MembersOnly = true
			}
		}
	}
	for f := range e.Child(NSForm, "x").Children {
		value := f.Child(NSForm, "value").Text()
		switch f.Attr("var") {
		case "muc#roominfo_meetingId":
			r.MeetingID = value
		case "muc#roominfo_lobbyroom":
			r.Lobby = value
		case "muc#roominfo_created_timestamp":
			ms, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return RoomInfo{}, malformed("created_timestamp")
			}
			r.Created = time.UnixMilli(ms)
		case "muc#roominfo_occupants":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return RoomInfo{}, malformed("occupants")
			}
			r.Occupants = n
		}
	}
	return r, nil
}

func choose(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
