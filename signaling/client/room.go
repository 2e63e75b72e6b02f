package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// Namespaces of rooms and of Jitsi.
const (
	nsMUC     = "http://jabber.org/protocol/muc"
	nsMUCUser = "http://jabber.org/protocol/muc#user"
	nsNick    = "http://jabber.org/protocol/nick"
	nsData    = "jabber:x:data"
	nsFocus   = "http://jitsi.org/protocol/focus"
	nsJitMeet = "http://jitsi.org/jitmeet"
	nsJingle  = "urn:xmpp:jingle:1"
)

const (
	codecs         = "av1,vp9,vp8,h264" // in our order of preference
	maxReadyWait   = 120 * time.Second
	maxAnswerBytes = 64 << 10
	leaveTimeout   = 5 * time.Second
	roomVanished   = "Room creation is restricted" // what makes the stock client join anew
	maxRejoins     = 3
)

// room is the participant's view of the room; it belongs to the participant's goroutine.
type room struct {
	address  jid.JID
	nick     string
	focusJID string // bare address of the focus, from the conference answer
	asked    bool   // by HTTP, before connecting
	joined   bool
	rejoins  int           // after a word of the shard that the room has vanished
	leaving  chan struct{} // closed with our own unavailable presence
}

func (r *room) occupant(nick string) string { return r.address.String() + "/" + nick }

// arrive begins to join: the conference first.
func (p *Participant) arrive() {
	if p.room.asked {
		p.enter()
		return
	}
	p.requestByIQ(time.Second)
}

func (p *Participant) requestByIQ(retry time.Duration) {
	conference := xmpp.New(nsFocus, "conference", "machine-uid", machineUID(), "room", p.room.address.String(), "token", p.cfg.Token)
	conference.Add(
		xmpp.New(nsFocus, "property", "name", "rtcstatsEnabled", "value", "false"),
		xmpp.New(nsFocus, "property", "name", "visitors-version", "value", "1"),
	)
	p.request("set", p.cfg.Focus, conference, func(e *xmpp.Element) {
		if err, failed := xmpp.ParseError(e); failed {
			p.end(fmt.Errorf("conference request: %w", err))
			return
		}
		answer := e.Child(nsFocus, "conference")
		p.room.focusJID = answer.Attr("focusjid")
		if answer.Attr("ready") == "true" {
			p.enter()
			return
		}
		time.AfterFunc(retry, func() {
			p.box.post(func() { p.requestByIQ(min(2*retry, maxReadyWait)) })
		})
	})
}

// requestByHTTP asks for the conference before there is a connection.
func (p *Participant) requestByHTTP(ctx context.Context) error {
	u := *p.base
	u.Scheme = strings.Replace(u.Scheme, "ws", "http", 1)
	u.Path = strings.TrimSuffix(u.Path, "/") + "/conference-request/v1"
	u.RawQuery = url.Values{"room": {p.cfg.Room}}.Encode()
	body, err := json.Marshal(map[string]any{
		"room": p.room.address.String(), "machineUid": machineUID(),
		"properties": map[string]any{"rtcstatsEnabled": false, "visitors-version": 1},
	})
	if err != nil {
		return err
	}
	for retry := time.Second; ; retry = min(2*retry, maxReadyWait) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		if p.cfg.Token != "" {
			req.Header.Set("Authorization", "Bearer "+p.cfg.Token)
		}
		resp, err := p.http.Do(req)
		if err != nil {
			return fmt.Errorf("conference request: %w", err)
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
		_ = resp.Body.Close()
		if err != nil {
			return fmt.Errorf("conference request: %w", err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("conference request: %s: %.200s", resp.Status, b)
		}
		var answer struct {
			Ready    bool   `json:"ready"`
			FocusJID string `json:"focusJid"`
		}
		if err := json.Unmarshal(b, &answer); err != nil {
			return fmt.Errorf("conference request: %w", err)
		}
		p.room.focusJID, p.room.asked = answer.FocusJID, answer.Ready
		if answer.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

func machineUID() string { return fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64()) }

// enter sends the join presence.
func (p *Participant) enter() {
	p.update(func(s *Stats) { s.Marks.Requested = time.Now() })
	x := xmpp.New(nsMUC, "x")
	if p.cfg.Password != "" {
		x.Add(xmpp.New(nsMUC, "password").AddText(p.cfg.Password))
	}
	p.presence(x)
}

// presence sends the whole presence, as the stock client does with every change; x only on joining.
func (p *Participant) presence(x *xmpp.Element) {
	e := xmpp.Presence("", "", "", p.room.occupant(p.room.nick), x,
		xmpp.New("", "stats-id").AddText("Plenum-"+p.room.nick[:3]),
		xmpp.New(xmpp.NSCaps, "c", "hash", "sha-1", "node", capsNode, "ver", capsHash(p.cfg.features())),
		xmpp.New("", "SourceInfo").AddText(p.sourceInfo()),
		xmpp.New("", "jitsi_participant_codecList").AddText(codecs),
	)
	if p.cfg.Name != "" {
		e.Add(xmpp.New(nsNick, "nick").AddText(p.cfg.Name))
	}
	p.send(e)
}

// sourceInfo tells the others what is muted. It is empty until the session is accepted.
func (p *Participant) sourceInfo() string {
	info := map[string]map[string]bool{}
	if s := p.session; s != nil && s.accepted {
		for _, t := range s.tracks {
			muted := p.audioMuted
			if t.video {
				muted = p.videoMuted
			}
			info[t.name] = map[string]bool{"muted": muted}
		}
	}
	b, err := json.Marshal(info)
	if err != nil {
		panic("client: source info: " + err.Error()) // a map of booleans
	}
	return string(b)
}

// stanza sorts what comes.
func (p *Participant) stanza(e *xmpp.Element) {
	switch e.Name {
	case "presence":
		p.onPresence(e)
	case "message":
		p.onMessage(e)
	case "iq":
		p.onIQ(e)
	}
}

func (p *Participant) onPresence(e *xmpp.Element) {
	from, err := jid.Parse(e.Attr("from"))
	if err != nil || from.Bare() != p.room.address {
		return
	}
	self := from.Resource() == p.room.nick
	switch e.Attr("type") {
	case "error":
		err, ok := xmpp.ParseError(e)
		switch {
		case ok && self && err.Text == roomVanished && p.room.rejoins < maxRejoins:
			p.room.rejoins++
			wait := time.Duration(p.room.rejoins) * 500 * time.Millisecond
			time.AfterFunc(wait+rand.N(wait/2), func() { p.box.post(func() { p.requestByIQ(time.Second) }) })
		case ok && !p.room.joined:
			p.end(fmt.Errorf("join: %w", err))
		}
	case "unavailable":
		if !self {
			p.update(func(s *Stats) { delete(s.Members, from.Resource()) })
			p.event(Event{Kind: MemberLeft, Endpoint: from.Resource()})
			return
		}
		if p.room.leaving != nil {
			close(p.room.leaving)
			p.room.leaving = nil
			return
		}
		if p.room.joined {
			p.end(ErrKicked)
		}
	case "":
		p.onMember(from.Resource(), self, e)
	}
}

func (p *Participant) onMember(nick string, self bool, e *xmpp.Element) {
	item := e.Child(nsMUCUser, "x").Child(nsMUCUser, "item")
	if item == nil {
		return // the stock client ignores it too
	}
	m := Member{
		ID: nick, JID: item.Attr("jid"), Role: item.Attr("role"), Affiliation: item.Attr("affiliation"),
		Name: e.Child(nsNick, "nick").Text(), Presence: e,
	}
	if info := e.ChildNamed("SourceInfo"); info != nil {
		_ = json.Unmarshal([]byte(info.Text()), &m.Sources) // what others write there is theirs
	}
	isNew := false
	p.update(func(s *Stats) {
		_, known := s.Members[nick]
		isNew = !known
		s.Members[nick] = m
		if self {
			s.Role = m.Role
		}
	})
	switch {
	case self && !p.room.joined:
		p.room.joined = true
		p.update(func(s *Stats) { s.Marks.Joined = time.Now() })
		p.event(Event{Kind: Joined, Endpoint: nick})
		p.request("get", p.room.address.String(), xmpp.New(xmpp.NSDisco, "query"), p.onRoomInfo)
		close(p.joined)
	case isNew:
		p.event(Event{Kind: MemberJoined, Endpoint: nick})
	default:
		p.event(Event{Kind: MemberChanged, Endpoint: nick})
	}
}

func (p *Participant) onRoomInfo(e *xmpp.Element) {
	for f := range e.Child(xmpp.NSDisco, "query").Child(nsData, "x").Children {
		if f.Attr("var") == "muc#roominfo_meetingId" {
			id := f.ChildNamed("value").Text()
			p.update(func(s *Stats) { s.MeetingID = id })
		}
	}
}

func (p *Participant) onMessage(e *xmpp.Element) {
	if j := e.Child(nsJitMeet, "json-message"); j != nil {
		p.event(Event{Kind: JSONMessage, Endpoint: e.Attr("from"), Text: j.Text()})
		return
	}
	from, _ := jid.Parse(e.Attr("from"))
	if body := e.ChildNamed("body"); body != nil && e.Attr("type") != "error" {
		p.event(Event{Kind: Chat, Endpoint: from.Resource(), Text: body.Text()})
	}
}

func (p *Participant) onIQ(e *xmpp.Element) {
	if !e.IsRequest() {
		if f := p.iqs[e.Attr("id")]; f != nil {
			delete(p.iqs, e.Attr("id"))
			f(e)
		}
		return
	}
	query := e.First()
	switch {
	case query.Is(xmpp.NSDisco, "query"):
		answer := xmpp.New(xmpp.NSDisco, "query", "node", query.Attr("node"))
		for _, f := range p.cfg.features() {
			answer.Add(xmpp.New(xmpp.NSDisco, "feature", "var", f))
		}
		p.reply(e, answer)
	case query.Is(xmpp.NSPing, "ping"):
		p.reply(e)
	case query.Is(nsJingle, "jingle"):
		p.onJingle(e, query)
	case query != nil && query.Name == "mute" && strings.HasPrefix(query.Space, nsJitMeet):
		p.onMute(query) // the stock client sends no answer
	default:
		p.send(strip(xmpp.ErrorReply(e, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})))
	}
}

// reply answers an iq. Clients leave the from to the server.
func (p *Participant) reply(e *xmpp.Element, payload ...*xmpp.Element) {
	p.send(strip(xmpp.Result(e, payload...)))
}

func strip(e *xmpp.Element) *xmpp.Element { return e.SetAttr("from", "") }

// onMute obeys a moderator, as the focus passes it on.
func (p *Participant) onMute(mute *xmpp.Element) {
	muted := mute.Text() == "true"
	kind := Audio
	if strings.HasSuffix(mute.Space, "/video") {
		kind = Video
	}
	p.event(Event{Kind: MutedByFocus, Endpoint: mute.Attr("actor"), Text: mute.Space[strings.LastIndexByte(mute.Space, '/')+1:]})
	if muted {
		p.muted[kind] = true
		p.mute(kind, true)
	}
}
