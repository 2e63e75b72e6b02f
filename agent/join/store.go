package join

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"plenum/overlay/roster"
)

// ClusterKey is what every host may know of the cluster: its Public.
const ClusterKey = "plenum/cluster"

// Keys in Consul. Below privatePrefix nobody but the join services reads or writes.
const (
	hostsPrefix   = "plenum/hosts/"
	privatePrefix = "plenum/join/"
	tokensPrefix  = privatePrefix + "tokens/"    // by hash of the secret: tokenState
	statesPrefix  = privatePrefix + "hosts/"     // by name: hostState
	numbersPrefix = privatePrefix + "addresses/" // by number: the host that has it
	adminsPrefix  = privatePrefix + "admins/"    // by name: Admin
	revokedPrefix = privatePrefix + "revoked/"   // by hash of the host key: when
)

// A tokenState is a join token as the service remembers it.
type tokenState struct {
	ID      string    `json:"id"` // what people call it by
	Region  string    `json:"region"`
	Roles   []string  `json:"roles"`
	Admin   string    `json:"admin"`
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked,omitempty"`

	HostKey []byte `json:"host_key,omitempty"` // who redeems it; nobody else ever will
	Host    string `json:"host,omitempty"`
	Opening bool   `json:"opening,omitempty"` // the wrapped secret was found whole and is being opened
	Opened  bool   `json:"opened,omitempty"`
}

// A hostState is a host as the service remembers it.
type hostState struct {
	Host    string   `json:"host"`
	Keys    Keys     `json:"keys"`
	Facts   Facts    `json:"facts"`
	Region  string   `json:"region"`
	Roles   []string `json:"roles"`
	Admin   string   `json:"admin"`  // who made the token
	Number  uint32   `json:"number"` // of its addresses in both prefixes
	Epoch   uint64   `json:"epoch"`
	Revoked bool     `json:"revoked,omitempty"`
	Left    bool     `json:"left,omitempty"`

	Joined  time.Time `json:"joined"`
	Renewed time.Time `json:"renewed"`
	Expires time.Time `json:"expires"` // of the Nebula certificate

	Certificates []issued `json:"certificates,omitempty"` // Nebula's that may not have expired
	Record       []byte   `json:"record,omitempty"`       // signed
	Tombstone    []byte   `json:"tombstone,omitempty"`    // signed beforehand, so that revoking needs no key
	Generation   int      `json:"generation"`             // of the CAs of its certificates

	ConsulAccessor string `json:"consul_accessor,omitempty"` // of its agent's token
	NomadAccessor  string `json:"nomad_accessor,omitempty"`  // of its Nomad's token in Consul
	Node           string `json:"node,omitempty"`            // Nomad's id, as first seen

	Vault []string `json:"vault,omitempty"` // servers: accessors of what their join services log in to Vault with
}

// An issued certificate.
type issued struct {
	Fingerprint string    `json:"fingerprint"`
	Expires     time.Time `json:"expires"`
}

// prune forgets certificates that have expired.
func (h *hostState) prune(now time.Time) {
	var keep []issued
	for _, c := range h.Certificates {
		if c.Expires.After(now) {
			keep = append(keep, c)
		}
	}
	h.Certificates = keep
}

func (h *hostState) is(role string) bool { return slices.Contains(h.Roles, role) }

// errNoQuorum is Consul without a leader, or without an agent.
var errNoQuorum = errors.New("Consul has no leader now")

// errRace is a value that somebody else changed in between.
var errRace = errors.New("changed by somebody else at the same time")

// store is Consul's KV by compare-and-set.
type store struct{ client *api.Client }

func newConsul(address, token string) (*api.Client, error) {
	c := api.DefaultNonPooledConfig()
	c.Address, c.Token, c.TokenFile, c.Namespace, c.Scheme, c.Datacenter = address, token, "", "", "http", ""
	return api.NewClient(c)
}

// get reads the value of key into v; index 0 is that there is none.
func (s store) get(ctx context.Context, key string, v any) (index uint64, err error) {
	p, _, err := s.client.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return 0, consulError(err)
	}
	if p == nil {
		return 0, nil
	}
	if raw, ok := v.(*[]byte); ok {
		*raw = p.Value
		return p.ModifyIndex, nil
	}
	if err := json.Unmarshal(p.Value, v); err != nil {
		return 0, fmt.Errorf("consul: %s: %w", key, err)
	}
	return p.ModifyIndex, nil
}

// put writes v where key has not changed since index; 0 is where it does not exist. Otherwise it returns errRace.
func (s store) put(ctx context.Context, key string, v any, index uint64) error {
	b, raw := v.([]byte)
	if !raw {
		var err error
		if b, err = json.Marshal(v); err != nil {
			return err
		}
	}
	ok, _, err := s.client.KV().CAS(&api.KVPair{Key: key, Value: b, ModifyIndex: index}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return consulError(err)
	}
	if !ok {
		return errRace
	}
	return nil
}

func (s store) delete(ctx context.Context, key string) error {
	_, err := s.client.KV().Delete(key, (&api.WriteOptions{}).WithContext(ctx))
	return consulError(err)
}

// deleteAt deletes the value that get has read with this index, and leaves a newer one.
func (s store) deleteAt(ctx context.Context, key string, index uint64) error {
	_, _, err := s.client.KV().DeleteCAS(&api.KVPair{Key: key, ModifyIndex: index}, (&api.WriteOptions{}).WithContext(ctx))
	return consulError(err)
}

// list reads all values below prefix, by the last part of their key.
func (s store) list(ctx context.Context, prefix string) (map[string][]byte, error) {
	pairs, _, err := s.client.KV().List(prefix, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, consulError(err)
	}
	all := make(map[string][]byte, len(pairs))
	for _, p := range pairs {
		all[path.Base(p.Key)] = p.Value
	}
	return all, nil
}

// everything reads all values below prefix in the order of their keys.
func everything[T any](ctx context.Context, s store, prefix string) ([]T, error) {
	values, err := s.list(ctx, prefix)
	if err != nil {
		return nil, err
	}
	all := make([]T, len(values))
	for i, key := range slices.Sorted(maps.Keys(values)) {
		if err := json.Unmarshal(values[key], &all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// update changes the value of key by f, again from the start whenever somebody else was faster.
func update[T any](ctx context.Context, s store, key string, f func(v *T, exists bool) error) (T, error) {
	for {
		var v T
		index, err := s.get(ctx, key, &v)
		if err != nil {
			return v, err
		}
		if err := f(&v, index != 0); err != nil {
			return v, err
		}
		if err = s.put(ctx, key, v, index); err == nil || !errors.Is(err, errRace) {
			return v, err
		}
	}
}

// consulError tells an absent leader from a real refusal.
func consulError(err error) error {
	if err == nil {
		return nil
	}
	var e api.StatusError
	if errors.As(err, &e) && e.Code < http.StatusInternalServerError {
		return fmt.Errorf("consul: %w", err)
	}
	// A fresh cluster knows no token yet, and a client's agent says so with 500 or 403.
	return fmt.Errorf("%w: %w", errNoQuorum, err)
}

// number finds the host's number and takes the lowest that is free if it has none. Both addresses follow from it, so
// there is one compare-and-set and nothing to put right after a crash.
func (s store) number(ctx context.Context, host string, first, last uint32) (uint32, error) {
	for {
		taken, err := s.list(ctx, numbersPrefix)
		if err != nil {
			return 0, err
		}
		for n, who := range taken {
			if string(who) == host {
				return parseNumber(n)
			}
		}
		n := first
		for ; n <= last; n++ {
			if _, ok := taken[formatNumber(n)]; !ok {
				break
			}
		}
		if n > last {
			return 0, errors.New("the overlay's prefix has no free address: hosts that are gone for good can be revoked (plenum host revoke)")
		}
		if err := s.put(ctx, numbersPrefix+formatNumber(n), []byte(host), 0); err == nil || !errors.Is(err, errRace) {
			return n, err
		}
	}
}

func formatNumber(n uint32) string { return fmt.Sprintf("%08x", n) }

func parseNumber(s string) (n uint32, err error) {
	_, err = fmt.Sscanf(s, "%x", &n)
	return n, err
}

// publish puts a signed record where hosts look, unless a newer one is there.
func (s store) publish(ctx context.Context, key []byte, envelope []byte) error {
	r, err := roster.Verify(key, envelope)
	if err != nil {
		return err
	}
	for {
		var have []byte
		index, err := s.get(ctx, hostsPrefix+r.Host, &have)
		if err != nil {
			return err
		}
		if old, err := roster.Verify(key, have); err == nil && old.Epoch > r.Epoch {
			return nil
		}
		if string(have) == string(envelope) {
			return nil
		}
		if err := s.put(ctx, hostsPrefix+r.Host, envelope, index); err == nil || !errors.Is(err, errRace) {
			return err
		}
	}
}
