// Package rooms says who owns a room. A room opens only on the shard that holds its lease, and the
// token of the lease grows with every owner, so that whatever an earlier owner still does can be told
// from the present one's. Memory is for one machine, where nobody else can own anything; Consul is for a
// cluster (docs/design/05-ownership.md). Both keep the same contract.
package rooms

import (
	"context"
	"errors"
	"sync"

	"plenum/wire/jid"
)

// A Lease is the right to keep a room open.
type Lease struct {
	Token   uint64          // fencing token; larger than that of every earlier lease of the room
	Meeting string          // what the room is called on bridges, handed on from owner to owner; empty: choose one
	Reason  Reason          // why this shard and no other, for people who trace a room
	Lost    <-chan struct{} // closed when the right has ended without Release; nil if that cannot happen

	of      *Consul // nil: cannot be lost
	holding *holding
}

// Held reports whether what the room says may be written. It is asked for each stanza: the right may have ended
// while this process did not run, and Lost is heard of only later.
func (l Lease) Held() bool { return l.of == nil || l.of.power(l.holding) >= Keep }

// Admits reports whether somebody new may come into the room.
func (l Lease) Admits() bool { return l.of == nil || l.of.power(l.holding) == Serve }

// Owned reports whether there are other shards, so that the token means something to bridges.
func (l Lease) Owned() bool { return l.of != nil }

// Fence returns the token at present: a lease that was lost and taken again has a new one.
func (l Lease) Fence() uint64 {
	if l.holding == nil {
		return l.Token
	}
	return l.holding.token.Load()
}

// A Reason tells why a shard owns a room.
type Reason string

// The reasons.
const (
	Single   Reason = "single shard"                   // on one machine: there is no other
	First    Reason = "first socket came here"         // nobody had it
	Takeover Reason = "its owner is gone"              // a record without a lock
	Adopted  Reason = "this shard had it"              // before a restart
	Homeless Reason = "no leader: by hash over shards" // token 0
)

var (
	// ErrHeld is returned by Acquire for a room that this owner has open already.
	ErrHeld = errors.New("room is held")
	// ErrElsewhere is returned by Acquire for a room that another shard has, or should have.
	ErrElsewhere = errors.New("room is on another shard")
	// ErrIsolated is returned while nobody can say who owns a room: those that are open are kept, none opens.
	ErrIsolated = errors.New("nobody knows who owns the room")
	// ErrNobody is returned by Find for a room that no shard has.
	ErrNobody = errors.New("nobody has the room")
)

// An Owner gives out leases. Its methods may be called from any goroutine.
type Owner interface {
	// Acquire takes the lease of a room, waiting for it at most as long as ctx lives.
	Acquire(ctx context.Context, room jid.JID) (Lease, error)
	// Release gives it back; a token that is not that of the lease changes nothing.
	Release(room jid.JID, token uint64)
}

// Memory is the Owner of a single shard. The zero value is ready to use.
type Memory struct {
	mu    sync.Mutex
	last  uint64
	rooms map[jid.JID]uint64
}

// Acquire takes the lease of a room. It does not block, and fails only for a room that is held.
func (m *Memory) Acquire(ctx context.Context, room jid.JID) (Lease, error) {
	if err := ctx.Err(); err != nil {
		return Lease{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, held := m.rooms[room]; held {
		return Lease{}, ErrHeld
	}
	if m.rooms == nil {
		m.rooms = make(map[jid.JID]uint64)
	}
	m.last++
	m.rooms[room] = m.last
	return Lease{Token: m.last, Reason: Single}, nil
}

// Release gives a lease back.
func (m *Memory) Release(room jid.JID, token uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rooms[room] == token {
		delete(m.rooms, room)
	}
}
