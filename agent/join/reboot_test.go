package join

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// reboot has two hosts ask to reboot: one at a time does, without tasks, and gets them again afterwards.
func (l *lab) reboot(t *testing.T, sh1, b1 keyring) {
	ctx := t.Context()
	eligible := func() string { return l.nodes("sh1")[0].SchedulingEligibility }
	if got, err := l.client(sh1).Reboot(ctx, request("sh1", sh1)); err != nil || len(got.Tasks) > 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if eligible() != "ineligible" {
		t.Error("a host that reboots may get tasks")
	}
	_, err := l.client(b1).Reboot(ctx, request("b1", b1))
	wantRefusal(t, "a second host", ReasonBusy, err)
	if !Temporary(err) {
		t.Error("who has to wait is told that it never may")
	}
	thief := newKeys(t)
	_, err = l.client(thief).Reboot(ctx, request("sh1", thief))
	wantRefusal(t, "by another's key", ReasonSignature, err)
	wantRefusal(t, "back by another's key", ReasonSignature, l.client(thief).Back(ctx, request("sh1", thief)))
	if err := l.client(b1).Back(ctx, request("b1", b1)); err != nil {
		t.Error(err)
	}
	_, err = l.client(b1).Reboot(ctx, request("b1", b1))
	wantRefusal(t, "a second host that gave back what it had not", ReasonBusy, err)
	forced := request("b1", b1)
	forced.Force = true
	if _, err := l.client(b1).Reboot(ctx, forced); err != nil {
		t.Errorf("a machine that goes down whoever else does: %v", err)
	}
	if err := l.client(b1).Back(ctx, request("b1", b1)); err != nil {
		t.Error(err)
	}
	if _, err := l.client(sh1).Reboot(ctx, request("sh1", sh1)); err != nil {
		t.Error(err)
	}
	if err := l.client(sh1).Back(ctx, request("sh1", sh1)); err != nil {
		t.Fatal(err)
	}
	l.eventually("it takes tasks again", func() error {
		if e := eligible(); e != "eligible" {
			return errors.New(e)
		}
		return nil
	})
	if _, err := l.client(b1).Reboot(ctx, request("b1", b1)); err != nil {
		t.Errorf("the next one: %v", err)
	}
	// One that never comes back keeps the others for a while only.
	st, _, err := l.service.store(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := update(ctx, st, rebootKey, func(r *rebooting, exists bool) error {
		if !exists || r.Host != "b1" {
			return fmt.Errorf("the turn is %+v", *r)
		}
		r.Seen = r.Seen.Add(-rebootLimit - time.Second)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.client(sh1).Reboot(ctx, request("sh1", sh1)); err != nil {
		t.Errorf("after one that did not come back: %v", err)
	}
	if err := l.client(sh1).Back(ctx, request("sh1", sh1)); err != nil {
		t.Error(err)
	}
	if n := len(l.audited(func(e Event) bool {
		return e.What == "reboot" && e.Host == "b1" && e.Admin == "ada" && e.Reason == ReasonBusy
	})); n != 2 {
		t.Errorf("%d audit lines of a host that had to wait", n)
	}
	if _, err := l.client(l.first).Reboot(ctx, request("s1", l.first)); err != nil {
		t.Errorf("the only server, which is back soon: %v", err)
	}
	if err := l.client(l.first).Back(ctx, request("s1", l.first)); err != nil {
		t.Error(err)
	}
}
