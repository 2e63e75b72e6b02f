package rooms

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"plenum/wire/jid"
)

// A Shard is one that owns rooms, as others find it.
type Shard struct {
	Name string `json:"shard"`
	Addr string `json:"addr"` // HOST:PORT of its HTTP on the control network
}

// A Record is what Consul keeps of a room.
type Record struct {
	Shard
	Meeting string `json:"meeting"` // what the room is called on bridges
}

// An Entry is what Consul says about a room.
type Entry struct {
	Record  Record
	Exists  bool
	Session string // that holds the lock; empty: nobody
	Pin     string // the shard that the room is to be on; empty: any
}

// sessions is what a shard needs of Consul to be somebody.
type sessions interface {
	// Open makes a session.
	Open(ctx context.Context, name string, ttl time.Duration) (id string, err error)
	// Renew prolongs it; ErrNoSession says that there is none.
	Renew(ctx context.Context, id string) error
	// Close ends it.
	Close(ctx context.Context, id string) error
	// Leaders asks each server whether there is a leader.
	Leaders(ctx context.Context) []say
}

// records is what rooms need of Consul.
type records interface {
	Read(ctx context.Context, room string) (Entry, error)
	// Lock writes a record under a session's lock and returns the fencing token; ErrLocked: another one has
	// it, or had it a moment ago.
	Lock(ctx context.Context, room, session string, r Record) (token uint64, err error)
	// Unlock gives the lock up; keep leaves the record, for the next owner.
	Unlock(ctx context.Context, room, session string, keep bool) error
}

// survey is what looks at all records at once.
type survey interface {
	// Locked returns the rooms that a session has locked.
	Locked(ctx context.Context, session string) (map[string]Record, error)
	// Sweep removes the records that nobody has locked, and that were so already when before was returned.
	Sweep(ctx context.Context, before map[string]uint64) (unlocked map[string]uint64, err error)
}

var (
	// ErrNoSession says that Consul does not know a session.
	ErrNoSession = errors.New("no such session")
	// ErrLocked says that a room's owner has lost it a moment ago, and that nobody can have it yet.
	ErrLocked = errors.New("room is locked")
	errTTL    = errors.New("consul takes no sessions that short")
)

const (
	// unusedAfter is how long a room is kept that a socket came for and that did not open.
	unusedAfter = 30 * time.Second
	// sweepEvery is how often records are looked for whose rooms no owner has come for.
	sweepEvery = 10 * time.Minute
	// requestTimeout bounds one request about a room.
	requestTimeout = 2 * time.Second
	// lockRetry is the pause before a lock is tried again that somebody has just lost.
	lockRetry = 200 * time.Millisecond
	// reconcilers is how many rooms are looked at at once after a session was lost.
	reconcilers = 16
)

// ConsulConfig says where leases are kept. Agent, Self and Key are required.
type ConsulConfig struct {
	// Agent is the URL of the Consul agent of this host.
	Agent string
	// Servers are URLs of Consul's servers, asked for a leader when the agent cannot renew. Default: the agent.
	Servers []string
	// Self is this shard as others find it.
	Self Shard
	// Key hides room names in Consul; the same in the whole cluster.
	Key []byte
	// TTL is how long a lease lasts without being renewed: 5 s, the least that Consul takes (with
	// session_ttl_min = "5s"; its default is 10 s). A session expires after twice that.
	TTL time.Duration
	// State is a file in which the session outlives this process, so that a restarted one has its rooms at
	// once. Empty: it has to wait for its predecessor's session to expire.
	State string
	// Home says where a room belongs by its name, and whether Self is that place, when there is no owner to ask.
	// except leaves this shard out. ok is false when there is no shard for it.
	Home func(room jid.JID, except bool) (s Shard, ok bool)
	// Wanted says which shard a room's name or its pin forces; ok is false when there is none, or it is not known.
	Wanted func(room jid.JID, pin string) (s Shard, ok bool)

	Metrics prometheus.Registerer // may be nil
	Log     *slog.Logger          // may be nil

	// For tests.
	now      func() boottime
	sessions sessions
	records  records
	survey   survey
}

// Consul is the Owner of a shard in a cluster. Run keeps its session; its other methods may be called from any
// goroutine meanwhile.
type Consul struct {
	cfg      ConsulConfig
	state    *state // nil: none
	right    atomic.Pointer[right]
	draining atomic.Bool
	stripes  [64]sync.Mutex // one request about a room at a time
	seed     maphash.Seed
	metrics  ownerMetrics
	unsure   boottime // since when no lease has said that our rooms are nobody else's; 0: one does. Run's
	names    LogNames

	mu      sync.Mutex
	session string // the id that right.session counts; empty: none yet
	rooms   map[jid.JID]*holding
}

// A holding is a room that this shard has.
type holding struct {
	room    jid.JID
	key     string
	name    string // in logs
	life    uint64
	session atomic.Uint64 // the number of that which locked it; 0: none, opened without a leader
	token   atomic.Uint64
	first   uint64 // the token that Release is called with
	record  Record
	reason  Reason
	lost    chan struct{}

	over atomic.Bool // lost

	// guarded by Consul.mu
	open  bool     // the shard has the room open; otherwise it is kept for who comes
	since boottime // of the last change of open
}

// NewConsul opens a session, or takes over that of a predecessor, and returns when Consul has answered, which it waits
// for as long as ctx lives; a room can be had from then on.
func NewConsul(ctx context.Context, cfg ConsulConfig) (*Consul, error) {
	if cfg.TTL <= 0 {
		cfg.TTL = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = bootNow
	}
	if cfg.Self.Name == "" || cfg.Self.Addr == "" || len(cfg.Key) == 0 {
		return nil, errors.New("rooms: a shard in a cluster needs a name, an address and the cluster's key")
	}
	if cfg.Home == nil {
		cfg.Home = func(jid.JID, bool) (Shard, bool) { return Shard{}, false }
	}
	if cfg.Wanted == nil {
		cfg.Wanted = func(jid.JID, string) (Shard, bool) { return Shard{}, false }
	}
	if cfg.sessions == nil {
		s, err := newStore(cfg)
		if err != nil {
			return nil, err
		}
		cfg.sessions, cfg.records, cfg.survey = s, s, s
	}
	c := &Consul{cfg: cfg, seed: maphash.MakeSeed(), rooms: map[jid.JID]*holding{}}
	c.right.Store(&right{ttl: cfg.TTL, life: 1})
	c.metrics.register(c, cfg.Metrics)
	if cfg.State != "" {
		var err error
		if c.state, err = openState(cfg.State); err != nil {
			return nil, err
		}
	}
	for {
		err := c.begin(ctx)
		if err == nil {
			return c, nil
		}
		wait := time.NewTimer(cfg.TTL / 5)
		if !errors.Is(err, errTTL) {
			cfg.Log.Warn("no session yet: trying again", "consul", cfg.Agent, "err", err)
			select {
			case <-wait.C:
				continue
			case <-ctx.Done():
			}
		}
		wait.Stop()
		c.state.close()
		return nil, err
	}
}

// begin adopts the saved session, or opens one.
func (c *Consul) begin(ctx context.Context) error {
	if id := c.state.session(); id != "" {
		sent := c.cfg.now()
		switch err := c.cfg.sessions.Renew(ctx, id); {
		case err == nil:
			c.session = id
			c.publish(c.right.Load().opened(sent, c.cfg.now()))
			return c.adopt(ctx)
		case !errors.Is(err, ErrNoSession):
			return err
		}
	}
	return c.open(ctx)
}

// adopt tells the others where the rooms are now that this shard had before it was restarted.
func (c *Consul) adopt(ctx context.Context) error {
	had, err := c.cfg.survey.Locked(ctx, c.session)
	if err != nil {
		return err
	}
	if len(had) > 0 {
		c.cfg.Log.Warn("this shard was restarted and has its rooms again", "rooms", len(had))
	}
	return c.each(ctx, len(had), func(yield func(func(context.Context) error)) {
		for key, r := range had {
			if r.Shard != c.cfg.Self {
				r.Shard = c.cfg.Self
				yield(func(ctx context.Context) error {
					_, err := c.cfg.records.Lock(ctx, key, c.session, r)
					return err
				})
			}
		}
	})
}

// each runs jobs, some at a time, and returns the first error.
func (c *Consul) each(ctx context.Context, n int, jobs func(yield func(func(context.Context) error))) error {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	places := make(chan struct{}, reconcilers)
	jobs(func(job func(context.Context) error) {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			if err := job(ctx); err != nil {
				once.Do(func() { first = err })
			}
		})
	})
	wg.Wait()
	return first
}

// open makes a new session.
func (c *Consul) open(ctx context.Context) error {
	sent := c.cfg.now()
	id, err := c.cfg.sessions.Open(ctx, c.cfg.Self.Name, c.cfg.TTL)
	if err != nil {
		return err
	}
	if err := c.state.save(id); err != nil {
		return err
	}
	c.mu.Lock()
	c.session = id
	c.mu.Unlock()
	c.publish(c.right.Load().opened(sent, c.cfg.now()))
	return nil
}

// publish makes a right the one in force and ends the rooms that it does not cover any more.
func (c *Consul) publish(r right) {
	now := c.cfg.now()
	if old := c.right.Swap(&r); old.lease != 0 && old.lease <= now && c.unsure == 0 {
		c.unsure = old.lease
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.rooms {
		if r.power(h.life, h.session.Load(), now) == None {
			c.loseLocked(h, "the lease ran out")
		}
	}
}

func (c *Consul) loseLocked(h *holding, why string) {
	if h.over.Swap(true) {
		return
	}
	if c.rooms[h.room] == h {
		delete(c.rooms, h.room)
	}
	close(h.lost)
	c.metrics.lost.Inc()
	c.cfg.Log.Warn("room lost", "room", h.name, "why", why)
}

// power is what may be done with a room now.
func (c *Consul) power(h *holding) Power {
	if h.over.Load() {
		return None
	}
	return c.right.Load().power(h.life, h.session.Load(), c.cfg.now())
}

// Health returns an error while this shard can take nobody new.
func (c *Consul) Health() error {
	r, now := c.right.Load(), c.cfg.now()
	if r.power(r.life, r.session, now) == Serve {
		return nil
	}
	return ErrIsolated
}

// Alive returns a number that changes when all that this shard promised is void, and 0 while it may say nothing.
// It is asked before each write to a client.
func (c *Consul) Alive() uint64 {
	r, now := c.right.Load(), c.cfg.now()
	if now >= r.lease && now >= r.keep {
		return 0
	}
	return r.life
}

// Run keeps the session until ctx ends, and then gives it back; all rooms should have been released before.
func (c *Consul) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.TTL / 5)
	defer tick.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	var unlocked map[string]uint64
	for {
		select {
		case <-ctx.Done():
			return c.end()
		case <-tick.C:
			c.step(ctx)
		case <-sweep.C:
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			unlocked, _ = c.cfg.survey.Sweep(ctx, unlocked) // what is left over harms nobody
			cancel()
		}
	}
}

func (c *Consul) end() error {
	defer c.state.close()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	c.giveUnused(ctx, 0)
	if err := c.cfg.sessions.Close(ctx, c.session); err != nil {
		c.cfg.Log.Warn("the session is left to expire", "err", err)
		return nil
	}
	return c.state.save("")
}

// step renews the session and acts on what becomes of that.
func (c *Consul) step(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, c.cfg.TTL*3/10)
	sent := c.cfg.now()
	err := c.cfg.sessions.Renew(ask, c.session)
	cancel()
	now := c.cfg.now()
	switch r := *c.right.Load(); {
	case err == nil:
		if !r.leased(now) {
			c.cfg.Log.Warn("the lease is back")
		}
		c.publish(r.renewed(sent, now))
	case errors.Is(err, ErrNoSession):
		c.cfg.Log.Warn("the session is gone")
		c.publish(r.gone(now))
		open, cancel := context.WithTimeout(ctx, c.cfg.TTL*3/10)
		err := c.open(open)
		if cancel(); err != nil {
			c.cfg.Log.Warn("no new session", "err", err)
			return
		}
	case ctx.Err() != nil:
		return
	default:
		ask, cancel := context.WithTimeout(ctx, c.cfg.TTL/5)
		asked := c.cfg.now()
		v := judge(c.cfg.sessions.Leaders(ask))
		cancel()
		if r.leased(now) {
			c.cfg.Log.Warn("the session was not renewed", "err", err, "servers", v)
		}
		c.publish(r.judged(asked, c.cfg.now(), v))
		return
	}
	c.reconcile(ctx)
	c.giveUnused(ctx, unusedAfter)
}

// reconcile locks what is open without a lock of the present session, and ends what somebody else has.
func (c *Consul) reconcile(ctx context.Context) {
	session := c.right.Load().session
	c.mu.Lock()
	id := c.session
	var loose []*holding
	for _, h := range c.rooms {
		if h.session.Load() != session {
			loose = append(loose, h)
		}
	}
	c.mu.Unlock()
	if len(loose) == 0 {
		c.unsure = 0
		return
	}
	var age time.Duration
	if c.unsure != 0 {
		age = c.cfg.now() - c.unsure
	}
	c.cfg.Log.Warn("taking the locks of open rooms again", "rooms", len(loose))
	c.each(ctx, len(loose), func(yield func(func(context.Context) error)) {
		for _, h := range loose {
			yield(func(ctx context.Context) error {
				token, err := c.cfg.records.Lock(ctx, h.key, id, h.record)
				if errors.Is(err, ErrLocked) {
					e, rerr := c.cfg.records.Read(ctx, h.key)
					// Our own former session may have it for a moment more.
					if rerr == nil && e.Session != "" && e.Session != id && e.Record.Shard != c.cfg.Self {
						c.metrics.split.Inc()
						c.metrics.splits.add(h.name, age)
						c.mu.Lock()
						c.loseLocked(h, "it is open on "+e.Record.Shard.Name)
						c.mu.Unlock()
					}
				}
				if err == nil {
					h.token.Store(token)
					h.session.Store(session)
				}
				return err
			})
		}
	})
}

// giveUnused gives rooms back that nobody opened.
func (c *Consul) giveUnused(ctx context.Context, after time.Duration) {
	now := c.cfg.now()
	c.mu.Lock()
	var unused []*holding
	for _, h := range c.rooms {
		if !h.open && now-h.since >= after {
			unused = append(unused, h)
		}
	}
	c.mu.Unlock()
	for _, h := range unused {
		s := c.stripe(h.room)
		s.Lock()
		c.mu.Lock()
		still := c.rooms[h.room] == h && !h.open
		c.mu.Unlock()
		if still {
			c.drop(ctx, h, false)
		}
		s.Unlock()
	}
}

// drop gives a room back to Consul; it stays with us when Consul does not answer. The caller holds its stripe.
func (c *Consul) drop(ctx context.Context, h *holding, keep bool) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c.mu.Lock()
	id := c.session
	c.mu.Unlock()
	if h.session.Load() != 0 {
		if err := c.cfg.records.Unlock(ctx, h.key, id, keep); err != nil {
			c.cfg.Log.Warn("room not given back yet", "room", h.name, "err", err)
			return
		}
	}
	c.mu.Lock()
	if c.rooms[h.room] == h {
		delete(c.rooms, h.room)
	}
	c.mu.Unlock()
}

func (c *Consul) stripe(room jid.JID) *sync.Mutex {
	return &c.stripes[maphash.Comparable(c.seed, room)%uint64(len(c.stripes))]
}

// LogName is what a room is called in logs.
func (c *Consul) LogName(room jid.JID) string { return c.names.Name(room) }

// Key is what a room is called in Consul.
func (c *Consul) Key(room jid.JID) string { return Key(c.cfg.Key, room) }

// Key is what a room is called in Consul: an HMAC, for a plain hash falls to a dictionary.
func Key(key []byte, room jid.JID) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(room.String()))
	return hex.EncodeToString(m.Sum(nil))
}

// mine returns the room if this shard has it and may serve it.
func (c *Consul) mine(room jid.JID) *holding {
	c.mu.Lock()
	h := c.rooms[room]
	c.mu.Unlock()
	if h == nil || c.power(h) == None {
		return nil
	}
	return h
}

// Find says which shard has a room, or is to have it. With take, one that nobody has and that may be here is
// taken for this shard: who asked brings a socket for it. The address is empty for this shard itself.
func (c *Consul) Find(ctx context.Context, room jid.JID, take bool) (Shard, error) {
	if c.mine(room) != nil {
		return Shard{Name: c.cfg.Self.Name}, nil
	}
	s := c.stripe(room)
	s.Lock()
	defer s.Unlock()
	h, at, err := c.take(ctx, room, take)
	if h != nil {
		return Shard{Name: c.cfg.Self.Name}, nil
	}
	return at, err
}

// Acquire takes a room for this shard.
func (c *Consul) Acquire(ctx context.Context, room jid.JID) (Lease, error) {
	s := c.stripe(room)
	for {
		s.Lock()
		h, at, err := c.take(ctx, room, true)
		s.Unlock()
		switch {
		case h != nil:
			c.mu.Lock()
			defer c.mu.Unlock()
			switch {
			case h.over.Load():
				return Lease{}, ErrIsolated
			case h.open:
				return Lease{}, ErrHeld
			}
			h.open, h.since = true, c.cfg.now()
			return Lease{Token: h.first, Meeting: h.record.Meeting, Reason: h.reason, Lost: h.lost, of: c, holding: h}, nil
		case err == nil:
			return Lease{}, fmt.Errorf("%w: %s", ErrElsewhere, at.Name)
		case !errors.Is(err, ErrLocked):
			return Lease{}, err
		}
		select { // somebody lost it a moment ago
		case <-time.After(lockRetry):
		case <-ctx.Done():
			return Lease{}, ctx.Err()
		}
	}
}

// take is the decision: the room is ours (h), or at another shard, or nobody can have it now. The caller holds
// the room's stripe.
func (c *Consul) take(ctx context.Context, room jid.JID, take bool) (h *holding, at Shard, err error) {
	if h := c.mine(room); h != nil {
		return h, at, nil
	}
	r, now := c.right.Load(), c.cfg.now()
	key := c.Key(room)
	switch {
	case r.orphaned(now):
		home, ok := c.cfg.Home(room, false)
		switch {
		case !ok || home.Name == c.cfg.Self.Name:
			return c.enter(&holding{room: room, key: key, life: r.life, record: c.record(Record{}), reason: Homeless}, 0, 0), at, nil
		default:
			return nil, home, nil
		}
	case !r.leased(now):
		return nil, at, ErrIsolated
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	e, err := c.cfg.records.Read(ctx, key)
	if err != nil {
		return nil, at, err
	}
	c.mu.Lock()
	id := c.session
	c.mu.Unlock()
	reason := First
	switch {
	case e.Session == id:
		reason = Adopted
	case e.Session != "":
		return nil, e.Record.Shard, nil
	case e.Exists:
		reason = Takeover
	}
	if e.Session == "" {
		if wanted, ok := c.cfg.Wanted(room, e.Pin); ok && wanted.Name != c.cfg.Self.Name {
			return nil, wanted, nil
		}
		if c.draining.Load() {
			if other, ok := c.cfg.Home(room, true); ok {
				return nil, other, nil
			}
			return nil, at, ErrIsolated
		}
		if !take {
			return nil, at, ErrNobody
		}
	}
	h = &holding{room: room, key: key, life: r.life, record: c.record(e.Record), reason: reason}
	token, err := c.cfg.records.Lock(ctx, key, id, h.record)
	if err != nil {
		return nil, at, err
	}
	return c.enter(h, token, r.session), at, nil
}

// record is ours, of a room that a former owner may have given a name on bridges.
func (c *Consul) record(former Record) Record {
	if former.Meeting == "" {
		var b [16]byte
		rand.Read(b[:]) // never fails
		b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
		former.Meeting = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	former.Shard = c.cfg.Self
	return former
}

func (c *Consul) enter(h *holding, token, session uint64) *holding {
	h.first = token
	h.token.Store(token)
	h.session.Store(session)
	h.lost = make(chan struct{})
	h.name = c.names.Name(h.room)
	h.since = c.cfg.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms[h.room] = h
	if c.power(h) == None { // the lease ended while Consul was asked
		c.loseLocked(h, "the lease ran out")
	}
	return h
}

// Release gives a room back.
func (c *Consul) Release(room jid.JID, token uint64) { c.release(room, token, false) }

func (c *Consul) release(room jid.JID, token uint64, keep bool) {
	s := c.stripe(room)
	s.Lock()
	defer s.Unlock()
	c.mu.Lock()
	h := c.rooms[room]
	if h == nil || h.first != token || !h.open {
		c.mu.Unlock()
		return
	}
	h.open, h.since = false, c.cfg.now()
	c.mu.Unlock()
	c.drop(context.Background(), h, keep)
}

// Move gives a room up for another shard: what it is called on bridges stays.
func (c *Consul) Move(room jid.JID, token uint64) { c.release(room, token, true) }

// Drain makes this shard take no room that nobody has, or takes that back: sockets for such a one are sent
// elsewhere. It reports whether there is another shard.
func (c *Consul) Drain(on bool) bool {
	c.draining.Store(on)
	_, others := c.cfg.Home(jid.JID{}, true)
	return others
}

// Rooms returns how many rooms this shard has.
func (c *Consul) Rooms() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rooms)
}
