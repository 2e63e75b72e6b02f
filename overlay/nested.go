package overlay

import (
	"net/netip"
	"time"
)

// Media over WireGuard has no relays of its own. Where two hosts have no direct way, its packets, which are encrypted
// already, travel inside control, which has: the peer's endpoint is then its address on control. Relays see as little as
// before. Once control has a direct way, media tries one as well, again and again but ever more seldom; a try costs the
// packets of half a second at most.
const (
	nestedTry   = 500 * time.Millisecond
	nestedAgain = 2 * time.Second
	nestedMax   = 10 * time.Minute
)

// nested is the way to a peer on media inside control; zero when there is none now.
func (e *engine) nested(q *peer) netip.AddrPort {
	if c := e.planes[Control]; c != nil && e.cfg.nests() {
		if on, ok := c.peers[q.record.Control]; ok && on.path.up {
			return netip.AddrPortFrom(q.record.Control, e.cfg.Media.Port)
		}
	}
	return netip.AddrPort{}
}

// unnest looks which peers travel inside control, and gets those out of it for which there may be a direct way.
func (e *engine) unnest(p *plane, now time.Time) {
	c := e.planes[Control]
	for a, q := range p.peers {
		before := q.nested
		if q.nested = e.cfg.nests() && e.cfg.Control.Prefix.Contains(p.tunnels[a].Remote.Addr()); q.nested != before {
			q.checked = time.Time{} // what fits is another matter now
		}
		if !q.nested {
			continue
		}
		if !before || !c.tunnels[q.record.Control].Remote.IsValid() { // relayed: nothing to try
			q.again, q.pause = now.Add(nestedAgain), nestedAgain
			continue
		}
		if !q.path.up || now.Before(q.again) {
			continue
		}
		if q.pause = min(2*q.pause, nestedMax); e.tryDirect(p, a, q, now) {
			q.again = now.Add(q.pause)
		}
	}
}

// tryDirect sends a peer's packets by the next of its direct ways, and back inside control unless it answers.
func (e *engine) tryDirect(p *plane, a netip.Addr, q *peer, now time.Time) bool {
	q.turn++
	ways := e.endpoints(p, q)
	if ways[0] == e.nested(q) {
		ways = ways[1:]
	}
	if len(ways) == 0 {
		return false
	}
	e.ask(a)
	e.steer(p, a, ways[0])
	heard := q.path.n
	q.path.next = now // ask now
	time.AfterFunc(nestedTry, func() {
		e.shell.post(func() {
			if p.peers[a] != q || q.path.good(heard) {
				p.looked = time.Time{}
				return
			}
			if back := e.nested(q); back.IsValid() {
				e.steer(p, a, back)
			}
		})
	})
	return true
}

// steer makes a plane's backend send to one peer by another way.
func (e *engine) steer(p *plane, a netip.Addr, way netip.AddrPort) {
	for i := range p.told {
		if p.told[i].Address == a {
			told := p.told[i]
			p.told[i].Lost, p.told[i].Endpoints = true, []netip.AddrPort{way}
			e.problem(string(p.name), p.backend.SetPeers(p.told))
			p.told[i] = told
		}
	}
}

// relay is the host that carries what travels inside control to a peer; empty when control goes directly.
func (e *engine) relay(q *peer) string {
	c := e.planes[Control]
	if r, ok := c.peers[c.tunnels[q.record.Control].Relay]; ok {
		return r.host
	}
	return ""
}
