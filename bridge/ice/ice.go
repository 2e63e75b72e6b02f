// Package ice is one peer's ICE (RFC 8445) as a pure machine: STUN messages and times in, STUN messages out.
// It has no goroutine, clock or socket; whoever owns an Agent feeds it datagrams, calls Tick when it asks
// for it, and sends what Output returns.
//
// It is a full agent for one component, either role, with what an SFU needs beyond the RFC: it works with no
// signalled candidates at all (every pair may be learnt from the peer's own checks), nominates the first pair
// that works, follows a peer whose address changes without a restart, and never gives a connection up because
// consent is missing: the peer's silence is judged elsewhere.
//
//	           SetRemote            first valid pair
//	Waiting ─────────────► Checking ───────────────► Connected ◄─┐ other pair, same or next generation
//	                           │ 30 s without a pair      ▲  └───┘
//	                           └───────► Failed ──────────┘ a check that works after all
package ice

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"github.com/pion/stun/v3"

	"plenum/bridge/packet"
)

const (
	// Retransmission of one check (RFC 8445 §14.3 allows less than RFC 5389's 500 ms): 100 ms, doubling to
	// 1.6 s, seven sends in all, or as many as it takes while no pair works.
	checkRTO, checkMaxRTO = 100 * time.Millisecond, 1600 * time.Millisecond
	checkSends            = 7
	// pace is the time between two new checks that nothing triggered (RFC 8445 §14.2, Ta).
	pace = 20 * time.Millisecond

	// Consent (RFC 7675): a check on the selected pair each 5 s ± 20 %, five sends 500 ms apart.
	consentEvery = 5 * time.Second
	consentRTO   = 500 * time.Millisecond
	consentSends = 5

	// failAfter is how long checks may go on before the state says Failed. They still may succeed later.
	failAfter = 30 * time.Second

	// Following a peer to another pair: after movedMedia of media on that pair only, or, where there is no
	// media to tell, after silence of more than two of the peer's own consent intervals.
	movedMedia  = 300 * time.Millisecond
	movedSilent = 6 * time.Second

	maxPairs      = 32
	maxCandidates = 16

	// Errors sent to peers that did not authenticate: a few, then silence.
	refusalsPerSecond, refusalBurst = 2, 8

	software = "plenum"
)

// State of an Agent.
type State uint8

const (
	Waiting   State = iota // for the remote credentials; checks of the peer are answered
	Checking               // no pair works yet
	Connected              // a pair is selected
	Failed                 // no pair has worked for 30 s
)

func (s State) String() string {
	return [...]string{"waiting", "checking", "connected", "failed"}[s]
}

// Credentials of one side (RFC 8445 §5.3).
type Credentials struct{ Ufrag, Pwd string }

// NameBytes is how many bytes at the beginning of a local ufrag name the agent for good; what follows tells the
// generations apart.
const NameBytes = 12

// NewCredentials makes local credentials from r; nil is crypto/rand.
func NewCredentials(r io.Reader) (Credentials, error) {
	if r == nil {
		r = rand.Reader
	}
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567" // 32 letters: 5 bits of each byte
	var b [38]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Credentials{}, fmt.Errorf("ice credentials: %w", err)
	}
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return Credentials{Ufrag: string(b[:NameBytes]), Pwd: string(b[NameBytes:])}, nil
}

// Next makes the local credentials of a later generation of the agent that c belongs to.
func (c Credentials) Next(generation int, r io.Reader) (Credentials, error) {
	next, err := NewCredentials(r)
	if err != nil {
		return Credentials{}, err
	}
	next.Ufrag = c.Ufrag[:NameBytes] + strconv.Itoa(generation)
	return next, nil
}

// A Candidate is a remote candidate as signalled.
type Candidate struct {
	Addr     netip.AddrPort
	Priority uint32
}

// Config of an Agent. Credentials and Sockets are required.
type Config struct {
	// Controlling is the role to begin with; a conflict may turn it.
	Controlling bool
	// Local are the credentials that the peer has been told or will be.
	Local Credentials
	// Sockets are the local addresses by index; paths name them.
	Sockets []netip.AddrPort
	// Tag begins every transaction id, so that the owner of many agents finds the one that a response is for.
	Tag uint32
	// Rand makes transaction ids, the tie-breaker and jitter; nil is crypto/rand.
	Rand io.Reader
}

// Counters of an Agent since its creation.
type Counters struct {
	Requests      uint64 // authenticated requests
	Responses     uint64 // authenticated responses to our checks
	Refused       uint64 // messages that did not authenticate: wrong password, no integrity, unknown name
	Malformed     uint64 // not STUN, or without a right fingerprint
	Conflicts     uint64 // role conflicts, either way
	Moves         uint64 // changes of the selected pair after the first
	ConsentMissed uint64 // consent checks that nobody answered
}

// A Verdict is what a datagram meant.
type Verdict uint8

const (
	Ignored   Verdict = iota // malformed, refused, or an answer to nothing
	Authentic                // the peer sent it, or somebody replays the peer; the address may be forged
	Proven                   // it answers our check: the peer is at that address
)

// A generation is one exchange of credentials; a restart begins the next.
type generation struct {
	number        int
	local, remote Credentials
}

type pairState uint8

const (
	idle     pairState = iota // to be checked
	checking                  // a check is under way
	valid
	failed // may be revived by the peer's own check
)

// A pair is a path with its checks. The local candidate is the socket's.
type pair struct {
	path      packet.Path
	gen       int
	priority  uint32 // the remote candidate's
	state     pairState
	triggered bool // its check goes out before the others and unpaced
	nominated bool // controlled: the peer wants it, once it is valid
	check     check
	heard     time.Time // last authenticated packet from there, of any kind
	media     time.Time // last SRTP packet from there
}

// A check is one STUN transaction; sends is 0 when none is under way.
type check struct {
	id    [stun.TransactionIDSize]byte
	sends int
	rto   time.Duration
	due   time.Time
	raw   []byte
}

// An Agent is the ICE of one peer. One goroutine owns it.
type Agent struct {
	Counters

	cfg         Config
	controlling bool
	tieBreaker  uint64
	cur         generation
	old         *generation // before a restart; its pairs carry on until the new one has its own
	pairs       []*pair
	selected    *pair
	state       State

	remoteAt    time.Time // when cur.remote became known
	nextPaced   time.Time
	nextConsent time.Time

	refusals   float64 // tokens
	refusalsAt time.Time

	msg stun.Message // scratch
	out []packet.Datagram
}

// New returns an agent that answers checks at once; its own begin with SetRemote.
func New(cfg Config) (*Agent, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Local.Ufrag == "" || len(cfg.Local.Pwd) < 22 {
		return nil, fmt.Errorf("ice: local credentials too short")
	}
	var b [8]byte
	if _, err := io.ReadFull(cfg.Rand, b[:]); err != nil {
		return nil, fmt.Errorf("ice: %w", err)
	}
	return &Agent{
		cfg: cfg, controlling: cfg.Controlling, tieBreaker: binary.BigEndian.Uint64(b[:]),
		cur: generation{local: cfg.Local}, refusals: refusalBurst,
	}, nil
}

// Local are the current local credentials; Generation counts restarts.
func (a *Agent) Local() Credentials { return a.cur.local }

// Generation is the number of restarts so far.
func (a *Agent) Generation() int { return a.cur.number }

// Controlling is the role in force.
func (a *Agent) Controlling() bool { return a.controlling }

// State says how far the agent is.
func (a *Agent) State() State { return a.state }

// Selected is the path to send on; false before the first pair works. It outlives a restart.
func (a *Agent) Selected() (packet.Path, bool) {
	if a.selected == nil {
		return packet.Path{}, false
	}
	return a.selected.path, true
}

// Knows reports whether the peer has authenticated from p.
func (a *Agent) Knows(p packet.Path) bool {
	for _, q := range a.pairs {
		if q.path == p && !q.heard.IsZero() {
			return true
		}
	}
	return false
}

// Output returns what is to be sent, in order, and forgets it. The slice is valid until the next call.
func (a *Agent) Output() []packet.Datagram {
	out := a.out
	a.out = a.out[:0]
	return out
}

// SetRemote takes the peer's credentials and candidates, of which there may be none. Our checks begin with
// the next Tick. Called again with the same credentials it only adds candidates; others begin a new exchange
// for the current generation. Those of before a restart come late and are ignored.
func (a *Agent) SetRemote(now time.Time, c Credentials, candidates []Candidate) {
	if a.old != nil && a.old.remote == c {
		return
	}
	if a.cur.remote != c {
		a.cur.remote = c
		a.remoteAt = now
		if a.state == Waiting || a.state == Failed {
			a.state = Checking
		}
	}
	for i, c := range candidates {
		if i == maxCandidates {
			break
		}
		a.addCandidate(c)
	}
}

// addCandidate pairs c with each socket from which it can be reached.
func (a *Agent) addCandidate(c Candidate) {
	ip := c.Addr.Addr().Unmap()
	if !ip.IsValid() || c.Addr.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
		return
	}
	for i, local := range a.cfg.Sockets {
		if reachable(local.Addr(), ip) {
			a.pair(packet.Path{Socket: i, Remote: netip.AddrPortFrom(ip, c.Addr.Port())}, a.cur.number, c.Priority)
		}
	}
}

// Restart begins the next generation with new local credentials (RFC 8445 §9). The selected pair carries on
// until a pair of the new generation works. A restart that is still under way is given up for this one.
func (a *Agent) Restart(local Credentials) {
	old := a.cur
	if a.old == nil {
		a.old = &old
	} else {
		a.keep(a.old.number)
	}
	a.cur = generation{number: old.number + 1, local: local}
}

// keep drops the pairs of all generations but one.
func (a *Agent) keep(gen int) {
	kept := a.pairs[:0]
	for _, p := range a.pairs {
		if p.gen == gen {
			kept = append(kept, p)
		}
	}
	clear(a.pairs[len(kept):])
	a.pairs = kept
}

// pair finds or makes the pair of a path in a generation; nil when there are too many.
func (a *Agent) pair(path packet.Path, gen int, priority uint32) *pair {
	for _, p := range a.pairs {
		if p.path == path && p.gen == gen {
			return p
		}
	}
	if len(a.pairs) >= maxPairs {
		i := -1 // the one that was silent for longest goes
		for j, p := range a.pairs {
			if p != a.selected && (i < 0 || p.heard.Before(a.pairs[i].heard)) {
				i = j
			}
		}
		a.pairs = append(a.pairs[:i], a.pairs[i+1:]...)
	}
	p := &pair{path: path, gen: gen, priority: priority}
	a.pairs = append(a.pairs, p)
	return p
}

// Heard tells that an authenticated SRTP packet came from path at now. It is cheap enough for every batch.
// It reports whether the selected pair changed because of it, or the path is new and a check of it is in Output.
func (a *Agent) Heard(now time.Time, path packet.Path) bool {
	if s := a.selected; s != nil && s.path == path {
		s.media, s.heard = now, now
		return false
	}
	for _, p := range a.pairs {
		if p.path == path {
			p.media, p.heard = now, now
			return a.follow(now, p)
		}
	}
	if s := a.selected; s != nil && s.gen == a.cur.number {
		// Nobody else can have written it, but anybody may have sent it on: the peer is there when it answers.
		p := a.pair(path, s.gen, s.priority)
		p.media, p.heard = now, now
		a.begin(now, p)
		return true
	}
	return false
}

// follow selects p if the peer has evidently moved there.
func (a *Agent) follow(now time.Time, p *pair) bool {
	s := a.selected
	if s == nil || p == s || p.state != valid || p.gen != a.cur.number {
		return false
	}
	moved := p.media.Sub(s.media) > movedMedia && !p.media.IsZero()
	silent := now.Sub(s.heard) > movedSilent
	if !moved && !silent {
		return false
	}
	a.choose(now, p)
	return true
}

// choose makes p the selected pair and, as the controlling side, tells the peer.
func (a *Agent) choose(now time.Time, p *pair) {
	if a.selected != nil && a.selected != p {
		a.Moves++
	}
	a.selected = p
	a.state = Connected
	if a.old != nil && p.gen == a.cur.number {
		a.old = nil
		a.keep(a.cur.number)
	}
	a.nextConsent = now.Add(a.jitter(consentEvery))
	if a.controlling {
		a.begin(now, p)
	}
}

// Tick does what is due at now and returns when it wants to be called next, or earlier when something
// happened: after SetRemote, Handle and Restart at once.
func (a *Agent) Tick(now time.Time) (next time.Time) {
	next = now.Add(time.Second)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for _, p := range a.pairs {
		if p.check.sends == 0 || now.Before(p.check.due) {
			continue
		}
		a.retransmit(now, p)
	}
	for _, p := range a.pairs {
		if p.state != idle || a.generationOf(p).remote.Ufrag == "" {
			continue
		}
		if !p.triggered {
			if now.Before(a.nextPaced) {
				sooner(a.nextPaced)
				continue
			}
			a.nextPaced = now.Add(pace)
		}
		p.triggered = false
		p.state = checking
		a.begin(now, p)
	}
	if s := a.selected; s != nil {
		if s.check.sends == 0 && !now.Before(a.nextConsent) {
			a.nextConsent = now.Add(a.jitter(consentEvery))
			a.begin(now, s)
		}
		sooner(a.nextConsent)
	}
	if a.state == Checking && now.Sub(a.remoteAt) > failAfter {
		a.state = Failed
	}
	for _, p := range a.pairs {
		if p.check.sends > 0 {
			sooner(p.check.due)
		}
	}
	return next
}

func (a *Agent) generationOf(p *pair) *generation {
	if p.gen == a.cur.number || a.old == nil {
		return &a.cur
	}
	return a.old
}

// begin starts a check on p, in place of one that may be under way.
func (a *Agent) begin(now time.Time, p *pair) {
	g := a.generationOf(p)
	if g.remote.Ufrag == "" {
		return
	}
	c := &p.check
	binary.BigEndian.PutUint32(c.id[:], a.cfg.Tag)
	a.random(c.id[4:])
	c.sends, c.rto = 0, checkRTO
	if p.state == valid {
		c.rto = consentRTO
	}
	c.raw = a.request(p, g, c.id)
	a.transmit(now, p)
}

func (a *Agent) transmit(now time.Time, p *pair) {
	c := &p.check
	c.sends++
	c.due = now.Add(c.rto)
	a.out = append(a.out, packet.Datagram{Path: p.path, Data: c.raw})
}

func (a *Agent) retransmit(now time.Time, p *pair) {
	c := &p.check
	if p.state == valid { // consent, or a nomination
		if c.sends < consentSends {
			a.transmit(now, p)
			return
		}
		c.sends = 0
		a.ConsentMissed++
		return
	}
	// While nothing works at all, the other side may only be late: go on slowly until the state says Failed.
	if c.sends < checkSends || a.selected == nil && now.Sub(a.remoteAt) < failAfter {
		c.rto = min(2*c.rto, checkMaxRTO)
		a.transmit(now, p)
		return
	}
	c.sends = 0
	p.state = failed
}

// request builds a check of p. The order of attributes is that of the bridge that clients know.
func (a *Agent) request(p *pair, g *generation, id [stun.TransactionIDSize]byte) []byte {
	m := stun.New()
	m.TransactionID = id
	m.Type = stun.BindingRequest
	m.WriteHeader()
	var b [8]byte
	// Priority of a peer-reflexive candidate (RFC 8445 §7.1.1).
	binary.BigEndian.PutUint32(b[:4], 110<<24|uint32(0xffff-p.path.Socket)<<8|255)
	m.Add(stun.AttrPriority, b[:4])
	binary.BigEndian.PutUint64(b[:], a.tieBreaker)
	if a.controlling {
		m.Add(stun.AttrICEControlling, b[:])
		if p == a.selected {
			m.Add(stun.AttrUseCandidate, nil)
		}
	} else {
		m.Add(stun.AttrICEControlled, b[:])
	}
	m.Add(stun.AttrUsername, []byte(g.remote.Ufrag+":"+g.local.Ufrag))
	m.Add(stun.AttrSoftware, []byte(software))
	return seal(m, g.remote.Pwd)
}

// seal adds integrity and fingerprint. Neither can fail on a message of ours.
func seal(m *stun.Message, pwd string) []byte {
	if pwd != "" {
		if err := stun.NewShortTermIntegrity(pwd).AddTo(m); err != nil {
			panic("ice: " + err.Error())
		}
	}
	if err := stun.Fingerprint.AddTo(m); err != nil {
		panic("ice: " + err.Error())
	}
	return m.Raw
}

func (a *Agent) random(b []byte) {
	if _, err := io.ReadFull(a.cfg.Rand, b); err != nil {
		panic("ice: no randomness: " + err.Error()) // crypto/rand never fails
	}
}

// jitter returns d ± 20 %.
func (a *Agent) jitter(d time.Duration) time.Duration {
	var b [2]byte
	a.random(b[:])
	f := 0.8 + 0.4*float64(binary.BigEndian.Uint16(b[:]))/65535
	return time.Duration(float64(d) * f)
}
