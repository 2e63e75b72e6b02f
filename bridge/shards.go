package bridge

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// SetShards replaces the list of shards to report to. Those that stay as they are do not notice; the bridge
// leaves the others in order. Conferences of a shard that is gone stay until their endpoints are. It may be
// called from any goroutine; an error leaves everything as it is.
func (b *Bridge) SetShards(shards []Shard) error {
	shards = slices.Clone(shards)
	for i := range shards {
		if err := shards[i].validate(b.cfg.RelayID); err != nil {
			return fmt.Errorf("%w: shard %d: %w", ErrConfig, i+1, err)
		}
	}
	b.listing.Lock()
	defer b.listing.Unlock()
	var next []*shardClient
	for _, s := range shards {
		if !slices.ContainsFunc(next, func(c *shardClient) bool { return c.cfg == s }) {
			next = append(next, b.clientFor(s))
		}
	}
	b.clients.Store(&next)
	select {
	case b.listed <- struct{}{}:
	default:
	}
	return nil
}

// clientFor returns the client that a shard has, or a new one.
func (b *Bridge) clientFor(s Shard) *shardClient {
	for _, c := range b.shards() {
		if c.cfg == s {
			return c
		}
	}
	return newShardClient(b, s)
}

// shards returns the clients of the list in force; nobody changes it.
func (b *Bridge) shards() []*shardClient {
	if all := b.clients.Load(); all != nil {
		return *all
	}
	return nil
}

// keepShards runs the clients of the list until ctx ends.
func (b *Bridge) keepShards(ctx context.Context) {
	var wg sync.WaitGroup
	running := map[*shardClient]context.CancelFunc{}
	for {
		list := b.shards()
		for c, cancel := range running {
			if !slices.Contains(list, c) {
				c.log.Info("not a shard of ours any more")
				cancel()
				delete(running, c)
			}
		}
		for _, c := range list {
			if running[c] == nil {
				var session context.Context
				session, running[c] = context.WithCancel(ctx)
				wg.Go(func() { c.run(session) })
			}
		}
		select {
		case <-b.listed:
		case <-ctx.Done():
			for _, cancel := range running {
				cancel()
			}
			wg.Wait()
			return
		}
	}
}
