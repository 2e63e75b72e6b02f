package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"plenum/bridge/ice"
	"plenum/bridge/packet"
	"plenum/bridge/transport"
	"plenum/bridge/udp"
)

const (
	// flushAt is how many datagrams an outbox holds before they are sent in the middle of a fan-out: as many as stay
	// in a cache, and those who come first need not wait for the last.
	flushAt = 128
	// ringSlots is how many packets may be on their way from one core to another.
	ringSlots = 256
	// readRounds and ringRounds are how many batches are taken from a socket and from a ring before the others
	// get their turn.
	readRounds = 4
	ringRounds = 2 * ringSlots / packet.BatchSize
	// busyTick is how often a conference with traffic is ticked at least.
	busyTick = 20 * time.Millisecond
	// slack is how much too early a tick may come, so that several share a wake-up.
	slack     = time.Millisecond
	idleSleep = time.Second
	// yieldEvery is how often a core that has work tells the scheduler that it is not stuck. Without that the
	// runtime's monitor preempts it every 10 ms, which costs much more.
	yieldEvery = 8 * time.Millisecond
	busyAfter  = 100 * time.Millisecond
	// wantedBuffer is the receive buffer below which the log warns, in bytes.
	wantedBuffer = 10_000_000
	// publishEvery is how often a core's counters are made visible.
	publishEvery = time.Second
	// nap is the shortest wait that counts as one: before it nothing was left to be read.
	nap = 20 * time.Microsecond
)

// What a core does, for profiles: go tool pprof -tagfocus doing=send. Sealing is part of projecting, and told apart by its
// functions: labels for each packet would cost as much as they show.
var (
	receiving  = pprof.WithLabels(context.Background(), pprof.Labels("doing", "receive"))
	projecting = pprof.WithLabels(context.Background(), pprof.Labels("doing", "project"))
	sending    = pprof.WithLabels(context.Background(), pprof.Labels("doing", "send"))
	ticking    = pprof.WithLabels(context.Background(), pprof.Labels("doing", "tick"))
)

// mediaConfig says where the media side listens and what it runs on.
type mediaConfig struct {
	// Addresses to bind, each with its own sockets. Empty: those of the host (hostAddresses) with Port.
	Addresses []netip.AddrPort
	// Port is used with the host's addresses; 0 picks one.
	Port uint16
	// Loopback adds 127.0.0.1 to the host's addresses, for browsers on the same machine.
	Loopback bool
	// Advertise are public addresses in front of a NAT, told to clients beside our own. Port 0 is the local port.
	Advertise []netip.AddrPort
	// Cores is the number of core goroutines, each with a P of its own. 0: GOMAXPROCS as it is without them.
	Cores int
	Log   *slog.Logger
	// OnPanic is told, on the core's goroutine, that a conference has panicked and was detached; nil when it is not known
	// which. Its peers are closed already.
	OnPanic func(cf room, v any)
	// OnDelay, if set, is told on the core's goroutine how long packets of a batch may have taken at most from their
	// arrival at the socket to the last that was sent on; it must not block.
	OnDelay func(d time.Duration)
}

// media is the packet side of a bridge: sockets, cores, routes.
//
//	sockets of core 0 ─► core 0 ─┬─► its conferences ─► outbox ─► any address, by core 0's sockets
//	                             └─► ring 0→1 ┐
//	sockets of core 1 ─► core 1 ◄─────────────┘
type media struct {
	cfg        mediaConfig
	log        *slog.Logger
	local      []netip.AddrPort // by socket index
	candidates []candidate
	cores      []*core
	routes     *routes

	mu      sync.Mutex
	id      *transport.Identity
	closing sync.WaitGroup // transports that are coming to their end
}

// newMedia binds all sockets. Run, or close where it is not run, releases them.
func newMedia(cfg mediaConfig) (*media, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Cores <= 0 {
		cfg.Cores = processors()
	}
	if runtime.GOOS != "linux" {
		cfg.Cores = 1
	}
	m := &media{cfg: cfg, log: cfg.Log, routes: newRoutes()}
	sets, err := bind(cfg)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		m.local = append(m.local, set[0].Local())
	}
	m.candidates = candidatesOf(m.local, cfg.Advertise)
	for i := range cfg.Cores {
		sockets := make([]*udp.Socket, len(sets))
		var feedback []*udp.Socket
		for j, set := range sets {
			sockets[j] = set[i]
			if len(set) > cfg.Cores {
				feedback = append(feedback, set[cfg.Cores+i])
			}
		}
		c, err := newCore(m, i, sockets, feedback)
		if err != nil {
			closeAll(sets)
			return nil, err
		}
		m.cores = append(m.cores, c)
	}
	if n := m.cores[0].sockets[0].ReceiveBuffer(); n > 0 && n < wantedBuffer {
		m.log.Warn("small receive buffers: bursts will be lost (sysctl net.core.rmem_max)", "bytes", n, "wanted", wantedBuffer)
	}
	return m, nil
}

// bind opens the sockets of the configured addresses, or of the host's: for each core one that takes everything or,
// where the kernel knows how to tell, all but RTCP, and behind those one that takes the rest.
func bind(cfg mediaConfig) ([][]*udp.Socket, error) {
	sets, err := bindMedia(cfg)
	if err != nil {
		return nil, err
	}
	for i := range sets {
		feedback, err := udp.Split(sets[i])
		if err != nil {
			cfg.Log.Debug("reports come with media", "addr", sets[i][0].Local(), "err", err)
			for j, set := range sets[:i] {
				closeAll([][]*udp.Socket{set[cfg.Cores:]})
				sets[j] = set[:cfg.Cores]
			}
			return sets, nil
		}
		sets[i] = append(sets[i], feedback...)
	}
	return sets, nil
}

func bindMedia(cfg mediaConfig) (sets [][]*udp.Socket, err error) {
	defer func() {
		if err != nil {
			closeAll(sets)
			sets = nil
		}
	}()
	for _, a := range cfg.Addresses {
		set, err := udp.Listen(a, cfg.Cores)
		if err != nil {
			return sets, err
		}
		sets = append(sets, set)
	}
	if len(cfg.Addresses) > 0 {
		return sets, nil
	}
	hosts, err := hostAddresses(cfg.Loopback)
	if err != nil {
		return nil, err
	}
	port := cfg.Port
	for _, ip := range hosts {
		set, err := udp.Listen(netip.AddrPortFrom(ip, port), cfg.Cores)
		if errors.Is(err, udp.ErrInUse) && cfg.Port == 0 {
			set, err = udp.Listen(netip.AddrPortFrom(ip, 0), cfg.Cores)
		}
		switch {
		case errors.Is(err, udp.ErrInUse):
			return sets, err
		case err != nil: // went away meanwhile, or is not usable yet
			cfg.Log.Warn("address not used for media", "addr", ip, "err", err)
			continue
		}
		sets = append(sets, set)
		port = set[0].Local().Port()
	}
	if len(sets) == 0 {
		return nil, errors.New("no address for media: name one (--media ADDR:PORT)")
	}
	return sets, nil
}

func closeAll(sets [][]*udp.Socket) {
	for _, set := range sets {
		for _, s := range set {
			s.Close()
		}
	}
}

// Run serves until ctx ends, then closes all peers and sockets. It returns when every goroutine has ended.
func (m *media) Run(ctx context.Context) error {
	defer reserve(len(m.cores))()
	var cores sync.WaitGroup
	errs := make(chan error, len(m.cores))
	for _, c := range m.cores {
		cores.Go(func() {
			if err := c.run(); err != nil {
				errs <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
	}
	for _, c := range m.cores { // each closes its peers and ends
		c.stop.Store(true)
		c.poller.Wake()
	}
	cores.Wait()
	m.closing.Wait() // they still say goodbye over the sockets
	return errors.Join(err, m.close())
}

// close releases the sockets of a media that does not run.
func (m *media) close() error {
	var errs []error
	for _, c := range m.cores {
		c.mail.close()
		errs = append(errs, c.poller.Close())
		for _, s := range slices.Concat(c.sockets, c.feedback) {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// localCandidates are for descriptions. The slice is shared and not to be changed.
func (m *media) localCandidates() []candidate { return m.candidates }

// leastLoaded is the core for a new conference.
func (m *media) leastLoaded() *core {
	best := m.cores[0]
	for _, c := range m.cores[1:] {
		if c.load.Load() < best.load.Load() {
			best = c
		}
	}
	return best
}

// identity is the certificate for a new peer, renewed daily.
func (m *media) identity(now time.Time) (*transport.Identity, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id == nil || m.id.Stale(now) {
		id, err := transport.NewIdentity(now)
		if err != nil {
			return nil, err
		}
		m.id = id
	}
	return m.id, nil
}

// coreCounters are one core's, as of its last publication.
type coreCounters struct {
	At            time.Time // of the publication
	Received      uint64    // datagrams
	ReceivedBytes uint64
	Batches       uint64
	Unrouted      uint64 // from unknown addresses, neither DTLS nor media of anybody
	UnknownSTUN   uint64 // naming nobody
	Limited       uint64 // STUN beyond the rate for new addresses
	Oversized     uint64
	HandedOver    uint64 // to another core
	RingFull      uint64 // dropped on the way to another core
	Contested     uint64 // claims to an address that is another peer's
	Panics        uint64
	Wakeups       uint64
	Busy          time.Duration // not asleep
	Out           udp.Counters
	Peers, Rooms  int
}

// A mediaStats is a snapshot for metrics.
type mediaStats struct {
	Cores         []coreCounters
	SocketDrops   uint64 // by the kernel, receive buffer full
	Paths, Peers  int
	ReceiveBuffer int // bytes granted to the first socket
}

// stats may be called from any goroutine.
func (m *media) stats() mediaStats {
	var s mediaStats
	for _, c := range m.cores {
		if p := c.published.Load(); p != nil {
			s.Cores = append(s.Cores, *p)
		}
		for _, sock := range slices.Concat(c.sockets, c.feedback) {
			s.SocketDrops += sock.Drops()
		}
	}
	s.Paths, s.Peers = m.routes.size()
	s.ReceiveBuffer = m.cores[0].sockets[0].ReceiveBuffer()
	return s
}

// A room is a conference as its core drives it; *conference.Conference is one.
type room interface {
	// Flush fans out what the batch brought.
	Flush(now time.Time)
	// Tick does what is due and says when it wants the next.
	Tick(now time.Time) (next time.Time)
}

// hosted is a room on its core.
type hosted struct {
	room    room
	due     time.Time
	touched bool
}

// A core is one goroutine, with a P of its own (processors.go), that owns conferences with all their peers: it reads, decrypts,
// forwards, seals and sends for them without a lock or another goroutine in between.
type core struct {
	coreCounters // owned by the goroutine

	m         *media
	index     int
	sockets   []*udp.Socket // by address
	feedback  []*udp.Socket // likewise, those that RTCP comes to; none where the kernel cannot tell
	poller    *udp.Poller
	mail      mailbox
	rings     []atomic.Pointer[ring] // to this core, by the core that fills it
	stop      atomic.Bool
	load      atomic.Int64 // peers and rooms
	published atomic.Pointer[coreCounters]

	// The goroutine owns what follows.
	now       time.Time
	yielded   time.Time // to the scheduler
	aside     aside
	looked    time.Time // no packet that is read now has come before
	received  time.Time // the last batch
	reader    *udp.Reader
	sender    *udp.Sender
	batch     packet.Batch
	out       packet.Outbox
	limiter   *limiter
	peers     map[*peer]struct{}
	rooms     map[room]*hosted
	touched   []*hosted
	next      time.Time // the earliest due
	nextStats time.Time
	pushed    []bool // cores that got something into their ring
	more      bool   // a ring has something left: do not sleep
	lastPath  packet.Path
	lastPeer  *peer // of lastPath, within one batch

	at      int     // position in what is being delivered, for a panic
	current *hosted // whose code runs, for a panic
}

func newCore(m *media, index int, sockets, feedback []*udp.Socket) (*core, error) {
	poller, err := udp.NewPoller(slices.Concat(sockets, feedback))
	if err != nil {
		return nil, err
	}
	c := &core{
		m: m, index: index, sockets: sockets, feedback: feedback, poller: poller,
		rings: make([]atomic.Pointer[ring], m.cfg.Cores), pushed: make([]bool, m.cfg.Cores),
		sender: udp.NewSender(), limiter: newLimiter(),
		peers: make(map[*peer]struct{}), rooms: make(map[room]*hosted),
	}
	c.reader = udp.NewReader(&c.batch)
	c.mail.wake = poller.Wake
	return c, nil
}

// do runs f on the core's goroutine, after all that was posted before. It does not wait. It returns false when
// the core has stopped and f will not run. A panic of f is caught and reported without a conference.
func (c *core) do(f func(now time.Time)) bool { return c.doIn(nil, f) }

// doIn is do for work on one conference: it is ticked afterwards, and a panic detaches it.
func (c *core) doIn(cf room, f func(now time.Time)) bool {
	return c.mail.post(letter{cf, f})
}

// attach has the core drive cf: Flush after each batch that touched it, Tick when due. Any goroutine may call
// it; it happens in order with do.
func (c *core) attach(cf room) {
	c.do(func(now time.Time) { c.host(cf, now) })
}

// detach ends that. Peers keep their connections, but what they send no longer reaches their endpoints.
func (c *core) detach(cf room) {
	c.do(func(time.Time) { c.evict(cf) })
}

func (c *core) host(cf room, now time.Time) *hosted {
	h := c.rooms[cf]
	if h == nil {
		h = &hosted{room: cf, due: now}
		c.rooms[cf] = h
		c.load.Add(1)
		c.wakeAt(now)
	}
	return h
}

func (c *core) evict(cf room) {
	h := c.rooms[cf]
	if h == nil {
		return
	}
	delete(c.rooms, cf)
	c.load.Add(-1)
	if i := slices.Index(c.touched, h); i >= 0 {
		c.touched = slices.Delete(c.touched, i, i+1)
	}
	for p := range c.peers {
		if p.room == h {
			p.room, p.endpoint = nil, nil
		}
	}
}

// drop closes a peer on the core's goroutine.
func (c *core) drop(p *peer) {
	if p.closed {
		return
	}
	p.closed = true
	p.endpoint, p.room = nil, nil
	delete(c.peers, p)
	c.load.Add(-1)
	c.m.routes.remove(p)
	c.lastPeer = nil
	p.t.Close()
	c.m.closing.Go(p.t.Wait)
}

// send sends one datagram at once, for the transports' goroutines.
func (c *core) send(path packet.Path, b []byte) {
	_ = c.sockets[path.Socket].SendTo(b, path.Remote) // lost like any datagram; DTLS repeats
}

// run is the core's goroutine.
func (c *core) run() error {
	defer c.end()
	defer pprof.SetGoroutineLabels(context.Background())
	done := time.Now()
	c.now, c.next, c.nextStats, c.yielded = done, done, done, done
	for !c.stop.Load() {
		c.Busy += done.Sub(c.now)
		ready, err := c.poller.Wait(c.patience(done))
		if err != nil {
			return fmt.Errorf("media core %d: %w", c.index, err)
		}
		c.looked, c.now = c.now, time.Now()
		if c.now.Sub(done) > nap {
			c.looked = c.now
		}
		c.Wakeups++
		if c.now.Sub(c.yielded) >= yieldEvery {
			c.yielded = c.now
			runtime.Gosched()
		}
		c.letters()
		c.readSockets(ready)
		c.readRings()
		c.timers()
		c.flush()
		for i, yes := range c.pushed {
			if yes {
				c.pushed[i] = false
				c.m.cores[i].poller.Wake()
			}
		}
		if !c.now.Before(c.nextStats) {
			c.publish()
		}
		done = time.Now()
	}
	return nil
}

// end closes what the core has.
func (c *core) end() {
	c.now = time.Now()
	c.letters()
	c.mail.close()
	c.letters()
	for p := range c.peers {
		c.drop(p)
	}
	c.flush()
	c.publish()
}

func (c *core) publish() {
	c.nextStats = c.now.Add(publishEvery)
	s := c.coreCounters
	s.At, s.Out, s.Peers, s.Rooms = c.now, c.sender.Counters, len(c.peers), len(c.rooms)
	c.published.Store(&s)
}

// patience is how long the core may sleep from now on.
func (c *core) patience(now time.Time) time.Duration {
	if c.more || !c.mail.empty() {
		c.more = false
		return 0
	}
	most := idleSleep
	if c.now.Sub(c.received) < busyAfter {
		most = yieldEvery
	}
	if c.aside.on {
		most = reportsEvery
	}
	return min(most, max(0, c.next.Sub(now)))
}

func (c *core) letters() {
	for l, ok := c.mail.take(); ok; l, ok = c.mail.take() {
		h := c.rooms[l.room]
		if l.room != nil && h == nil { // not attached (any more): its panic concerns nobody else either
			h = &hosted{room: l.room}
		}
		c.guard(h, func() { l.f(c.now) })
		if l.room == nil {
			for _, h := range c.rooms {
				h.due = c.now
			}
		} else {
			h.due = c.now
		}
		c.wakeAt(c.now)
	}
	if len(c.touched) > 0 { // by media that had waited for keys
		c.settle()
	}
}

// guard runs f for a conference and keeps its panic from the others.
func (c *core) guard(h *hosted, f func()) {
	outer := c.current
	defer func() {
		if v := recover(); v != nil {
			c.crashed(h, v)
		}
		c.current = outer
	}()
	c.current = h
	f()
}

// crashed detaches a conference that has panicked and closes its peers. The bridge goes on without it.
func (c *core) crashed(h *hosted, v any) {
	c.Panics++
	c.m.log.Error("panic in a conference", "panic", v, "stack", string(debug.Stack()))
	var cf room
	if h != nil {
		cf = h.room
		for p := range c.peers {
			if p.room == h || p.cfg.Conference == cf && cf != nil {
				c.drop(p)
			}
		}
		c.evict(cf)
	}
	if c.m.cfg.OnPanic != nil {
		c.m.cfg.OnPanic(cf, v)
	}
}

// readSockets reads those that are ready, media before reports.
func (c *core) readSockets(ready []int) {
	media := false
	for _, i := range ready {
		if i < len(c.sockets) {
			media = true
			c.readSocket(c.sockets[i], i)
		}
	}
	before := c.Received
	if c.aside.on {
		for i, s := range c.feedback {
			c.readSocket(s, i)
		}
	} else {
		for _, i := range ready {
			if i >= len(c.sockets) {
				c.readSocket(c.feedback[i-len(c.sockets)], i-len(c.sockets))
			}
		}
	}
	if c.aside.change(c.now, c.Received-before, !media && len(ready) > 0) {
		for i, s := range c.feedback {
			if err := c.poller.Watch(s, len(c.sockets)+i, !c.aside.on); err != nil {
				c.m.log.Warn("reports", "err", err)
			}
		}
	}
}

// readSocket reads and handles what waits at one socket, a few batches at most. at is the index of its address.
func (c *core) readSocket(s *udp.Socket, at int) {
	for range readRounds {
		n, err := c.reader.Read(s, at)
		if err != nil || n == 0 {
			return // an error is a pending one of some send; the next read clears it
		}
		c.Batches++
		c.Received += uint64(n)
		c.batch.Arrival, c.received = c.now, c.now
		pprof.SetGoroutineLabels(receiving)
		for at := 0; at < n; {
			at = c.deliver(at)
		}
		c.lastPeer = nil
		if c.settle() && c.m.cfg.OnDelay != nil {
			c.m.cfg.OnDelay(time.Since(c.looked))
		}
		c.batch.Release()
		if n < packet.BatchSize {
			return
		}
	}
}

// deliver handles the batch from position at on and returns where to go on: the end, or behind a packet whose
// conference panicked.
func (c *core) deliver(at int) (next int) {
	defer func() {
		if v := recover(); v != nil {
			c.crashed(c.current, v)
			next = c.at + 1
		}
		c.current = nil
	}()
	for c.at = at; c.at < c.batch.N; c.at++ {
		b := &c.batch.Bufs[c.at]
		c.ReceivedBytes += uint64(len(b.Data))
		p := c.route(b)
		switch {
		case p == nil:
		case p.core == c:
			c.current = p.room
			p.receive(b, c.now)
		default:
			c.handOver(p.core, p, b)
		}
	}
	return c.batch.N
}

// stray finds out whether media from an unknown address is of a peer whose address has changed (a NAT that gave it another
// port), by its SSRC. Only what authenticates counts, and only so many are tried.
func (c *core) stray(b *packet.Buf) {
	if b.Data[0]>>6 != 2 || len(b.Data) < 12 {
		c.Unrouted++
		return
	}
	if !c.limiter.allow(b.Path, c.now) {
		c.Limited++
		return
	}
	if c.adopt(b) {
		return
	}
	c.Unrouted++
	for _, other := range c.m.cores {
		if other != c {
			c.handOver(other, nil, b)
		}
	}
}

// adopt gives a stray packet to its peer, if that is on this core.
func (c *core) adopt(b *packet.Buf) bool {
	ssrc := binary.BigEndian.Uint32(b.Data[8:])
	if pt := b.Data[1] & 0x7f; pt >= 64 && pt < 96 { // RTCP
		ssrc = binary.BigEndian.Uint32(b.Data[4:])
	}
	for p := range c.peers {
		if p.t.Sends(ssrc) {
			c.current = p.room
			p.receive(b, c.now)
			if p.t.Knows(b.Path) {
				p.routed(b.Path, false)
				p.tick(c.now)
			}
			return true
		}
	}
	return false
}

// route finds whom b is for, or counts why nobody gets it.
func (c *core) route(b *packet.Buf) *peer {
	if len(b.Data) == 0 {
		c.Oversized++
		return nil
	}
	if b.Data[0] < 4 { // STUN (RFC 7983 §7)
		p := c.m.routes.stun(b.Data)
		if p == nil {
			c.alive(b)
			return nil
		}
		if c.m.routes.path(b.Path) != p && !c.limiter.allow(b.Path, c.now) {
			c.Limited++
			return nil
		}
		return p
	}
	if c.lastPeer != nil && c.lastPath == b.Path {
		return c.lastPeer
	}
	p := c.m.routes.path(b.Path)
	if p == nil {
		c.stray(b)
		return nil
	}
	c.lastPath, c.lastPeer = b.Path, p
	return p
}

// alive answers who asks whether there is anybody, as shards do, and counts STUN for peers that are not here.
func (c *core) alive(b *packet.Buf) {
	if c.limiter.allow(b.Path, c.now) {
		if answer, ok := ice.AppendAlive(c.out.Reserve(ice.AliveBytes), b.Data, b.Path.Remote); ok {
			c.out.Commit(b.Path, answer)
			return
		}
	}
	c.UnknownSTUN++
}

// handOver copies b into the ring of another core; with p nil nobody knows whose it is. A full ring drops the newest: that
// core is late already.
func (c *core) handOver(to *core, p *peer, b *packet.Buf) {
	r := to.rings[c.index].Load()
	if r == nil {
		r = new(ring)
		to.rings[c.index].Store(r)
	}
	if !r.push(p, b) {
		c.RingFull++
		return
	}
	c.HandedOver++
	c.pushed[to.index] = true
}

// readRings handles what other cores have handed over.
func (c *core) readRings() {
	for i := range c.rings {
		r := c.rings[i].Load()
		if r == nil {
			continue
		}
		for range ringRounds {
			n := min(r.waiting(), packet.BatchSize)
			if n == 0 {
				break
			}
			for at := 0; at < n; {
				at = c.deliverRing(r, at, n)
			}
			c.settle()
			r.advance(n)
		}
		c.more = c.more || r.waiting() > 0
	}
}

func (c *core) deliverRing(r *ring, at, n int) (next int) {
	defer func() {
		if v := recover(); v != nil {
			c.crashed(c.current, v)
			next = c.at + 1
		}
		c.current = nil
	}()
	for c.at = at; c.at < n; c.at++ {
		s := r.peek(c.at)
		if s.peer == nil {
			c.adopt(&s.buf)
			continue
		}
		c.current = s.peer.room
		s.peer.receive(&s.buf, c.now)
	}
	return n
}

// touch notes that h has packets to fan out.
func (c *core) touch(h *hosted, now time.Time) {
	if h != nil && !h.touched {
		h.touched = true
		c.touched = append(c.touched, h)
	}
}

// settle ends a batch: the conferences that it touched fan out, and the outbox is sent. It reports whether there was
// anything to fan out.
func (c *core) settle() (fanned bool) {
	fanned = len(c.touched) > 0
	pprof.SetGoroutineLabels(projecting)
	for len(c.touched) > 0 {
		last := len(c.touched) - 1
		h := c.touched[last]
		c.touched[last] = nil // the array outlives the conference
		c.touched = c.touched[:last]
		h.touched = false
		c.flushRoom(h)
		if due := c.now.Add(busyTick); due.Before(h.due) {
			h.due = due
			c.wakeAt(due)
		}
	}
	c.flush()
	return fanned
}

func (c *core) flushRoom(h *hosted) {
	defer func() {
		if v := recover(); v != nil {
			c.crashed(h, v)
		}
	}()
	h.room.Flush(c.now)
}

func (c *core) flush() {
	if c.out.Len() > 0 {
		pprof.SetGoroutineLabels(sending)
		c.sender.Flush(&c.out, c.sockets)
		pprof.SetGoroutineLabels(projecting)
	}
}

func (c *core) wakeAt(t time.Time) {
	if t.Before(c.next) {
		c.next = t
	}
}

// timers ticks what is due, and finds out when the next is.
func (c *core) timers() {
	due := c.now.Add(slack)
	if c.next.After(due) {
		return
	}
	pprof.SetGoroutineLabels(ticking)
	c.next = c.now.Add(idleSleep)
	for _, h := range c.rooms {
		if !h.due.After(due) {
			c.tickRoom(h)
			if !h.due.After(c.now) {
				h.due = c.now.Add(slack)
			}
		}
		c.wakeAt(h.due)
	}
	for p := range c.peers {
		if !p.due.After(due) {
			p.due = p.t.Tick(c.now)
			if !p.due.After(c.now) {
				p.due = c.now.Add(slack)
			}
		}
		c.wakeAt(p.due)
	}
}

func (c *core) tickRoom(h *hosted) {
	defer func() {
		if v := recover(); v != nil {
			c.crashed(h, v)
		}
	}()
	h.due = h.room.Tick(c.now)
}

// A letter is work for a core; room is nil when it is not that of one conference.
type letter struct {
	room room
	f    func(now time.Time)
}

// A mailbox is an unbounded queue into a core: what comes in is bounded by those who post, which are
// requests of signaling and transports, never packets.
type mailbox struct {
	wake func() // called with mu held, so that none comes after close

	mu     sync.Mutex
	in     []letter
	closed bool
	count  atomic.Int64

	out  []letter // the reader's
	next int
}

func (b *mailbox) post(l letter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.in = append(b.in, l)
	b.count.Add(1)
	b.wake()
	return true
}

func (b *mailbox) take() (letter, bool) {
	if b.next == len(b.out) {
		if b.count.Load() == 0 {
			return letter{}, false
		}
		clear(b.out)
		b.mu.Lock()
		b.in, b.out = b.out[:0], b.in
		b.mu.Unlock()
		b.next = 0
	}
	l := b.out[b.next]
	b.out[b.next] = letter{}
	b.next++
	b.count.Add(-1)
	return l, true
}

func (b *mailbox) empty() bool { return b.count.Load() == 0 }

func (b *mailbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
}

// A ring carries packets from one core to one other without a lock.
type ring struct {
	head  atomic.Uint64 // written by the filling core
	_     [56]byte      // the two are written by different processors
	tail  atomic.Uint64 // written by the emptying core
	slots [ringSlots]slot
}

type slot struct {
	peer *peer
	buf  packet.Buf
}

func (r *ring) push(p *peer, b *packet.Buf) bool {
	head := r.head.Load()
	if head-r.tail.Load() == ringSlots {
		return false
	}
	s := &r.slots[head%ringSlots]
	s.peer = p
	s.buf.Path = b.Path
	s.buf.Data = s.buf.Space()[:copy(s.buf.Space(), b.Data)]
	r.head.Store(head + 1)
	return true
}

func (r *ring) waiting() int { return int(r.head.Load() - r.tail.Load()) }

// peek is the i-th packet that waits; it stays until advance.
func (r *ring) peek(i int) *slot { return &r.slots[(r.tail.Load()+uint64(i))%ringSlots] }

func (r *ring) advance(n int) {
	tail := r.tail.Load()
	for i := range uint64(n) {
		s := &r.slots[(tail+i)%ringSlots]
		s.peer = nil
		packet.Scribble(s.buf.Space())
	}
	r.tail.Store(tail + uint64(n))
}
