package roster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

// Consul is a source that watches the catalog's keys plenum/hosts and plenum/endpoints. Whoever may write
// them can hide a host, and no more: records are signed.
type Consul struct {
	Address   string // of an agent, host:port
	TokenFile string // holds the ACL token, read again for each query; empty for none
}

const (
	hostsPrefix     = "plenum/hosts/"
	endpointsPrefix = "plenum/endpoints/"
	consulWait      = 5 * time.Minute
	consulRetry     = time.Second
)

// Watch implements Source by blocking queries, so a change arrives in a round trip.
func (c Consul) Watch(ctx context.Context, deliver func(Listing, error)) {
	cfg := api.DefaultNonPooledConfig()
	cfg.Address = c.Address
	client, err := api.NewClient(cfg)
	if err != nil {
		deliver(Listing{}, fmt.Errorf("consul: %w", err))
		return
	}
	type part struct {
		hosts     map[string]json.RawMessage
		endpoints map[string]Endpoints
		err       error
	}
	parts := make(chan part)
	follow := func(prefix string, read func(api.KVPairs) part) {
		c.follow(ctx, client, prefix, func(pairs api.KVPairs, err error) {
			p := part{err: err}
			if err == nil {
				p = read(pairs)
			}
			select {
			case parts <- p:
			case <-ctx.Done():
			}
		})
		parts <- part{} // has ended
	}
	go follow(hostsPrefix, func(pairs api.KVPairs) part { return part{hosts: hosts(pairs)} })
	go follow(endpointsPrefix, func(pairs api.KVPairs) part { return part{endpoints: endpoints(pairs)} })
	var l Listing
	for running := 2; running > 0; {
		switch p := <-parts; {
		case p.err != nil:
			deliver(Listing{}, p.err)
			continue
		case p.hosts != nil:
			l.Hosts = p.hosts
		case p.endpoints != nil:
			l.Endpoints = p.endpoints
		default:
			running--
			continue
		}
		deliver(l, nil)
	}
}

// follow reads all keys below prefix whenever one changes. Of errors in a row only the first is told.
func (c Consul) follow(ctx context.Context, client *api.Client, prefix string, deliver func(api.KVPairs, error)) {
	var index uint64
	for failed := false; ctx.Err() == nil; {
		pairs, next, err := c.query(ctx, client, prefix, index)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failed {
				deliver(nil, fmt.Errorf("consul: %w", err))
			}
			failed, index = true, 0
			select {
			case <-ctx.Done():
				return
			case <-time.After(consulRetry):
			}
			continue
		case next != index || failed:
			deliver(pairs, nil)
		}
		if failed = false; next < index {
			next = 0 // Consul was restored from a snapshot
		}
		index = next
	}
}

func (c Consul) query(ctx context.Context, client *api.Client, prefix string, index uint64) (api.KVPairs, uint64, error) {
	q := &api.QueryOptions{WaitIndex: index, WaitTime: consulWait}
	if c.TokenFile != "" {
		token, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return nil, 0, err
		}
		q.Token = strings.TrimSpace(string(token))
	}
	pairs, meta, err := client.KV().List(prefix, q.WithContext(ctx))
	if err != nil {
		return nil, 0, err
	}
	if meta.ResultsFilteredByACLs { // it would look as if there were no hosts
		return nil, 0, fmt.Errorf("the token in %q may not read %s; it needs key_prefix %q { policy = \"read\" }", c.TokenFile, prefix, prefix)
	}
	return pairs, meta.LastIndex, nil
}

func hosts(pairs api.KVPairs) map[string]json.RawMessage {
	all := map[string]json.RawMessage{}
	for _, p := range pairs[:min(len(pairs), maxHosts)] {
		if len(p.Value) <= maxEnvelopeBytes {
			all[path.Base(p.Key)] = p.Value
		}
	}
	return all
}

func endpoints(pairs api.KVPairs) map[string]Endpoints {
	all := map[string]Endpoints{}
	for _, p := range pairs[:min(len(pairs), maxHosts)] {
		var e Endpoints
		if len(p.Value) <= maxEnvelopeBytes && json.Unmarshal(p.Value, &e) == nil {
			e.trim()
			all[path.Base(p.Key)] = e
		}
	}
	return all
}
