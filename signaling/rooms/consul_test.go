package rooms

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"plenum/overlay/netlab/stack"
	"plenum/wire/jid"
)

var _ Owner = (*Consul)(nil)

func room(name string) jid.JID { return jid.MustParse(name + "@conference.meet.local") }

// A weather makes a shard's way to Consul fail.
type weather struct {
	*store
	mu   sync.Mutex
	away error // of every request
	says []say // instead of the servers'
}

func (w *weather) set(away error, says ...say) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away, w.says = away, says
}

func (w *weather) now() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away
}

func (w *weather) Open(ctx context.Context, name string, ttl time.Duration) (string, error) {
	if err := w.now(); err != nil {
		return "", err
	}
	return w.store.Open(ctx, name, ttl)
}

func (w *weather) Renew(ctx context.Context, id string) error {
	if err := w.now(); err != nil {
		return err
	}
	return w.store.Renew(ctx, id)
}

func (w *weather) Leaders(ctx context.Context) []say {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.says != nil {
		return w.says
	}
	return w.store.Leaders(ctx)
}

func (w *weather) Read(ctx context.Context, room string) (Entry, error) {
	if err := w.now(); err != nil {
		return Entry{}, err
	}
	return w.store.Read(ctx, room)
}

func (w *weather) Lock(ctx context.Context, room, session string, r Record) (uint64, error) {
	if err := w.now(); err != nil {
		return 0, err
	}
	return w.store.Lock(ctx, room, session, r)
}

// A clock is what the shards of a test believe; Consul has its own.
type clock struct {
	mu   sync.Mutex
	skip boottime
}

func (c *clock) now() boottime {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bootNow() + c.skip
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skip += d
}

// shardAt is a shard whose time and whose way to Consul a test controls; its steps are the test's too.
func shardAt(t *testing.T, consul *stack.Server, name string, change ...func(*ConsulConfig)) (*Consul, *weather, *clock) {
	t.Helper()
	cfg := ConsulConfig{Agent: consul.URL(), Self: Shard{name, name + ".test:8000"}, Key: []byte("secret"), TTL: 5 * time.Second}
	s, err := newStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w, k := &weather{store: s}, new(clock)
	cfg.sessions, cfg.records, cfg.survey, cfg.now = w, w, s, k.now
	for _, f := range change {
		f(&cfg)
	}
	c, err := NewConsul(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, w, k
}

// acquire takes a room, waiting until its owner's session has expired; meanwhile may be nil.
func acquire(t *testing.T, c *Consul, r jid.JID, meanwhile ...*Consul) Lease {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		l, err := c.Acquire(ctx, r)
		switch {
		case err == nil:
			return l
		case !errors.Is(err, ErrElsewhere):
			t.Fatalf("%s: %v", c.cfg.Self.Name, err)
		}
		for _, x := range append(meanwhile, c) {
			x.step(ctx)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func isLost(l Lease) bool {
	select {
	case <-l.Lost:
		return true
	default:
		return false
	}
}

// TestConsul is the life of leases on the real Consul.
func TestConsul(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"),
			goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
	})
	consul := stack.Consul(t)

	t.Run("one owner", func(t *testing.T) {
		a, _, _ := shardAt(t, consul, "a")
		b, _, _ := shardAt(t, consul, "b")
		l := acquire(t, a, room("one"))
		if !l.Held() || !l.Admits() || l.Token == 0 || l.Reason != First || l.Meeting == "" {
			t.Errorf("%+v", l)
		}
		if _, err := b.Acquire(t.Context(), room("one")); !errors.Is(err, ErrElsewhere) {
			t.Errorf("b: %v", err)
		}
		if at, err := b.Find(t.Context(), room("one"), true); err != nil || at != a.cfg.Self {
			t.Errorf("b finds it at %v, %v", at, err)
		}
		if at, err := a.Find(t.Context(), room("one"), false); err != nil || at != (Shard{Name: "a"}) {
			t.Errorf("a finds it at %v, %v", at, err)
		}
		if _, err := a.Acquire(t.Context(), room("one")); !errors.Is(err, ErrHeld) {
			t.Errorf("twice: %v", err)
		}
		if _, err := b.Find(t.Context(), room("two"), false); !errors.Is(err, ErrNobody) {
			t.Errorf("nobody's: %v", err)
		}
		a.Release(room("one"), l.Token+1) // not that
		if _, err := b.Acquire(t.Context(), room("one")); !errors.Is(err, ErrElsewhere) {
			t.Errorf("a wrong token released it: %v", err)
		}
		a.Release(room("one"), l.Token)
		l2 := acquire(t, b, room("one"))
		if l2.Token <= l.Token || l2.Meeting == l.Meeting || l2.Reason != First {
			t.Errorf("%+v after %+v", l2, l)
		}
		b.Move(room("one"), l2.Token)
		l3 := acquire(t, a, room("one"))
		if l3.Token <= l2.Token || l3.Meeting != l2.Meeting || l3.Reason != Takeover {
			t.Errorf("moved: %+v after %+v", l3, l2)
		}
	})

	t.Run("taken for a socket, and not opened", func(t *testing.T) {
		a, _, k := shardAt(t, consul, "a")
		b, _, _ := shardAt(t, consul, "b")
		if at, err := a.Find(t.Context(), room("empty"), true); err != nil || at.Addr != "" {
			t.Fatal(at, err)
		}
		if at, _ := b.Find(t.Context(), room("empty"), true); at.Name != "a" {
			t.Fatal(at)
		}
		k.pass(unusedAfter)
		a.publish(a.right.Load().renewed(k.now(), k.now())) // it was renewed all the time
		a.mu.Lock()
		for _, h := range a.rooms {
			h.life = a.right.Load().life
		}
		a.mu.Unlock()
		a.giveUnused(t.Context(), unusedAfter)
		if _, err := b.Find(t.Context(), room("empty"), false); err != nil && !errors.Is(err, ErrNobody) || a.Rooms() != 0 {
			t.Errorf("%v, %d rooms", err, a.Rooms())
		}
	})

	t.Run("frozen", func(t *testing.T) {
		t.Parallel()
		a, _, k := shardAt(t, consul, "a")
		b, _, _ := shardAt(t, consul, "b")
		l, alive := acquire(t, a, room("frozen")), a.Alive()
		began := time.Now()
		l2 := acquire(t, b, room("frozen")) // waits for the session to expire
		t.Logf("another shard has the room after %v", time.Since(began).Round(time.Millisecond))
		if l2.Token <= l.Token || l2.Meeting != l.Meeting || l2.Reason != Takeover {
			t.Errorf("%+v after %+v", l2, l)
		}
		if l.Held() || a.Alive() != 0 {
			t.Error("it still writes") // before it has done anything
		}
		k.pass(0)
		a.step(t.Context())
		if l.Held() || !isLost(l) || a.Alive() == alive || a.Alive() == 0 {
			t.Errorf("after it has a session again: held %v, lost %v, life %d after %d", l.Held(), isLost(l), a.Alive(), alive)
		}
	})

	t.Run("restarted", func(t *testing.T) {
		state := filepath.Join(t.TempDir(), "state")
		keep := func(c *ConsulConfig) { c.State = state }
		a, _, _ := shardAt(t, consul, "a", keep)
		l := acquire(t, a, room("restarted"))
		if _, err := NewConsul(t.Context(), ConsulConfig{Agent: consul.URL(), Self: a.cfg.Self, Key: []byte("secret"), State: state}); err == nil {
			t.Fatal("two processes of one shard")
		}
		a.state.close() // as a process that is killed does
		again, _, _ := shardAt(t, consul, "a", keep, func(c *ConsulConfig) { c.Self.Addr = "elsewhere.test:8000" })
		b, _, _ := shardAt(t, consul, "b")
		if at, err := b.Find(t.Context(), room("restarted"), true); err != nil || at != again.cfg.Self {
			t.Errorf("b finds it at %v, %v", at, err)
		}
		if l2 := acquire(t, again, room("restarted")); l2.Token <= l.Token || l2.Meeting != l.Meeting || l2.Reason != Adopted {
			t.Errorf("%+v after %+v", l2, l)
		}
	})

	t.Run("cut off", func(t *testing.T) {
		a, w, k := shardAt(t, consul, "a")
		l := acquire(t, a, room("cutoff"))
		w.set(errors.New("no way"), leads, silent, silent)
		a.step(t.Context())
		if !l.Held() || !l.Admits() {
			t.Error("its lease runs")
		}
		k.pass(5 * time.Second)
		if l.Held() {
			t.Error("it is over")
		}
		a.step(t.Context())
		if !isLost(l) {
			t.Error("and nobody heard")
		}
		if _, err := a.Find(t.Context(), room("other"), true); !errors.Is(err, ErrIsolated) {
			t.Errorf("a room to who is cut off: %v", err)
		}
	})

	t.Run("isolated", func(t *testing.T) {
		t.Parallel()
		registry := prometheus.NewRegistry()
		a, w, k := shardAt(t, consul, "a", func(c *ConsulConfig) { c.Metrics = registry })
		b, _, _ := shardAt(t, consul, "b")
		shown := func() (rooms float64, age map[string]float64) {
			all, err := registry.Gather()
			if err != nil {
				t.Error(err)
			}
			age = map[string]float64{}
			for _, f := range all {
				switch m := f.GetMetric(); f.GetName() {
				case "plenum_shard_split_rooms":
					rooms = m[0].GetGauge().GetValue()
				case "plenum_shard_split_age_seconds":
					for _, m := range m {
						age[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
			return rooms, age
		}
		kept, split := acquire(t, a, room("kept")), acquire(t, a, room("given"))
		w.set(errors.New("no way"), silent, without, silent)
		for range 8 {
			k.pass(2 * time.Second)
			a.step(t.Context())
		}
		if !kept.Held() || kept.Admits() {
			t.Errorf("held %v, admits %v", kept.Held(), kept.Admits())
		}
		if _, err := a.Find(t.Context(), room("new"), true); !errors.Is(err, ErrIsolated) {
			t.Errorf("a new room: %v", err)
		}
		taken := acquire(t, b, room("given"), a) // its session has expired meanwhile
		if n, age := shown(); n != 0 || len(age) != 0 {
			t.Errorf("%v rooms are split, %v, and nobody can know", n, age)
		}
		began := time.Now()
		w.set(nil)
		a.step(t.Context())
		if n, age := shown(); n != 1 || len(age) != 1 || age[a.LogName(room("given"))] < 11 { // eight times 2 s, less the lease
			t.Errorf("%v rooms were split, %v", n, age)
		}
		a.step(t.Context())
		if a.unsure != 0 {
			t.Error("a has its lease, and is unsure")
		}
		if !kept.Held() || !kept.Admits() || isLost(kept) || kept.Fence() <= kept.Token {
			t.Errorf("what nobody took is lost: held %v, admits %v", kept.Held(), kept.Admits())
		}
		if split.Held() || !isLost(split) || !taken.Held() {
			t.Error("split")
		}
		t.Logf("merged after %v", time.Since(began).Round(time.Millisecond))
	})

	t.Run("without a leader", func(t *testing.T) {
		home := func(r jid.JID, _ bool) (Shard, bool) {
			if r == room("ours") {
				return Shard{"a", "a.test:8000"}, true
			}
			return Shard{"b", "b.test:8000"}, true
		}
		a, w, k := shardAt(t, consul, "a", func(c *ConsulConfig) { c.Home = home })
		b, _, _ := shardAt(t, consul, "b")
		old := acquire(t, a, room("old"))
		w.set(errors.New("no leader"), without, refused, silent)
		a.step(t.Context())
		if _, err := a.Find(t.Context(), room("ours"), true); err == nil {
			t.Error("an election is not the end of the world")
		}
		for range 8 {
			k.pass(2 * time.Second)
			a.step(t.Context())
		}
		if !old.Held() || !old.Admits() {
			t.Error("a room was not kept")
		}
		ours := acquire(t, a, room("ours"))
		if ours.Token != 0 || ours.Reason != Homeless || !ours.Admits() {
			t.Errorf("%+v", ours)
		}
		if at, err := a.Find(t.Context(), room("theirs"), true); err != nil || at.Name != "b" {
			t.Errorf("theirs: %v, %v", at, err)
		}
		theirs := acquire(t, b, room("ours2"))
		w.set(nil)
		a.step(t.Context())
		if !ours.Held() || ours.Fence() == 0 || !old.Held() || !theirs.Held() {
			t.Errorf("back: ours %v (token %d), old %v", ours.Held(), ours.Fence(), old.Held())
		}
	})

	t.Run("swept", func(t *testing.T) {
		a, w, _ := shardAt(t, consul, "a")
		l, kept := acquire(t, a, room("left")), acquire(t, a, room("inuse"))
		a.Move(room("left"), l.Token)
		var seen map[string]uint64
		for i, there := range []bool{true, true, false} { // as it is, seen once, seen twice
			if e, err := w.Read(t.Context(), a.Key(room("left"))); err != nil || e.Exists != there {
				t.Errorf("%d: %+v, %v", i, e, err)
			}
			var err error
			if seen, err = w.Sweep(t.Context(), seen); err != nil {
				t.Fatal(err)
			}
		}
		if e, _ := w.Read(t.Context(), a.Key(room("inuse"))); e.Session == "" || !kept.Held() {
			t.Errorf("%+v", e)
		}
	})

	t.Run("pinned", func(t *testing.T) {
		wanted := func(_ jid.JID, pin string) (Shard, bool) { return Shard{pin, pin + ".test:8000"}, pin != "" }
		a, w, _ := shardAt(t, consul, "a", func(c *ConsulConfig) { c.Wanted = wanted })
		if err := w.Pin(t.Context(), a.Key(room("pinned")), "b"); err != nil {
			t.Fatal(err)
		}
		if at, err := a.Find(t.Context(), room("pinned"), true); err != nil || at.Name != "b" {
			t.Errorf("%v, %v", at, err)
		}
		if err := w.Pin(t.Context(), a.Key(room("pinned")), ""); err != nil {
			t.Fatal(err)
		}
		if at, err := a.Find(t.Context(), room("pinned"), true); err != nil || at.Name != "a" {
			t.Errorf("%v, %v", at, err)
		}
	})
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		says []say
		want verdict
	}{
		{nil, isolated},
		{[]say{silent}, isolated},
		{[]say{refused, refused, refused}, isolated}, // nobody reachable at all
		{[]say{without}, leaderless},
		{[]say{without, silent, silent}, isolated}, // the other two may have a leader
		{[]say{without, refused, silent}, leaderless},
		{[]say{without, without, silent}, leaderless},
		{[]say{leads, without, without}, cutOff},
	} {
		for range 3 { // order means nothing
			if got := judge(c.says); got != c.want {
				t.Errorf("%v: %d, want %d", c.says, got, c.want)
			}
			if len(c.says) > 1 {
				c.says = append(c.says[1:], c.says[0])
			}
		}
	}

}
