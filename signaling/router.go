package signaling

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"time"

	"plenum/signaling/rooms"
	"plenum/signaling/session"
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

const (
	nsRoster      = "jabber:iq:roster"
	nsExtDisco1   = "urn:xmpp:extdisco:1"
	requestBudget = 10 * time.Second // for a conference request
)

// names are the addresses of a shard (docs/PROTOCOL.md).
type names struct{ domain, conference, focus, metadata, auth, internal, hidden string }

func newNames(domain string) names {
	return names{
		domain: domain, conference: "conference." + domain, focus: "focus." + domain,
		metadata: "metadata." + domain, auth: "auth." + domain, internal: "internal.auth." + domain,
		hidden: "hidden." + domain,
	}
}

// tenant returns the domain of a tenant's rooms: conference.TENANT.DOMAIN, as stock clients are told too.
func (n names) tenant(t string) string {
	if t == "" {
		return n.conference
	}
	return "conference." + t + "." + n.domain
}

// room returns the address of a room by what a link calls it, or the zero one.
func (n names) room(raw, tenant string) jid.JID {
	room, err := meet.Room(raw, tenant, n.domain)
	if err != nil {
		return jid.JID{}
	}
	return room
}

// Address returns the address of the room that a link calls ROOM or TENANT/ROOM, in a cluster's domain.
func Address(domain, link string) (jid.JID, error) {
	tenant, name, ok := strings.Cut(link, "/")
	if !ok {
		tenant, name = "", link
	}
	room := newNames(domain).room(name, tenant)
	if room.IsZero() {
		return room, fmt.Errorf("%q is no room: want ROOM or TENANT/ROOM, as in its link", link)
	}
	return room, nil
}

// A router takes what sessions send to where it belongs. It is the session.Handler of a shard.
type router struct {
	cfg      *Config
	names    names
	sessions *session.Server
	hall     *hall
	stock    bool // a stock Jicofo drives
	services *serviceList
	// life ends when the shard stops. Sessions call without a context, and a conference request may wait.
	life      context.Context
	new       creations
	questions questions
}

// Opened tells a guest what there is, before it is told its address: with room_metadata among the
// identities the client asks neither for services nor for features.
func (r *router) Opened(s *session.Session) {
	if s.Account() == "" {
		s.Send(xmpp.NewFrame(xmpp.Message("", "", r.names.domain, s.JID().String(), r.features(false))))
	}
}

// Resumed has nothing to do, as the rooms never knew; but a revived session has no room.
func (r *router) Resumed(s *session.Session) {
	if s.Account() != "" {
		r.hall.resumed(s.JID())
	}
	if !s.Revived() {
		return
	}
	if room := r.roomOf(s); !room.IsZero() {
		r.hall.revive(s, room)
	}
}

// roomOf is the room that a client named when it connected; the zero address when that is none.
func (r *router) roomOf(s *session.Session) jid.JID { return r.names.room(s.Room(), s.Prefix()) }

// end closes the session of an address.
func (r *router) end(who jid.JID) {
	if s := r.sessions.Session(who); s != nil {
		s.Close("")
	}
}

// Closed takes the session out of its rooms.
func (r *router) Closed(s *session.Session) { r.hall.Gone(s) }

// Stanza routes by the domain of the addressee. What nobody wants is an error to its sender, unless it is
// an error or an answer itself.
func (r *router) Stanza(s *session.Session, el *xmpp.Element) {
	to := jid.MustParse(r.names.domain)
	if text := el.Attr("to"); text != "" {
		var err error
		if to, err = jid.Parse(text); err != nil {
			r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.JIDMalformed})
			return
		}
	} else if el.Name == "presence" {
		return // to nobody: Smack announces itself so
	}
	switch to.Domain() {
	case r.names.conference, r.names.internal, r.names.metadata:
		r.hall.Stanza(s, el)
	case r.names.focus:
		r.focus(s, el)
	case r.names.domain, r.names.auth, r.names.hidden:
		switch {
		case to.Local() == "":
			r.domain(s, el)
		case s.Account() != "":
			r.direct(s, to, el)
		default:
			r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		}
	default:
		if strings.HasPrefix(to.Domain(), "conference.") && strings.HasSuffix(to.Domain(), "."+r.names.domain) {
			r.hall.Stanza(s, el) // a tenant's rooms
			return
		}
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ItemNotFound})
	}
}

// domain answers what is asked of the server itself.
func (r *router) domain(s *session.Session, el *xmpp.Element) {
	query := el.First()
	if !el.IsRequest() || query == nil {
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		return
	}
	get := el.Attr("type") == "get"
	var answer *xmpp.Element
	switch {
	case get && query.Is(xmpp.NSPing, "ping"):
	case get && query.Is(xmpp.NSDisco, "query") && query.Attr("node") == "":
		answer = r.features(true)
	case get && query.Is(xmpp.NSItems, "query") && query.Attr("node") == "":
		answer = xmpp.New(xmpp.NSItems, "query")
		for _, address := range []string{r.names.conference, r.names.focus, r.names.metadata} {
			answer.Add(xmpp.New(xmpp.NSItems, "item", "jid", address))
		}
	case get && query.Is(xmpp.NSExtDisco, "services"), get && query.Is(nsExtDisco1, "services"):
		answer = xmpp.New(query.Space, "services")
		for _, x := range r.services.at(time.Now()) {
			answer.Add(xmpp.New(query.Space, "service", "type", x.Type, "host", x.Host, "port", x.Port,
				"transport", x.Transport, "username", x.Username, "password", x.Password, "restricted", x.Restricted))
		}
	case get && query.Is(nsRoster, "query"): // Smack asks at every login; nobody has contacts here
		answer = xmpp.New(nsRoster, "query")
	case get && query.Is(xmpp.NSVersion, "query"):
		text := func(name, value string) *xmpp.Element { return xmpp.New(xmpp.NSVersion, name).AddText(value) }
		answer = xmpp.New(xmpp.NSVersion, "query").Add(text("name", "plenum"), text("version", r.cfg.Release), text("os", runtime.GOOS))
	default:
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		return
	}
	s.Send(xmpp.NewFrame(xmpp.Result(el, answer)))
}

// features are what disco#info of the main domain says and what guests are told unasked. Only components
// that work are named: each switches something on in the client.
func (r *router) features(all bool) *xmpp.Element {
	q := xmpp.New(xmpp.NSDisco, "query")
	identity := func(category, typ, name string) {
		if name != "" {
			q.Add(xmpp.New(xmpp.NSDisco, "identity", "category", category, "type", typ, "name", name))
		}
	}
	identity("server", "im", "plenum")
	identity("server", "shard", r.cfg.Shard)
	identity("server", "region", r.cfg.Region)
	identity("server", "release", r.cfg.Release)
	identity("component", "room_metadata", r.names.metadata)
	vars := []string{xmpp.NSPing}
	if all {
		vars = append(vars, xmpp.NSDisco, xmpp.NSItems, xmpp.NSExtDisco, nsExtDisco1, xmpp.NSVersion)
	}
	for _, v := range vars {
		q.Add(xmpp.New(xmpp.NSDisco, "feature", "var", v))
	}
	return q
}

// focus takes what is sent to the focus's public address. With a stock Jicofo it goes to its session, as
// Prosody's client proxy has it.
func (r *router) focus(s *session.Session, el *xmpp.Element) {
	if r.stock {
		r.toStock(s, el)
		return
	}
	switch conference := el.Child(meet.NSFocus, "conference"); {
	case !el.IsRequest():
	case conference != nil && el.Attr("type") == "set":
		answer, err := r.conference(r.life, conference.Attr("room"), s.Remote())
		if errors.Is(err, rooms.ErrElsewhere) && r.roomOf(s).String() == conference.Attr("room") {
			s.Close("") // it comes back, and is taken to the room
			return
		}
		if err != nil {
			r.refuse(s, el, stanzaError(err))
			return
		}
		s.Send(xmpp.NewFrame(xmpp.Result(el, answer.Element())))
	case el.Child(meet.NSFocus, "logout") != nil:
		s.Send(xmpp.NewFrame(xmpp.Result(el, xmpp.New(meet.NSFocus, "logout"))))
	case el.Child(xmpp.NSPing, "ping") != nil:
		s.Send(xmpp.NewFrame(xmpp.Result(el)))
	default:
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
	}
}

func (r *router) focusJID() string { return meet.FocusNick + "@" + r.names.auth }

// errTooMany is returned for one room too many from one address.
var errTooMany = xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "Too many new rooms from this address"}

// conference answers a conference request: it opens the room, or finds it open. Joining a room that exists
// is never refused for its number. The answer is "not ready" when it takes longer than a client should
// wait; it asks again.
func (r *router) conference(ctx context.Context, name string, remote netip.Addr) (meet.Conference, error) {
	if name == "" {
		return meet.Conference{}, xmpp.StanzaError{Condition: xmpp.BadRequest, Text: "No 'room' specified."}
	}
	room, err := jid.Parse(name)
	if err != nil || room.Local() == "" || !room.IsBare() || meet.ReservedName(room.Local()) {
		return meet.Conference{}, xmpp.StanzaError{Condition: xmpp.BadRequest, Text: "'room' is not the address of a room."}
	}
	if r.hall.find(room) == nil && !r.new.allow(remote, time.Now()) {
		return meet.Conference{}, errTooMany
	}
	ctx, cancel := context.WithTimeout(ctx, requestBudget)
	defer cancel()
	err = r.hall.conferenceRoom(ctx, room)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return meet.Conference{}, err
	}
	return meet.Conference{
		Room: room.String(), Ready: err == nil, FocusJID: r.focusJID(),
		Properties: []meet.Property{{Name: "authentication", Value: "false"}, {Name: "visitors-supported", Value: "false"}},
	}, nil
}

// stanzaError says what a client is told of an error.
func stanzaError(err error) xmpp.StanzaError {
	var e xmpp.StanzaError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, ErrDraining), errors.Is(err, ErrFull), errors.Is(err, ErrBusy):
		return xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: err.Error()}
	}
	return xmpp.StanzaError{Condition: xmpp.InternalServerError}
}

// toStock hands a stanza for the focus's public address to the session of a stock Jicofo.
func (r *router) toStock(s *session.Session, el *xmpp.Element) {
	to, err := jid.New(meet.FocusNick, r.names.auth, meet.FocusNick)
	el.SetAttr("to", to.String())
	if err != nil || !r.sessions.Deliver(to, xmpp.NewFrame(el)) {
		el.SetAttr("to", r.names.focus)
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.RemoteServerTimeout, Text: "The focus is not connected"})
	}
}

// direct lets services write to any session. What a stock Jicofo answers comes from the address that was
// asked.
func (r *router) direct(s *session.Session, to jid.JID, el *xmpp.Element) {
	if r.stock && s.Account() == r.focusJID() && el.Name == "iq" && !el.IsRequest() && to.Domain() == r.names.domain {
		if to.Local() == asker {
			r.questions.answered(to.Resource(), el)
			return
		}
		el.SetAttr("from", r.names.focus)
	}
	if !r.sessions.Deliver(to, xmpp.NewFrame(el)) {
		r.refuse(s, el, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
	}
}

func (r *router) refuse(s *session.Session, el *xmpp.Element, e xmpp.StanzaError) {
	if el.Attr("type") == "error" || el.Name == "iq" && !el.IsRequest() {
		return
	}
	s.Send(xmpp.NewFrame(xmpp.ErrorReply(el, e).SetAttr("to", s.JID().String())))
}

// creations limits how many rooms one address may open: 100 at once and one a second after that. A
// school of a thousand opens thirty.
type creations struct {
	mu sync.Mutex
	by map[netip.Addr]spent
}

// spent is what an address has used of its allowance at a time.
type spent struct {
	rooms float64
	at    time.Time
}

const (
	creationBurst   = 100.0
	creationsPerSec = 1.0
	maxCreators     = 100_000
)

func (c *creations) allow(from netip.Addr, now time.Time) bool {
	if p, err := from.Unmap().Prefix(64); err == nil && from.Unmap().Is6() {
		from = p.Addr()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = make(map[netip.Addr]spent)
	}
	left := func(s spent) float64 { return max(0, s.rooms-creationsPerSec*now.Sub(s.at).Seconds()) }
	used := left(c.by[from])
	if used+1 > creationBurst {
		return false
	}
	if len(c.by) >= maxCreators {
		for a, s := range c.by {
			if left(s) == 0 {
				delete(c.by, a)
			}
		}
		if len(c.by) >= maxCreators {
			return false
		}
	}
	c.by[from] = spent{used + 1, now}
	return true
}
