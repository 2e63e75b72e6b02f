package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"plenum/agent/pki"
)

// Revoke puts a host out, by name: its record becomes a tombstone that every other host believes (WireGuard peer gone,
// certificates blocked, tunnels closed), its tokens and its Nomad node are gone, the gossip key is another. Nothing of it
// needs a signature, so it works with Vault sealed. Who asks again gets the rest done. A server without which there is no
// majority is refused, unless it is forced.
func (s *Service) Revoke(ctx context.Context, host, admin string, force bool) error {
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	h, err := update(ctx, st, statesPrefix+host, func(h *hostState, exists bool) error {
		if !exists {
			return Refusal{ReasonUnknown, "this cluster knows no host " + host + ": see plenum host list"}
		}
		if !h.Revoked && !force {
			if err := s.missable(ctx, st, *h, false); err != nil {
				return err
			}
		}
		h.Revoked = true
		return nil
	})
	if err == nil {
		err = s.revoke(ctx, st, c, h)
	}
	if err != nil { // the line of a refusal is written by who asked
		return err
	}
	if err := s.audit.write(Event{Time: s.cfg.Now(), What: "revoke", Host: host, Admin: admin}); err != nil {
		s.log.Error("revoked without an audit line", "host", host, "err", err) // a full disk must not keep a thief in
	}
	return nil
}

func (s *Service) revoke(ctx context.Context, st store, c common, h hostState) error {
	if err := st.put(ctx, revokedKey(h.Keys.Host), s.cfg.Now().UTC(), 0); err != nil && !errors.Is(err, errRace) {
		return err
	}
	// The key is changed by watch, when the host is no member any more: nobody waits for that, for it is cut off.
	return errors.Join(s.expel(ctx, st, c, h), s.beginGossip(ctx, st, c, true))
}

// RotateCA takes all CAs a stage further, with a root token made from the unseal key. The last stage waits until every
// host has renewed, unless it is forced.
func (s *Service) RotateCA(ctx context.Context, stage pki.Stage, admin string, force bool, shares ...string) error {
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	if stage != pki.StageTrust && !force {
		if late, err := s.late(ctx, st); err != nil {
			return err
		} else if len(late) > 0 {
			return Refusal{ReasonBad, fmt.Sprintf("%d hosts have not renewed since the last stage: %v; wait, revoke them, or force it and let them come back by their host key", len(late), late)}
		}
	}
	root, err := s.cfg.Vault.Root(ctx, shares...)
	if err != nil {
		return err
	}
	t, err := s.cfg.Vault.Rotate(ctx, root, stage)
	if err = errors.Join(err, s.cfg.Vault.Revoke(ctx, root)); err != nil {
		return err
	}
	return errors.Join(s.announce(ctx, st, c, t.Generation),
		s.audit.write(Event{Time: s.cfg.Now(), What: "ca-rotate", Admin: admin, Text: fmt.Sprintf("stage %s, generation %d", stage, t.Generation)}))
}

// announce tells every host that what is to be trusted has changed: it renews at once instead of at a third of its
// certificate's life. It is a hint; what to trust comes with the renewal alone.
func (s *Service) announce(ctx context.Context, st store, c common, generation int) error {
	for {
		var have Public
		index, err := st.get(ctx, ClusterKey, &have)
		if err == nil && have.Generation != generation {
			err = st.put(ctx, ClusterKey, public(c, generation), index)
		}
		if !errors.Is(err, errRace) {
			return err
		}
	}
}

// late are the hosts whose certificates are of an older generation of CAs.
func (s *Service) late(ctx context.Context, st store) ([]string, error) {
	t, err := s.cfg.Vault.Trust(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.hosts(ctx, st)
	if err != nil {
		return nil, err
	}
	var late []string
	for _, h := range all {
		if h.Generation < t.Generation {
			late = append(late, h.Host)
		}
	}
	return late, nil
}

// hosts are those that neither left nor were revoked, by name.
func (s *Service) hosts(ctx context.Context, st store) ([]hostState, error) {
	all, err := everything[hostState](ctx, st, statesPrefix)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(h hostState) bool { return h.Left || h.Revoked }), nil
}

// tidy does what could not be done at once, and forgets what nobody needs: credentials of servers that were put out while
// Vault was sealed, tombstones of which no certificate is valid any more (the epoch stays known), tokens a week after
// their end.
func (s *Service) tidy(ctx context.Context) error {
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	if t, err := s.cfg.Vault.Trust(ctx); err == nil { // whoever rotated the CAs may have been killed before it told
		if err := s.announce(ctx, st, c, t.Generation); err != nil {
			return err
		}
	}
	now := s.cfg.Now()
	states, err := st.list(ctx, statesPrefix)
	if err != nil {
		return err
	}
	for name, b := range states {
		var h hostState
		if json.Unmarshal(b, &h) != nil || !h.Revoked && !h.Left {
			continue
		}
		if err := s.unvote(ctx, st, c, h); err != nil {
			return err
		}
		for _, accessor := range h.Vault {
			if err := s.cfg.Vault.Dismiss(ctx, accessor); err != nil {
				return err
			}
		}
		was := len(h.Certificates) + len(h.Vault)
		if h.prune(now); was == len(h.Certificates) {
			continue
		}
		if _, err := update(ctx, st, statesPrefix+name, func(h *hostState, exists bool) error {
			if !h.Revoked && !h.Left {
				return errRace // it came back
			}
			h.Vault = nil
			h.prune(now)
			return nil
		}); err != nil {
			return err
		}
		if len(h.Certificates) == 0 {
			var record []byte
			index, err := st.get(ctx, hostsPrefix+name, &record)
			if err != nil {
				return err
			}
			if bytes.Equal(record, h.Tombstone) {
				if err := st.deleteAt(ctx, hostsPrefix+name, index); err != nil {
					return err
				}
			}
		}
	}
	tokens, err := st.list(ctx, tokensPrefix)
	if err != nil {
		return err
	}
	for key, b := range tokens {
		var t tokenState
		if json.Unmarshal(b, &t) == nil && now.Sub(t.Expires) > maxTTL {
			if err := st.delete(ctx, tokensPrefix+key); err != nil {
				return err
			}
		}
	}
	return nil
}

// watch compares Nomad's nodes with what was given out, for as long as the service runs: meta and pool are a client's
// own claim.
func (s *Service) watch(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Watch)
	defer tick.Stop()
	told, round := false, 0
	for {
		err := s.compare(ctx)
		if err != nil && ctx.Err() == nil && !told {
			s.log.Warn("nodes are not compared with hosts", "err", err)
		}
		told = err != nil
		if st, _, err := s.store(ctx); err == nil {
			if err := errors.Join(s.forget(ctx, st), s.turnGossip(ctx, st)); err != nil && ctx.Err() == nil {
				s.log.Debug("not everybody has forgotten a host that is gone, and its gossip key", "err", err)
			}
		}
		if round++; round%tidyEvery == 1 {
			if err := s.tidy(ctx); err != nil && ctx.Err() == nil {
				s.log.Debug("nothing is tidied now", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tidyEvery so many looks at Nomad.
const tidyEvery = 12

// compare makes ineligible every node that is no host's, is in a pool that is not the host's, or is a second one of a
// name; and notes the id of those that are right, for jobs go by it.
func (s *Service) compare(ctx context.Context) error {
	st, c, err := s.store(ctx)
	if err != nil {
		return err
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err != nil {
		return err
	}
	nodes, _, err := client.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	if len(nodes) == 0 {
		return nil
	}
	all, err := s.hosts(ctx, st)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		i := slices.IndexFunc(all, func(h hostState) bool { return h.Host == n.Name })
		why := ""
		switch {
		case i < 0:
			why = "no host of this cluster has its name"
		case n.NodePool != Pool(all[i].Roles):
			why = "it is in pool " + n.NodePool + ", its host's is " + Pool(all[i].Roles)
		case all[i].Node != "" && all[i].Node != n.ID && alive(nodes, all[i].Node):
			why = "its host has another node, " + all[i].Node
		case all[i].Node != n.ID && n.Status == nomad.NodeStatusReady:
			if _, err := update(ctx, st, statesPrefix+n.Name, func(h *hostState, exists bool) error {
				if !exists || h.Revoked || h.Left {
					return errRace
				}
				h.Node = n.ID
				return nil
			}); err != nil {
				return err
			}
		}
		if why == "" || n.SchedulingEligibility == nomad.NodeSchedulingIneligible {
			continue
		}
		if _, err := client.Nodes().ToggleEligibility(n.ID, false, (&nomad.WriteOptions{}).WithContext(ctx)); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
		if err := s.audit.write(Event{Time: s.cfg.Now(), What: "node-refused", Host: n.Name, Text: "node " + n.ID + ": " + why, Alarm: true}); err != nil {
			return err
		}
	}
	return nil
}

func alive(nodes []*nomad.NodeListStub, id string) bool {
	return slices.ContainsFunc(nodes, func(n *nomad.NodeListStub) bool { return n.ID == id && n.Status == nomad.NodeStatusReady })
}
