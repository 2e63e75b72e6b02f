package signaling

import (
	"cmp"
	"context"
	"slices"
	"time"

	"plenum/wire/jid"
)

// A mover is an Owner in a cluster: it gives rooms to others.
type mover interface {
	// Drain makes it take no more rooms, or takes that back. It reports whether others can take them.
	Drain(on bool) bool
	// Move gives a room up, for another shard to have.
	Move(room jid.JID, token uint64)
}

// movePace is how long a room that moves keeps the next one waiting, for each of its people: they all log in
// and join again, and should not have to queue.
const movePace = 10 * time.Millisecond

// moveAll moves the rooms, the small ones first: most are done soon, and all with the least harm.
func (h *hall) moveAll(ctx context.Context) {
	h.mu.Lock()
	var all []*actor
	for j, a := range h.rooms {
		if !h.isInternal(j) {
			all = append(all, a)
		}
	}
	h.mu.Unlock()
	slices.SortFunc(all, func(a, b *actor) int { return cmp.Compare(a.people.Load(), b.people.Load()) })
	for _, a := range all {
		pause := time.NewTimer(movePace * time.Duration(1+a.people.Load()))
		if a.box.control(func(time.Time) { a.moving, a.over = true, true }) {
			select {
			case <-a.done:
			case <-ctx.Done():
			}
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// admit takes new rooms again, unless the hall has ended.
func (h *hall) admit() {
	h.mu.Lock()
	h.draining = false
	h.mu.Unlock()
	if m, ok := h.cfg.Owner.(mover); ok {
		m.Drain(false)
	}
}
