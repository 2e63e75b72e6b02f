package edge

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"
)

// Names in Consul.
const (
	serviceShard  = "plenum-shard"
	serviceBridge = "plenum-bridge"
	bansPrefix    = "plenum/bans/" // PREFIX with - for /: {"until": time}
)

// Consul is the Catalog of a cluster: services and bans by blocking queries. An entry that vanishes from one answer
// is believed; an answer that does not come changes nothing.
type Consul struct {
	Client *api.Client
	Log    *slog.Logger

	mu    sync.Mutex
	view  View
	has   int          // of the three kinds, which have been told: nothing is before all have
	heard [3]time.Time // of each, when it was last known to be so
}

// patience is how long Consul keeps a question whose answer has not changed.
const patience = 30 * time.Second

// Age is how old what was told may be: with a catalogue that has a leader and answers, little more than patience.
func (c *Consul) Age(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(slices.MinFunc(c.heard[:], time.Time.Compare))
}

// Watch tells each view until ctx ends.
func (c *Consul) Watch(ctx context.Context, tell func(View)) error {
	c.mu.Lock()
	for i := range c.heard {
		c.heard[i] = time.Now()
	}
	c.mu.Unlock()
	var g errgroup.Group
	follow := func(kind int, ask func(*api.QueryOptions) (func(*View), *api.QueryMeta, error)) {
		g.Go(func() error {
			c.follow(ctx, kind, ask, tell)
			return nil
		})
	}
	services := func(name string, take func(*View, []*api.ServiceEntry)) func(*api.QueryOptions) (func(*View), *api.QueryMeta, error) {
		return func(q *api.QueryOptions) (func(*View), *api.QueryMeta, error) {
			list, meta, err := c.Client.Health().Service(name, "", false, q)
			if err != nil {
				return nil, nil, err
			}
			return func(v *View) { take(v, list) }, meta, nil
		}
	}
	follow(0, services(serviceShard, func(v *View, list []*api.ServiceEntry) { v.Shards = shardsOf(list) }))
	follow(1, services(serviceBridge, func(v *View, list []*api.ServiceEntry) { v.Bridges = bridgesOf(list) }))
	follow(2, func(q *api.QueryOptions) (func(*View), *api.QueryMeta, error) {
		list, meta, err := c.Client.KV().List(bansPrefix, q)
		if err != nil {
			return nil, nil, err
		}
		return func(v *View) { v.Bans = bansOf(list) }, meta, nil
	})
	return g.Wait()
}

// follow asks one question again and again, each time until its answer changes.
func (c *Consul) follow(ctx context.Context, kind int, ask func(*api.QueryOptions) (func(*View), *api.QueryMeta, error), tell func(View)) {
	var index uint64
	failed, hidden := false, false
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, 2*patience) // a frozen agent says nothing at all
		take, meta, err := ask((&api.QueryOptions{WaitIndex: index, WaitTime: patience, AllowStale: true}).WithContext(wait))
		cancel()
		if err != nil {
			if ctx.Err() == nil && !failed {
				c.Log.Warn("the catalogue does not answer; what it said last goes on", "err", err)
			}
			failed, index = true, 0
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		if meta.ResultsFilteredByACLs && !hidden {
			hidden = true
			c.Log.Warn("the catalogue hides services from this edge: give it a token that reads them, in CONSUL_HTTP_TOKEN")
		}
		if failed {
			failed = false
			c.Log.Info("the catalogue answers again")
		}
		c.mu.Lock()
		c.heard[kind] = time.Now().Add(-meta.LastContact) // servers without a leader answer as well
		c.mu.Unlock()
		next := meta.LastIndex
		if next < index { // Consul was restored
			next = 0
		}
		if next == index && index != 0 {
			continue
		}
		index = next
		c.mu.Lock()
		take(&c.view)
		c.has |= 1 << kind
		if c.has == 7 {
			tell(c.view)
		}
		c.mu.Unlock()
	}
}

func shardsOf(list []*api.ServiceEntry) []Shard {
	var all []Shard
	for _, e := range list {
		s := Shard{Name: e.Service.Meta["shard"], Region: e.Service.Meta["region"], Addr: addr(e, ""),
			Load: addr(e, "metrics_port"), Ill: e.Checks.AggregatedStatus() == api.HealthCritical}
		if !plain(s.Name) || s.Addr == "" {
			continue
		}
		// A shard that is being replaced is there twice for a moment: the well one counts.
		if i := slices.IndexFunc(all, func(o Shard) bool { return o.Name == s.Name }); i < 0 {
			all = append(all, s)
		} else if all[i].Ill {
			all[i] = s
		}
	}
	return all
}

func bridgesOf(list []*api.ServiceEntry) []Bridge {
	var all []Bridge
	for _, ill := range []bool{false, true} { // of one that is there twice the well one counts
		for _, e := range list {
			b := Bridge{ID: e.Service.Meta["relay_id"], Addr: addr(e, "ws_port")}
			if ill == (e.Checks.AggregatedStatus() == api.HealthCritical) && plain(b.ID) && b.Addr != "" &&
				!slices.ContainsFunc(all, func(o Bridge) bool { return o.ID == b.ID }) {
				all = append(all, b)
			}
		}
	}
	return all
}

// addr is where a service is, at the port that meta names or at its own. Addresses alone are taken, for HAProxy is told
// them as they are; a zone could be any text.
func addr(e *api.ServiceEntry, meta string) string {
	host := e.Service.Address
	if host == "" {
		host = e.Node.Address
	}
	port := e.Service.Meta[meta]
	if meta == "" {
		port = strconv.Itoa(e.Service.Port)
	}
	a, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

// plain reports whether a name may be a server's of HAProxy.
func plain(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

func bansOf(list api.KVPairs) []Ban {
	var all []Ban
	for _, kv := range list {
		var b Ban
		p, err := netip.ParsePrefix(strings.Replace(strings.TrimPrefix(kv.Key, bansPrefix), "-", "/", 1))
		if err != nil || json.Unmarshal(kv.Value, &b) != nil {
			continue
		}
		b.Prefix = p
		all = append(all, b)
	}
	return all
}
