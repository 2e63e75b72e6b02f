// Package rooms says who owns a room. A room opens only on the shard that holds its lease, and the
// token of the lease grows with every owner, so that whatever an earlier owner still does can be told
// from the present one's. Memory is for one machine, where nobody else can own anything; it keeps the
// same contract, so that a cluster changes nothing for its users.
package rooms

import (
	"context"
	"errors"
	"sync"

	"plenum/wire/jid"
)

// A Lease is the right to keep a room open.
type Lease struct {
	Token  uint64          // fencing token; larger than that of every earlier lease of the room
	Reason Reason          // why this shard and no other, for people who trace a room
	Lost   <-chan struct{} // closed when the right has ended without Release; nil if that cannot happen
}

// A Reason tells why a shard owns a room.
type Reason string

// Single is the reason on one machine: there is no other shard.
const Single Reason = "single shard"

// ErrHeld is returned by Acquire for a room that this owner has open already.
var ErrHeld = errors.New("room is held")

// An Owner gives out leases. Its methods may be called from any goroutine.
type Owner interface {
	// Acquire takes the lease of a room, waiting for it at most as long as ctx lives.
	Acquire(ctx context.Context, room jid.JID) (Lease, error)
	// Release gives it back; a token that is not the present one changes nothing.
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
