package agent

import (
	"context"
	"fmt"
	"time"

	"plenum/agent/join"
)

// clockEvery is how often a host compares its clock with a join service's.
const clockEvery = 5 * time.Minute

// clock compares this host's clock with the cluster's, whichever service answers first. The error is a clock that is too
// wrong: certificates of others are not valid by it, or ours by theirs. A service that does not answer tells nothing.
func (l *loop) clock(ctx context.Context) error {
	if now := time.Now(); now.Before(l.clockNext) {
		return l.clockErr
	}
	l.clockNext = time.Now().Add(clockEvery)
	c, _, err := l.work.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	before := time.Now()
	ch, err := c.Challenge(ctx)
	if err != nil {
		return l.clockErr
	}
	offset := l.o.Now().Sub(ch.Time) - time.Since(before)/2
	l.offset = offset
	l.metrics.clock.Set(offset.Seconds())
	l.clockErr = nil
	if offset.Abs() > join.MaxSkew {
		l.clockErr = fmt.Errorf("this host's clock is %s off the cluster's (theirs is %s): set it, timedatectl set-ntp true", offset.Round(time.Second), ch.Time.Format(time.RFC3339))
		l.clockNext = time.Now().Add(clockEvery / 10) // tells sooner that it was put right
	}
	return l.clockErr
}

// now is the cluster's time as far as this host knows: by its own clock, however wrong, certificates would be renewed at
// every look or too late.
func (l *loop) now() time.Time { return l.o.Now().Add(-l.offset) }

// wallClock is the host's clock, which tests set wrong.
var wallClock = time.Now
