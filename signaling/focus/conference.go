package focus

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// Keys of timers; some are followed by a nick.
const (
	timerEmpty    = "empty"  // nobody came
	timerLonely   = "lonely" // fewer are left than a conference needs
	timerNoBridge = "bridge" // ask the fleet again
	timerFeatures = "caps/"  // nick: a client does not answer
	timerRestart  = "again/" // nick: a client waits for its new session
	bridgeRetry   = 10 * time.Second
)

// A Conference is one conference. It is used by one goroutine at a time.
//
//	            features known,            bridge answers        client answers
//	            enough others
//	participant ──────────────► allocating ──────────────► offered ─────────────► active
//	     ▲                          │                         │                     │
//	     └──────────────────────────┴─────────────────────────┴─────────────────────┘
//	       session ended: restart, move, bridge lost, left alone; otherwise uninvited
type Conference struct {
	cfg          Config
	participants []*participant // in order of joining
	bridges      []*bridge      // in use, each with at least one endpoint

	lastID   RequestID
	requests map[RequestID]request
	timers   map[string]time.Time  // running, with the time they are due
	stumbled map[jid.JID]time.Time // when a bridge last failed this conference
	noBridge bool                  // somebody waits for one
	hadOne   bool                  // bridge-count is shown from the first bridge on
	shown    shown
	changed  []string // nicks whose sources have changed since clients were last told
	stopped  bool
	out      []Action
}

// A request is an IQ that is not answered yet. It is forgotten with the participant or bridge that it went to.
type request struct {
	to     any // *participant or *bridge
	handle func(now time.Time, iq *xmpp.Element)
}

// shown is what changes in the focus's presence.
type shown struct {
	sent, hadOne, noBridge bool
	bridges                int
	audioFull, videoFull   bool
}

// A participant is an occupant as far as media goes.
type participant struct {
	Occupant
	features *features // nil until the client answered, or took too long
	session  *session  // nil when not invited
	// uninvited ends all offers: the client ended its session for good, or cannot be given one.
	uninvited          bool
	waiting            bool // for a new session, which it asked for too soon after the last one
	restarts, iceTries limiter
	restartCount       int
	sessions           int // begun so far
	audioOn, videoOn   int // unmuted sources, counted where there is a limit
}

// New makes a conference that nobody has joined yet.
func New(cfg Config, now time.Time) *Conference {
	return &Conference{
		cfg: cfg.withDefaults(), requests: map[RequestID]request{},
		timers: map[string]time.Time{}, stumbled: map[jid.JID]time.Time{},
	}
}

func (cfg Config) withDefaults() Config {
	if cfg.Room.IsZero() || cfg.MeetingID == "" || cfg.Fleet == nil {
		panic("focus: config without room, meeting id or fleet")
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.VideoCodecs == nil {
		cfg.VideoCodecs = DefaultVideoCodecs
	}
	for _, name := range cfg.VideoCodecs {
		if !slices.ContainsFunc(codecs, func(k codec) bool { return k.name == name }) {
			panic("focus: unknown video codec " + name)
		}
	}
	cfg.Version = cmp.Or(cfg.Version, "plenum")
	cfg.MinParticipants = cmp.Or(cfg.MinParticipants, 2)
	cfg.CapsTimeout = cmp.Or(cfg.CapsTimeout, 2*time.Second)
	cfg.EmptyTimeout = cmp.Or(cfg.EmptyTimeout, 15*time.Second)
	cfg.LonelyTimeout = cmp.Or(cfg.LonelyTimeout, 20*time.Second)
	cfg.BridgeTimeout = cmp.Or(cfg.BridgeTimeout, 15*time.Second)
	cfg.RestartEvery = cmp.Or(cfg.RestartEvery, 5*time.Second)
	cfg.RestartBurst = cmp.Or(cfg.RestartBurst, 5)
	return cfg
}

// Step takes one event and returns what is to be done, in order. After Stop it returns nothing.
func (c *Conference) Step(now time.Time, ev Event) []Action {
	if c.stopped {
		return nil
	}
	switch ev := ev.(type) {
	case Opened:
		c.setTimer(now, timerEmpty, c.cfg.EmptyTimeout)
	case Joined:
		c.join(now, ev.Occupant)
	case Changed:
		c.change(now, ev.Occupant)
	case Left:
		c.leave(now, ev.Nick)
	case Stanza:
		c.stanza(now, ev.From, ev.IQ)
	case Answer:
		c.answer(now, ev.ID, ev.IQ)
	case BridgeAnswer:
		c.answer(now, ev.ID, ev.IQ)
	case BridgeLost:
		c.bridgeLost(now, ev.Bridge)
	case BridgeBack:
		c.bridgeBack(ev.Bridge)
	case BridgesChanged: // somebody may be waiting for one
		for _, b := range slices.Clone(c.bridges) {
			if c.cfg.Fleet.Leave(now, b.jid) {
				c.abandon(b, true)
			}
		}
	case TimerFired:
		c.timerFired(now, ev.Key)
	}
	if !c.stopped {
		c.reconcile(now)
		c.show()
	}
	out := c.out
	c.out = nil
	return out
}

func (c *Conference) do(a Action) { c.out = append(c.out, a) }

func (c *Conference) join(now time.Time, o Occupant) {
	c.remove(o.Nick) // a nick has one occupant, whatever was missed
	p := &participant{Occupant: o, uninvited: o.Nick == bridgeOwner}
	c.participants = append(c.participants, p)
	c.countSenders(p)
	c.cancelTimer(timerEmpty)
	c.electOwner()
	c.learnFeatures(now, p)
}

func (c *Conference) change(now time.Time, o Occupant) {
	if p := c.participant(o.Nick); p != nil {
		p.Occupant = o
		c.countSenders(p)
	}
}

func (c *Conference) leave(now time.Time, nick string) {
	if !c.remove(nick) {
		return
	}
	if len(c.participants) == 0 {
		c.stopped = true
		c.do(Stop{})
		return
	}
	c.electOwner()
}

// remove forgets an occupant and ends its endpoint. It reports whether the occupant was known.
func (c *Conference) remove(nick string) bool {
	p := c.participant(nick)
	if p == nil {
		return false
	}
	c.cancelTimer(timerFeatures + nick)
	c.cancelTimer(timerRestart + nick)
	c.expectNothing(p)
	c.release(p)
	c.participants = slices.DeleteFunc(c.participants, func(q *participant) bool { return q == p })
	c.forget(nick)
	return true
}

// electOwner gives the room a moderator when it has none.
func (c *Conference) electOwner() {
	if c.cfg.NoAutoOwner || slices.ContainsFunc(c.participants, func(p *participant) bool { return p.Owner && !p.Hidden }) {
		return
	}
	for _, p := range c.participants {
		if !p.Hidden {
			p.Owner = true
			c.do(Affiliate{p.Nick, "owner"})
			return
		}
	}
}

// reconcile brings the sessions to what they should be: everybody has one while enough people are
// there; the last one keeps it for a while. It is run after every event, so nothing else invites.
func (c *Conference) reconcile(now time.Time) {
	switch {
	case c.people() >= c.cfg.MinParticipants:
		c.cancelTimer(timerLonely)
		c.inviteAll(now)
	case slices.ContainsFunc(c.participants, func(p *participant) bool { return p.session != nil }):
		if _, running := c.timers[timerLonely]; !running {
			c.setTimer(now, timerLonely, c.cfg.LonelyTimeout)
		}
		c.noBridge = false
	default:
		c.cancelTimer(timerLonely)
		c.noBridge = false
	}
	if !c.noBridge {
		c.cancelTimer(timerNoBridge)
	} else if _, running := c.timers[timerNoBridge]; !running {
		c.setTimer(now, timerNoBridge, bridgeRetry)
	}
	c.signalSources()
}

func (c *Conference) inviteAll(now time.Time) {
	c.noBridge = false
	// Giving one a place may take another's away, when the conference moves; hence the second round.
	for range 2 {
		for _, p := range c.participants {
			if p.session != nil || p.uninvited || p.waiting || p.features == nil {
				continue
			}
			if !c.allocate(now, p) {
				c.noBridge = true
				return
			}
		}
	}
}

func (c *Conference) timerFired(now time.Time, key string) {
	due, running := c.timers[key]
	if !running || now.Before(due) {
		return // cancelled, or set anew since
	}
	delete(c.timers, key)
	switch key {
	case timerEmpty:
		if len(c.participants) == 0 {
			c.stopped = true
			c.do(Stop{})
		}
	case timerLonely:
		for _, p := range c.participants {
			c.end(p, "expired", "Idle session timeout")
		}
	case timerNoBridge: // reconcile asks
	default:
		if nick, ok := strings.CutPrefix(key, timerRestart); ok {
			c.participant(nick).waiting = false // reconcile invites
			return
		}
		c.assumeFeatures(key[len(timerFeatures):])
	}
}

func (c *Conference) setTimer(now time.Time, key string, after time.Duration) {
	c.timers[key] = now.Add(after)
	c.do(SetTimer{key, after})
}

func (c *Conference) cancelTimer(key string) {
	if _, running := c.timers[key]; running {
		delete(c.timers, key)
		c.do(CancelTimer{key})
	}
}

// ask sends an IQ to an occupant. A nil handler does not care for the answer.
func (c *Conference) ask(p *participant, typ string, payload *xmpp.Element, handle func(now time.Time, iq *xmpp.Element)) {
	c.do(SendIQ{To: p.Nick, ID: c.expect(p, handle), Type: typ, Payload: payload})
}

// expect makes a request id and keeps the handler, if any, for the answer of a participant or bridge.
func (c *Conference) expect(to any, handle func(now time.Time, iq *xmpp.Element)) RequestID {
	c.lastID++
	if handle != nil {
		c.requests[c.lastID] = request{to, handle}
	}
	return c.lastID
}

func (c *Conference) answer(now time.Time, id RequestID, iq *xmpp.Element) {
	r, ok := c.requests[id]
	if ok {
		delete(c.requests, id)
		r.handle(now, iq)
	}
}

func (c *Conference) expectNothing(from any) {
	maps.DeleteFunc(c.requests, func(_ RequestID, r request) bool { return r.to == from })
}

// show updates the focus's presence when it has changed.
func (c *Conference) show() {
	c.hadOne = c.hadOne || len(c.bridges) > 0
	audio, video := c.full()
	if s := (shown{true, c.hadOne, c.noBridge, len(c.bridges), audio, video}); s != c.shown {
		c.shown = s
		c.do(SetPresence{c.presence()})
	}
}

func (c *Conference) presence() []*xmpp.Element {
	properties := []meet.Property{{Name: "support-terminate-restart", Value: "true"}}
	if c.hadOne {
		properties = append(properties, meet.Property{Name: "bridge-count", Value: strconv.Itoa(len(c.bridges))})
	}
	if c.cfg.MaxAudioSenders > 0 {
		properties = append(properties, meet.Property{Name: "audio-limit-reached", Value: strconv.FormatBool(c.shown.audioFull)})
	}
	if c.cfg.MaxVideoSenders > 0 {
		properties = append(properties, meet.Property{Name: "video-limit-reached", Value: strconv.FormatBool(c.shown.videoFull)})
	}
	for _, key := range slices.Sorted(maps.Keys(c.cfg.Properties)) {
		properties = append(properties, meet.Property{Name: key, Value: c.cfg.Properties[key]})
	}
	children := []*xmpp.Element{meet.Versions(c.cfg.Version), meet.ConferenceProperties(properties)}
	if c.noBridge {
		children = append(children, meet.BridgeNotAvailable())
	}
	return children
}

func (c *Conference) participant(nick string) *participant {
	for _, p := range c.participants {
		if p.Nick == nick {
			return p
		}
	}
	return nil
}

// people counts those that make a conference.
func (c *Conference) people() int {
	n := 0
	for _, p := range c.participants {
		if !p.Hidden {
			n++
		}
	}
	return n
}

func (c *Conference) inUse() []jid.JID {
	var used []jid.JID
	for _, b := range c.bridges {
		used = append(used, b.jid)
	}
	return used
}

// families are those by which p and the people with media have come: their bridge should be reached by each.
func (c *Conference) families(p *participant) (all []string) {
	for _, other := range c.participants {
		if f := other.Family; f != "" && (other == p || other.session != nil) && !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	return all
}

// random returns n random bytes in hexadecimal.
func (c *Conference) random(n int) string {
	b := make([]byte, n)
	if _, err := io.ReadFull(c.cfg.Rand, b); err != nil {
		panic("focus: no random numbers: " + err.Error())
	}
	return hex.EncodeToString(b)
}

// uuid returns a random UUID (RFC 9562, version 4).
func (c *Conference) uuid() string {
	h := []byte(c.random(16))
	h[12], h[16] = '4', "89ab"[h[16]&3]
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

// A limiter bounds how often something may happen.
type limiter struct{ past []time.Time } // the last minute's, oldest first

// early is how long it is at now until the next may be, with none within every of another.
func (l *limiter) early(now time.Time, every time.Duration) time.Duration {
	n := len(l.past)
	if n == 0 {
		return 0
	}
	return max(0, every-now.Sub(l.past[n-1]))
}

func (l *limiter) allow(now time.Time, every time.Duration, burst int) bool {
	l.past = slices.DeleteFunc(l.past, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(l.past) >= burst || l.early(now, every) > 0 {
		return false
	}
	l.past = append(l.past, now)
	return true
}
