package signaling

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"plenum/signaling/fleet"
	"plenum/signaling/focus"
	"plenum/signaling/muc"
	"plenum/signaling/rooms"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// bridgeBrewery is the room on the internal MUC in which bridges meet the focus.
const bridgeBrewery = "jvbbrewery"

// Limits that protect the shard, not a room.
const (
	maxOpening    = 128              // rooms that wait for their leases
	maxSeats      = 16               // rooms that one client session may be talking to
	acquireBudget = 5 * time.Second  // for the lease of a room that a stock Jicofo opens
	bridgeTimeout = 15 * time.Second // of requests to bridges that do not say
)

// ErrDraining is returned for a request that would open a new room while the shard drains or stops.
var ErrDraining = errors.New("shard is draining")

// ErrFull is returned for a request that would open one room more than the shard may have.
var ErrFull = errors.New("too many rooms")

// ErrBusy is returned for a request that would open a room while many others wait for their leases: who keeps them is slow,
// and more requests make it slower.
var ErrBusy = errors.New("too many rooms are being opened")

// hallConfig says what the rooms of a shard need. Domain and Deliver are required.
type hallConfig struct {
	Domain string // the clients' domain; all other names follow from it (docs/PROTOCOL.md)

	// Deliver hands a stanza to the session of a JID. It must not block and reports false when there is no
	// such session or it takes nothing any more.
	Deliver func(to jid.JID, f *xmpp.Frame) bool

	// End closes the session of a JID, if there is one. It does not block. nil: nothing ends.
	End func(jid.JID)
	// Dial connects to the media address of a bridge, in UDP. nil: bridges are not asked for signs of life there.
	Dial func(netip.AddrPort) (net.Conn, error)

	// Cut drops the socket of a guest whose room has moved; nil does nothing.
	Cut func(who jid.JID)

	// Host reports whether an account is that of the host of its name, which may be no other bridge. nil: none is.
	Host func(account jid.JID) bool

	Owner    rooms.Owner  // who may open a room; default rooms.Memory
	Fleet    *fleet.Fleet // default an empty one
	Focus    focus.Config // for every conference; Room, Self, MeetingID and Fleet are filled in
	Room     muc.Config   // limits and services for every room; the rest is filled in
	Stock    bool         // an account named focus drives the conferences, so there is no focus of our own
	MaxRooms int          // default 20,000
	Log      *slog.Logger
	Metrics  *metrics // default unregistered ones
}

// A hall holds all rooms of a shard and owns their goroutines.
//
// hall.mu is never held while a room works or a lease is awaited; an actor's mailbox lock may be taken
// under it, not the other way round.
type hall struct {
	cfg        hallConfig
	conference string // domain of the rooms
	internal   string // domain of the breweries
	metadata   string
	hidden     string // domain of the recorders
	self       muc.Sender
	brewery    jid.JID
	logName    func(room jid.JID) string
	revivals   revivals
	pulse      *pulse
	quit       chan struct{} // closed when all rooms have to end
	wg         sync.WaitGroup

	mu        sync.Mutex
	rooms     map[jid.JID]*actor
	seats     map[jid.JID]map[*actor]struct{} // rooms that a session has sent to
	asked     map[string]bridgeCall           // open requests to bridges, by stanza id
	instances map[jid.JID]instance            // recorders and gateways, by their addresses in the breweries
	serial    uint64
	opening   int // rooms that wait for their leases
	draining  bool
	stopped   bool
	emptied   chan struct{} // closed and replaced whenever a room has ended
}

// A bridgeCall is an open request to a bridge.
type bridgeCall struct {
	from   *actor
	bridge jid.JID
	id     focus.RequestID
	timer  *time.Timer
}

// A sender is what rooms need to know of a session; *session.Session is one.
type sender interface {
	JID() jid.JID
	Account() string // empty for anonymous clients
	Region() string
	Remote() netip.Addr // invalid when unknown
}

func newHall(cfg hallConfig) *hall {
	if cfg.Deliver == nil || cfg.Domain == "" {
		panic("signaling: hall without domain or delivery")
	}
	if cfg.Owner == nil {
		cfg.Owner = new(rooms.Memory)
	}
	if cfg.Cut == nil {
		cfg.Cut = func(jid.JID) {}
	}
	if cfg.Fleet == nil {
		cfg.Fleet = fleet.New("")
	}
	if cfg.Focus.Caps == nil {
		cfg.Focus.Caps = new(capsCache)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = newMetrics(nil)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxRooms <= 0 {
		cfg.MaxRooms = 20000
	}
	h := &hall{
		cfg:        cfg,
		conference: "conference." + cfg.Domain, internal: "internal.auth." + cfg.Domain,
		metadata: "metadata." + cfg.Domain, hidden: "hidden." + cfg.Domain,
		self:  muc.Sender{JID: jid.MustParse("focus@auth." + cfg.Domain + "/focus"), Service: true},
		quit:  make(chan struct{}),
		rooms: make(map[jid.JID]*actor), seats: make(map[jid.JID]map[*actor]struct{}), asked: make(map[string]bridgeCall),
		instances: make(map[jid.JID]instance),
		emptied:   make(chan struct{}),
	}
	h.brewery = jid.MustParse(bridgeBrewery + "@" + h.internal)
	h.logName = new(rooms.LogNames).Name
	if n, ok := cfg.Owner.(interface{ LogName(jid.JID) string }); ok { // the same in the owner's lines
		h.logName = n.LogName
	}
	h.pulse = newPulse(h)
	cfg.Metrics.hall.Store(h)
	return h
}

// Run keeps the rooms until ctx is cancelled, then ends them all and returns nil.
func (h *hall) Run(ctx context.Context) error {
	h.wg.Go(func() { h.pulse.run(h.quit) })
	<-ctx.Done()
	h.mu.Lock()
	h.stopped = true
	for id, call := range h.asked {
		call.timer.Stop()
		delete(h.asked, id)
	}
	h.mu.Unlock()
	close(h.quit)
	h.wg.Wait()
	return nil
}

// Drain refuses new rooms, moves the open ones away one by one as soon as there is another shard, and waits until
// the last one has ended, or ctx.
func (h *hall) Drain(ctx context.Context) error {
	h.admitNoMore()
	owner, waiting := h.cfg.Owner.(mover)
	look := time.NewTicker(moverEvery)
	defer look.Stop()
	for {
		if waiting && owner.Drain(true) {
			waiting = false
			h.moveAll(ctx)
		}
		h.mu.Lock()
		left, change := 0, h.emptied
		for j := range h.rooms {
			if !h.isInternal(j) {
				left++
			}
		}
		h.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-change:
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("%d rooms left: %w", left, ctx.Err())
		}
	}
}

// moverEvery is how often a shard that drains looks whether another one has come.
const moverEvery = time.Second

// admitNoMore refuses new rooms from now on.
func (h *hall) admitNoMore() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// ending is the level of what is worth a warning, unless the shard itself is on its way out.
func (h *hall) ending() slog.Level {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// Stanza takes a stanza for a room, an occupant of one, or room metadata. It does not block, but for the
// first stanza of a stock Jicofo to a room, which waits for the room's lease.
func (h *hall) Stanza(s sender, el *xmpp.Element) {
	from := muc.Sender{JID: s.JID(), Service: s.Account() != "", Region: s.Region(), Family: fleet.Family(s.Remote())}
	h.cfg.Metrics.stanzas.WithLabelValues(kindOf(el)).Inc()
	to, err := jid.Parse(el.Attr("to"))
	if err != nil {
		h.refuse(from.JID, el, "address", xmpp.StanzaError{Condition: xmpp.JIDMalformed})
		return
	}
	room := to.Bare()
	switch {
	case to.Domain() == h.metadata:
		room = h.roomOf(from.JID, el)
	case !h.isConference(to) && !h.isInternal(to):
		h.refuse(from.JID, el, "address", xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		return
	case to.Local() == "":
		h.service(from, el)
		return
	}
	if h.premature(from.JID, el) {
		if el.IsRequest() {
			h.refuse(from.JID, el, "revived", xmpp.StanzaError{Condition: xmpp.ItemNotFound})
		}
		return
	}
	a := h.find(room)
	if a == nil && h.mayCreate(from, room, el) {
		ctx, cancel := context.WithTimeout(context.Background(), acquireBudget)
		a, err = h.open(ctx, room)
		if cancel(); err != nil {
			h.cfg.Log.Warn("room not opened", "room", h.logName(room), "err", err)
		}
	}
	switch {
	case a == nil:
		h.noRoom(letter{from: from, st: el})
	case el.Name == "presence" && el.Attr("type") == "" && !a.lease.Admits() && !h.isSeated(a, from.JID):
		h.refuse(from.JID, el, "isolated", xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: rooms.ErrIsolated.Error()})
	case !h.seat(a, from):
		h.refuse(from.JID, el, "seats", xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "Too many rooms"})
	default:
		switch a.box.post(time.Now(), letter{from: from, st: el}) {
		case letterRefused:
			h.refuse(from.JID, el, "quota", xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "Too many stanzas"})
		case letterLate:
			h.unseat(a, from.JID)
			h.noRoom(letter{from: from, st: el})
		}
	}
}

// Gone ends what a session was in rooms: it is closed for good and sends nothing more.
func (h *hall) Gone(s sender) {
	who := s.JID()
	h.revivals.remove(who)
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := range h.seats[who] {
		delete(a.seated, who)
		a.box.forget(who, true)
		a.box.control(func(now time.Time) { a.flush(now, a.room.Gone(who)) })
	}
	delete(h.seats, who)
}

// conferenceRoom opens a room, or finds it open, with the focus in it: what a conference request asks for.
func (h *hall) conferenceRoom(ctx context.Context, room jid.JID) error {
	h.cfg.Metrics.requests.Inc()
	if !h.isConference(room) || room.Local() == "" || !room.IsBare() {
		return xmpp.StanzaError{Condition: xmpp.BadRequest, Text: "No such room address"}
	}
	if h.cfg.Stock { // the request has to go to the session of the stock Jicofo
		return xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: "The focus is elsewhere"}
	}
	a, err := h.open(ctx, room)
	if err == nil && !a.lease.Admits() {
		err = rooms.ErrIsolated
	}
	return err
}

// Debug returns the state of a room, or of the shard when room is empty, for people.
func (h *hall) Debug(room string) any {
	if room == "" {
		return h.overview()
	}
	j, err := jid.Parse(room)
	if err != nil || !h.isConference(j) && !h.isInternal(j) {
		if j, err = jid.New(room, h.conference, ""); err != nil {
			return nil
		}
	}
	a := h.find(j.Bare())
	if a == nil {
		return nil
	}
	type view struct {
		Room    muc.Snapshot `json:"room"`
		Token   uint64       `json:"token"`
		Reason  rooms.Reason `json:"reason"`
		Log     string       `json:"log"` // what the room is called in logs
		Created time.Time    `json:"created"`
		Timers  int          `json:"timers"`
		Focus   *focus.State `json:"focus,omitempty"` // absent in breweries, and when a stock Jicofo drives
	}
	answer := make(chan view, 1)
	if !a.box.control(func(time.Time) {
		v := view{Room: a.room.Snapshot(), Token: a.lease.Fence(), Reason: a.lease.Reason, Log: a.name, Created: a.created, Timers: len(a.timers)}
		if a.conf != nil {
			state := a.conf.State()
			v.Focus = &state
		}
		answer <- v
	}) {
		return nil
	}
	select {
	case v := <-answer:
		return v
	case <-a.done:
		return nil
	}
}

func (h *hall) overview() any {
	s := h.sizes()
	return struct {
		Conferences int            `json:"conferences"`
		People      int            `json:"people"`
		Largest     int            `json:"largest"`
		Sessions    int            `json:"sessions_in_rooms"`
		Asked       int            `json:"open_bridge_requests"`
		Draining    bool           `json:"draining"`
		Bridges     []fleet.Bridge `json:"bridges"`
		Recorders   []instance     `json:"recorders"`
		Gateways    []instance     `json:"gateways"`
	}{s.conferences, s.people, s.largest, s.sessions, s.asked, s.draining, h.cfg.Fleet.Bridges(time.Now()),
		h.instancesOf(recorderBrewery), h.instancesOf(gatewayBrewery)}
}

// sizes are the numbers of the moment.
type sizes struct {
	conferences, people, alone, largest, pairs, sessions, asked int
	draining                                                    bool
}

func (h *hall) sizes() sizes {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := sizes{sessions: len(h.seats), asked: len(h.asked), draining: h.draining}
	for j, a := range h.rooms {
		if h.isInternal(j) {
			continue
		}
		n := int(a.people.Load())
		s.conferences++
		s.people += n
		if n == 1 {
			s.alone++
		}
		s.pairs += n * (n - 1)
		s.largest = max(s.largest, n)
	}
	return s
}

func (h *hall) ownFocus() bool               { return !h.cfg.Stock }
func (h *hall) isInternal(room jid.JID) bool { return room.Domain() == h.internal }

// isConference: rooms are at conference.DOMAIN, those of a tenant at conference.TENANT.DOMAIN, as the
// client writes them. They are different rooms, so nothing has to be mapped.
func (h *hall) isConference(room jid.JID) bool {
	d := room.Domain()
	return d == h.conference || strings.HasPrefix(d, "conference.") && strings.HasSuffix(d, "."+h.cfg.Domain)
}

// mayCreate: conferences are made by the conference request, breweries by the first service that comes,
// and by a stock Jicofo both.
func (h *hall) mayCreate(from muc.Sender, room jid.JID, el *xmpp.Element) bool {
	join := el.Name == "presence" && el.Attr("type") == "" && from.Service
	return join && (h.isInternal(room) || h.cfg.Stock && from.JID.Bare() == h.self.JID.Bare())
}

// roomOf says which room a message to a component is about: the one it names, if its sender is there, or
// the only one its sender is in.
func (h *hall) roomOf(who jid.JID, el *xmpp.Element) jid.JID {
	named, _ := jid.Parse(el.First().Attr("room"))
	h.mu.Lock()
	defer h.mu.Unlock()
	for a := range h.seats[who] {
		if a.jid == named || named.IsZero() && len(h.seats[who]) == 1 {
			return a.jid
		}
	}
	return jid.JID{}
}

// find returns the room if it is open.
func (h *hall) find(room jid.JID) *actor {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.rooms[room]
	if a == nil {
		return nil
	}
	select {
	case <-a.opened:
		if a.err == nil {
			return a
		}
	default:
	}
	return nil
}

func (h *hall) isSeated(a *actor, who jid.JID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, seated := a.seated[who]
	return seated
}

// seat notes that a session talks to a room, so that the room hears when it is gone.
func (h *hall) seat(a *actor, from muc.Sender) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	seats := h.seats[from.JID]
	if _, seated := seats[a]; seated {
		return true
	}
	if len(seats) >= maxSeats && !from.Service {
		return false
	}
	if seats == nil {
		seats = make(map[*actor]struct{}, 1)
		h.seats[from.JID] = seats
	}
	seats[a] = struct{}{}
	a.seated[from.JID] = struct{}{}
	return true
}

// unseat forgets that, after somebody has left the room.
func (h *hall) unseat(a *actor, who jid.JID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.box.forget(who, false) {
		h.unseatLocked(a, who)
	}
}

func (h *hall) unseatLocked(a *actor, who jid.JID) {
	delete(a.seated, who)
	if delete(h.seats[who], a); len(h.seats[who]) == 0 {
		delete(h.seats, who)
	}
}

// open returns the room, opening it first if need be. It waits for the lease as long as ctx lives.
func (h *hall) open(ctx context.Context, room jid.JID) (*actor, error) {
	for {
		h.mu.Lock()
		a := h.rooms[room]
		if a == nil {
			switch {
			case h.stopped, h.draining && !h.isInternal(room):
				h.mu.Unlock()
				return nil, ErrDraining
			case len(h.rooms) >= h.cfg.MaxRooms:
				h.mu.Unlock()
				return nil, ErrFull
			case h.opening >= maxOpening && !h.isInternal(room):
				h.mu.Unlock()
				return nil, ErrBusy
			}
			name := h.logName(room)
			a = &actor{
				hall: h, jid: room, name: name, box: newMailbox(), log: h.cfg.Log.With("room", name),
				opened: make(chan struct{}), done: make(chan struct{}), seated: make(map[jid.JID]struct{}),
				timers: make(map[string]*time.Timer),
			}
			h.rooms[room] = a
			h.opening++
			h.wg.Add(1)
			h.mu.Unlock()
			err := h.begin(ctx, a)
			h.mu.Lock()
			h.opening--
			h.mu.Unlock()
			return a, err
		}
		h.mu.Unlock()
		wait := a.done // a room that has just ended makes way for a new one
		select {
		case <-a.opened:
			if a.err != nil {
				return nil, a.err
			}
			if !a.box.isClosed() {
				return a, nil
			}
		default:
			wait = a.opened
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin takes the lease, puts our focus into the room and starts its goroutine.
func (h *hall) begin(ctx context.Context, a *actor) error {
	if !h.isInternal(a.jid) { // breweries belong to their shard
		a.lease, a.err = h.cfg.Owner.Acquire(ctx, a.jid)
	}
	if a.err != nil {
		h.forgetRoom(a)
		close(a.opened)
		close(a.done)
		h.wg.Done()
		return a.err
	}
	now := time.Now()
	a.created = now
	cfg := h.cfg.Room
	cfg.JID, cfg.Key, cfg.MeetingID = a.jid, random(32), cmp.Or(a.lease.Meeting, newUUID())
	if h.isInternal(a.jid) {
		cfg.Brewery, a.fleet = true, h.ownFocus() && a.jid == h.brewery
	} else {
		cfg.Focus, cfg.Metadata = h.self.JID.Bare(), jid.MustParse(h.metadata)
		h.cfg.Metrics.conferencesCreated.Inc()
		h.cfg.Metrics.requestsNew.Inc()
	}
	a.room = muc.New(cfg)
	switch {
	case a.fleet:
		a.say(now, xmpp.Presence("", "", "", a.occupant(meet.FocusNick), xmpp.New(meet.NSMUC, "x")))
	case h.ownFocus() && !h.isInternal(a.jid):
		f := h.cfg.Focus
		f.Room, f.Self, f.MeetingID, f.Fleet = a.jid, h.self.JID, cfg.MeetingID, h.cfg.Fleet
		f.SessionID = func(who jid.JID, n int) string { return mediaSession(a.jid, who, n) }
		a.conf = focus.New(f, now)
		a.events = append(a.events, focus.Opened{})
		a.settle(now)
	}
	a.log.Info("room opened", "token", a.lease.Token, "reason", a.lease.Reason)
	close(a.opened)
	go func() {
		defer h.wg.Done()
		a.run()
		h.retire(a)
	}()
	return nil
}

// retire ends a room whose goroutine has: the mailbox first, so that nothing new comes in, then the
// lease, so that whoever opens the room again gets it, then the entry, which lets them try.
func (h *hall) retire(a *actor) {
	for _, l := range a.box.close() {
		h.noRoom(l)
	}
	if !h.isInternal(a.jid) {
		if m, ok := h.cfg.Owner.(mover); ok && a.moving {
			m.Move(a.jid, a.lease.Token)
		} else {
			h.cfg.Owner.Release(a.jid, a.lease.Token)
		}
		h.cfg.Metrics.conferenceSeconds.Add(time.Since(a.created).Seconds())
	}
	people := h.forgetRoom(a)
	a.log.Info("room closed", "after", time.Since(a.created).Round(time.Second), "moving", a.moving)
	if a.moving { // only now is it free for the shard that they come to
		for _, who := range people {
			h.cfg.Cut(who)
		}
	}
	close(a.done)
}

// forgetRoom removes a room and returns who was seated.
func (h *hall) forgetRoom(a *actor) []jid.JID {
	h.mu.Lock()
	defer h.mu.Unlock()
	people := slices.Collect(maps.Keys(a.seated))
	delete(h.rooms, a.jid)
	for who := range a.seated {
		h.unseatLocked(a, who)
	}
	for id, call := range h.asked {
		if call.from == a {
			call.timer.Stop()
			delete(h.asked, id)
		}
	}
	close(h.emptied)
	h.emptied = make(chan struct{})
	return people
}

// askBridge sends a request of a conference to a bridge, by way of the brewery. Requests of one
// conference to one bridge stay in order.
func (h *hall) askBridge(a *actor, r focus.BridgeRequest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	if fence := a.lease.Fence(); a.lease.Owned() {
		r.Payload.SetAttr(colibri.FenceAttr, strconv.FormatUint(fence, 10))
	}
	h.serial++
	id := "colibri-" + strconv.FormatUint(h.serial, 10)
	if r.ID != 0 {
		after := r.Timeout
		if after <= 0 {
			after = bridgeTimeout
		}
		h.asked[id] = bridgeCall{a, r.Bridge, r.ID, time.AfterFunc(after, func() { h.bridgeAnswer(id, nil) })}
	}
	brewery := h.rooms[h.brewery]
	iq := xmpp.IQ("get", id, "", r.Bridge.String(), r.Payload)
	if brewery != nil && brewery.box.control(func(now time.Time) { brewery.say(now, iq) }) {
		return
	}
	if call, open := h.asked[id]; open {
		call.timer.Stop()
		delete(h.asked, id)
		a.tell(focus.BridgeAnswer{ID: r.ID, IQ: xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.ItemNotFound})})
	}
}

// bridgeAnswer brings an answer, or nil for none in time, to the conference that asked.
func (h *hall) bridgeAnswer(id string, iq *xmpp.Element) {
	h.mu.Lock()
	call, open := h.asked[id]
	delete(h.asked, id)
	h.mu.Unlock()
	if open {
		call.timer.Stop()
		call.from.tell(focus.BridgeAnswer{ID: call.id, IQ: iq})
	}
}

// bridgeLost tells every conference that a bridge is gone; no answer of it will follow.
func (h *hall) bridgeLost(bridge jid.JID) {
	h.mu.Lock()
	for id, call := range h.asked {
		if call.bridge == bridge {
			call.timer.Stop()
			delete(h.asked, id)
		}
	}
	h.mu.Unlock()
	h.tellAll(focus.BridgeLost{Bridge: bridge})
}

func (h *hall) tellAll(e focus.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for j, a := range h.rooms {
		if !h.isInternal(j) {
			a.tell(e)
		}
	}
}

// service answers what is asked of the MUC service itself. Rooms are not listed.
func (h *hall) service(from muc.Sender, el *xmpp.Element) {
	get := el.Name == "iq" && el.Attr("type") == "get"
	var payload *xmpp.Element
	switch {
	case get && el.Child(xmpp.NSDisco, "query") != nil:
		payload = xmpp.New(xmpp.NSDisco, "query").Add(
			xmpp.New(xmpp.NSDisco, "identity", "category", "conference", "type", "text", "name", "Chatrooms"),
			xmpp.New(xmpp.NSDisco, "feature", "var", xmpp.NSDisco),
			xmpp.New(xmpp.NSDisco, "feature", "var", xmpp.NSItems),
			xmpp.New(xmpp.NSDisco, "feature", "var", meet.NSMUC),
			xmpp.New(xmpp.NSDisco, "feature", "var", "urn:xmpp:occupant-id:0"))
	case get && el.Child(xmpp.NSItems, "query") != nil:
		payload = xmpp.New(xmpp.NSItems, "query")
	case get && el.Child(xmpp.NSPing, "ping") != nil:
	default:
		h.refuse(from.JID, el, "address", xmpp.StanzaError{Condition: xmpp.ServiceUnavailable})
		return
	}
	h.cfg.Deliver(from.JID, xmpp.NewFrame(xmpp.Result(el, payload).SetAttr("to", from.JID.String())))
}

// noRoom answers a stanza for a room that does not exist. A client that joins then asks for the
// conference again.
func (h *hall) noRoom(l letter) {
	switch {
	case l.st == nil:
	case l.st.Name == "presence" && l.st.Attr("type") == "":
		h.refuse(l.from.JID, l.st, "no room", muc.NoRoom)
	case l.st.Name != "presence":
		h.refuse(l.from.JID, l.st, "no room", xmpp.StanzaError{Condition: xmpp.ItemNotFound})
	}
}

// refuse answers a stanza that reaches no room. Errors and results are never answered.
func (h *hall) refuse(to jid.JID, el *xmpp.Element, reason string, e xmpp.StanzaError) {
	h.cfg.Metrics.refusals.WithLabelValues(reason).Inc()
	if t := el.Attr("type"); t == "error" || el.Name == "iq" && t != "get" && t != "set" || !el.IsStanza() {
		return
	}
	h.cfg.Deliver(to, xmpp.NewFrame(xmpp.ErrorReply(el, e).SetAttr("to", to.String())))
}

// kindOf is the label of a stanza; anything else is one label, so that clients cannot make new ones.
func kindOf(el *xmpp.Element) string {
	if el.IsStanza() {
		return el.Name
	}
	return "other"
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(rand.Reader, b) // crypto/rand never fails
	return b
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	b := random(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
