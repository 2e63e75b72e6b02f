package ice

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"

	"plenum/bridge/packet"
)

// Peek finds out whom a STUN datagram is for without checking anything else: a request names a local ufrag,
// valid as long as b; a response carries the tag of the agent that asked. ok is false for anything else.
func Peek(b []byte) (ufrag []byte, tag uint32, ok bool) {
	if len(b) < 20 || len(b) != 20+int(binary.BigEndian.Uint16(b[2:])) || !stun.IsMessage(b) {
		return nil, 0, false
	}
	switch binary.BigEndian.Uint16(b) {
	case bindingSuccess, bindingError:
		return nil, binary.BigEndian.Uint32(b[8:]), true
	case bindingRequest:
	default:
		return nil, 0, false
	}
	for at := 20; at+4 <= len(b); {
		kind, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		at += 4
		if at+n > len(b) {
			break
		}
		if stun.AttrType(kind) == stun.AttrUsername {
			ufrag, _, ok = bytes.Cut(b[at:at+n], []byte{':'})
			return ufrag, 0, ok && len(ufrag) > 0 && len(ufrag) <= 256
		}
		at += (n + 3) &^ 3
	}
	return nil, 0, false
}

const (
	bindingRequest = 0x0001
	bindingSuccess = 0x0101
	bindingError   = 0x0111
)

// Handle takes one STUN datagram that came over path. The answer, and checks that it triggers, are in Output
// after it; the owner calls Tick next.
func (a *Agent) Handle(now time.Time, path packet.Path, b []byte) Verdict {
	m := &a.msg
	m.Raw = append(m.Raw[:0], b...)
	m.Attributes = m.Attributes[:0]
	if m.Decode() != nil || len(b) != 20+int(m.Length) || stun.Fingerprint.Check(m) != nil {
		a.Malformed++
		return Ignored
	}
	switch m.Type {
	case stun.BindingRequest:
		return a.handleRequest(now, path, m)
	case stun.BindingSuccess, stun.BindingError:
		return a.handleResponse(now, path, m)
	}
	// Indications keep a NAT open and mean nothing else (RFC 8445 §11).
	return Ignored
}

// authenticate checks integrity with pwd and cuts off what follows it, which nobody vouches for.
func authenticate(m *stun.Message, pwd string) bool {
	for i, at := range m.Attributes {
		if at.Type != stun.AttrMessageIntegrity {
			continue
		}
		if len(at.Value) != 20 || stun.NewShortTermIntegrity(pwd).Check(m) != nil {
			return false
		}
		m.Attributes = m.Attributes[:i]
		return true
	}
	return false
}

func (a *Agent) handleRequest(now time.Time, path packet.Path, m *stun.Message) Verdict {
	name, err := m.Get(stun.AttrUsername)
	if err != nil {
		a.refuse(now, path, m, stun.CodeBadRequest)
		return Ignored
	}
	ufrag, _, _ := bytes.Cut(name, []byte{':'})
	g := &a.cur
	if string(ufrag) != g.local.Ufrag && a.old != nil {
		g = a.old
	}
	if string(ufrag) != g.local.Ufrag || !authenticate(m, g.local.Pwd) {
		a.refuse(now, path, m, stun.CodeUnauthorized)
		return Ignored
	}
	if !m.Contains(stun.AttrUsername) { // it came after the integrity
		a.refuse(now, path, m, stun.CodeBadRequest)
		return Ignored
	}
	if !a.settleRole(path, m, g) {
		return Authentic
	}
	a.Requests++
	a.answer(path, m, g)

	priority := uint32(0)
	if b, err := m.Get(stun.AttrPriority); err == nil && len(b) == 4 {
		priority = binary.BigEndian.Uint32(b)
	}
	p := a.pair(path, g.number, priority)
	p.heard = now
	if p.state == idle || p.state == failed {
		p.state, p.triggered = idle, true
	}
	if !a.controlling && m.Contains(stun.AttrUseCandidate) && g == &a.cur {
		if p.state == valid {
			if p != a.selected {
				a.choose(now, p)
			}
		} else {
			p.nominated = true
		}
	}
	a.follow(now, p)
	return Authentic
}

// settleRole solves a role conflict (RFC 8445 §7.3.1.1); false means the request was refused with 487.
func (a *Agent) settleRole(path packet.Path, m *stun.Message, g *generation) bool {
	same := stun.AttrICEControlled
	if a.controlling {
		same = stun.AttrICEControlling
	}
	b, err := m.Get(same)
	if err != nil || len(b) != 8 {
		return true
	}
	a.Conflicts++
	ours := a.tieBreaker >= binary.BigEndian.Uint64(b)
	if ours == a.controlling { // the larger controls, and it already does
		a.reply(path, m, stun.CodeRoleConflict, g.local.Pwd)
		return false
	}
	a.controlling = !a.controlling
	return true
}

// answer sends a success response.
func (a *Agent) answer(path packet.Path, m *stun.Message, g *generation) {
	r := stun.New()
	r.TransactionID = m.TransactionID
	r.Type = stun.BindingSuccess
	r.WriteHeader()
	xor := stun.XORMappedAddress{IP: path.Remote.Addr().AsSlice(), Port: int(path.Remote.Port())}
	if err := xor.AddTo(r); err != nil {
		panic("ice: " + err.Error())
	}
	r.Add(stun.AttrSoftware, []byte(software))
	a.out = append(a.out, packet.Datagram{Path: path, Data: seal(r, g.local.Pwd)})
}

// refuse counts a request that did not authenticate and answers a few of them.
func (a *Agent) refuse(now time.Time, path packet.Path, m *stun.Message, code stun.ErrorCode) {
	a.Refused++
	a.refusals = min(refusalBurst, a.refusals+refusalsPerSecond*now.Sub(a.refusalsAt).Seconds())
	a.refusalsAt = now
	if a.refusals < 1 {
		return
	}
	a.refusals--
	a.reply(path, m, code, "")
}

// reply sends an error response, with integrity where there is a password to use.
func (a *Agent) reply(path packet.Path, m *stun.Message, code stun.ErrorCode, pwd string) {
	r := stun.New()
	r.TransactionID = m.TransactionID
	r.Type = stun.BindingError
	r.WriteHeader()
	if err := code.AddTo(r); err != nil {
		panic("ice: " + err.Error())
	}
	a.out = append(a.out, packet.Datagram{Path: path, Data: seal(r, pwd)})
}

func (a *Agent) handleResponse(now time.Time, path packet.Path, m *stun.Message) Verdict {
	var p *pair
	for _, q := range a.pairs {
		// Only from where the check went (RFC 8445 §7.2.5.2.1).
		if q.check.sends > 0 && q.check.id == m.TransactionID && q.path == path {
			p = q
		}
	}
	if p == nil {
		return Ignored
	}
	if !authenticate(m, a.generationOf(p).remote.Pwd) {
		// A 401 has no integrity; it must not end anything, for anybody could have sent it.
		a.Refused++
		return Ignored
	}
	a.Responses++
	p.heard = now
	p.check.sends = 0
	if m.Type == stun.BindingError {
		a.failedCheck(now, p, m)
		return Proven
	}
	if p.state != valid {
		p.state = valid
		a.becameValid(now, p)
	}
	return Proven
}

func (a *Agent) failedCheck(now time.Time, p *pair, m *stun.Message) {
	var code stun.ErrorCodeAttribute
	if code.GetFrom(m) != nil {
		return
	}
	if code.Code == stun.CodeRoleConflict {
		// The peer insists on its role: take the other one and check again (RFC 8445 §7.2.5.1).
		a.Conflicts++
		sent := stun.Message{Raw: p.check.raw}
		if sent.Decode() == nil && sent.Contains(stun.AttrICEControlling) == a.controlling {
			a.controlling = !a.controlling
		}
		if p.state == valid {
			a.begin(now, p)
		} else {
			p.state, p.triggered = idle, true
		}
		return
	}
	if p.state != valid {
		p.state = failed
	}
}

// becameValid selects p if it is the first of its generation, or if the peer has asked for it.
func (a *Agent) becameValid(now time.Time, p *pair) {
	switch {
	case a.selected == nil, a.selected.gen < p.gen:
		a.choose(now, p)
	case !a.controlling && p.nominated && p != a.selected:
		a.choose(now, p)
	default:
		a.follow(now, p)
	}
	p.nominated = false
}

// Paths calls f for each path from which the peer has authenticated.
func (a *Agent) Paths(f func(packet.Path)) {
	for _, p := range a.pairs {
		if !p.heard.IsZero() {
			f(p.path)
		}
	}
}

// reachable reports whether a socket bound to local can send to ip.
func reachable(local, ip netip.Addr) bool {
	return local.Is4() == ip.Is4() && local.IsLoopback() == ip.IsLoopback()
}
