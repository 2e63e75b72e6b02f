// Package probe finds out whether a shard or a bridge works for people, as people do: two participants join, and
// each has to get the other's sound. That a process answers says little.
package probe

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"

	"plenum/signaling/client"
)

// name makes up a room that nobody else is in.
func name() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return "probe-" + hex.EncodeToString(b[:])
}

// Shard has two participants talk in a room of their own by way of the URL of a shard or an edge, and of whatever
// bridge it has; each by its own if there are two URLs. domain is the XMPP domain. It returns nil when each has heard the
// other.
func Shard(ctx context.Context, domain string, urls ...string) error {
	room := name()
	var all []*client.Participant
	for i := range 2 {
		p, err := client.Join(ctx, client.Config{URL: urls[i%len(urls)], Room: room, Domain: domain, Name: "probe", Rewriting: true, Send: client.Media{Audio: true}})
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		defer p.Close()
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.Wait(ctx, func(s client.Stats) bool { return s.Playing(client.Audio) == 1 }); err != nil {
			return fmt.Errorf("no sound: %w", err)
		}
	}
	var leaving sync.WaitGroup
	defer leaving.Wait()
	for _, p := range all {
		leaving.Go(func() { p.Leave(ctx) })
	}
	return nil
}
