package ice

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"pgregory.net/rapid"

	"plenum/bridge/packet"
)

// A world is two agents and the network between them, with a clock of its own. Agent 0 is the bridge with its
// sockets, agent 1 a client that may be at several addresses.
type world struct {
	t     fataler
	now   time.Time
	a     [2]*Agent
	addr  [2][]netip.AddrPort
	delay time.Duration
	cut   func(from, to netip.AddrPort) bool // true: lost
	wire  []flight
	nat   map[netip.AddrPort]netip.AddrPort // what an address of agent 1 looks like from outside
}

type fataler interface {
	Fatal(...any)
	Fatalf(string, ...any)
	Helper()
}

type flight struct {
	at   time.Time
	to   int
	path packet.Path // as the receiver sees it
	data []byte
}

var epoch = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// source is a deterministic io.Reader.
type source struct{ r *rand.ChaCha8 }

func newSource(n byte) source { return source{rand.NewChaCha8([32]byte{n})} }

func (s source) Read(b []byte) (int, error) { return s.r.Read(b) }

func newWorld(t fataler, controlling [2]bool, seed byte) *world {
	w := &world{t: t, now: epoch, delay: 10 * time.Millisecond, nat: map[netip.AddrPort]netip.AddrPort{}}
	w.addr[0] = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:10000"), netip.MustParseAddrPort("[2001:db8::1]:10000")}
	w.addr[1] = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:4000"), netip.MustParseAddrPort("198.51.100.7:4001")}
	for i := range w.a {
		r := newSource(seed + byte(i))
		c, err := NewCredentials(r)
		if err != nil {
			t.Fatal(err)
		}
		w.a[i], err = New(Config{Controlling: controlling[i], Local: c, Sockets: w.addr[i], Tag: uint32(i + 7), Rand: r})
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// introduce gives agent i the other's credentials and candidates.
func (w *world) introduce(i int, candidates ...netip.AddrPort) {
	var list []Candidate
	for _, c := range candidates {
		list = append(list, Candidate{c, 1})
	}
	w.a[i].SetRemote(w.now, w.a[1-i].Local(), list)
}

func (w *world) outside(a netip.AddrPort) netip.AddrPort {
	if b, ok := w.nat[a]; ok {
		return b
	}
	return a
}

// pump sends what agent i has to say.
func (w *world) pump(i int) {
	for _, d := range w.a[i].Output() {
		from, to := w.outside(w.addr[i][d.Path.Socket]), d.Path.Remote
		for j, a := range w.addr[1-i] {
			if w.outside(a) == to && (w.cut == nil || !w.cut(from, to)) {
				w.wire = append(w.wire, flight{
					at: w.now.Add(w.delay), to: 1 - i, path: packet.Path{Socket: j, Remote: from}, data: slices.Clone(d.Data),
				})
			}
		}
	}
}

// run lets d pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	next := [2]time.Time{w.now, w.now}
	for steps := 0; ; steps++ {
		if steps > 200_000 {
			w.t.Fatal("the agents do not come to rest")
		}
		for i, a := range w.a {
			if !next[i].After(w.now) {
				next[i] = a.Tick(w.now)
				if !next[i].After(w.now) {
					w.t.Fatalf("agent %d wants a tick in the past", i)
				}
			}
			w.pump(i)
		}
		now := end
		for _, n := range next {
			if n.Before(now) {
				now = n
			}
		}
		for _, f := range w.wire {
			if f.at.Before(now) {
				now = f.at
			}
		}
		w.now = now
		if !w.now.Before(end) {
			return
		}
		rest := w.wire[:0]
		var due []flight
		for _, f := range w.wire {
			if f.at.After(w.now) {
				rest = append(rest, f)
			} else {
				due = append(due, f)
			}
		}
		w.wire = rest
		for _, f := range due {
			w.a[f.to].Handle(w.now, f.path, f.data)
			next[f.to] = w.a[f.to].Tick(w.now)
			w.pump(f.to)
		}
	}
}

func (w *world) selected(i int) netip.AddrPort {
	p, ok := w.a[i].Selected()
	if !ok {
		return netip.AddrPort{}
	}
	return p.Remote
}

// The bridge gets no candidates, as from Jitsi's clients, and is connected within two round trips of the
// client's first check.
func TestConnect(t *testing.T) {
	for _, controlling := range [][2]bool{{true, false}, {false, true}, {true, true}, {false, false}} {
		w := newWorld(t, controlling, 1)
		w.introduce(1, w.addr[0][0])
		w.run(100 * time.Millisecond)
		if s := w.a[0].State(); s != Waiting {
			t.Errorf("%v: state %v before the remote credentials", controlling, s)
		}
		if w.a[0].Requests == 0 {
			t.Errorf("%v: early checks were not answered", controlling)
		}
		w.introduce(0)
		w.run(60 * time.Millisecond)
		for i := range w.a {
			if s := w.a[i].State(); s != Connected {
				t.Errorf("%v: agent %d is %v", controlling, i, s)
			}
			if got := w.selected(i); got != w.addr[1-i][0] && i == 1 {
				t.Errorf("%v: agent %d selected %v", controlling, i, got)
			}
		}
		if w.a[0].Controlling() == w.a[1].Controlling() {
			t.Errorf("%v: both ended in one role", controlling)
		}
	}
}

func TestConnectWithCandidates(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	// The client knows no candidate of ours: the pair comes from the bridge's checks alone.
	w.introduce(0, w.addr[1][0])
	w.introduce(1)
	w.run(200 * time.Millisecond)
	if w.a[0].State() != Connected || w.a[1].State() != Connected {
		t.Errorf("%v and %v", w.a[0].State(), w.a[1].State())
	}
}

func TestLossAndFailure(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	r := rand.New(rand.NewPCG(1, 1))
	w.cut = func(_, _ netip.AddrPort) bool { return r.IntN(100) < 60 }
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(5 * time.Second)
	if w.a[0].State() != Connected {
		t.Errorf("60 %% lost: %v", w.a[0].State())
	}

	w = newWorld(t, [2]bool{true, false}, 1)
	dead := true
	w.cut = func(_, _ netip.AddrPort) bool { return dead }
	w.introduce(0, w.addr[1][0])
	w.introduce(1, w.addr[0][0])
	w.run(29 * time.Second)
	if s := w.a[0].State(); s != Checking {
		t.Errorf("state %v after 29 s", s)
	}
	w.run(3 * time.Second)
	if s := w.a[0].State(); s != Failed {
		t.Errorf("state %v after 32 s", s)
	}
	dead = false
	w.introduce(1, netip.MustParseAddrPort("192.0.2.1:10000"))
	w.a[1].pair(packet.Path{Remote: w.addr[0][0]}, 0, 1).state = idle // as a client that tries again
	w.run(time.Second)
	if s := w.a[0].State(); s != Connected {
		t.Errorf("state %v after the client came through", s)
	}
}

// Consent goes on every 4 to 6 s, and its absence ends nothing.
func TestConsent(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	before := w.a[0].Responses
	w.run(100 * time.Second)
	if n := w.a[0].Responses - before; n < 16 || n > 26 {
		t.Errorf("%d consent checks in 100 s", n)
	}
	path := w.selected(0)
	w.cut = func(_, _ netip.AddrPort) bool { return true }
	w.run(10 * time.Minute)
	if w.a[0].State() != Connected || w.selected(0) != path || w.a[0].ConsentMissed == 0 {
		t.Errorf("state %v, path %v, %d missed", w.a[0].State(), w.selected(0), w.a[0].ConsentMissed)
	}
	w.cut = nil
	responses := w.a[0].Responses
	w.run(10 * time.Second)
	if w.a[0].Responses == responses {
		t.Error("no consent after the silence")
	}
}

// A client whose NAT gives it another port is followed as soon as its media comes from there; one that merely
// checks another of its addresses is not.
func TestFollow(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	first, _ := w.a[0].Selected()
	media := func(from netip.AddrPort, d time.Duration) {
		for end := w.now.Add(d); w.now.Before(end); {
			w.a[0].Heard(w.now, packet.Path{Remote: from})
			w.run(20 * time.Millisecond)
		}
	}
	media(first.Remote, time.Second)
	moves := w.a[0].Moves

	other := w.a[1].pair(packet.Path{Socket: 1, Remote: w.addr[0][0]}, 0, 1)
	other.triggered = true
	media(first.Remote, 3*time.Second)
	if got := w.selected(0); w.a[0].Moves != moves || got != first.Remote {
		t.Errorf("a mere check moved us to %v", got)
	}

	rebound := netip.MustParseAddrPort("203.0.113.5:9999")
	w.nat[first.Remote] = rebound
	w.run(3 * time.Second) // the client's next consent check opens the new path
	w.a[1].begin(w.now, w.a[1].selected)
	w.run(100 * time.Millisecond)
	media(rebound, 500*time.Millisecond)
	if got := w.selected(0); got != rebound {
		t.Errorf("still sending to %v", got)
	}
}

// Without media, silence of the old pair is what tells.
func TestFollowSilent(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	rebound := netip.MustParseAddrPort("203.0.113.5:9999")
	w.nat[w.selected(0)] = rebound
	w.run(20 * time.Second)
	if got := w.selected(0); got != rebound {
		t.Errorf("still sending to %v", got)
	}
}

// A restart keeps the old pair until the new generation has one.
func TestRestart(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	old := w.selected(0)
	for i, a := range w.a {
		c, err := NewCredentials(newSource(byte(50 + i)))
		if err != nil {
			t.Fatal(err)
		}
		a.Restart(c)
	}
	before := w.a[0].Responses
	w.run(10 * time.Second)
	if w.selected(0) != old || w.a[0].State() != Connected || w.a[0].Responses == before || w.a[0].ConsentMissed != 0 {
		t.Errorf("%v at %v while the restart is pending", w.a[0].State(), w.selected(0))
	}
	// Another one takes its place, and what belongs to the first generation does no harm.
	stale := w.a[1].old.local
	for i, a := range w.a {
		next, err := a.Local().Next(2, newSource(byte(60+i)))
		if err != nil {
			t.Fatal(err)
		}
		if l := a.Local(); next.Ufrag == l.Ufrag || next.Ufrag[:NameBytes] != l.Ufrag[:NameBytes] || next.Pwd == l.Pwd {
			t.Errorf("%+v after %+v", next, l)
		}
		a.Restart(next)
	}
	w.a[0].SetRemote(w.now, stale, nil)
	w.run(10 * time.Second)
	if w.selected(0) != old || w.a[0].Moves != 0 || w.a[0].ConsentMissed != 0 {
		t.Errorf("at %v, %d moves, %d consents missed while another restart is pending", w.selected(0), w.a[0].Moves, w.a[0].ConsentMissed)
	}
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	for i, a := range w.a {
		if a.selected == nil || a.selected.gen != 2 || a.old != nil || a.Generation() != 2 {
			t.Errorf("agent %d has not changed over: %+v", i, a.selected)
		}
	}
}

func request(t testing.TB, username, pwd string, add func(*stun.Message)) []byte {
	t.Helper()
	m := stun.New()
	m.TransactionID = stun.NewTransactionID()
	m.Type = stun.BindingRequest
	m.WriteHeader()
	if username != "" {
		m.Add(stun.AttrUsername, []byte(username))
	}
	m.Add(stun.AttrPriority, []byte{1, 2, 3, 4})
	if add != nil {
		add(m)
	}
	return seal(m, pwd)
}

func TestRefused(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	a := w.a[0]
	local := a.Local()
	path := packet.Path{Remote: w.addr[1][0]}
	good := request(t, local.Ufrag+":x", local.Pwd, nil)
	bent := slices.Clone(good)
	bent[len(bent)-1] ^= 1
	trailing := append(slices.Clone(good), 0, 0, 0, 0)
	for _, test := range []struct {
		name   string
		b      []byte
		want   Verdict
		answer stun.MessageClass
		code   stun.ErrorCode
	}{
		{"good", good, Authentic, stun.ClassSuccessResponse, 0},
		{"wrong password", request(t, local.Ufrag+":x", "not the password at all", nil), Ignored, stun.ClassErrorResponse, 401},
		{"wrong ufrag", request(t, "nobody:x", local.Pwd, nil), Ignored, stun.ClassErrorResponse, 401},
		{"no integrity", request(t, local.Ufrag+":x", "", nil), Ignored, stun.ClassErrorResponse, 401},
		{"no username", request(t, "", local.Pwd, nil), Ignored, stun.ClassErrorResponse, 400},
		{"bad fingerprint", bent, Ignored, 0, 0},
		{"trailing bytes", trailing, Ignored, 0, 0},
		{"short", good[:19], Ignored, 0, 0},
		{"empty", nil, Ignored, 0, 0},
	} {
		if got := a.Handle(w.now, path, test.b); got != test.want {
			t.Errorf("%s: verdict %v", test.name, got)
		}
		out := a.Output()
		if test.answer == 0 {
			if len(out) != 0 {
				t.Errorf("%s: answered", test.name)
			}
			continue
		}
		if len(out) != 1 {
			t.Errorf("%s: %d answers", test.name, len(out))
			continue
		}
		m := stun.Message{Raw: slices.Clone(out[0].Data)}
		if err := m.Decode(); err != nil || m.Type.Class != test.answer || out[0].Path != path {
			t.Errorf("%s: answer %v to %v, %v", test.name, m.Type, out[0].Path, err)
		}
		var code stun.ErrorCodeAttribute
		if test.code != 0 && (code.GetFrom(&m) != nil || code.Code != test.code) {
			t.Errorf("%s: code %v", test.name, code)
		}
	}
	answers := 0
	for range 1000 {
		a.Handle(w.now, path, request(t, local.Ufrag+":x", "wrong", nil))
		answers += len(a.Output())
	}
	if answers > refusalBurst {
		t.Errorf("%d answers to a flood", answers)
	}
	if n := len(a.pairs); n != 1 {
		t.Errorf("%d pairs", n)
	}
}

// What follows MESSAGE-INTEGRITY was not written by the peer and means nothing.
func TestAfterIntegrity(t *testing.T) {
	w := newWorld(t, [2]bool{false, true}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	a, local := w.a[0], w.a[0].Local()
	m := stun.New()
	m.TransactionID = stun.NewTransactionID()
	m.Type = stun.BindingRequest
	m.WriteHeader()
	m.Add(stun.AttrUsername, []byte(local.Ufrag+":x"))
	if err := stun.NewShortTermIntegrity(local.Pwd).AddTo(m); err != nil {
		t.Fatal(err)
	}
	m.Add(stun.AttrUseCandidate, nil)
	if err := stun.Fingerprint.AddTo(m); err != nil {
		t.Fatal(err)
	}
	p := packet.Path{Remote: netip.MustParseAddrPort("203.0.113.66:666")}
	if v := a.Handle(w.now, p, m.Raw); v != Authentic {
		t.Fatalf("verdict %v", v)
	}
	for _, q := range a.pairs {
		if q.path == p && q.nominated {
			t.Error("a nomination that nobody vouches for was taken")
		}
	}
}

// Answers count only from where the check went, and with the peer's password.
func TestForgedResponse(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0, w.addr[1][0])
	a := w.a[0]
	a.Tick(w.now)
	out := a.Output()
	if len(out) != 1 {
		t.Fatalf("%d checks", len(out))
	}
	answer := func(pwd string) []byte {
		r := stun.New()
		copy(r.TransactionID[:], out[0].Data[8:20])
		r.Type = stun.BindingSuccess
		r.WriteHeader()
		return seal(r, pwd)
	}
	elsewhere := packet.Path{Remote: netip.MustParseAddrPort("203.0.113.66:666")}
	if v := a.Handle(w.now, elsewhere, answer(w.a[1].Local().Pwd)); v != Ignored {
		t.Errorf("an answer from elsewhere: %v", v)
	}
	if v := a.Handle(w.now, out[0].Path, answer("wrong")); v != Ignored {
		t.Errorf("an answer without the password: %v", v)
	}
	if a.State() == Connected {
		t.Error("connected by forgeries")
	}
	if v := a.Handle(w.now, out[0].Path, answer(w.a[1].Local().Pwd)); v != Proven {
		t.Errorf("the answer: %v", v)
	}
	if a.State() != Connected {
		t.Error("not connected")
	}
}

func TestPairsBounded(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	w.introduce(0)
	w.introduce(1, w.addr[0][0])
	w.run(time.Second)
	a, local, path := w.a[0], w.a[0].Local(), w.selected(0)
	for port := range uint16(1000) {
		p := packet.Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), 1+port)}
		a.Handle(w.now, p, request(t, local.Ufrag+":x", local.Pwd, nil))
		a.Tick(w.now)
		a.Output()
	}
	if len(a.pairs) > maxPairs || w.selected(0) != path {
		t.Errorf("%d pairs, selected %v", len(a.pairs), w.selected(0))
	}
}

func TestPeek(t *testing.T) {
	w := newWorld(t, [2]bool{true, false}, 1)
	b := request(t, "local:remote", "pwd", nil)
	if u, _, ok := Peek(b); !ok || string(u) != "local" {
		t.Errorf("request: %q, %v", u, ok)
	}
	w.introduce(0, w.addr[1][0])
	w.a[0].Tick(w.now)
	check := w.a[0].Output()[0].Data
	w.a[1].Handle(w.now, packet.Path{Remote: w.addr[0][0]}, check)
	answer := w.a[1].Output()[0].Data
	if u, tag, ok := Peek(answer); !ok || u != nil || tag != 7 {
		t.Errorf("response: %q, tag %d, %v", u, tag, ok)
	}
	for _, bad := range [][]byte{nil, {0}, b[:20], b[:30], append(slices.Clone(b), 0)} {
		if _, _, ok := Peek(bad); ok {
			t.Errorf("% x was taken", bad)
		}
	}
}

// Whatever is lost, delayed or remapped, two agents that are let alone afterwards are connected in opposite roles.
func TestConnectProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, [2]bool{rapid.Bool().Draw(t, "c0"), rapid.Bool().Draw(t, "c1")}, rapid.Byte().Draw(t, "seed"))
		w.delay = time.Duration(rapid.IntRange(0, 300).Draw(t, "delay")) * time.Millisecond
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "r"), 1))
		loss := rapid.IntRange(0, 90).Draw(t, "loss")
		w.cut = func(_, _ netip.AddrPort) bool { return r.IntN(100) < loss }
		first := rapid.IntRange(0, 1).Draw(t, "first")
		intro := func(i int) {
			if i == 1 {
				w.introduce(1, w.addr[0][0])
			} else {
				w.introduce(0)
			}
		}
		intro(first)
		w.run(time.Duration(rapid.IntRange(0, 3000).Draw(t, "apart")) * time.Millisecond)
		intro(1 - first)
		w.run(time.Duration(rapid.IntRange(0, 5000).Draw(t, "trouble")) * time.Millisecond)
		w.cut = nil
		for _, p := range w.a[1].pairs { // a client tries on
			if p.state == failed {
				p.state = idle
			}
		}
		w.run(10 * time.Second)
		for i, a := range w.a {
			if a.State() != Connected {
				t.Fatalf("agent %d is %v, the other %v; pairs %+v and %+v", i, a.State(), w.a[1-i].State(), a.pairs[0], w.a[1-i].pairs[0])
			}
			if len(a.pairs) > maxPairs {
				t.Fatalf("%d pairs", len(a.pairs))
			}
		}
		if w.a[0].Controlling() == w.a[1].Controlling() {
			t.Fatal("both in one role")
		}
	})
}

func FuzzHandle(f *testing.F) {
	w := newWorld(f, [2]bool{true, false}, 1)
	local := w.a[0].Local()
	f.Add(request(f, local.Ufrag+":x", local.Pwd, nil))
	f.Add(request(f, local.Ufrag+":x", local.Pwd, func(m *stun.Message) { m.Add(stun.AttrICEControlling, make([]byte, 8)) }))
	f.Add(request(f, local.Ufrag, "", func(m *stun.Message) { m.Add(stun.AttrUseCandidate, nil) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWorld(t, [2]bool{true, false}, 1)
		w.introduce(0, w.addr[1][0])
		a := w.a[0]
		a.Tick(w.now)
		Peek(b)
		a.Handle(w.now, packet.Path{Remote: w.addr[1][0]}, b)
		// The same with a right fingerprint, and as an answer to our check.
		if len(b) >= 28 && len(b) < 1400 {
			c := slices.Clone(b[:len(b)&^3])
			binary.BigEndian.PutUint16(c[2:], uint16(len(c)-20))
			binary.BigEndian.PutUint32(c[4:], 0x2112a442)
			copy(c[8:20], a.pairs[0].check.id[:])
			binary.BigEndian.PutUint32(c[len(c)-8:], 0x80280004)
			binary.BigEndian.PutUint32(c[len(c)-4:], stun.FingerprintValue(c[:len(c)-8]))
			a.Handle(w.now, packet.Path{Remote: w.addr[1][0]}, c)
		}
		a.Tick(w.now.Add(time.Second))
	})
}
