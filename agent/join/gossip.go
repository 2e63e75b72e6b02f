package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// A gossip is how far Consul's gossip key is on its way to another. It lies in Consul, so whoever is asked to go on can.
//
//	install Next everywhere → use it everywhere → Key = Next → remove all others everywhere
//
// Everywhere is on every living member. One that is away for a while gets the key with its renewal.
type gossip struct {
	Key  string `json:"key"`            // in use
	Next string `json:"next,omitempty"` // on its way
	Tidy bool   `json:"tidy,omitempty"` // older ones may be known yet
}

const gossipPath = privatePrefix + "gossip"

// currentGossip is the key that a host begins with.
func (s *Service) currentGossip(ctx context.Context, st store, c common) (string, error) {
	var g gossip
	index, err := st.get(ctx, gossipPath, &g)
	if err == nil && index == 0 {
		g.Key = c.Gossip
	}
	return g.Key, err
}

// beginGossip notes that there shall be another key. What is on its way already goes on, unless afresh says that
// somebody who is to be kept out may know it.
func (s *Service) beginGossip(ctx context.Context, st store, c common, afresh bool) error {
	_, err := update(ctx, st, gossipPath, func(g *gossip, exists bool) error {
		if !exists {
			g.Key = c.Gossip
		}
		if g.Next == "" || afresh {
			g.Next = gossipKey()
		}
		return nil
	})
	return err
}

// RotateGossip changes Consul's gossip key. It waits for a while; what is left then is done by watch.
func (s *Service) RotateGossip(ctx context.Context, admin string) error {
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	err = s.beginGossip(ctx, st, c, false)
	if e := s.audit.write(Event{Time: s.cfg.Now(), What: "gossip-rotate", Admin: admin, Reason: s.refusal(err).Reason}); err != nil || e != nil {
		return errors.Join(err, e)
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if err = s.turnGossip(wait, st); err == nil {
			return nil
		}
		select {
		case <-wait.Done():
			return Refusal{ReasonNoQuorum, "the gossip key is not changed everywhere yet, and will be without you: " + err.Error()}
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// turnGossip goes on with the change of the key as far as it can. It returns nil when nothing is left to be done. A key
// is used only when every living member has it, so a change that gets stuck cuts nobody off.
func (s *Service) turnGossip(ctx context.Context, st store) error {
	var g gossip
	index, err := st.get(ctx, gossipPath, &g)
	if err != nil || index == 0 || g.Next == "" && !g.Tidy {
		return err
	}
	living, err := s.living(ctx, st)
	if err != nil {
		return err
	}
	op, w := st.client.Operator(), (&api.WriteOptions{}).WithContext(ctx)
	// reach does something to all members until the list says that all have it.
	reach := func(what string, do func() error, done func(*api.KeyringResponse) bool) error {
		var last error
		for range 2 {
			ring, err := rings(ctx, st.client)
			if err != nil {
				return err
			}
			if done(ring) {
				return nil
			}
			last = do()
		}
		return fmt.Errorf("%s: %w", what, errors.Join(errUneven, last))
	}
	if g.Next != "" {
		if err := reach("install", func() error { return op.KeyringInstall(g.Next, w) },
			func(r *api.KeyringResponse) bool { return r.Keys[g.Next] >= living }); err != nil {
			return err
		}
		if err := reach("use", func() error { return op.KeyringUse(g.Next, w) },
			func(r *api.KeyringResponse) bool { return r.PrimaryKeys[g.Next] >= living }); err != nil {
			return err
		}
		next := g.Next
		if g, err = update(ctx, st, gossipPath, func(now *gossip, _ bool) error {
			if now.Next != next {
				return errRace // another change began; it has its own turn
			}
			*now = gossip{Key: next, Tidy: true}
			return nil
		}); err != nil {
			return err
		}
	}
	if err := reach("remove", func() error {
		ring, err := rings(ctx, st.client)
		for k := range ring.Keys {
			if k != g.Key {
				err = errors.Join(err, op.KeyringRemove(k, w))
			}
		}
		return err
	}, func(r *api.KeyringResponse) bool { return len(r.Keys) == 1 && r.Keys[g.Key] >= living }); err != nil {
		return err
	}
	_, err = update(ctx, st, gossipPath, func(now *gossip, _ bool) error {
		now.Tidy = now.Key != g.Key && now.Tidy
		return nil
	})
	if err == nil {
		s.log.Info("the gossip key is another", "members", living)
	}
	return err
}

// errUneven is a key that not every living member has, or not only those have.
var errUneven = errors.New("not on every living member yet")

// rings is what all members say of their keys; an error where one does not answer.
func rings(ctx context.Context, c *api.Client) (*api.KeyringResponse, error) {
	rings, err := c.Operator().KeyringList((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return &api.KeyringResponse{}, fmt.Errorf("gossip keys: %w", err)
	}
	for _, r := range rings {
		if !r.WAN {
			return r, nil
		}
	}
	return &api.KeyringResponse{}, errors.New("no gossip key")
}

// Serf's words for a member.
const (
	memberAlive   = 1
	memberLeaving = 2
	memberLeft    = 3
)

// living is the number of members that live. While one of them is no host of ours it is an error: it would get the key
// too.
func (s *Service) living(ctx context.Context, st store) (n int, err error) {
	strangers, err := s.members(ctx, st, func(m *api.AgentMember, ours bool) bool {
		if ours && m.Status == memberAlive {
			n++
		}
		return !ours && (m.Status == memberAlive || m.Status == memberLeaving)
	})
	if err == nil && len(strangers) > 0 {
		err = fmt.Errorf("%s does not belong here and is a member of the gossip yet", strings.Join(strangers, ", "))
	}
	return n, err
}

// forget has Consul drop the members that are no hosts any more. Each costs seconds.
func (s *Service) forget(ctx context.Context, st store) error {
	gone, err := s.members(ctx, st, func(m *api.AgentMember, ours bool) bool { return !ours && m.Status != memberLeft })
	for _, name := range gone {
		if e := st.client.Agent().ForceLeavePrune(name); e != nil && !isNotFound(e) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// members are the names of those members of the gossip of which f is true; ours is whether one is a host of the cluster.
func (s *Service) members(ctx context.Context, st store, f func(m *api.AgentMember, ours bool) bool) (names []string, err error) {
	members, err := st.client.Agent().Members(false)
	if err != nil {
		return nil, consulError(err)
	}
	all, err := s.hosts(ctx, st)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if f(m, slices.ContainsFunc(all, func(h hostState) bool { return h.Host == m.Name })) {
			names = append(names, m.Name)
		}
	}
	return names, nil
}
