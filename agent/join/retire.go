package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// A Leaving is how far a host is that takes leave.
type Leaving struct {
	Tasks []string `json:"tasks,omitempty"` // that run on it yet
	Node  string   `json:"node,omitempty"`  // Nomad's id of it
}

// retire has Nomad move the host's tasks away. A server is asked here already whether it can be missed, and takes no
// part in the servers' votes when its tasks have gone. It may be asked again and again.
func (s *Service) retire(ctx context.Context, q Request, e *Event) (any, error) {
	st, c, h, err := s.member(ctx, q, e)
	if err == nil {
		err = s.missable(ctx, st, h, false)
	}
	if err != nil {
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
	if len(l.Tasks) == 0 {
		err = s.unvote(ctx, st, c, h)
	}
	return l, err
}

// longest is how long a drain waits for the last call.
const longest = 24 * time.Hour

// drain begins to drain the nodes of a host, and says what runs there yet.
func drain(ctx context.Context, c *nomad.Client, host string) (l Leaving, err error) {
	q := (&nomad.QueryOptions{}).WithContext(ctx)
	nodes, _, err := c.Nodes().List(q)
	if err != nil {
		return l, fmt.Errorf("nomad: %w", err)
	}
	for _, n := range nodes {
		if n.Name != host || n.Status == nomad.NodeStatusDown {
			continue
		}
		l.Node = n.ID
		allocs, _, err := c.Nodes().Allocations(n.ID, q)
		if err != nil {
			return l, fmt.Errorf("nomad: %w", err)
		}
		for _, a := range allocs {
			if a.ClientStatus == nomad.AllocClientStatusRunning || a.ClientStatus == nomad.AllocClientStatusPending {
				l.Tasks = append(l.Tasks, a.Name)
			}
		}
		if !n.Drain && (n.SchedulingEligibility == nomad.NodeSchedulingEligible || len(l.Tasks) > 0) {
			if _, err := c.Nodes().UpdateDrainOpts(n.ID, &nomad.DrainOptions{DrainSpec: &nomad.DrainSpec{Deadline: longest}}, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
				return l, fmt.Errorf("nomad: %w", err)
			}
		}
	}
	return l, nil
}

// missable refuses to let a server go without which the others have no majority; the only server may go if it is back
// soon.
func (s *Service) missable(ctx context.Context, st store, h hostState, soon bool) error {
	if !h.is(RoleServer) {
		return nil
	}
	health, err := st.client.Operator().AutopilotServerHealth((&api.QueryOptions{}).WithContext(ctx))
	if err != nil && (health == nil || len(health.Servers) == 0) {
		return consulError(err)
	}
	votes, healthy, part := 0, 0, false
	for _, v := range health.Servers {
		switch {
		case !v.Voter:
		case v.Name == h.Host:
			part = true
		default:
			votes++
			if v.Healthy {
				healthy++
			}
		}
	}
	if part && votes == 0 && soon {
		return nil
	}
	if part && votes == 0 {
		return Refusal{ReasonBad, h.Host + " is the only server: without it there is no cluster. Join another first (plenum token create --roles server)"}
	}
	if part && healthy <= votes/2 {
		return Refusal{ReasonBad, fmt.Sprintf("without %s %d of %d servers would be left, which is no majority: join another server first (plenum token create --roles server), or revoke those that are gone", h.Host, healthy, votes)}
	}
	return nil
}

// unvote takes a server out of the votes of Consul, Nomad and Vault, where it has one.
func (s *Service) unvote(ctx context.Context, st store, c common, h hostState) error {
	if !h.is(RoleServer) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var all []error
	peers, err := st.client.Operator().RaftGetConfiguration((&api.QueryOptions{}).WithContext(ctx))
	if err == nil {
		for _, p := range peers.Servers {
			if p.Node == h.Host {
				err = errors.Join(err, st.client.Operator().RaftRemovePeerByID(p.ID, (&api.WriteOptions{}).WithContext(ctx)))
			}
		}
	}
	all = append(all, consulError(err))
	if client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name); err != nil {
		all = append(all, err)
	} else {
		all = append(all, nomadUnvote(ctx, client, h.Host+"."+c.Name))
	}
	// Vault may be sealed: tidy does it later.
	all = append(all, s.cfg.Vault.RemovePeer(ctx, h.Host))
	return errors.Join(all...)
}

func nomadUnvote(ctx context.Context, c *nomad.Client, member string) error {
	peers, err := c.Operator().RaftGetConfiguration((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	if i := slices.IndexFunc(peers.Servers, func(p *nomad.RaftServer) bool { return p.Node == member }); i >= 0 {
		if err := c.Operator().RaftRemovePeerByID(peers.Servers[i].ID, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	return nil
}

// nomadForget has Nomad's servers take one that is gone for one that has left.
func nomadForget(c *nomad.Client, member string) error {
	err := c.Agent().ForceLeave(member)
	if err != nil && strings.Contains(err.Error(), "not found") {
		return nil
	}
	return err
}
