package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"plenum/agent/pki"
	"plenum/overlay/roster"
)

// enrol lets a host in. Every step can be done again by the same host, so a join that was cut short goes on where it
// was: the token is claimed by the host key before its secret is opened, then the name, then the addresses; only then
// is anything signed.
func (s *Service) enrol(ctx context.Context, q Request, e *Event) (any, error) {
	if err := skewed(s.cfg.Now(), q.Time); err != nil {
		return nil, err
	}
	st, c, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.notRevoked(ctx, st, q, e); err != nil {
		return nil, err
	}
	if err := reachable(q, e.From); err != nil {
		return nil, err
	}
	token, err := s.redeem(ctx, st, q, e)
	if err != nil {
		return nil, err
	}
	h, err := update(ctx, st, statesPrefix+q.Host, func(h *hostState, exists bool) error {
		if exists && !h.Left && !h.Revoked && !bytes.Equal(h.Keys.Host, q.Keys.Host) {
			return Refusal{ReasonName, "another host has the name " + q.Host + ": give this one another (--host), or revoke that one (plenum host revoke)"}
		}
		if !exists || h.Left || h.Revoked {
			*h = hostState{Host: q.Host, Epoch: h.Epoch, Joined: s.cfg.Now(), Certificates: h.Certificates, ConsulAccessor: uuid(), NomadAccessor: uuid()}
		}
		h.Keys, h.Facts, h.Region, h.Roles, h.Admin = q.Keys, q.Facts, token.Region, token.Roles, token.Admin
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.issue(ctx, st, c, h, q, e, true)
}

// reachable refuses a host to which callers send media if it comes from an address that it does not know of: behind
// NAT nobody finds it, unless its donor forwards a port and says so.
func reachable(q Request, from string) error {
	seen, err := netip.ParseAddr(from)
	if err != nil || seen.IsLoopback() || !slices.ContainsFunc(q.Roles, func(r string) bool { return r == RoleBridge || r == RoleEdge }) {
		return nil
	}
	seen = seen.Unmap().WithZone("")
	if slices.Contains(q.Facts.Public, seen) || slices.ContainsFunc(q.Facts.Underlay, func(a netip.AddrPort) bool { return a.Addr().Unmap() == seen }) {
		return nil
	}
	said := []string{}
	for _, a := range q.Facts.Public {
		said = append(said, a.String())
	}
	for _, a := range q.Facts.Underlay {
		said = append(said, a.Addr().String())
	}
	return Refusal{ReasonAddress, fmt.Sprintf("this host is seen from outside as %s, and says it is found at %v: callers would not reach it. Forward UDP 10000 (an edge: TCP 443 and 80) to it and join with --public %s, or give it other roles", seen, said, seen)}
}

// store is Consul as the service may use it.
func (s *Service) store(ctx context.Context) (store, common, error) {
	c, err := s.share(ctx, nil)
	if err != nil {
		return store{}, c, err
	}
	client, err := newConsul(s.cfg.Consul, c.Consul)
	return store{client}, c, err
}

func revokedKey(hostKey []byte) string { return revokedPrefix + digest(string(hostKey)) }

func (s *Service) notRevoked(ctx context.Context, st store, q Request, e *Event) error {
	var when time.Time
	index, err := st.get(ctx, revokedKey(q.Keys.Host), &when)
	if err != nil || index == 0 {
		return err
	}
	e.Alarm = true
	return Refusal{ReasonRevoked, "this host was revoked at " + when.Format(time.RFC3339) + ": to come back it needs new keys (plenum leave --force) and a new token"}
}

// redeem binds a token to the host key, once and for ever, and then opens it.
func (s *Service) redeem(ctx context.Context, st store, q Request, e *Event) (tokenState, error) {
	key := tokensPrefix + digest(q.Token)
	now := s.cfg.Now()
	claim := func(t *tokenState, exists bool) error {
		if !exists {
			return Refusal{ReasonUnknown, "this cluster has not made that token"}
		}
		e.Token, e.Admin = t.ID, t.Admin
		switch {
		case t.Revoked:
			return Refusal{ReasonRevoked, "the token was revoked: ask for another"}
		case now.After(t.Expires):
			return Refusal{ReasonExpired, "the token expired at " + t.Expires.Format(time.RFC3339) + " by the cluster's clock: make another with plenum token create"}
		case q.Region != t.Region || !sameSet(q.Roles, t.Roles):
			e.Alarm = true
			return Refusal{ReasonRegion, "the token is for region " + t.Region + " and roles " + fmt.Sprint(t.Roles) + ": its text was changed"}
		case t.HostKey == nil:
			t.HostKey, t.Host = q.Keys.Host, q.Host
		case !bytes.Equal(t.HostKey, q.Keys.Host):
			e.Alarm = true
			return Refusal{ReasonUsed, "another host has used this token; if that was not you, revoke that host now (plenum host list); then make a token for each host"}
		case t.Host != q.Host:
			return Refusal{ReasonName, "this token has made the host " + t.Host + ": keep its name, or make another token"}
		}
		return nil
	}
	t, err := update(ctx, st, key, claim)
	if err != nil || t.Opened {
		return t, err
	}
	if err := s.cfg.Vault.Inspect(ctx, q.Token); err != nil {
		if !errors.Is(err, pki.ErrWrapped) {
			return t, err
		}
		if t, err = update(ctx, st, key, claim); err != nil { // the same host may have asked twice at once
			return t, err
		}
		if !t.Opening { // nobody of us has begun to open it
			e.Alarm = true
			return t, Refusal{ReasonUnknown, "the secret of the token was opened by somebody else, or forged: make another token, and look at Vault's audit log"}
		}
	} else {
		if t, err = update(ctx, st, key, func(t *tokenState, exists bool) error {
			err := claim(t, exists)
			t.Opening = true
			return err
		}); err != nil {
			return t, err
		}
		var inside tokenState
		if err := s.cfg.Vault.Unwrap(ctx, q.Token, &inside); err != nil && !errors.Is(err, pki.ErrWrapped) {
			return t, err
		} else if err == nil && (inside.ID != t.ID || inside.Region != t.Region || !sameSet(inside.Roles, t.Roles)) {
			e.Alarm = true
			return t, Refusal{ReasonUnknown, "the secret of the token is not what this cluster put in it: make another"}
		}
	}
	return update(ctx, st, key, func(t *tokenState, exists bool) error {
		err := claim(t, exists)
		t.Opened = true
		return err
	})
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// renew gives a host that is known new certificates, and the state of the cluster. Its host key is all it needs: certificates
// and tokens may have expired long ago.
func (s *Service) renew(ctx context.Context, q Request, e *Event) (any, error) {
	if err := skewed(s.cfg.Now(), q.Time); err != nil {
		e.Alarm, e.Text = true, err.Error() // refusing would only make it worse
	}
	st, c, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.notRevoked(ctx, st, q, e); err != nil {
		return nil, err
	}
	h, err := update(ctx, st, statesPrefix+q.Host, func(h *hostState, exists bool) error {
		if err := known(h, exists, q); err != nil {
			return err
		}
		h.Keys = q.Keys
		if q.Facts.Arch != "" { // a host that says nothing is as it was
			h.Facts = q.Facts
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.Admin, q.Roles = h.Admin, h.Roles
	if err := reachable(q, e.From); err != nil && q.Facts.Arch != "" { // a host that moved behind a NAT is a member all the same
		e.Alarm, e.Text = true, strings.TrimSpace(e.Text+" "+err.Error())
	}
	return s.issue(ctx, st, c, h, q, e, slices.Contains(q.Fresh, "nomad"))
}

func known(h *hostState, exists bool, q Request) error {
	switch {
	case exists && h.Revoked:
		return Refusal{ReasonRevoked, "this host was revoked"}
	case !exists || h.Left:
		return Refusal{ReasonUnknown, "this cluster knows no host " + q.Host + ": join with a token"}
	case !bytes.Equal(h.Keys.Host, q.Keys.Host):
		return Refusal{ReasonSignature, "another key is known for the host " + q.Host}
	}
	return nil
}

// issue signs all that a host needs and notes it before it is handed out.
func (s *Service) issue(ctx context.Context, st store, c common, h hostState, q Request, e *Event, introduced bool) (Answer, error) {
	first, last := c.numbers()
	number, err := st.number(ctx, h.Host, first, last)
	if err != nil {
		return Answer{}, err
	}
	h.Number = number
	p, err := s.sign(ctx, c, h, q)
	if err != nil {
		return Answer{}, err
	}
	var oldEpoch uint64
	if r, err := s.published(ctx, st, c, h.Host); err == nil {
		oldEpoch = r.Epoch
	} else if !errors.Is(err, errNone) {
		return Answer{}, err
	}
	// What was signed becomes valid for others only by this write: whoever revokes the host first wins.
	h, err = update(ctx, st, statesPrefix+h.Host, func(now *hostState, exists bool) error {
		if err := known(now, exists, q); err != nil {
			return err
		}
		now.Number = number
		return s.enter(ctx, c, now, p, oldEpoch)
	})
	if err != nil {
		return Answer{}, err
	}
	if err := st.publish(ctx, c.RosterKey, h.Record); err != nil {
		return Answer{}, err
	}
	tokens, err := s.consulTokens(ctx, st.client, h, "", "")
	if err != nil {
		return Answer{}, fmt.Errorf("consul: %w", err)
	}
	a, err := s.answer(ctx, c, h, p)
	if err != nil {
		return Answer{}, err
	}
	a.Consul.Token, a.Nomad.ConsulToken = tokens[0], tokens[1]
	if err := s.surroundings(ctx, st, c, &a, h); err != nil {
		return Answer{}, err
	}
	if introduced {
		client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
		if err != nil {
			return Answer{}, err
		}
		if a.Nomad.Introduction, err = introduce(ctx, client, h.Host, a.Nomad.Pool); err != nil {
			return Answer{}, fmt.Errorf("%w: %w", errNoQuorum, err)
		}
		if err := account(ctx, client, h.Host); err != nil {
			return Answer{}, fmt.Errorf("%w: %w", errNoQuorum, err)
		}
	}
	if h.is(RoleServer) {
		var accessor string
		if a.Secrets, accessor, err = s.secrets(ctx, c, a.Consul.Token, introduced || slices.Contains(q.Fresh, "vault")); err != nil {
			return Answer{}, err
		}
		if accessor != "" {
			if _, err := update(ctx, st, statesPrefix+h.Host, func(now *hostState, exists bool) error {
				now.Vault = append(now.Vault, accessor)
				return known(now, exists, q)
			}); err != nil {
				return Answer{}, err
			}
		}
	}
	return a, nil
}

// A parcel is what was signed for a host.
type parcel struct {
	trust       pki.Trust
	nebula, tls pki.Certificate
}

func (s *Service) sign(ctx context.Context, c common, h hostState, q Request) (p parcel, err error) {
	if p.trust, err = s.cfg.Vault.Trust(ctx); err != nil {
		return p, err
	}
	subject := pki.Subject{Host: h.Host, Control: address(c.Control, h.Number), Roles: h.Roles}
	if p.nebula, err = s.cfg.Vault.SignNebula(ctx, &p.trust, subject, q.Keys.Nebula); err != nil {
		return p, err
	}
	p.tls, err = s.cfg.Vault.SignTLS(ctx, subject, q.CSR)
	return p, err
}

// enter notes what was signed, and signs the record that it follows from, if that changes, and the tombstone for the day
// that the host is revoked. Epochs of records are odd, of their tombstones one more.
func (s *Service) enter(ctx context.Context, c common, h *hostState, p parcel, published uint64) error {
	now := s.cfg.Now()
	h.prune(now)
	if c := (issued{p.nebula.Fingerprint, p.nebula.Expires}); !slices.Contains(h.Certificates, c) { // within one second it is the same
		h.Certificates = append(h.Certificates, c)
	}
	if n := len(h.Certificates); n > maxCertificates {
		return Refusal{ReasonBad, fmt.Sprintf("%d certificates of this host have not expired: wait, or revoke it", n-1)}
	}
	r := roster.Record{Host: h.Host, HostKey: h.Keys.Host, Nebula: h.Keys.Nebula, WireGuard: h.Keys.WireGuard, Next: h.Keys.Next,
		Control: address(c.Control, h.Number).Addr(), Media: address(c.Media, h.Number).Addr(), Roles: h.Roles, Region: h.Region}
	old, err := roster.Verify(c.RosterKey, h.Record)
	r.Epoch = old.Epoch
	if changed := err != nil || !equal(old, r) || published > old.Epoch; changed {
		r.Epoch = max(h.Epoch, published)/2*2 + 1
		if r.Epoch <= max(h.Epoch, published) {
			r.Epoch += 2
		}
		if h.Record, err = s.cfg.Vault.SignRecord(ctx, r); err != nil {
			return err
		}
		h.Epoch = r.Epoch
	}
	r.Epoch++
	r.Revoked = true
	for _, c := range h.Certificates {
		r.Fingerprints = append(r.Fingerprints, c.Fingerprint)
	}
	if h.Tombstone, err = s.cfg.Vault.SignRecord(ctx, r); err != nil {
		return err
	}
	h.Renewed, h.Expires, h.Generation = now, p.nebula.Expires, p.trust.Generation
	return nil
}

// maxCertificates of one host that have not expired; a record holds no more fingerprints.
const maxCertificates = 64

func equal(a, b roster.Record) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// errNone is a host without a record.
var errNone = errors.New("no record")

func (s *Service) published(ctx context.Context, st store, c common, host string) (roster.Record, error) {
	var b []byte
	index, err := st.get(ctx, hostsPrefix+host, &b)
	if err != nil {
		return roster.Record{}, err
	}
	if index == 0 {
		return roster.Record{}, errNone
	}
	r, err := roster.Verify(c.RosterKey, b)
	if err != nil {
		return r, errNone
	}
	return r, nil
}

// consulTokens makes the host's tokens in Consul where they are not, and returns their secrets: the agent's, Nomad's.
// Secrets that are given are used; otherwise Consul chooses.
func (s *Service) consulTokens(ctx context.Context, client *api.Client, h hostState, secrets ...string) ([2]string, error) {
	var out [2]string
	policy := "plenum-host-" + h.Host
	if err := ensurePolicy(ctx, client, policy, hostRules(h.Host)); err != nil {
		return out, err
	}
	nomadPolicy := "plenum-nomad-client"
	if h.is(RoleServer) {
		nomadPolicy = "plenum-nomad-server"
	}
	for i, t := range []*api.ACLToken{
		{AccessorID: h.ConsulAccessor, Description: "agent of " + h.Host, Policies: []*api.ACLTokenPolicyLink{{Name: policy}}},
		{AccessorID: h.NomadAccessor, Description: "Nomad of " + h.Host, Policies: []*api.ACLTokenPolicyLink{{Name: nomadPolicy}}, ServiceIdentities: leftovers(h.Roles)},
	} {
		t.SecretID = secrets[i]
		have, _, err := client.ACL().TokenRead(t.AccessorID, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		if err == nil && have != nil {
			if out[i] = have.SecretID; !sameRights(have, t) { // other roles than before
				have.Policies, have.ServiceIdentities = t.Policies, t.ServiceIdentities
				if _, _, err := client.ACL().TokenUpdate(have, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
					return out, err
				}
			}
			continue
		}
		made, _, err := client.ACL().TokenCreate(t, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil { // the same host, at the same time
			var again error
			if made, _, again = client.ACL().TokenRead(t.AccessorID, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)); again != nil || made == nil {
				return out, fmt.Errorf("token: %w", err)
			}
		}
		out[i] = made.SecretID
	}
	return out, nil
}

// leftovers are the services of the tasks that a host of these roles is given. They register by their own identity; one
// that has ended by itself leaves an entry whose token has ended as well, and Nomad takes that out by its own.
func leftovers(roles []string) (all []*api.ACLServiceIdentity) {
	for _, role := range slices.Sorted(slices.Values(roles)) {
		for _, service := range map[string][]string{RoleBridge: {"bridge"}, RoleShard: {"shard"}, RoleEdge: {"edge", "turn", "prometheus"}, RoleRecorder: {"recorder"}}[role] {
			all = append(all, &api.ACLServiceIdentity{ServiceName: "plenum-" + service})
		}
	}
	return all
}

// sameRights tells whether two tokens of a host, made by consulTokens, may do the same.
func sameRights(a, b *api.ACLToken) bool {
	policy := func(x, y *api.ACLTokenPolicyLink) bool { return x.Name == y.Name }
	service := func(x, y *api.ACLServiceIdentity) bool { return x.ServiceName == y.ServiceName }
	return slices.EqualFunc(a.Policies, b.Policies, policy) && slices.EqualFunc(a.ServiceIdentities, b.ServiceIdentities, service)
}

// answer is what depends on the host alone.
func (s *Service) answer(_ context.Context, c common, h hostState, p parcel) (Answer, error) {
	bin, err := s.binaries(h.Facts.Arch)
	if err != nil {
		return Answer{}, err
	}
	shortest := p.nebula.Expires
	if p.tls.Expires.Before(shortest) {
		shortest = p.tls.Expires
	}
	now := s.cfg.Now()
	return Answer{Cluster: c.Name, Host: h.Host, Region: h.Region, Roles: h.Roles, Epoch: h.Epoch,
		Control: address(c.Control, h.Number), Media: address(c.Media, h.Number), Pin: c.pin(), Generation: p.trust.Generation,
		RosterKey: c.RosterKey, NebulaCA: p.trust.NebulaPEM(), NebulaCert: p.nebula.PEM, TLSCA: p.trust.TLSPEM(), TLSCert: p.tls.PEM,
		Consul: Consul{Gossip: c.Gossip}, Nomad: Nomad{Pool: Pool(h.Roles)}, Binaries: bin,
		RenewAfter: now.Add(shortest.Sub(now) / 3), CertificateTo: p.nebula.Expires}, nil
}

// surroundings are the other hosts.
func (s *Service) surroundings(ctx context.Context, st store, c common, a *Answer, h hostState) error {
	records, err := st.list(ctx, hostsPrefix)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(records)) {
		r, err := roster.Verify(c.RosterKey, records[name])
		if err != nil {
			continue
		}
		a.Records = append(a.Records, records[name])
		if r.Revoked {
			a.Blocklist = append(a.Blocklist, r.Fingerprints...)
		}
	}
	states, err := st.list(ctx, statesPrefix)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(states)) {
		var o hostState
		if json.Unmarshal(states[name], &o) == nil && o.is(RoleServer) && !o.Revoked && !o.Left {
			a.Servers = append(a.Servers, s.server(c, o))
		}
	}
	a.Consul.Gossip, err = s.currentGossip(ctx, st, c)
	return err
}

// NebulaPort is where servers' Nebula listens, UDP.
const NebulaPort = 4242

// server is where a server host is found.
func (s *Service) server(c common, h hostState) Server {
	v := Server{Host: h.Host, Control: address(c.Control, h.Number).Addr()}
	seen := map[netip.Addr]bool{}
	for _, u := range h.Facts.Underlay {
		if a := u.Addr().Unmap(); a.IsValid() && !seen[a] {
			seen[a] = true
			v.Underlay = append(v.Underlay, netip.AddrPortFrom(a, NebulaPort).String())
			if v.Join == "" {
				v.Join = netip.AddrPortFrom(a, Port).String()
			}
		}
	}
	return v
}

// secrets are a server's own; accessor is that of a new credential.
func (s *Service) secrets(ctx context.Context, c common, consulToken string, credential bool) (out *Secrets, accessor string, err error) {
	out = &Secrets{ConsulToken: consulToken, NomadGossip: c.NomadGossip}
	keys, err := s.cfg.Vault.Keys()
	if err != nil {
		return nil, "", err
	}
	if len(keys.Unseal) > 0 {
		out.VaultUnseal = keys.Unseal[0]
	}
	if credential {
		out.VaultToken, accessor, err = s.cfg.Vault.Credential(ctx)
	}
	return out, accessor, err
}

// Found makes the answer for the first host of a cluster, while there is neither Consul nor Nomad: its Consul and Nomad
// start with tokens that BootstrapConsul makes true. A second call gives the host the same addresses and tokens. The
// request has Host, Keys, Facts, Roles and CSR; nobody has to sign it.
func (s *Service) Found(ctx context.Context, cluster Cluster, region, admin string, q Request) (Answer, error) {
	c, err := s.share(ctx, &cluster)
	if err != nil {
		return Answer{}, err
	}
	if c.Cluster != cluster {
		return Answer{}, fmt.Errorf("this Vault is of the cluster %s already", c.Name)
	}
	if !validName(q.Host) || !validName(region) {
		return Answer{}, fmt.Errorf("the names %q and %q of host and region have a-z, 0-9 and inner hyphens, at most 40 bytes", q.Host, region)
	}
	f, err := s.loadFirst()
	if errors.Is(err, os.ErrNotExist) {
		f = firstHost{hostState: hostState{Host: q.Host, Joined: s.cfg.Now(), ConsulAccessor: uuid(), NomadAccessor: uuid(), Number: 1}, ConsulSecret: uuid(), NomadSecret: uuid()}
	} else if err != nil {
		return Answer{}, err
	}
	f.Keys, f.Facts, f.Region, f.Roles, f.Admin = q.Keys, q.Facts, region, q.Roles, admin
	p, err := s.sign(ctx, c, f.hostState, q)
	if err != nil {
		return Answer{}, err
	}
	if err := s.enter(ctx, c, &f.hostState, p, 0); err != nil {
		return Answer{}, err
	}
	b, err := json.Marshal(f)
	if err != nil {
		return Answer{}, err
	}
	if err := pki.WriteFile(s.firstFile(), b, 0o600); err != nil {
		return Answer{}, err
	}
	a, err := s.answer(ctx, c, f.hostState, p)
	if err != nil {
		return Answer{}, err
	}
	a.Consul.Token, a.Nomad.ConsulToken = f.ConsulSecret, f.NomadSecret
	a.Records, a.Servers = [][]byte{f.Record}, []Server{s.server(c, f.hostState)}
	a.Secrets, _, err = s.secrets(ctx, c, f.ConsulSecret, false)
	return a, err
}

// A firstHost is the state of the first host until Consul holds it.
type firstHost struct {
	hostState
	ConsulSecret string `json:"consul_secret"`
	NomadSecret  string `json:"nomad_secret"`
}

func (s *Service) firstFile() string { return filepath.Join(s.cfg.Dir, "first.json") }

func (s *Service) loadFirst() (firstHost, error) {
	var f firstHost
	b, err := os.ReadFile(s.firstFile())
	if err != nil {
		return f, err
	}
	return f, json.Unmarshal(b, &f)
}

// registerFirst puts the first host into Consul.
func (s *Service) registerFirst(ctx context.Context, st store) error {
	c, err := s.share(ctx, nil)
	if err != nil {
		return err
	}
	f, err := s.loadFirst()
	if err != nil {
		return err
	}
	if err := st.put(ctx, numbersPrefix+formatNumber(f.Number), []byte(f.Host), 0); err != nil && !errors.Is(err, errRace) {
		return err
	}
	if err := st.put(ctx, statesPrefix+f.Host, f.hostState, 0); err != nil && !errors.Is(err, errRace) {
		return err
	}
	if _, err := s.consulTokens(ctx, st.client, f.hostState, f.ConsulSecret, f.NomadSecret); err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	return st.publish(ctx, c.RosterKey, f.Record)
}

// leave forgets a host that asks for it. Its tombstone stays until its certificates have expired.
func (s *Service) leave(ctx context.Context, q Request, e *Event) (any, error) {
	st, c, err := s.store(ctx)
	if err != nil {
		return nil, err
	}
	h, err := update(ctx, st, statesPrefix+q.Host, func(h *hostState, exists bool) error {
		if exists && h.Left && bytes.Equal(h.Keys.Host, q.Keys.Host) {
			return nil // again
		}
		if err := known(h, exists, q); err != nil {
			return err
		}
		if err := s.missable(ctx, st, *h, false); err != nil {
			return err
		}
		h.Left = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.Admin = h.Admin
	if err := s.expel(ctx, st, c, h); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

// expel takes away everything that makes a host part of the cluster. It needs no signature, and may be done again.
func (s *Service) expel(ctx context.Context, st store, c common, h hostState) error {
	var all []error
	step := func(what string, err error) {
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", what, err))
		}
	}
	if err := s.unvote(ctx, st, c, h); err != nil { // while the others can still ask it; tidy tries again
		s.log.Warn("a server that is gone has a vote for a while", "host", h.Host, "err", err)
	}
	// Then what cuts it off on every other host.
	step("record", st.publish(ctx, c.RosterKey, h.Tombstone))
	for _, accessor := range []string{h.ConsulAccessor, h.NomadAccessor} {
		if accessor == "" {
			continue
		}
		_, err := st.client.ACL().TokenDelete(accessor, (&api.WriteOptions{}).WithContext(ctx))
		if err != nil && !isNotFound(err) {
			step("consul token", err)
		}
	}
	if client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name); err != nil {
		step("nomad", err)
	} else {
		if h.is(RoleServer) {
			step("nomad server", nomadForget(client, h.Host+"."+c.Name))
		}
		step("nomad node", expel(ctx, client, h.Host))
		step("xmpp account", closeAccount(ctx, client, h.Host))
	}
	if p, _, err := st.client.ACL().PolicyReadByName("plenum-host-"+h.Host, (&api.QueryOptions{}).WithContext(ctx)); err == nil && p != nil {
		_, err := st.client.ACL().PolicyDelete(p.ID, (&api.WriteOptions{}).WithContext(ctx))
		step("consul policy", err)
	}
	step("hint", st.delete(ctx, "plenum/endpoints/"+h.Host))
	step("address", st.delete(ctx, numbersPrefix+formatNumber(h.Number)))
	return errors.Join(all...)
}

func isNotFound(err error) bool {
	var e api.StatusError
	return errors.As(err, &e) && (e.Code == http.StatusNotFound || strings.Contains(e.Body, "not found") || strings.Contains(e.Body, "Cannot find"))
}
