package overlay

import (
	"bytes"
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plenum/overlay/guard"
	"plenum/overlay/roster"
)

// An engine is all state of the process. It belongs to one goroutine.
type engine struct {
	o     *Options
	log   *slog.Logger
	shell *process
	cfg   Config
	book  *roster.Book
	since time.Time

	planes   map[Plane]*plane
	hints    map[string]map[string]roster.Endpoints // by source and host, unsigned
	problems map[string]string
	dropped  uint64 // by the guard, as of the last look
	alarmed  string // what was logged last of the sentences

	// WireGuard's change of keys. A host switches first and tells the others, who then move its address to the
	// new key. Its packets wait meanwhile, theirs still arrive under the old one.
	own      [32]byte            // public key in use
	quietTo  time.Time           // when to begin to tell
	told     map[string]bool     // hosts that have moved to it; nil when nobody needs telling
	switched map[string][32]byte // other hosts' keys in use, when not those of their records

	repaired time.Time
	retried  time.Time
	tokens   int // records from peers that may be verified this second
	refill   time.Time
}

// A plane is one network at work.
type plane struct {
	name    Plane
	cfg     PlaneConfig
	backend Backend
	up      bool
	conn    *net.UDPConn
	peers   map[netip.Addr]*peer
	told    []Peer // what the backend was told last
	tunnels map[netip.Addr]Tunnel
	looked  time.Time     // at the tunnels
	until   time.Time     // end of the own certificate
	life    time.Duration // of the own certificate
}

// A peer is another host on one plane.
type peer struct {
	host    string
	record  roster.Record
	path    *path
	seen    netip.AddrPort // where it sees us
	epoch   uint64         // of our record as it holds it
	found   netip.AddrPort // where a server sees its media tunnel
	turn    int            // which hint to try
	turned  time.Time
	nested  bool      // media travels inside control
	again   time.Time // when to try without that
	pause   time.Duration
	limit   int // what the underlay carries in one piece; 0 is unknown
	routed  int // the MTU that the kernel was told; 0 for the device's
	checked time.Time
}

func newEngine(cfg Config, o *Options, shell *process) *engine {
	return &engine{o: o, log: o.Log, shell: shell, cfg: cfg, book: roster.NewBook(cfg.Roster.Key), since: time.Now(),
		planes: map[Plane]*plane{}, hints: map[string]map[string]roster.Endpoints{}, problems: map[string]string{}, switched: map[string][32]byte{}}
}

// start guards the prefixes before there is anything to guard, then brings the planes up. Only the guard is
// essential: a plane that fails is tried again.
func (e *engine) start(now time.Time) error {
	if err := guard.Apply(e.guarded()); err != nil {
		return err
	}
	for _, name := range Planes {
		c := e.cfg.of(name)
		make, ok := e.o.Backends[c.Backend]
		if !ok {
			return fmt.Errorf("no backend %q in this build", c.Backend)
		}
		e.planes[name] = &plane{name: name, cfg: *c, backend: make(Quiet(e.log.With("plane", string(name)))),
			peers: map[netip.Addr]*peer{}, tunnels: map[netip.Addr]Tunnel{}}
	}
	for _, name := range Planes {
		e.raise(e.planes[name], now)
	}
	return nil
}

// apply takes a new configuration over. What cannot change while running is a problem that the status names.
func (e *engine) apply(cfg Config, now time.Time) {
	for _, name := range Planes {
		if cfg.of(name).Backend != e.cfg.of(name).Backend {
			e.problem("backend", fmt.Errorf("the backend of %s changes with a restart only", name))
			return
		}
	}
	if !bytes.Equal(cfg.Roster.Key, e.cfg.Roster.Key) {
		e.book = roster.NewBook(cfg.Roster.Key)
	}
	e.cfg = cfg
	if err := guard.Apply(e.guarded()); err != nil {
		e.problem("guard", err)
		return
	}
	for _, name := range Planes {
		p := e.planes[name]
		if p.conn != nil && p.cfg.Address != cfg.of(name).Address {
			p.conn.Close()
			p.conn = nil
		}
		p.cfg = *cfg.of(name)
		e.raise(p, now)
	}
}

// raise brings a plane up, or applies what changed on it.
func (e *engine) raise(p *plane, now time.Time) {
	err := e.tryRaise(p, now)
	e.problem(string(p.name), err)
	p.up = err == nil
}

func (e *engine) tryRaise(p *plane, now time.Time) error {
	d := Device{Plane: p.name, Name: p.cfg.Device, Address: netip.PrefixFrom(p.cfg.Address, p.cfg.Prefix.Bits()),
		Port: p.cfg.Port, MTU: p.cfg.MTU, Groups: e.cfg.Roles, Lighthouse: e.cfg.server()}
	for _, a := range e.cfg.Advertise {
		d.Advertise = append(d.Advertise, netip.AddrPortFrom(a, p.cfg.Port).String())
	}
	if p.cfg.KeyFile != "" {
		key, err := readKey(p.cfg.KeyFile)
		if err != nil {
			return err
		}
		d.Key = key.Bytes()
		e.useKey([32]byte(key.PublicKey().Bytes()), now)
	}
	if p.cfg.Nebula != nil {
		n := *p.cfg.Nebula
		n.Blocklist = e.blocklist(n.Blocklist)
		d.Nebula = &n
	}
	if p.name == Control {
		d.Firewall = e.rules()
	}
	rotated := e.quietTo
	if err := p.backend.Up(d); err != nil {
		return err
	}
	if e.quietTo != rotated {
		e.spend(p)
	}
	if p.conn == nil {
		_ = clearRoutes(p.cfg.Device) // measured anew
		conn, err := e.shell.open(p.name, &p.cfg)
		if err != nil {
			return err
		}
		p.conn = conn
	}
	if p.name == Media {
		if err := shape(p.cfg.Device, e.cfg.Uplink); err != nil {
			return err
		}
	}
	e.announce(now)
	if c, ok := p.backend.(certified); ok {
		from, to := c.Validity()
		p.until, p.life = to, to.Sub(from)
	}
	return e.setPeers(p, now)
}

// certified is a Backend whose own identity ends some time.
type certified interface{ Validity() (from, to time.Time) }

// rules are the table, and the door for media that travels inside control.
func (e *engine) rules() []Rule {
	all := append([]Rule{}, e.cfg.Allow...)
	if e.cfg.nests() {
		all = append(all, Rule{From: []string{"any"}, To: []string{"any"}, Proto: "udp", Ports: fmt.Sprint(e.cfg.Media.Port)})
	}
	return all
}

// accepted are the rules of the table for this host, for a control plane whose backend has no firewall. An
// address stands for a host there, because the tunnel lets nobody else use it.
func (e *engine) accepted() []guard.Accept {
	all := []guard.Accept{{Proto: unix.IPPROTO_UDP, First: Port, Last: Port}}
	for _, r := range e.cfg.Allow {
		if !slices.ContainsFunc(r.To, func(g string) bool { return g == "any" || slices.Contains(e.cfg.Roles, g) }) {
			continue
		}
		first, last, err := r.ports()
		if err != nil || r.Proto == "icmp" { // which always passes
			continue
		}
		a := guard.Accept{Proto: map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "any": 0}[r.Proto], First: first, Last: last}
		if !slices.Contains(r.From, "any") {
			a.From = []netip.Addr{}
			for _, h := range e.book.Records() {
				if !h.Revoked && slices.ContainsFunc(r.From, h.Is) {
					a.From = append(a.From, h.Control)
				}
			}
		}
		all = append(all, a)
	}
	return all
}

// readKey reads a WireGuard private key as wg genkey writes it.
func readKey(path string) (*ecdh.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: not a key in base64", path)
	}
	key, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// guarded is what the guard has to know of the planes.
func (e *engine) guarded() []guard.Plane {
	var all []guard.Plane
	for _, name := range Planes {
		c := e.cfg.of(name)
		g := guard.Plane{Prefix: c.Prefix, Device: c.Device}
		if name == Control && c.Backend != "nebula" { // which has a firewall by certificate
			g.Filter, g.Accept = true, e.accepted()
		}
		all = append(all, g)
	}
	return all
}

// setPeers tells a plane's backend who its peers are now.
func (e *engine) setPeers(p *plane, now time.Time) error {
	current := map[netip.Addr]bool{}
	every := e.every()
	var all []Peer
	for _, r := range e.book.Records() {
		a := address(&r, p.name)
		if r.Revoked || r.Host == e.cfg.Host || !p.cfg.Prefix.Contains(a) {
			continue
		}
		current[a] = true
		q, ok := p.peers[a]
		if !ok || q.host != r.Host {
			q = &peer{host: r.Host, path: newPath(every, p.cfg.MTU, minMTU(a), now)}
			p.peers[a] = q
		}
		q.record, q.path.every = r, every
		all = append(all, Peer{Host: r.Host, Address: a, Key: e.keyOf(&r), Endpoints: e.endpoints(p, q),
			Lighthouse: r.Is("server"), Lost: !q.path.up})
	}
	for a, q := range p.peers {
		if !current[a] {
			if q.routed != 0 {
				_ = routeMTU(p.cfg.Device, p.cfg.Address, a, 0)
			}
			delete(p.peers, a)
		}
	}
	p.told = all
	if err := p.backend.SetPeers(all); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	return nil
}

// every is how often each path is probed. Of many peers each is asked more seldom, so that all together cost no more;
// but often enough for a NAT to keep its mapping, for which Nebula then needs no packets of its own.
func (e *engine) every() time.Duration {
	const few, open = 25, 25 * time.Second
	return max(e.o.ProbeEvery, min(e.o.ProbeEvery*time.Duration(e.book.Len())/few, open))
}

func address(r *roster.Record, p Plane) netip.Addr {
	if p == Media {
		return r.Media
	}
	return r.Control
}

// keyOf is the WireGuard key under which a host is to be met now.
func (e *engine) keyOf(r *roster.Record) []byte {
	if k, ok := e.switched[r.Host]; ok {
		if bytes.Equal(k[:], r.Next) {
			return k[:]
		}
		delete(e.switched, r.Host) // its record has caught up, or moved on
	}
	return r.WireGuard
}

// endpoints are the places where a peer may be, beginning with the one whose turn it is.
func (e *engine) endpoints(p *plane, q *peer) []netip.AddrPort {
	var all []netip.AddrPort
	add := func(a netip.AddrPort) {
		if a.IsValid() && !slices.Contains(all, a) && !e.cfg.Control.Prefix.Contains(a.Addr()) && !e.cfg.Media.Prefix.Contains(a.Addr()) {
			all = append(all, a)
		}
	}
	for _, h := range []roster.Endpoints{e.hints["consul"][q.host], e.hints["file"][q.host], e.cfg.Endpoints[q.host]} {
		for _, a := range map[Plane][]netip.AddrPort{Control: h.Control, Media: h.Media}[p.name] {
			add(a)
		}
	}
	add(q.found)
	if p.name == Media {
		// Where control got through, media may as well; behind a NAT only if that is told of the port.
		if c := e.planes[Control]; c != nil {
			if t := c.tunnels[q.record.Control]; t.Remote.IsValid() {
				add(netip.AddrPortFrom(t.Remote.Addr(), p.cfg.Port))
			}
		}
		if way := e.nested(q); q.turn > 0 && way.IsValid() { // the last resort
			all = append(all, way)
		}
	}
	if len(all) > 0 && p.cfg.Backend == "wireguard" { // Nebula tries them all at once
		n := q.turn % len(all)
		all = slices.Concat(all[n:], all[:n])
	}
	return all
}

// blocklist is the configured one and all certificates of revoked hosts.
func (e *engine) blocklist(configured []string) []string {
	all := slices.Clone(configured)
	for _, r := range e.book.Records() {
		if r.Revoked {
			all = append(all, r.Fingerprints...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// listing takes in what a source says. One that fails or ends takes nothing back.
func (e *engine) listing(source string, l roster.Listing, err error, now time.Time) {
	e.problem("roster "+source, err)
	if err != nil {
		return
	}
	changed := !maps.EqualFunc(e.hints[source], l.Endpoints, func(a, b roster.Endpoints) bool {
		return slices.Equal(a.Control, b.Control) && slices.Equal(a.Media, b.Media)
	})
	e.hints[source] = l.Endpoints
	var fresh []string
	for host, envelope := range l.Hosts {
		if e.enter(host, envelope) {
			fresh = append(fresh, host)
		}
	}
	if changed || len(fresh) > 0 {
		e.refresh(now)
	}
	for _, host := range fresh {
		e.spread(host, netip.Addr{}, now)
	}
}

// enter puts a record into the book and remembers it on disk.
func (e *engine) enter(host string, envelope []byte) bool {
	changed, err := e.book.Accept(host, envelope)
	if err != nil {
		e.log.Warn("record refused", "err", err)
	}
	if changed {
		if err := e.book.Save(e.o.StateFile()); err != nil {
			e.problem("state", err)
		}
	}
	return changed
}

// refresh applies a changed roster to the guard and both planes.
func (e *engine) refresh(now time.Time) {
	if e.cfg.Control.Backend != "nebula" {
		e.problem("guard", guard.Apply(e.guarded()))
	}
	for _, name := range Planes {
		if p := e.planes[name]; p.up {
			e.raise(p, now)
		}
	}
}

// spread passes a new record on to everybody on control, so that a revocation needs no catalog to arrive.
func (e *engine) spread(host string, except netip.Addr, now time.Time) {
	c := e.planes[Control]
	body := e.book.Envelope(host)
	for a, q := range c.peers {
		if q.path.up && a != except {
			e.send(c, a, &message{kind: record, body: body}, 0)
		}
	}
}

// tick does what is due, and says when to call it again.
func (e *engine) tick(now time.Time) time.Duration {
	if now.Sub(e.refill) >= time.Second {
		e.refill, e.tokens = now, 200
	}
	if now.Sub(e.retried) >= 2*time.Second {
		e.retried = now
		for _, name := range Planes {
			if p := e.planes[name]; !p.up {
				e.raise(p, now)
			}
		}
	}
	if now.Sub(e.repaired) >= 5*time.Second {
		e.repaired = now
		repaired, err := guard.Repair(e.guarded())
		if repaired {
			e.log.Warn("somebody had removed rules or routes of the guard; they are back")
		}
		e.problem("guard", err)
		if n, err := guard.Dropped(); err == nil {
			e.dropped = n
		}
		if s := strings.Join(e.sentences(now), "; "); s != e.alarmed {
			e.alarmed = s
			e.log.Warn("state", "problems", s)
		}
	}
	for _, name := range Planes {
		if p := e.planes[name]; p.up {
			e.look(p, now)
			e.measure(p, now)
		}
	}
	e.announce(now)
	return e.next(now)
}

// often is how often there may be something to do, as long as an answer is awaited.
const often = 100 * time.Millisecond

// next is when tick is to be called again. Where nothing is wrong it is seldom, so that what is due by then is done at
// once: each time that the process wakes costs more than what it does.
func (e *engine) next(now time.Time) time.Duration {
	wait := min(e.every()/10, 2*time.Second)
	if e.told != nil {
		wait = often
	}
	for _, p := range e.planes {
		for _, q := range p.peers {
			wait = q.path.due(now, wait)
		}
	}
	return max(wait, often)
}

// look asks the backend for its tunnels, and tries the next hint for peers that cannot be reached.
func (e *engine) look(p *plane, now time.Time) {
	every := max(2*time.Second, e.every()/4)
	for _, q := range p.peers {
		if !q.path.up && now.Sub(q.path.since) < 10*time.Second {
			every = 200 * time.Millisecond // somebody is being looked for
			break
		}
	}
	if now.Sub(p.looked) < every {
		return
	}
	p.looked = now
	tunnels, err := p.backend.Status()
	if err != nil {
		e.problem(string(p.name), err)
		return
	}
	before := len(p.tunnels)
	clear(p.tunnels)
	for _, t := range tunnels {
		p.tunnels[t.Address] = t
	}
	if m := e.planes[Media]; p.name == Control && len(p.tunnels) > before && m.up && m.cfg.Backend == "wireguard" {
		e.problem(string(Media), e.setPeers(m, now)) // what control has found is a hint for media
	}
	if p.name == Media {
		e.unnest(p, now)
	}
	stuck := false
	for _, q := range p.peers {
		if wait := min(time.Second+now.Sub(q.path.since)/4, 15*time.Second); q.path.up || now.Sub(q.turned) < wait || now.Sub(q.path.since) < time.Second {
			continue
		}
		q.turned = now
		q.turn++
		stuck = true
		if p.cfg.Backend == "wireguard" {
			e.ask(address(&q.record, p.name))
		}
		// It may have changed its key without our hearing of it.
		if n := q.record.Next; n != nil && q.turn%2 == 1 {
			if _, ok := e.switched[q.host]; ok {
				delete(e.switched, q.host)
			} else {
				e.switched[q.host] = [32]byte(n)
				e.log.Info("trying a peer's next key", "peer", q.host, "key", base64.StdEncoding.EncodeToString(n))
			}
		}
	}
	if stuck && p.cfg.Backend == "wireguard" {
		e.problem(string(p.name), e.setPeers(p, now))
	}
}

// ask asks the servers at which place on the underlay they see the host with this address. Nebula has its
// lighthouses for that, WireGuard nothing.
func (e *engine) ask(a netip.Addr) {
	c := e.planes[Control]
	for at, s := range c.peers {
		if s.path.up && s.record.Is("server") {
			e.send(c, at, &message{kind: where, at: netip.AddrPortFrom(a, 0)}, 0)
		}
	}
}

// lookUnderlay is how often the kernel is asked what it knows of the way to a peer.
const lookUnderlay = 5 * time.Second

// measure probes the paths of a plane and gives the kernel their MTU.
func (e *engine) measure(p *plane, now time.Time) {
	for a, q := range p.peers {
		for _, ping := range q.path.Tick(now) {
			e.send(p, a, &message{kind: probe, id: ping.id}, ping.size)
		}
		if now.Sub(q.checked) >= max(lookUnderlay, 3*q.path.every) {
			q.checked = now
			q.limit = 0
			if t := p.tunnels[a]; t.Remote.IsValid() {
				if mtu := underlayMTU(t.Remote.Addr()); mtu > 0 {
					q.limit = fits(mtu, t.Remote.Addr())
				}
			}
		}
		mtu := q.mtu()
		if mtu >= p.cfg.MTU {
			mtu = 0
		}
		if mtu != q.routed {
			if err := routeMTU(p.cfg.Device, p.cfg.Address, a, mtu); err != nil {
				e.log.Warn("path MTU", "plane", p.name, "peer", q.host, "mtu", mtu, "err", err)
			} else {
				e.log.Info("path MTU", "plane", p.name, "peer", q.host, "mtu", q.mtu())
			}
			q.routed = mtu
		}
	}
}

// mtu is what the path carries in one piece.
func (q *peer) mtu() int {
	if q.limit > 0 {
		return min(q.path.MTU(), q.limit)
	}
	return q.path.MTU()
}

// send sends a message to a peer; size is that of the whole IP packet, 0 for as small as it gets. What cannot
// be sent is lost, like anything else on a network.
func (e *engine) send(p *plane, a netip.Addr, m *message, size int) {
	if p.conn == nil {
		return
	}
	if size > 0 {
		size -= udpHeaders(a)
	}
	_, _ = p.conn.WriteToUDPAddrPort(m.appendTo(nil, size), netip.AddrPortFrom(a, Port))
}

func udpHeaders(a netip.Addr) int {
	if a.Is6() {
		return 48
	}
	return 28
}

// receive handles a message of n bytes. Its sender is authenticated by the plane.
func (e *engine) receive(name Plane, from netip.AddrPort, m message, n int, now time.Time) {
	p := e.planes[name]
	q, ok := p.peers[from.Addr()]
	if !ok || from.Port() != Port {
		return
	}
	reply := message{id: m.id}
	switch m.kind {
	case probe:
		reply.kind, reply.size = answer, uint16(n+udpHeaders(from.Addr()))
		reply.at, reply.epoch = p.tunnels[from.Addr()].Remote, q.record.Epoch
	case answer:
		if q.epoch = m.epoch; e.cfg.Control.Prefix.Contains(m.at.Addr()) {
			m.at = netip.AddrPort{} // media inside control: no place on the underlay
		}
		q.seen = m.at
		if q.path.Answer(m.id, now) {
			e.cameUp(p, from.Addr(), q)
		}
		return
	case record:
		if name != Control || e.tokens == 0 {
			return
		}
		e.tokens--
		if r, err := roster.Verify(e.cfg.Roster.Key, bytes.TrimRight(m.body, "\x00")); err == nil && e.enter(r.Host, bytes.TrimRight(m.body, "\x00")) {
			e.refresh(now)
			e.spread(r.Host, from.Addr(), now)
		} else if err != nil {
			e.enter("", m.body) // counts it
		}
		return
	case switched:
		if name != Control || !bytes.Equal(m.key[:], q.record.WireGuard) && !bytes.Equal(m.key[:], q.record.Next) {
			return // its record has not come yet; it will ask again
		}
		e.follow(q, m.key, now)
		reply.kind, reply.key = moved, m.key
	case moved:
		if e.told != nil && m.key == e.own {
			e.told[q.host] = true
		}
		return
	case where:
		if name != Control {
			return
		}
		reply.kind = there
		copy(reply.key[:], m.at.Addr().AsSlice())
		for _, any := range e.planes {
			if t, ok := any.tunnels[m.at.Addr()]; ok {
				reply.at = t.Remote
			}
		}
		if !reply.at.IsValid() {
			return
		}
	case there:
		if name != Control || !q.record.Is("server") {
			return
		}
		for _, any := range e.planes {
			for a, wanted := range any.peers {
				if bytes.HasPrefix(m.key[:], a.AsSlice()) && (!wanted.path.up || wanted.nested) {
					wanted.found = m.at
				}
			}
		}
		return
	default:
		return
	}
	e.send(p, from.Addr(), &reply, 0)
}

// cameUp greets a peer that was away: who was revoked meanwhile comes before anything else.
func (e *engine) cameUp(p *plane, a netip.Addr, q *peer) {
	e.log.Info("path up", "plane", p.name, "peer", q.host)
	p.looked = time.Time{} // by which way
	if p.name != Control {
		return
	}
	for _, r := range e.book.Records() {
		if r.Revoked || r.Host == e.cfg.Host {
			e.send(p, a, &message{kind: record, body: e.book.Envelope(r.Host)}, 0)
		}
	}
	delete(e.told, q.host)
}

// settle is how long a host that has changed its key waits before it tells the others. Its next packet makes
// WireGuard start a handshake, which they refuse, for they do not expect the key yet, and which it then does not
// repeat for 5 s. So the handshake that they begin is the only one; two at once undo each other. It is also how long
// packets under the old key may take to arrive: once the others have moved the address they are refused. WireGuard in
// this process makes packets wait meanwhile; the kernel's keeps 128 for each peer.
const settle = 100 * time.Millisecond

// useKey takes note of the own public key. Other hosts have to be told when the roster does not name it yet.
func (e *engine) useKey(key [32]byte, now time.Time) {
	if key == e.own {
		return
	}
	if e.own != [32]byte{} {
		e.quietTo = now.Add(settle)
	}
	e.own, e.told = key, map[string]bool{}
}

// spend makes the handshake happen that settle is about, and has the others told afterwards.
func (e *engine) spend(p *plane) {
	for a := range p.peers {
		e.send(p, a, &message{kind: probe}, 0)
	}
	e.quietTo = time.Now().Add(settle)
	time.AfterFunc(settle, func() { e.shell.post(func() { e.announce(time.Now()) }) })
}

// announce tells the hosts that have not moved to the own new key, until the roster does.
func (e *engine) announce(now time.Time) {
	if e.told == nil || now.Before(e.quietTo) {
		return
	}
	for _, r := range e.book.Records() {
		if r.Host == e.cfg.Host && bytes.Equal(r.WireGuard, e.own[:]) {
			e.told = nil
			return
		}
	}
	c := e.planes[Control]
	for a, q := range c.peers {
		if !e.told[q.host] && c.up {
			e.send(c, a, &message{kind: switched, key: e.own}, 0)
		}
	}
}

// follow moves a peer to the key that it uses now.
func (e *engine) follow(q *peer, key [32]byte, now time.Time) {
	if bytes.Equal(e.keyOf(&q.record), key[:]) {
		return
	}
	if bytes.Equal(key[:], q.record.WireGuard) {
		delete(e.switched, q.host)
	} else {
		e.switched[q.host] = key
	}
	e.log.Info("peer changed its key", "peer", q.host, "key", base64.StdEncoding.EncodeToString(key[:]))
	for _, name := range Planes {
		if p := e.planes[name]; p.up && p.cfg.Backend == "wireguard" {
			e.problem(string(name), e.setPeers(p, now))
		}
	}
}

// problem keeps the sentence for an operator; nil removes it.
func (e *engine) problem(what string, err error) {
	if err == nil {
		delete(e.problems, what)
		return
	}
	if text := what + ": " + err.Error(); e.problems[what] != text {
		e.problems[what] = text
		e.log.Error("problem", "what", what, "err", err)
	}
}

// stop closes the tunnels; devices and guard stay.
func (e *engine) stop() error {
	var all []error
	for _, name := range Planes {
		p := e.planes[name]
		if p.conn != nil {
			p.conn.Close()
		}
		all = append(all, p.backend.Down())
	}
	return errors.Join(all...)
}
