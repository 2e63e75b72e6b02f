package signaling

import (
	"context"
	"log/slog"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"plenum/signaling/focus"
	"plenum/signaling/muc"
	"plenum/signaling/rooms"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// An actor is one room: the goroutine that runs its muc.Room and, in a conference, the focus.
//
//	sessions ─ stanzas ──►┌─────────┐   stanza    ┌──────────┐ deliveries ─► sessions
//	timers, bridges,      │ mailbox ├────────────►│ muc.Room │
//	sessions that end ───►└────┬────┘             └──▲────┬──┘
//	                           │ events        stanzas│    │events, IQs to room/focus
//	                           │              ┌───────┴────▼─────┐
//	                           └─────────────►│ focus.Conference ├─ requests ─► brewery's actor ─► bridge
//	                                          └──────────────────┘
//
// Our own focus is an occupant without a session: what the room delivers to its JID is taken here.
type actor struct {
	hall *hall
	jid  jid.JID
	name string // in logs
	log  *slog.Logger
	box  *mailbox

	opened chan struct{} // closed when it is decided whether the room opens
	err    error         // why it did not; read after opened
	done   chan struct{} // closed when the room has ended and its lease is back
	people atomic.Int64  // in the room, the focus not counted

	seated map[jid.JID]struct{} // who has sent to this room; guarded by hall.mu

	// owned by the goroutine
	room    *muc.Room
	conf    *focus.Conference // nil in breweries, and when a stock Jicofo drives
	fleet   bool              // this is the brewery of the bridges
	lease   rooms.Lease
	created time.Time
	events  []focus.Event // what the focus has still to hear
	timers  map[string]*time.Timer
	over    bool
	moving  bool // over, because another shard has the room or is to have it
}

// idPrefix begins the ids of IQs of our focus to occupants; the rest is the focus.RequestID. Those that
// want no answer all have number 0.
const idPrefix = "focus-"

// run takes letters until the room is over, its lease is lost, or the shard stops.
func (a *actor) run() {
	defer a.contain()
	for !a.over {
		select {
		case <-a.box.wake:
		case <-a.lease.Lost:
			a.lose()
		case <-a.hall.quit:
			a.over = true
		}
		now := time.Now()
		for _, l := range a.box.take() {
			if a.over { // like those that come after it: the client asks for the conference again
				a.hall.noRoom(l)
				continue
			}
			if l.do != nil {
				l.do(now)
			} else {
				a.flush(now, a.room.Handle(now, l.from, l.st))
			}
			a.settle(now)
		}
		a.hall.cfg.Metrics.step.Observe(time.Since(now).Seconds())
	}
}

// lose ends a room that is another shard's by now, or will be: without a word, as nothing that it says is
// true any more. Its people lose their sockets, come back to the shard that has it, and join again.
func (a *actor) lose() {
	if !a.over {
		a.log.Warn("lease lost")
	}
	a.moving, a.over = true, true
}

// contain ends what belongs to the room's goroutine. A panic is a broken invariant of one room; it ends
// that room, whose people start anew, and no other.
func (a *actor) contain() {
	for _, t := range a.timers {
		t.Stop()
	}
	p := recover()
	if p == nil {
		return
	}
	a.hall.cfg.Metrics.panics.Inc()
	a.log.Error("room failed", "panic", p, "stack", string(debug.Stack()))
	defer func() { _ = recover() }() // nothing more can be done for it
	a.flush(time.Now(), a.room.Destroy("The room has failed"))
}

// flush hands out what left the room. Events and IQs to our focus are kept for settle, so that the
// focus's own actions stay in order.
func (a *actor) flush(now time.Time, out muc.Output) {
	if !a.lease.Held() {
		a.lose()
		return
	}
	m := a.hall.cfg.Metrics
	sent, lost := 0, 0
	for _, d := range out.Deliveries {
		for _, to := range d.To {
			switch {
			case to == d.Except:
			case to == a.hall.self.JID && a.hall.ownFocus():
				if d.Stanza.Element.Name == "iq" {
					a.toFocus(now, d.Stanza.Element)
				}
			case a.hall.cfg.Deliver(to, d.Stanza.Frame()):
				sent++
			default:
				lost++ // its session is ending; Gone will follow
			}
		}
	}
	m.deliveries.Add(float64(sent))
	m.lost.Add(float64(lost))
	for _, e := range out.Events {
		a.event(now, e)
	}
}

// event keeps the books on one event of the room and passes it on.
func (a *actor) event(now time.Time, e muc.Event) {
	isFocus := e.Nick == meet.FocusNick && e.JID.Bare() == a.hall.self.JID.Bare()
	switch {
	case e.JID.IsZero() || isFocus && a.hall.ownFocus():
		return
	case e.Kind == muc.Left:
		a.hall.unseat(a, e.JID)
	}
	if m := a.hall.cfg.Metrics; !isFocus {
		switch e.Kind {
		case muc.Entered:
			m.joins.Inc()
			if a.box.size.Store(a.people.Add(1)); !a.hall.isInternal(a.jid) {
				m.participants.Inc()
			}
		case muc.Left:
			a.box.size.Store(a.people.Add(-1))
		}
	}
	if e.Kind == muc.Entered {
		a.rejoined(now, e.JID, e.Nick)
	}
	if a.hall.isInternal(a.jid) {
		a.hall.instanceEvent(a.jid, e)
	}
	switch {
	case a.fleet:
		a.bridgeEvent(now, e)
	case a.conf != nil: // says itself when it is over
		a.focusEvent(e)
	case a.room.Len() == 0 && a.room.Members() == 0:
		a.over = true
	}
}

func (a *actor) focusEvent(e muc.Event) {
	if e.Kind == muc.Left {
		a.events = append(a.events, focus.Left{Nick: e.Nick})
		return
	}
	if e.Presence == nil {
		return
	}
	o := focus.Occupant{
		Nick: e.Nick, JID: e.JID, Region: e.Region, Family: e.Family, Owner: e.Role == muc.Moderator,
		Hidden:   e.JID.Domain() == a.hall.hidden,
		Presence: slices.Collect(e.Presence.Children),
	}
	if e.Kind == muc.Entered {
		a.events = append(a.events, focus.Joined{Occupant: o})
	} else {
		a.events = append(a.events, focus.Changed{Occupant: o})
	}
}

// toFocus takes an IQ that the room delivers to our focus.
func (a *actor) toFocus(now time.Time, iq *xmpp.Element) {
	from, err := jid.Parse(iq.Attr("from"))
	switch {
	case err != nil:
	case a.fleet && !iq.IsRequest():
		if !a.pong(now, from, iq) {
			a.hall.bridgeAnswer(iq.Attr("id"), iq)
		}
	case a.conf != nil && iq.IsRequest() && from.Resource() != "":
		a.events = append(a.events, focus.Stanza{From: from.Resource(), IQ: iq})
	case a.conf != nil && !iq.IsRequest():
		number, ok := strings.CutPrefix(iq.Attr("id"), idPrefix)
		if id, err := strconv.ParseUint(number, 10, 64); ok && err == nil {
			a.events = append(a.events, focus.Answer{ID: focus.RequestID(id), IQ: iq})
		}
	case iq.IsRequest() && from.Resource() != "": // a bridge asks what the focus can do
		reply := xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		a.box.control(func(now time.Time) { a.say(now, reply) })
	}
}

// settle lets the focus take its events, one after the other, and does what it wants.
func (a *actor) settle(now time.Time) {
	for len(a.events) > 0 && a.conf != nil {
		e := a.events[0]
		if a.events = a.events[1:]; len(a.events) == 0 {
			a.events = nil
		}
		for _, action := range a.conf.Step(now, e) {
			a.perform(now, action)
		}
	}
}

func (a *actor) perform(now time.Time, action focus.Action) {
	switch act := action.(type) {
	case focus.SendIQ:
		id := idPrefix + strconv.FormatUint(uint64(act.ID), 10)
		a.say(now, xmpp.IQ(act.Type, id, "", a.occupant(act.To), act.Payload))
	case focus.Reply:
		a.say(now, act.IQ)
	case focus.SetPresence:
		p := xmpp.Presence("", "", "", a.occupant(meet.FocusNick))
		if _, in := a.room.Address(meet.FocusNick); !in {
			p.Add(xmpp.New(meet.NSMUC, "x"))
		}
		a.say(now, p.Add(act.Children...))
	case focus.Affiliate:
		if real, in := a.room.Address(act.Nick); in {
			item := xmpp.New(meet.NSMUCAdmin, "item", "affiliation", act.Affiliation, "jid", real.Bare().String())
			a.say(now, xmpp.IQ("set", "affiliate", "", a.jid.String(), xmpp.New(meet.NSMUCAdmin, "query").Add(item)))
		}
	case focus.BridgeRequest:
		a.hall.askBridge(a, act)
	case focus.SetTimer:
		a.setTimer(act.Key, act.After)
	case focus.CancelTimer:
		if t := a.timers[act.Key]; t != nil {
			t.Stop()
			delete(a.timers, act.Key)
		}
	case focus.Stop:
		a.over = true
	}
}

// say lets our focus speak to the room.
func (a *actor) say(now time.Time, st *xmpp.Element) {
	a.flush(now, a.room.Handle(now, a.hall.self, st))
}

func (a *actor) setTimer(key string, after time.Duration) {
	if t := a.timers[key]; t != nil {
		t.Stop()
	}
	a.timers[key] = time.AfterFunc(after, func() { a.tell(focus.TimerFired{Key: key}) })
}

// tell posts an event to the focus of the room. It may be called from any goroutine.
func (a *actor) tell(e focus.Event) {
	a.box.control(func(time.Time) { a.events = append(a.events, e) })
}

// bridgeEvent keeps the fleet: bridges say in presence how they are, and that they leave.
func (a *actor) bridgeEvent(now time.Time, e muc.Event) {
	bridge, err := a.jid.WithResource(e.Nick)
	if err != nil {
		return
	}
	if e.Kind == muc.Left && e.Silent {
		a.bridgeAway(now, e.Nick)
		return
	}
	if e.Kind == muc.Left {
		if a.hall.cfg.Fleet.Lost(bridge) {
			a.hall.cfg.Metrics.lostBridges.Inc()
			a.log.Log(context.Background(), a.hall.ending(), "bridge left", "bridge", e.Nick)
			a.hall.bridgeLost(bridge)
		}
		return
	}
	stats, err := colibri.ParseStats(e.Presence.Child(colibri.NSStats, "stats"))
	if err != nil {
		return // no bridge, or one that has just come and says nothing yet
	}
	// Who steals a host's account gets that host's bridge and not another's: what is meant for that would come to it.
	if host := a.hall.cfg.Host; host != nil && host(e.JID.Bare()) && stats.Value("relay_id") != e.JID.Local() {
		a.log.Warn("a bridge claims what is another's", "host", e.JID.Local(), "relay_id", stats.Value("relay_id"))
		if a.hall.cfg.Fleet.Lost(bridge) {
			a.hall.bridgeLost(bridge)
		}
		return
	}
	a.bridgeBack(e.Nick)
	if a.hall.cfg.Fleet.Observe(now, bridge, stats) {
		a.log.Info("bridge changed", "bridge", e.Nick, "region", stats.Value("region"), "version", stats.Value("version"),
			"shutting_down", stats.Value("shutting_down"), "healthy", stats.Value("healthy"))
		a.hall.tellAll(focus.BridgesChanged{})
	}
}

func (a *actor) occupant(nick string) string { return a.jid.String() + "/" + nick }
