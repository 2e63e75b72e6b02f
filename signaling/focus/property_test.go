package focus

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"plenum/signaling/fleet"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// TestProperties lets people come and go, accept, restart and hang up, and bridges vanish, in any order
// and with answers at any time. Nobody ever has two sessions; bridges never see an endpoint created or
// expired twice; and when things calm down everybody who should has one session and one endpoint.
func TestProperties(t *testing.T) {
	t.Run("bridges obey", rapid.MakeCheck(func(t *rapid.T) { perform(t, false) }))
	t.Run("bridges err", rapid.MakeCheck(func(t *rapid.T) { perform(t, true) }))
}

func perform(t *rapid.T, errs bool) {
	m := newModel(t, errs)
	t.Repeat(map[string]func(*rapid.T){
		"join":    func(t *rapid.T) { m.join(nick(t), rapid.Bool().Draw(t, "hidden")) },
		"leave":   func(t *rapid.T) { m.leave(nick(t)) },
		"answer":  func(t *rapid.T) { m.answer(rapid.IntRange(0, 20).Draw(t, "which")) },
		"accept":  func(t *rapid.T) { m.accept(nick(t)) },
		"restart": func(t *rapid.T) { m.terminate(nick(t), true) },
		"hang up": func(t *rapid.T) { m.terminate(nick(t), false) },
		"source":  func(t *rapid.T) { m.addSource(nick(t)) },
		"wait":    func(t *rapid.T) { m.wait(time.Duration(rapid.IntRange(0, 30).Draw(t, "s")) * time.Second) },
		"lost":    func(t *rapid.T) { m.lose(rapid.IntRange(0, 5).Draw(t, "which")) },
		"appears": func(*rapid.T) { m.appear() },
		"closing": func(t *rapid.T) { m.close(rapid.IntRange(0, 5).Draw(t, "which")) },
		"":        func(t *rapid.T) { m.check(t) },
	})
	m.settle()
}

func nick(t *rapid.T) string { return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "nick") }

type model struct {
	t       *rapid.T
	errs    bool // bridges fail now and then
	calm    bool // no more
	now     time.Time
	fleet   *bridgesFake
	c       *Conference
	clients map[string]*client
	bridges map[jid.JID]map[string]int // endpoints by bridge that has the conference; ids to the number of creations
	answers []Event
	timers  map[string]time.Time
	named   int
	ssrc    uint32
	stopped bool
}

type client struct {
	sid, bridge      string // of the live session
	accepted, hungUp bool
	hidden           bool
	knows            map[uint32]string // SSRCs of others that it was told, with their owners
}

func (k *client) tell(t *rapid.T, s jingle.Session) {
	for _, e := range s.Sources {
		for _, source := range append(slices.Clip(e.Audio.Sources), e.Video.Sources...) {
			switch owner, known := k.knows[source.SSRC]; {
			case e.Owner == "jvb":
			case known == (s.Action != jingle.SourceRemove) || known && owner != e.Owner:
				t.Fatalf("%s of %d, owner %s, known of %q", s.Action, source.SSRC, e.Owner, owner)
			case known:
				delete(k.knows, source.SSRC)
			default:
				k.knows[source.SSRC] = e.Owner
			}
		}
	}
}

func newModel(t *rapid.T, errs bool) *model {
	m := &model{t: t, errs: errs, now: time.Unix(0, 0), fleet: &bridgesFake{}}
	m.reset()
	m.appear()
	return m
}

func (m *model) reset() {
	plain := slices.DeleteFunc(slices.Clone(recorded), func(f string) bool { return f == "http://jitsi.org/ssrc-rewriting-1" })
	m.clients, m.timers, m.answers, m.stopped = map[string]*client{}, map[string]time.Time{}, nil, false
	m.bridges = map[jid.JID]map[string]int{}
	m.c = New(Config{
		Room: jid.MustParse("r@conference.l"), Self: jid.MustParse("focus@auth.l/focus"), MeetingID: "m1", Fleet: m.fleet,
		Caps: capsFake{"known": recorded, "plain": plain}, VideoCodecs: []string{"VP8"},
	}, m.now)
	m.step(Opened{})
}

func (m *model) step(ev Event) {
	for _, a := range m.c.Step(m.now, ev) {
		switch a := a.(type) {
		case BridgeRequest:
			m.request(a)
		case SendIQ:
			m.receive(a)
		case SetTimer:
			m.timers[a.Key] = m.now.Add(a.After)
		case CancelTimer:
			delete(m.timers, a.Key)
		case Stop:
			m.stopped = true
		}
	}
	if m.stopped {
		for b, endpoints := range m.bridges {
			m.t.Fatalf("stopped while %s has %v", b, endpoints)
		}
		m.reset()
	}
}

// request is what a bridge does. Without errors it insists on order.
func (m *model) request(r BridgeRequest) {
	modify, err := colibri.ParseModify(r.Payload)
	if err != nil {
		m.t.Fatal(err)
	}
	if !slices.ContainsFunc(m.fleet.all, func(c fleet.Choice) bool { return c.Bridge == r.Bridge }) && r.Bridge != m.fleet.closing && !m.errs {
		m.t.Fatalf("request to %s, which is gone: %s", r.Bridge, r.Payload)
	}
	endpoints, exists := m.bridges[r.Bridge]
	fail := func(reason string) {
		if !m.errs {
			m.t.Fatalf("%s: %s", reason, r.Payload)
		}
		if r.ID != 0 {
			m.answers = append(m.answers, BridgeAnswer{r.ID, xmpp.IQ("error", "", "", "", xmpp.StanzaError{
				Condition: xmpp.ItemNotFound, App: colibri.Error{Reason: reason}.Elements(),
			}.Element())})
		}
	}
	if m.errs && !m.calm && r.ID != 0 {
		switch rapid.IntRange(0, 9).Draw(m.t, "fate") {
		case 0:
			m.answers = append(m.answers, BridgeAnswer{r.ID, nil})
			return
		case 1:
			condition := rapid.SampledFrom([]string{xmpp.BadRequest, xmpp.ServiceUnavailable, xmpp.Conflict, xmpp.ItemNotFound, xmpp.InternalServerError}).Draw(m.t, "condition")
			m.answers = append(m.answers, BridgeAnswer{r.ID, xmpp.IQ("error", "", "", "", xmpp.StanzaError{Condition: condition}.Element())})
			return
		}
	}
	switch {
	case modify.Create && exists:
		fail(colibri.ConferenceAlreadyExists)
		return
	case modify.Create:
		endpoints = map[string]int{}
		m.bridges[r.Bridge] = endpoints
	case !exists:
		fail(colibri.ConferenceNotFound)
		return
	}
	for _, e := range modify.Endpoints {
		if (endpoints[e.ID] == 0) != e.Create {
			fail(colibri.UnknownEndpoint)
			return
		}
		if e.Create {
			endpoints[e.ID]++
		}
		if e.Expire {
			delete(endpoints, e.ID)
		}
	}
	if modify.Expire {
		delete(m.bridges, r.Bridge)
	}
	if r.ID != 0 {
		w := world{}
		m.answers = append(m.answers, BridgeAnswer{r.ID, xmpp.IQ("result", "", "", "", w.modified(r.Payload, nil))})
	}
}

// receive is what a client does with an IQ.
func (m *model) receive(a SendIQ) {
	if a.Payload.Name != "jingle" {
		return
	}
	s, err := jingle.Parse(a.Payload)
	if err != nil {
		m.t.Fatal(err)
	}
	k := m.clients[a.To]
	switch {
	case k == nil:
		m.t.Fatalf("%s is not here: %s", a.To, s.Action)
	case s.Action == jingle.SessionInitiate && k.sid != "":
		m.t.Fatalf("%s gets %s while it has %s", a.To, s.SID, k.sid)
	case s.Action == jingle.SessionInitiate && k.hungUp:
		m.t.Fatalf("%s has hung up, and is called again", a.To)
	case s.Action == jingle.SessionInitiate:
		k.sid, k.bridge, k.accepted, k.knows = s.SID, s.Bridge.ID, false, map[uint32]string{}
	case s.SID != k.sid:
		m.t.Fatalf("%s gets %s for %s instead of %s", a.To, s.Action, s.SID, k.sid)
	case s.Action == jingle.SessionTerminate:
		k.sid = ""
	case !k.accepted:
		m.t.Fatalf("%s gets %s before it has accepted", a.To, s.Action)
	}
	k.tell(m.t, s)
}

func (m *model) join(nick string, hidden bool) {
	ver := "known"
	if nick > "b" {
		ver = "plain"
	}
	m.gone(nick)
	m.clients[nick] = &client{hidden: hidden}
	m.step(Joined{Occupant{Nick: nick, Hidden: hidden, Presence: []*xmpp.Element{xmpp.New(xmpp.NSCaps, "c", "hash", "sha-1", "ver", ver)}}})
}

func (m *model) leave(nick string) {
	m.gone(nick)
	m.step(Left{nick})
}

// gone is what clients see in presence: they drop the sources of whoever leaves.
func (m *model) gone(nick string) {
	delete(m.clients, nick)
	for _, k := range m.clients {
		maps.DeleteFunc(k.knows, func(_ uint32, owner string) bool { return owner == nick })
	}
}

func (m *model) answer(i int) {
	if len(m.answers) > 0 {
		i %= len(m.answers)
		ev := m.answers[i]
		m.answers = slices.Delete(m.answers, i, i+1)
		m.step(ev)
	}
}

func (m *model) say(nick string, s jingle.Session) {
	m.step(Stanza{nick, xmpp.IQ("set", "x", "", "", s.Element())})
}

func (m *model) accept(nick string) {
	if k := m.clients[nick]; k != nil && k.sid != "" && !k.accepted {
		k.accepted = true
		m.ssrc += 10
		w := world{}
		m.say(nick, w.accept(nick, k.sid, false, false, strconv.Itoa(int(m.ssrc)), fmt.Sprint(m.ssrc)))
	}
}

func (m *model) terminate(nick string, restart bool) {
	k := m.clients[nick]
	if k == nil || k.sid == "" {
		return
	}
	s := jingle.Session{Action: jingle.SessionTerminate, SID: k.sid}
	if restart {
		s.Bridge = &jingle.BridgeSession{ID: k.bridge, Restart: true}
		m.now = m.now.Add(13 * time.Second) // within the limits
	}
	k.sid, k.hungUp = "", !restart
	m.say(nick, s)
}

func (m *model) addSource(nick string) {
	if k := m.clients[nick]; k != nil && k.accepted && k.sid != "" {
		m.ssrc += 10
		m.say(nick, jingle.Session{Action: jingle.SourceAdd, SID: k.sid, Contents: []jingle.Content{
			{Name: "video", Sources: []jingle.Source{{SSRC: m.ssrc, Name: nick + "-v1"}}},
		}})
	}
}

func (m *model) wait(d time.Duration) {
	end := m.now.Add(d)
	for {
		var key string
		for k, due := range m.timers {
			if !due.After(end) && (key == "" || due.Before(m.timers[key])) {
				key = k
			}
		}
		if key == "" {
			break
		}
		if due := m.timers[key]; due.After(m.now) {
			m.now = due
		}
		delete(m.timers, key)
		m.step(TimerFired{key})
	}
	if end.After(m.now) {
		m.now = end
	}
}

func (m *model) lose(i int) {
	if len(m.fleet.all) == 0 {
		return
	}
	b := m.fleet.all[i%len(m.fleet.all)].Bridge
	m.fleet.remove(b)
	delete(m.bridges, b)
	m.step(BridgeLost{b})
}

// close has a bridge shut down: it still answers those that it has.
func (m *model) close(i int) {
	if len(m.fleet.all) == 0 || !m.fleet.closing.IsZero() {
		return
	}
	m.fleet.closing = m.fleet.all[i%len(m.fleet.all)].Bridge
	m.fleet.remove(m.fleet.closing)
	m.step(BridgesChanged{})
}

func (m *model) appear() {
	m.named++
	m.fleet.all = append(m.fleet.all, fleet.Choice{Bridge: brewery(fmt.Sprint("jvb", m.named))})
	m.step(BridgesChanged{})
}

// check holds at any time, without bridges that err: the bridges have exactly the endpoints that the
// conference counts on.
func (m *model) check(t *rapid.T) {
	if m.errs {
		return
	}
	have := map[string]bool{}
	for _, endpoints := range m.bridges {
		for id := range endpoints {
			if have[id] {
				t.Fatalf("endpoint %s is on two bridges", id)
			}
			have[id] = true
		}
	}
	for _, p := range m.c.participants {
		if (p.session != nil) != have[p.Nick] {
			t.Fatalf("%s: session %v, endpoint %v", p.Nick, p.session != nil, have[p.Nick])
		}
		delete(have, p.Nick)
	}
	if len(have) > 0 {
		t.Fatalf("endpoints of nobody: %v", have)
	}
}

// settle gives everything time, and looks at what became of everybody.
func (m *model) settle() {
	m.calm = true
	for range 200 {
		if len(m.fleet.all) == 0 {
			m.appear()
		}
		for len(m.answers) > 0 {
			m.answer(0)
		}
		for nick := range m.clients {
			m.accept(nick)
		}
		if len(m.answers) == 0 && len(m.fleet.all) > 0 {
			break
		}
	}
	people := 0
	for _, k := range m.clients {
		if !k.hidden {
			people++
		}
	}
	for _, p := range m.c.participants {
		k := m.clients[p.Nick]
		if people >= 2 && !p.uninvited && (p.session == nil || p.session.state != active || p.session.sid != k.sid) {
			m.t.Errorf("%s has %+v, its client has %+v", p.Nick, p.session, k)
		}
		if p.session == nil || p.session.state != active {
			continue
		}
		want := map[uint32]string{}
		for _, other := range m.c.participants {
			if p.Nick <= "b" || other == p || other.session == nil || other.session.state != active {
				continue
			}
			for _, s := range other.session.sources.Audio.Sources {
				want[s.SSRC] = other.Nick
			}
			for _, s := range withoutSimulcast(other.session.sources.Video).Sources {
				want[s.SSRC] = other.Nick
			}
		}
		if !maps.Equal(want, k.knows) {
			m.t.Errorf("%s knows %v instead of %v", p.Nick, k.knows, want)
		}
	}
	for nick := range maps.Clone(m.clients) {
		m.leave(nick)
	}
	if len(m.c.requests)+len(m.c.participants)+len(m.c.bridges) != 0 {
		m.t.Errorf("left over: %d requests, %d bridges", len(m.c.requests), len(m.c.bridges))
	}
}
