package rooms

import (
	"context"
	"errors"
	"testing"

	"plenum/wire/jid"
)

var _ Owner = (*Memory)(nil)

func TestMemory(t *testing.T) {
	var m Memory
	room, ctx := jid.MustParse("golden@conference.meet.local"), context.Background()
	first, err := m.Acquire(ctx, room)
	if err != nil || first.Token == 0 || first.Reason != Single {
		t.Fatalf("first lease %+v, %v", first, err)
	}
	if _, err := m.Acquire(ctx, room); !errors.Is(err, ErrHeld) {
		t.Fatalf("second lease of an open room: %v", err)
	}
	if _, err := m.Acquire(ctx, jid.MustParse("other@conference.meet.local")); err != nil {
		t.Fatal(err)
	}
	m.Release(room, first.Token)
	second, err := m.Acquire(ctx, room)
	if err != nil || second.Token <= first.Token {
		t.Fatalf("token does not grow: %d then %d (%v)", first.Token, second.Token, err)
	}
	m.Release(room, first.Token) // too late: the room has a new owner
	if _, err := m.Acquire(ctx, room); !errors.Is(err, ErrHeld) {
		t.Fatalf("an old token released the room: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := m.Acquire(gone, room); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
}
