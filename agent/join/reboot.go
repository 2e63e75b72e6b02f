package join

import (
	"context"
	"fmt"
	"time"

	nomad "github.com/hashicorp/nomad/api"
)

// A rebooting is the host that may reboot now. There is one at a time, so that no two regions or servers are away at once.
type rebooting struct {
	Host string    `json:"host"`
	Seen time.Time `json:"seen"` // asked last
}

const rebootKey = privatePrefix + "reboot"

// rebootLimit is how long a host that does not ask any more may be away before another one may reboot.
const rebootLimit = 15 * time.Minute

// reboot lets one host of the cluster have its tasks moved away for a reboot, and tells what runs there yet. It may be
// asked again and again. With force it waits for nobody: the machine goes down as it is.
func (s *Service) reboot(ctx context.Context, q Request, e *Event) (any, error) {
	st, c, h, err := s.member(ctx, q, e)
	if err != nil {
		return nil, err
	}
	if !q.Force {
		if err := s.missable(ctx, st, h, true); err != nil {
			return nil, err
		}
	}
	now := s.cfg.Now().UTC()
	if _, err := update(ctx, st, rebootKey, func(r *rebooting, exists bool) error {
		if exists && r.Host != h.Host && now.Sub(r.Seen) < rebootLimit && !q.Force {
			return Refusal{ReasonBusy, fmt.Sprintf("%s reboots, since %s: one host at a time", r.Host, r.Seen.Format(time.TimeOnly))}
		}
		*r = rebooting{h.Host, now}
		return nil
	}); err != nil {
		return nil, err
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err != nil {
		return nil, err
	}
	l, err := drain(ctx, client, h.Host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoQuorum, err)
	}
	return l, nil
}

// back gives a host tasks again, and lets another one reboot.
func (s *Service) back(ctx context.Context, q Request, e *Event) (any, error) {
	st, c, h, err := s.member(ctx, q, e)
	if err != nil {
		return nil, err
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err != nil {
		return nil, err
	}
	nodes, _, err := client.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("%w: nomad: %w", errNoQuorum, err)
	}
	for _, n := range nodes {
		if n.Name != h.Host || n.ID != h.Node && h.Node != "" {
			continue
		}
		if _, err := client.Nodes().UpdateDrainOpts(n.ID, &nomad.DrainOptions{MarkEligible: true}, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("%w: nomad: %w", errNoQuorum, err)
		}
	}
	var r rebooting
	if index, err := st.get(ctx, rebootKey, &r); err != nil || index == 0 || r.Host != h.Host {
		return struct{}{}, err
	} else if err := st.deleteAt(ctx, rebootKey, index); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

// member is the host that asks, if it is one.
func (s *Service) member(ctx context.Context, q Request, e *Event) (st store, c common, h hostState, err error) {
	if st, c, err = s.store(ctx); err != nil {
		return st, c, h, err
	}
	index, err := st.get(ctx, statesPrefix+q.Host, &h)
	if err == nil {
		err = known(&h, index != 0, q)
	}
	e.Admin = h.Admin
	return st, c, h, err
}
