package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
)

// A Plan is what submitting a job would do.
type Plan struct {
	Spec    Spec
	Changes []string // what differs from what runs, one a line; empty: nothing
	New     bool
	Stops   int      // instances that end, to be started anew or not
	Harm    Load     // who is on those
	Unknown []string // instances that end, and do not say who is on them
	Blocked []string // why Nomad finds no place for it; empty: it does

	job   *api.Job
	index uint64
}

// ErrNoPlace is returned when a job has nowhere to run.
var ErrNoPlace = errors.New("no host can take it")

// ErrHurts is returned for a change that ends what people are on.
var ErrHurts = errors.New("this change starts it anew under its people")

// Plan asks Nomad, and the instances that would end whom they serve.
func (c *Cluster) Plan(ctx context.Context, s Spec) (*Plan, error) {
	job, err := c.job(s)
	if err != nil {
		return nil, err
	}
	r, _, err := c.Nomad.Jobs().PlanOpts(job, &api.PlanOptions{Diff: true}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.ID(), err)
	}
	p := &Plan{Spec: s, job: job, index: r.JobModifyIndex, New: r.JobModifyIndex == 0}
	if r.Diff != nil && !p.New {
		p.Changes = changes(r.Diff)
	}
	if r.Annotations != nil {
		for _, u := range r.Annotations.DesiredTGUpdates {
			p.Stops += int(u.Stop + u.Migrate + u.DestructiveUpdate)
		}
	}
	for _, m := range r.FailedTGAllocs {
		p.Blocked = append(p.Blocked, why(m)...)
	}
	slices.Sort(p.Blocked)
	if p.Stops > 0 {
		all, err := c.instances(ctx, s.ID())
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			p.Harm = p.Harm.plus(i.Load)
			if i.mute {
				p.Unknown = append(p.Unknown, i.Host)
			}
		}
	}
	return p, nil
}

// why says in words what kept a job from being placed.
func why(m *api.AllocationMetric) (all []string) {
	for what, n := range m.ConstraintFiltered {
		all = append(all, fmt.Sprintf("%d of %d nodes do not have %s", n, m.NodesEvaluated, what))
	}
	for what, n := range m.DimensionExhausted {
		all = append(all, fmt.Sprintf("on %d nodes there is none left of %s", n, what))
	}
	if len(all) == 0 {
		all = append(all, fmt.Sprintf("none of %d nodes is in its pools and datacenters", m.NodesEvaluated))
	}
	return all
}

// changes lists the fields that differ.
func changes(d *api.JobDiff) (all []string) {
	fields := func(at string, list []*api.FieldDiff) {
		for _, f := range list {
			if f.Type != "None" {
				all = append(all, fmt.Sprintf("%s%s: %s → %s", at, f.Name, short(f.Old), short(f.New)))
			}
		}
	}
	var objects func(at string, list []*api.ObjectDiff)
	objects = func(at string, list []*api.ObjectDiff) {
		for _, o := range list {
			if o.Type != "None" {
				fields(at+o.Name+".", o.Fields)
				objects(at+o.Name+".", o.Objects)
			}
		}
	}
	fields("", d.Fields)
	objects("", d.Objects)
	for _, g := range d.TaskGroups {
		if g.Type == "None" {
			continue
		}
		fields("", g.Fields)
		objects("", g.Objects)
		for _, t := range g.Tasks {
			if t.Type != "None" {
				fields(t.Name+".", t.Fields)
				objects(t.Name+".", t.Objects)
			}
		}
	}
	return all
}

func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "nothing"
	}
	if r := []rune(s); len(r) > 60 {
		return string(r[:59]) + "…"
	}
	return s
}

// hurts reports whether somebody is on what ends, as far as anybody knows.
func (p *Plan) hurts() bool {
	return p.Stops > 0 && (p.Spec.Kind == Edge || p.Harm.People+p.Harm.Rooms+len(p.Unknown) > 0)
}

func (p *Plan) verdict() string {
	switch {
	case p.Spec.Kind == Edge:
		return "one after the other; the people of each come back by the others, or when it is up"
	case len(p.Unknown) > 0:
		return "who is on it nobody knows, for it does not answer on " + strings.Join(p.Unknown, ", ")
	}
	return p.Harm.verdict()
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return !p.New && len(p.Changes) == 0 }

// Print says what it does and whom it hurts.
func (p *Plan) Print(w io.Writer) {
	switch {
	case p.Empty():
		fmt.Fprintf(w, "%s is as it should be\n", p.Spec.ID())
		return
	case p.New:
		fmt.Fprintf(w, "%s: new; nobody notices\n", p.Spec.ID())
	case p.Stops == 0:
		fmt.Fprintf(w, "%s: changed in place; nobody notices\n", p.Spec.ID())
	default:
		fmt.Fprintf(w, "%s: started anew; %s\n", p.Spec.ID(), p.verdict())
	}
	for _, c := range p.Changes {
		fmt.Fprintf(w, "  %s\n", c)
	}
	for _, b := range p.Blocked {
		fmt.Fprintf(w, "  %v: %s\n", ErrNoPlace, b)
	}
}

// Submit does what was planned, unless somebody else has changed the job since, and waits until it runs.
func (c *Cluster) Submit(ctx context.Context, p *Plan) (Instance, error) {
	if len(p.Blocked) > 0 {
		return Instance{}, fmt.Errorf("%s: %w: %s", p.Spec.ID(), ErrNoPlace, strings.Join(p.Blocked, "; "))
	}
	if err := c.allow(ctx, p.Spec); err != nil {
		return Instance{}, err
	}
	if !p.Empty() {
		source, err := p.Spec.Source()
		if err != nil {
			return Instance{}, err
		}
		o := &api.RegisterOptions{EnforceIndex: true, ModifyIndex: p.index,
			Submission: &api.JobSubmission{Source: source, Format: "hcl2", Variables: p.Spec.Variables()}}
		if _, _, err := c.Nomad.Jobs().RegisterOpts(p.job, o, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			return Instance{}, fmt.Errorf("%s: %w", p.Spec.ID(), err)
		}
	}
	return c.awaitRunning(ctx, p.Spec)
}

// awaitRunning waits until every instance of a job answers.
func (c *Cluster) awaitRunning(ctx context.Context, s Spec) (Instance, error) {
	last := "it has no place yet"
	for {
		all, err := c.instances(ctx, s.ID())
		if err != nil {
			return Instance{}, err
		}
		up := len(all) > 0
		for _, i := range all {
			if i.Why != "" {
				up, last = false, i.Host+": "+i.Why
			}
		}
		if up {
			return all[0], nil
		}
		select {
		case <-ctx.Done():
			return Instance{}, fmt.Errorf("%s is submitted, but does not serve yet: %s", s.ID(), last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
