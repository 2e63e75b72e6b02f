package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/nomad/api"
)

// How a drain ends otherwise than with nobody left. The command line has an exit status for each.
var (
	ErrCancelled = errors.New("the drain was taken back")
	ErrForced    = errors.New("stopped with people on it, for the time was over")
	ErrUnstable  = errors.New("it ended by itself in the middle of the drain")
)

// A Drain empties an instance.
type Drain struct {
	// Deadline ends the drain. Zero: none.
	Deadline time.Duration
	// Out gets a line whenever something has changed, and every ten seconds.
	Out io.Writer
}

// drainEvery is how often a drain looks.
const drainEvery = 500 * time.Millisecond

// Drain has the instance of a job give up what it has, and waits until it has none left. When ctx ends before, the drain is
// taken back: ErrCancelled. At the deadline it returns ErrForced, and the instance drains on.
func (c *Cluster) Drain(ctx context.Context, job string, d Drain) error {
	i, err := c.one(ctx, job)
	if err != nil {
		return err
	}
	if err := c.signal(ctx, i, "SIGUSR1"); err != nil {
		return err
	}
	begin, start := time.Now(), i.Load
	var end <-chan time.Time
	if d.Deadline > 0 {
		t := time.NewTimer(d.Deadline)
		defer t.Stop()
		end = t.C
	}
	last, told := Load{Rooms: -1}, time.Time{}
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		m, err := scrape(ctx, i.Metrics)
		now := time.Now()
		l := loadOf(m)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if now, err := c.one(ctx, job); err != nil || now.Alloc != i.Alloc || now.alloc.TaskStates[i.task].Restarts != i.alloc.TaskStates[i.task].Restarts {
				return fmt.Errorf("%s: %w", job, ErrUnstable)
			}
		case l != last || now.Sub(told) > 10*time.Second:
			last, told = l, now
			fmt.Fprintf(d.Out, "%s: %s in %s left%s\n", job, count(l.People, "person", "people"), count(l.Rooms, "room", "rooms"), eta(start, l, now.Sub(begin)))
		}
		if err == nil && l.Drain == "drained" {
			fmt.Fprintf(d.Out, "%s: drained, after %v\n", job, now.Sub(begin).Round(100*time.Millisecond))
			return nil
		}
		select {
		case <-ctx.Done():
			again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if err := c.signal(again, i, "SIGUSR2"); err != nil {
				return fmt.Errorf("%s drains on: %w", job, err)
			}
			fmt.Fprintf(d.Out, "%s: in service again, with %s\n", job, count(last.Rooms, "room", "rooms"))
			return fmt.Errorf("%s: %w", job, ErrCancelled)
		case <-end:
			return fmt.Errorf("%s: %w: %s in %s", job, ErrForced, count(last.People, "person", "people"), count(last.Rooms, "room", "rooms"))
		case <-tick.C:
		}
	}
}

// Undrain takes a drain back, one that is over too: the instance is in service again.
func (c *Cluster) Undrain(ctx context.Context, job string) error {
	i, err := c.one(ctx, job)
	if err != nil {
		return err
	}
	return c.signal(ctx, i, "SIGUSR2")
}

// eta is how long the rest takes if it goes on as it has begun.
func eta(start, now Load, took time.Duration) string {
	gone := start.Rooms - now.Rooms
	if gone <= 0 || now.Rooms == 0 {
		return ""
	}
	return fmt.Sprintf(", about %v more", (took * time.Duration(now.Rooms) / time.Duration(gone)).Round(time.Second))
}

// one is the only instance of a job.
func (c *Cluster) one(ctx context.Context, job string) (Instance, error) {
	all, err := c.instances(ctx, job)
	if err != nil {
		return Instance{}, err
	}
	if len(all) == 0 {
		return Instance{}, fmt.Errorf("%s does not run", job)
	}
	return all[0], nil
}

func (c *Cluster) signal(ctx context.Context, i Instance, sig string) error {
	err := c.Nomad.Allocations().Signal(i.alloc, (&api.QueryOptions{}).WithContext(ctx), i.task, sig)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", i.Job, sig, err)
	}
	return nil
}

// Remove drains a job, stops it, and takes it out of Nomad. At the deadline it is stopped with whoever is on it: ErrForced.
// One that does not run is removed at once. Park leaves the job there, to be woken.
func (c *Cluster) Remove(ctx context.Context, job string, d Drain, park bool) error {
	w := (&api.WriteOptions{}).WithContext(ctx)
	i, err := c.one(ctx, job)
	var forced error
	if err == nil && i.Why == "" {
		if forced = c.Drain(ctx, job, d); forced != nil && !errors.Is(forced, ErrForced) && !errors.Is(forced, ErrUnstable) {
			return forced
		}
	}
	if _, _, err := c.Nomad.Jobs().Deregister(job, !park, w); err != nil {
		return fmt.Errorf("%s: %w", job, err)
	}
	if forced != nil && i.alloc != nil { // it would wait for its people until the job's own deadline
		if err := c.signal(ctx, i, "SIGTERM"); err != nil {
			return errors.Join(forced, err)
		}
	}
	if !park {
		if _, err := c.Nomad.ACLPolicies().Delete("plenum-"+job, w); err != nil && !missing(err) {
			return fmt.Errorf("policy of %s: %w", job, err)
		}
	}
	return forced
}

// missing reports whether there is nothing to delete, or no ACLs at all.
func missing(err error) bool {
	var r api.UnexpectedResponseError
	return errors.As(err, &r) && (r.StatusCode() == 404 || r.StatusCode() == 400 || r.StatusCode() == 401)
}

// Wake starts a parked job again as it was.
func (c *Cluster) Wake(ctx context.Context, kind, name string) (Instance, error) {
	id := kind + "-" + name
	job, _, err := c.Nomad.Jobs().Info(id, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return Instance{}, fmt.Errorf("%s: %w", id, err)
	}
	run := false
	job.Stop = &run
	if _, _, err := c.Nomad.Jobs().Register(job, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return Instance{}, fmt.Errorf("%s: %w", id, err)
	}
	return c.awaitRunning(ctx, Spec{Kind: kind, Name: name})
}
