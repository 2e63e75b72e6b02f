package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"plenum/wire/jid"
)

// Where Consul keeps rooms and pins.
const (
	roomsPrefix = "plenum/rooms/"
	pinsPrefix  = "plenum/pins/"
)

// lockDelay is how long nobody gets a lock whose session ended unasked: longer than a stanza takes that was on
// its way when the lease ended. Session and lease keep a TTL apart besides.
const lockDelay = 2 * time.Second

// A store is Consul. Its token comes from the environment (CONSUL_HTTP_TOKEN).
type store struct {
	agent   *api.Client
	servers []*api.Client
}

func newStore(cfg ConsulConfig) (*store, error) {
	client := func(url string) (*api.Client, error) {
		c := api.DefaultConfig()
		c.Address = url
		client, err := api.NewClient(c)
		if err != nil {
			return nil, fmt.Errorf("consul %s: %w", url, err)
		}
		return client, nil
	}
	s := &store{}
	var err error
	if s.agent, err = client(cfg.Agent); err != nil {
		return nil, err
	}
	for _, url := range cfg.Servers {
		c, err := client(url)
		if err != nil {
			return nil, err
		}
		s.servers = append(s.servers, c)
	}
	if len(s.servers) == 0 {
		s.servers = []*api.Client{s.agent}
	}
	return s, nil
}

func write(ctx context.Context) *api.WriteOptions { return new(api.WriteOptions).WithContext(ctx) }
func query(ctx context.Context) *api.QueryOptions { return new(api.QueryOptions).WithContext(ctx) }

// Open makes a session without health checks: its time alone ends it, so that nothing is quicker than the lease.
func (s *store) Open(ctx context.Context, name string, ttl time.Duration) (string, error) {
	id, _, err := s.agent.Session().CreateNoChecks(&api.SessionEntry{
		Name: "plenum shard " + name, TTL: ttl.String(), LockDelay: lockDelay, Behavior: api.SessionBehaviorRelease,
	}, write(ctx))
	if err != nil && strings.Contains(err.Error(), "Session TTL") {
		return "", fmt.Errorf("%w as %v: set session_ttl_min = \"5s\" on its servers, or --lease 10s here: %w", errTTL, ttl, err)
	}
	return id, err
}

func (s *store) Renew(ctx context.Context, id string) error {
	entry, _, err := s.agent.Session().Renew(id, write(ctx))
	if err != nil || entry != nil {
		return err
	}
	// Who has just become leader says so of sessions that it has still to read about in its log.
	q := query(ctx)
	q.RequireConsistent = true
	switch entry, _, err = s.agent.Session().Info(id, q); {
	case err != nil:
		return err
	case entry != nil:
		return errNotYet
	}
	return ErrNoSession
}

var errNotYet = errors.New("the leader did not know the session yet")

func (s *store) Close(ctx context.Context, id string) error {
	_, err := s.agent.Session().Destroy(id, write(ctx))
	return err
}

func (s *store) Leaders(ctx context.Context) []say {
	says := make([]say, len(s.servers))
	var wg sync.WaitGroup
	for i, c := range s.servers {
		wg.Go(func() {
			leader, err := c.Status().LeaderWithQueryOptions(query(ctx))
			switch {
			case err == nil && leader != "":
				says[i] = leads
			case err == nil:
				says[i] = without
			case errors.Is(err, syscall.ECONNREFUSED):
				says[i] = refused
			}
		})
	}
	wg.Wait()
	return says
}

// Read asks for room and pin at once.
func (s *store) Read(ctx context.Context, room string) (Entry, error) {
	ok, answer, _, err := s.agent.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: roomsPrefix + room}},
		{KV: &api.KVTxnOp{Verb: api.KVGetOrEmpty, Key: pinsPrefix + room}},
	}, query(ctx))
	if err == nil && (!ok || len(answer.Results) != 2) {
		err = txnError(answer)
	}
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	if kv := answer.Results[0].KV; kv != nil && kv.ModifyIndex != 0 {
		e.Exists, e.Session = true, kv.Session
		if err := json.Unmarshal(kv.Value, &e.Record); err != nil {
			e.Record = Record{} // whoever wrote that; a lock on it counts nevertheless
		}
	}
	if kv := answer.Results[1].KV; kv != nil {
		e.Pin = string(kv.Value)
	}
	return e, nil
}

func (s *store) Lock(ctx context.Context, room, session string, r Record) (uint64, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	ok, answer, _, err := s.agent.Txn().Txn(api.TxnOps{
		{KV: &api.KVTxnOp{Verb: api.KVLock, Key: roomsPrefix + room, Session: session, Value: value}},
	}, query(ctx))
	switch {
	case err != nil:
		return 0, err
	case !ok || len(answer.Results) != 1:
		return 0, fmt.Errorf("%w: %w", ErrLocked, txnError(answer))
	}
	return answer.Results[0].KV.ModifyIndex, nil
}

func (s *store) Unlock(ctx context.Context, room, session string, keep bool) error {
	key := roomsPrefix + room
	ops := api.TxnOps{{KV: &api.KVTxnOp{Verb: api.KVCheckSession, Key: key, Session: session}}}
	if keep {
		// The value has to be given again.
		kv, _, err := s.agent.KV().Get(key, query(ctx))
		if err != nil || kv == nil {
			return err
		}
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVUnlock, Key: key, Session: session, Value: kv.Value}})
	} else {
		ops = append(ops, &api.TxnOp{KV: &api.KVTxnOp{Verb: api.KVDelete, Key: key}})
	}
	ok, answer, _, err := s.agent.Txn().Txn(ops, query(ctx))
	if err != nil || ok {
		return err
	}
	// Not ours any more is as good as given back.
	_ = answer
	return nil
}

func (s *store) Locked(ctx context.Context, session string) (map[string]Record, error) {
	all, _, err := s.agent.KV().List(roomsPrefix, query(ctx))
	if err != nil {
		return nil, err
	}
	ours := map[string]Record{}
	for _, kv := range all {
		var r Record
		if kv.Session == session && json.Unmarshal(kv.Value, &r) == nil {
			ours[strings.TrimPrefix(kv.Key, roomsPrefix)] = r
		}
	}
	return ours, nil
}

func (s *store) Sweep(ctx context.Context, before map[string]uint64) (map[string]uint64, error) {
	all, _, err := s.agent.KV().List(roomsPrefix, query(ctx))
	if err != nil {
		return nil, err
	}
	unlocked := map[string]uint64{}
	for _, kv := range all {
		switch {
		case kv.Session != "":
		case before[kv.Key] == kv.ModifyIndex:
			if _, _, err := s.agent.KV().DeleteCAS(kv, write(ctx)); err != nil {
				return unlocked, err
			}
		default:
			unlocked[kv.Key] = kv.ModifyIndex
		}
	}
	return unlocked, nil
}

// Pin is Ledger.Pin for a room's key.
func (s *store) Pin(ctx context.Context, room, shard string) error {
	if shard == "" {
		_, err := s.agent.KV().Delete(pinsPrefix+room, write(ctx))
		return err
	}
	_, err := s.agent.KV().Put(&api.KVPair{Key: pinsPrefix + room, Value: []byte(shard)}, write(ctx))
	return err
}

func txnError(answer *api.TxnResponse) error {
	if answer == nil || len(answer.Errors) == 0 {
		return errors.New("consul: transaction refused")
	}
	return errors.New("consul: " + answer.Errors[0].What)
}

// A Ledger is what operators see and change of ownership in Consul, without being a shard.
type Ledger struct {
	store *store
	key   []byte
}

// OpenLedger reaches Consul by an agent's URL; key is the cluster's.
func OpenLedger(agent string, key []byte) (*Ledger, error) {
	s, err := newStore(ConsulConfig{Agent: agent})
	if err != nil {
		return nil, err
	}
	return &Ledger{s, key}, nil
}

// Entry returns what Consul says about a room.
func (l *Ledger) Entry(ctx context.Context, room jid.JID) (Entry, error) {
	return l.store.Read(ctx, Key(l.key, room))
}

// Pin makes a room open on a shard the next time that nobody has it; an empty shard takes that back.
func (l *Ledger) Pin(ctx context.Context, room jid.JID, shard string) error {
	return l.store.Pin(ctx, Key(l.key, room), shard)
}

// An Owned room is one that a shard has. Consul does not know its name.
type Owned struct {
	Key   string `json:"room"` // Key of its address
	Shard string `json:"shard,omitempty"`
	Held  bool   `json:"held"` // by a session; otherwise it waits for its next owner
	Pin   string `json:"pin,omitempty"`
	Token uint64 `json:"token,omitempty"`
}

// Rooms lists all rooms and pins, by key.
func (l *Ledger) Rooms(ctx context.Context) ([]Owned, error) {
	by := map[string]*Owned{}
	at := func(key string) *Owned {
		if by[key] == nil {
			by[key] = &Owned{Key: key}
		}
		return by[key]
	}
	for _, prefix := range []string{roomsPrefix, pinsPrefix} {
		all, _, err := l.store.agent.KV().List(prefix, query(ctx))
		if err != nil {
			return nil, err
		}
		for _, kv := range all {
			o := at(strings.TrimPrefix(kv.Key, prefix))
			if prefix == pinsPrefix {
				o.Pin = string(kv.Value)
				continue
			}
			var r Record
			if json.Unmarshal(kv.Value, &r) == nil {
				o.Shard = r.Name
			}
			o.Held, o.Token = kv.Session != "", kv.ModifyIndex
		}
	}
	return slices.SortedFunc(func(yield func(Owned) bool) {
		for _, o := range by {
			if !yield(*o) {
				return
			}
		}
	}, func(a, b Owned) int { return strings.Compare(a.Key, b.Key) }), nil
}
