package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// How a drain ends otherwise than with nobody left. The command line has an exit status for each.
var (
	ErrCancelled = errors.New("the drain was taken back")
	ErrForced    = errors.New("stopped with people on it, for the time was over")
	ErrUnstable  = errors.New("it ended by itself in the middle of the drain")
	ErrLast      = errors.New("no other shard is in service")
)

// A Drain empties an instance.
type Drain struct {
	// Deadline ends the drain. Zero: none.
	Deadline time.Duration
	// Force drains a shard although no other one is there to take its rooms: they stay until their people leave.
	Force bool
	// Out gets a line whenever something has changed, and every ten seconds.
	Out io.Writer
}

// drainEvery is how often a drain looks.
const drainEvery = 500 * time.Millisecond

// Drain has the instance of a job give up what it has, and waits until it has none left. When ctx ends before, the drain is
// taken back: ErrCancelled. At the deadline it returns ErrForced, and the instance drains on. The last shard in service is
// not drained, and a drain is taken back that makes one the last, as when two begin at once: ErrLast.
func (c *Cluster) Drain(ctx context.Context, job string, d Drain) error {
	i, err := c.one(ctx, job)
	if err != nil {
		return err
	}
	if err := c.last(ctx, job, i.Load, d); err != nil {
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
	tick, look := time.NewTicker(drainEvery), time.NewTicker(lookEvery)
	defer tick.Stop()
	defer look.Stop()
	back := func(why error) error {
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := c.signal(again, i, "SIGUSR2"); err != nil {
			return fmt.Errorf("%s drains on: %w", job, err)
		}
		fmt.Fprintf(d.Out, "%s: in service again, with %s\n", job, count(last.Rooms, "room", "rooms"))
		return fmt.Errorf("%s: %w", job, why)
	}
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
			if err := c.last(ctx, job, last, d); errors.Is(err, ErrLast) { // it was quick, and not the only one to begin
				return back(fmt.Errorf("%w: %w", ErrCancelled, ErrLast))
			}
			fmt.Fprintf(d.Out, "%s: drained, after %v\n", job, now.Sub(begin).Round(100*time.Millisecond))
			return nil
		}
		select {
		case <-ctx.Done():
			return back(ErrCancelled)
		case <-look.C:
			if err := c.last(ctx, job, last, d); errors.Is(err, ErrLast) {
				return back(fmt.Errorf("%w: %w", ErrCancelled, ErrLast))
			}
		case <-end:
			return fmt.Errorf("%s: %w: %s in %s", job, ErrForced, count(last.People, "person", "people"), count(last.Rooms, "room", "rooms"))
		case <-tick.C:
		}
	}
}

// lookEvery is how often a drain looks for the other shards.
const lookEvery = 2 * time.Second

// last returns ErrLast when no other shard is there for what a shard has.
func (c *Cluster) last(ctx context.Context, job string, l Load, d Drain) error {
	if d.Force || !strings.HasPrefix(job, Shard+"-") {
		return nil
	}
	all, err := c.List(ctx, Shard)
	if err != nil {
		return err
	}
	var beside []string
	for _, i := range all {
		switch {
		case i.Job == job:
		case i.Why != "":
			beside = append(beside, i.Name+": "+i.Why)
		case i.Load.Drain != "":
			beside = append(beside, i.Name+" is "+i.Load.Drain)
		default:
			return nil
		}
	}
	why := "there is none"
	if len(beside) > 0 {
		why = strings.Join(beside, ", ")
	}
	return fmt.Errorf("%s: %w (%s), so nobody takes its %s with %s, and no room opens anywhere: plenum shard add another first, or --force",
		job, ErrLast, why, count(l.Rooms, "room", "rooms"), count(l.People, "person", "people"))
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
