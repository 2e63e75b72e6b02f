package agent

import (
	"context"
	"encoding/json"
	"time"

	consul "github.com/hashicorp/consul/api"

	"plenum/agent/join"
)

// generationEvery is how often a host looks whether other CAs are to be trusted.
const generationEvery = 10 * time.Second

// A generation is of what is to be trusted, as the catalog tells it. It is a hint: one that a renewal does not bring is
// asked for once.
type generation struct {
	next  time.Time // the next look
	asked int
}

// outdated reports whether what is to be trusted has changed since this host renewed.
func (g *generation) outdated(ctx context.Context, a join.Answer, now time.Time) bool {
	if now.Before(g.next) {
		return false
	}
	g.next = now.Add(generationEvery)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := consulClient(a.Consul.Token)
	if err != nil {
		return false
	}
	p, _, err := c.KV().Get(join.ClusterKey, (&consul.QueryOptions{AllowStale: true}).WithContext(ctx))
	if err != nil || p == nil {
		return false
	}
	return g.newer(p.Value, a.Generation)
}

// newer reports whether the catalog's word is of a later generation than have, and was not followed yet.
func (g *generation) newer(word []byte, have int) bool {
	var told join.Public
	if json.Unmarshal(word, &told) != nil || told.Generation <= have || told.Generation == g.asked {
		return false
	}
	g.asked = told.Generation
	return true
}
