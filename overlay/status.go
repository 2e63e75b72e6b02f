package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A Status is what GET /status answers: this host's view, one row of the matrix.
type Status struct {
	Host     string                `json:"host"`
	Region   string                `json:"region,omitempty"`
	Since    time.Time             `json:"since"` // start of this process
	Planes   map[Plane]PlaneStatus `json:"planes"`
	Paths    []Path                `json:"paths"`
	Hosts    int                   `json:"hosts"`    // in the roster, revoked ones left out
	Refused  map[string]uint64     `json:"refused"`  // records, by reason
	Dropped  uint64                `json:"dropped"`  // packets that the guard kept inside
	Problems []string              `json:"problems"` // sentences for the operator
}

// A PlaneStatus is this host's own end of a plane.
type PlaneStatus struct {
	Backend  string           `json:"backend"`
	Device   string           `json:"device"`
	Address  netip.Addr       `json:"address"`
	Port     uint16           `json:"port"`
	Up       bool             `json:"up"`
	NAT      NAT              `json:"nat"`
	Observed []netip.AddrPort `json:"observed,omitempty"` // where peers see this host, not counting its own addresses
	Until    time.Time        `json:"until,omitzero"`     // end of this host's certificate
}

// A Path is one cell of the matrix: the way from this host to a peer on one plane.
type Path struct {
	Plane     Plane          `json:"plane"`
	Host      string         `json:"host"`
	Address   netip.Addr     `json:"address"`
	Up        bool           `json:"up"`
	Since     time.Time      `json:"since"` // of Up
	RTT       time.Duration  `json:"rtt_ns"`
	Loss      float64        `json:"loss"` // of the last 64 probes
	MTU       int            `json:"mtu"`
	Measured  bool           `json:"measured"` // MTU was found by probing
	Route     Route          `json:"route"`
	Relay     string         `json:"relay,omitempty"`  // the host in between
	Nested    bool           `json:"nested,omitempty"` // media that travels inside control
	Remote    netip.AddrPort `json:"remote,omitzero"`
	Handshake time.Time      `json:"handshake,omitzero"`
	Until     time.Time      `json:"until,omitzero"` // end of the peer's certificate
	Epoch     uint64         `json:"epoch"`          // of this host's record as the peer holds it
}

// A Route is how packets of a path travel.
type Route string

const (
	Direct  Route = "direct"
	Relayed Route = "relayed"
	None    Route = "none"
)

// NAT says what lies between a host and its peers, judged by where they see it.
type NAT string

const (
	NATUnknown   NAT = "unknown"   // nobody has said yet
	NATNone      NAT = "none"      // under an address of its own
	NATMapped    NAT = "mapped"    // translated; one observer cannot tell of which kind
	NATCone      NAT = "cone"      // translated, to the same address and port for everybody
	NATSymmetric NAT = "symmetric" // translated, differently for each peer
)

// judge names the NAT behind which a socket on port is seen at those places.
func judge(seen []netip.AddrPort, local map[netip.Addr]bool, port uint16) NAT {
	foreign := map[netip.AddrPort]bool{}
	n := 0
	for _, s := range seen {
		if local[s.Addr()] && s.Port() == port {
			continue
		}
		foreign[s] = true
		n++
	}
	switch {
	case len(seen) == 0:
		return NATUnknown
	case n == 0:
		return NATNone
	case len(foreign) > 1:
		// More than one port on an address of one family is a mapping per peer.
		ports := map[netip.Addr]uint16{}
		for s := range foreign {
			if p, ok := ports[s.Addr()]; ok && p != s.Port() {
				return NATSymmetric
			}
			ports[s.Addr()] = s.Port()
		}
		return NATCone
	case n > 1:
		return NATCone
	}
	return NATMapped
}

// status describes everything as it is now.
func (e *engine) status(now time.Time) Status {
	s := Status{Host: e.cfg.Host, Region: e.cfg.Region, Since: e.since, Planes: map[Plane]PlaneStatus{},
		Paths: []Path{}, Refused: e.book.Refused(), Dropped: e.dropped, Problems: []string{}}
	for _, r := range e.book.Records() {
		if !r.Revoked {
			s.Hosts++
		}
	}
	local := localAddrs(e.cfg.Control.Device, e.cfg.Media.Device)
	for _, name := range Planes {
		p := e.planes[name]
		var seen []netip.AddrPort
		var paths []Path
		reached := map[netip.Addr]string{}
		for a, q := range p.peers {
			reached[a] = q.host
		}
		for a, q := range p.peers {
			if q.seen.IsValid() && q.path.up {
				seen = append(seen, q.seen)
			}
			c := q.cell(p, a, reached)
			if q.nested {
				c.Relay = e.relay(q)
			}
			paths = append(paths, c)
		}
		slices.SortFunc(paths, func(a, b Path) int { return strings.Compare(a.Host, b.Host) })
		s.Paths = append(s.Paths, paths...)
		s.Planes[name] = PlaneStatus{Backend: p.cfg.Backend, Device: p.cfg.Device, Address: p.cfg.Address, Port: p.cfg.Port,
			Up: p.up, NAT: judge(seen, local, p.cfg.Port), Observed: observed(seen, local), Until: p.until}
	}
	s.Problems = append(s.Problems, e.sentences(now)...)
	return s
}

// cell is one peer's line of the matrix.
func (q *peer) cell(p *plane, a netip.Addr, hosts map[netip.Addr]string) Path {
	c := Path{Plane: p.name, Host: q.host, Address: a, Up: q.path.up, Since: q.path.since, RTT: q.path.rtt, Loss: q.path.Loss(),
		MTU: q.mtu(), Measured: q.path.mtu > 0, Route: None, Epoch: q.epoch}
	t, ok := p.tunnels[a]
	if !ok {
		return c
	}
	c.Remote, c.Handshake, c.Until = t.Remote, t.Handshake, t.Until
	switch {
	case q.nested:
		c.Route, c.Nested = Relayed, true
	case t.Relay.IsValid():
		c.Route, c.Relay = Relayed, hosts[t.Relay]
	case t.Remote.IsValid() && !t.Handshake.IsZero():
		c.Route = Direct
	}
	return c
}

// observed are the places where peers see this host that it does not know as its own.
func observed(seen []netip.AddrPort, local map[netip.Addr]bool) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range seen {
		if !local[s.Addr()] && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

// sentences are what an operator should know: what failed, and what the state of the paths means.
func (e *engine) sentences(now time.Time) []string {
	all := slices.Sorted(maps.Values(e.problems))
	c := e.planes[Control]
	servers, answering := 0, 0
	for _, q := range c.peers {
		if q.record.Is("server") {
			servers++
			if q.path.up {
				answering++
			}
		}
	}
	if servers > 0 && answering == 0 && !e.cfg.server() && now.Sub(e.since) > 5*time.Second {
		all = append(all, fmt.Sprintf("control: none of %d lighthouses answers; tunnels that are up stay up, new ones cannot be found", servers))
	}
	for _, name := range Planes {
		p := e.planes[name]
		if p.until.IsZero() {
			continue
		}
		if left := p.until.Sub(now); left <= 0 {
			all = append(all, fmt.Sprintf("%s: the certificate of this host has expired; peers refuse it", name))
		} else if left < p.life/3 {
			all = append(all, fmt.Sprintf("%s: the certificate of this host expires in %s and was not renewed", name, left.Round(time.Second)))
		}
	}
	for _, r := range e.book.Records() {
		if r.Host == e.cfg.Host && r.Revoked {
			all = append(all, "this host is revoked")
		}
	}
	return all
}
