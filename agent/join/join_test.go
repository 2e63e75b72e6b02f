package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/slackhq/nebula/cert"

	"plenum/overlay/roster"
)

// wantRefusal fails unless err is a refusal for the reason.
func wantRefusal(t *testing.T, what, reason string, err error) {
	t.Helper()
	var r Refusal
	if !errors.As(err, &r) || r.Reason != reason {
		t.Errorf("%s: %v, want a refusal %s", what, err, reason)
	}
}

// audited returns the lines of the audit file for which f is true.
func (l *lab) audited(f func(Event) bool) (all []Event) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "join", "audit.jsonl"))
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var e Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			l.t.Fatalf("%s: %v", line, err)
		}
		if f(e) {
			all = append(all, e)
		}
	}
	return all
}

// TestJoin goes through a host's life with one cluster: it joins, renews, leaves; others try what they must not.
func TestJoin(t *testing.T) {
	l := newLab(t, options{})
	t.Run("bootstrap again", func(t *testing.T) {
		if err := l.service.BootstrapConsul(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := l.service.BootstrapNomad(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("enrol", l.enrolled)
	t.Run("token", l.tokenAttacks)
	t.Run("clock", l.clocks)
	t.Run("nat", l.nat)
	t.Run("name", l.names)
	t.Run("renew", l.renewed)
	t.Run("leave", l.left)
	t.Run("rights", l.rights)
	t.Run("addresses", l.addresses)
	t.Run("revoke sealed", l.revoked)
}

func (l *lab) enrolled(t *testing.T) {
	ctx := t.Context()
	k, token := newKeys(t), l.token("ber", RoleBridge)
	c := l.client(k)
	a, err := c.Enrol(ctx, token, request("b1", k))
	if err != nil {
		t.Fatal(err)
	}
	if a.Host != "b1" || a.Region != "ber" || a.Nomad.Pool != "plenum-bridge" || a.Nomad.Introduction == "" || a.Consul.Token == "" || a.Secrets != nil {
		t.Errorf("answer: %+v", a)
	}
	if !bytes.Equal(a.Pin, token.Pin) || a.Consul.Gossip != l.answer.Consul.Gossip || len(a.Servers) != 1 || a.Servers[0].Join != "127.0.0.1:8443" {
		t.Errorf("answer: servers %+v", a.Servers)
	}
	var own bool
	for _, e := range a.Records {
		r, err := roster.Verify(a.RosterKey, e)
		if err != nil {
			t.Error(err)
		}
		own = own || r.Host == "b1" && r.Control == a.Control.Addr() && r.Media == a.Media.Addr()
	}
	if !own || len(a.Records) != 2 {
		t.Errorf("%d records, its own among them: %t", len(a.Records), own)
	}
	pool, err := cert.NewCAPoolFromPEM([]byte(a.NebulaCA))
	if err != nil {
		t.Fatal(err)
	}
	crt, _, err := cert.UnmarshalCertificateFromPEM([]byte(a.NebulaCert))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.VerifyCertificate(time.Now(), crt); err != nil || crt.Networks()[0] != a.Control || fmt.Sprint(crt.Groups()) != "[bridge]" {
		t.Errorf("certificate: %v, %s %v", err, crt.Networks(), crt.Groups())
	}
	// The same host again: killed after the answer was lost, it gets the same place.
	b, err := c.Enrol(ctx, token, request("b1", k))
	if err != nil || b.Control != a.Control || b.Media != a.Media || b.Epoch != a.Epoch || b.Consul.Token != a.Consul.Token {
		t.Errorf("again: %s %s epoch %d, %v", b.Control, b.Media, b.Epoch, err)
	}
	lines := l.audited(func(e Event) bool { return e.What == "enrol" && e.Host == "b1" && e.Reason == "" })
	if len(lines) != 2 || lines[0].Admin != "ada" || lines[0].Token == "" {
		t.Errorf("audit: %+v", lines)
	}
	hosts, err := l.admin.Hosts(ctx)
	if err != nil || len(hosts) != 2 || hosts[0].Host != "b1" || hosts[0].Admin != "ada" {
		t.Errorf("hosts: %+v, %v", hosts, err)
	}
	// A server gets what only servers have, and Vault takes its credential.
	s := newKeys(t)
	sa, err := l.client(s).Enrol(ctx, l.token("muc", RoleServer), request("s2", s))
	if err != nil {
		t.Fatal(err)
	}
	if sa.Secrets == nil || sa.Secrets.VaultToken == "" || sa.Secrets.VaultUnseal == "" || sa.Secrets.NomadGossip == "" || sa.Nomad.Pool != "plenum-server" {
		t.Errorf("a server's answer lacks secrets")
	}
}

func (l *lab) tokenAttacks(t *testing.T) {
	ctx := t.Context()
	first, thief := newKeys(t), newKeys(t)
	token := l.token("ber", RoleBridge)
	if _, err := l.client(first).Enrol(ctx, token, request("b2", first)); err != nil {
		t.Fatal(err)
	}
	_, err := l.client(thief).Enrol(ctx, token, request("b3", thief))
	wantRefusal(t, "a second key", ReasonUsed, err)
	_, err = l.client(thief).Enrol(ctx, token, request("b2", thief))
	wantRefusal(t, "a second key by the first's name", ReasonUsed, err)
	if alarms := l.audited(func(e Event) bool { return e.Reason == ReasonUsed && e.Alarm && e.Admin == "ada" }); len(alarms) != 2 {
		t.Errorf("%d alarms of a second key", len(alarms))
	}
	_, err = l.client(first).Enrol(ctx, token, request("b9", first))
	wantRefusal(t, "the same key by another name", ReasonName, err)

	altered := l.token("ber", RoleBridge)
	altered.Region = "muc"
	_, err = l.client(thief).Enrol(ctx, altered, request("b3", thief))
	wantRefusal(t, "another region", ReasonRegion, err)
	altered.Region, altered.Roles = "ber", []string{RoleServer}
	_, err = l.client(thief).Enrol(ctx, altered, request("b3", thief))
	wantRefusal(t, "another role", ReasonRegion, err)

	forged := token
	forged.Secret = "hvs.CAESIGforgedforgedforgedforged"
	_, err = l.client(thief).Enrol(ctx, forged, request("b3", thief))
	wantRefusal(t, "a forged secret", ReasonUnknown, err)

	// A wrap by another path, for which a thief has even got an entry made: the creation path tells.
	root, err := l.vault.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wrapped := wrapElsewhere(t, l.vaultAt, root)
	st, _, err := l.service.store(ctx)
	if err != nil {
		t.Fatal(err)
	}
	entry := tokenState{ID: "forged", Region: "ber", Roles: []string{RoleBridge}, Admin: "ada", Expires: time.Now().Add(time.Hour)}
	if err := st.put(ctx, tokensPrefix+digest(wrapped), entry, 0); err != nil {
		t.Fatal(err)
	}
	forged.Secret = wrapped
	_, err = l.client(thief).Enrol(ctx, forged, request("b3", thief))
	wantRefusal(t, "a wrap by another path", ReasonUnknown, err)
	if err := l.vault.Revoke(ctx, root); err != nil {
		t.Error(err)
	}

	// Opened at Vault by a thief, the token is worth nothing to anybody.
	opened := l.token("ber", RoleBridge)
	var inside tokenState
	if err := l.vault.Unwrap(ctx, opened.Secret, &inside); err != nil {
		t.Fatal(err)
	}
	_, err = l.client(first).Enrol(ctx, opened, request("b2", first))
	wantRefusal(t, "opened before", ReasonUnknown, err)

	// Expiry goes by the service's clock; the host's own is not asked when it lies.
	short, err := l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{RoleBridge}, TTL: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	expired, err := ParseToken(short.Text)
	if err != nil {
		t.Fatal(err)
	}
	expired.Addresses, expired.Expires = []string{l.address}, time.Now().Add(time.Hour)
	l.eventually("the token expires", func() error {
		_, err := l.client(thief).Enrol(ctx, expired, request("b4", thief))
		if errors.Is(err, Refusal{Reason: ReasonExpired}) {
			return nil
		}
		return fmt.Errorf("%w", err)
	})

	gone, err := l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{RoleBridge}, Admin: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.admin.TokenRevoke(ctx, gone.ID, ""); err != nil {
		t.Fatal(err)
	}
	revoked, _ := ParseToken(gone.Text)
	revoked.Addresses = []string{l.address}
	_, err = l.client(thief).Enrol(ctx, revoked, request("b3", thief))
	wantRefusal(t, "a revoked token", ReasonRevoked, err)
	list, err := l.admin.Tokens(ctx)
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, i := range list {
		states[i.ID] = i.State
		if i.Text != "" {
			t.Error("a list shows a token's text")
		}
	}
	if states[gone.ID] != "revoked" {
		t.Errorf("states: %v", states)
	}

	// A request by a key that is not the one it names, and one that is sent twice.
	c := l.client(thief)
	c.Host = first.host
	_, err = c.Enrol(ctx, l.token("ber", RoleBridge), request("b3", thief))
	wantRefusal(t, "signed by another key", ReasonSignature, err)
	if lines := l.audited(func(e Event) bool {
		return e.What == "enrol" && e.Reason == ReasonSignature && e.Admin == "ada" && e.Token != ""
	}); len(lines) != 1 {
		t.Errorf("%d audit lines name who made the token that was refused before it was looked up", len(lines))
	}

	_, err = l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{"root"}})
	wantRefusal(t, "a role that is none", ReasonBad, err)
	_, err = l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{RoleBridge}, Admin: "mallory"})
	wantRefusal(t, "an admin who is none", ReasonBad, err)
}

func (l *lab) clocks(t *testing.T) {
	for _, off := range []time.Duration{2 * time.Minute, -2 * time.Minute, 25 * time.Hour, -25 * time.Hour} {
		k, token := newKeys(t), l.token("ber", RoleBridge)
		c := l.client(k)
		c.Now = func() time.Time { return time.Now().Add(off) }
		_, err := c.Enrol(t.Context(), token, request("b5", k))
		wantRefusal(t, off.String(), ReasonClock, err)
		if err != nil && !strings.Contains(err.Error(), off.Abs().String()) && !strings.Contains(err.Error(), (off.Abs()-time.Second).String()) && !strings.Contains(err.Error(), (off.Abs()+time.Second).String()) {
			t.Errorf("the refusal does not tell the offset %s: %v", off, err)
		}
	}
	// The service holds by itself: a client that does not look is refused the same.
	k, token := newKeys(t), l.token("ber", RoleBridge)
	q := request("b5", k)
	q.Token, q.Region, q.Roles, q.Time = token.Secret, token.Region, token.Roles, time.Now().Add(-25*time.Hour)
	_, err := l.service.enrol(t.Context(), q, &Event{})
	wantRefusal(t, "service", ReasonClock, err)
	// A member whose clock goes wrong keeps its certificates, and an admin hears of it.
	ok := l.client(k)
	if _, err := ok.Enrol(t.Context(), token, request("b5", k)); err != nil {
		t.Fatal(err)
	}
	ok.Now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	if _, err := ok.Renew(t.Context(), request("b5", k)); err != nil {
		t.Errorf("renewal with a wrong clock: %v", err)
	}
	if lines := l.audited(func(e Event) bool {
		return e.What == "renew" && e.Host == "b5" && e.Alarm && strings.Contains(e.Text, "25h")
	}); len(lines) != 1 {
		t.Errorf("audit: %+v", lines)
	}
}

// nat has hosts come from an address that they do not know of.
func (l *lab) nat(t *testing.T) {
	enrol := func(name, from string, public []netip.Addr, roles ...string) error {
		k, token := newKeys(t), l.token("ber", roles...)
		q := request(name, k)
		q.Token, q.Region, q.Roles, q.Time = token.Secret, token.Region, token.Roles, time.Now()
		q.CSR, _ = CSR(k.tls)
		q.Facts.Underlay, q.Facts.Public = []netip.AddrPort{netip.MustParseAddrPort("192.168.1.7:51820")}, public
		_, err := l.service.enrol(t.Context(), q, &Event{From: from})
		return err
	}
	outside := []netip.Addr{netip.MustParseAddr("198.51.100.9")}
	wantRefusal(t, "a bridge behind NAT", ReasonAddress, enrol("n1", "198.51.100.9", nil, RoleBridge))
	if err := enrol("n1", "198.51.100.9", nil, RoleBridge); err == nil || !strings.Contains(err.Error(), "--public 198.51.100.9") {
		t.Errorf("the refusal does not say what to do: %v", err)
	}
	wantRefusal(t, "an edge elsewhere than it says", ReasonAddress, enrol("n2", "198.51.100.10", outside, RoleEdge))
	for name, err := range map[string]error{"forwarded": enrol("n3", "198.51.100.9", outside, RoleBridge), "a shard": enrol("n4", "198.51.100.9", nil, RoleShard),
		"its own address": enrol("n5", "192.168.1.7", nil, RoleBridge)} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (l *lab) names(t *testing.T) {
	ctx := t.Context()
	k := newKeys(t)
	_, err := l.client(k).Enrol(ctx, l.token("ber", RoleBridge), request("b1", k))
	wantRefusal(t, "a name that is taken", ReasonName, err)
	for _, name := range []string{"", "-a", "A", "a.b", "../x", strings.Repeat("a", 41)} {
		_, err := l.client(k).Enrol(ctx, l.token("ber", RoleBridge), request(name, k))
		wantRefusal(t, name, ReasonBad, err)
	}
}

func (l *lab) renewed(t *testing.T) {
	ctx := t.Context()
	k := newKeys(t)
	c := l.client(k)
	a, err := c.Enrol(ctx, l.token("ber", RoleBridge), request("b6", k))
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Renew(ctx, request("b6", k))
	if err != nil || b.Control != a.Control || b.Epoch != a.Epoch || b.NebulaCert == "" || b.Nomad.Introduction != "" {
		t.Fatalf("renewed: epoch %d after %d, %v", b.Epoch, a.Epoch, err)
	}
	// New keys are a new record, announced before they are used.
	next := newKeys(t)
	k.keys.Next = next.keys.WireGuard
	if b, err = c.Renew(ctx, request("b6", k)); err != nil || b.Epoch <= a.Epoch {
		t.Errorf("announced: epoch %d, %v", b.Epoch, err)
	}
	thief := newKeys(t)
	_, err = l.client(thief).Renew(ctx, request("b6", thief))
	wantRefusal(t, "renewal by another key", ReasonSignature, err)
	_, err = l.client(thief).Renew(ctx, request("nobody", thief))
	wantRefusal(t, "renewal by nobody", ReasonUnknown, err)
	// A clock that is wrong is told, and does not lock the host out.
	c.Now = func() time.Time { return time.Now().Add(-25 * time.Hour) }
	if _, err := c.Renew(ctx, request("b6", k)); err != nil {
		t.Errorf("renewal with a wrong clock: %v", err)
	}
	if n := len(l.audited(func(e Event) bool { return e.What == "renew" && e.Host == "b6" && e.Alarm })); n != 1 {
		t.Errorf("%d alarms of a wrong clock", n)
	}
}

func (l *lab) left(t *testing.T) {
	ctx := t.Context()
	k := newKeys(t)
	c := l.client(k)
	a, err := c.Enrol(ctx, l.token("ber", RoleBridge), request("b7", k))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Leave(ctx, request("b7", k)); err != nil {
		t.Fatal(err)
	}
	if err := c.Leave(ctx, request("b7", k)); err != nil {
		t.Errorf("again: %v", err)
	}
	_, err = c.Renew(ctx, request("b7", k))
	wantRefusal(t, "renewal after leave", ReasonUnknown, err)
	if err := l.tokenWorks(ctx, a.Consul.Token); err == nil {
		t.Error("the Consul token still works")
	}
	st, cm, _ := l.service.store(ctx)
	if r, err := l.service.published(ctx, st, cm, "b7"); err != nil || !r.Revoked || len(r.Fingerprints) != 1 {
		t.Errorf("record: %+v, %v", r, err)
	}
	// It may come back, with the same key or another; its address is free for others meanwhile.
	n := newKeys(t)
	b, err := l.client(n).Enrol(ctx, l.token("ber", RoleBridge), request("b7", n))
	if err != nil || b.Control != a.Control || b.Epoch <= a.Epoch+1 {
		t.Errorf("back: %s, epoch %d after %d, %v", b.Control, b.Epoch, a.Epoch, err)
	}
	if r, err := l.service.published(ctx, st, cm, "b7"); err != nil || r.Revoked {
		t.Errorf("record after coming back: %+v, %v", r, err)
	}
}

func (l *lab) tokenWorks(ctx context.Context, secret string) error {
	c, err := newConsul(l.consul, secret)
	if err != nil {
		return err
	}
	_, _, err = c.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	return err
}

// rights tries, one by one, what a bridge host's tokens are not good for, and what they are.
func (l *lab) rights(t *testing.T) {
	ctx := t.Context()
	k := newKeys(t)
	a, err := l.client(k).Enrol(ctx, l.token("ber", RoleBridge), request("b8", k))
	if err != nil {
		t.Fatal(err)
	}
	w := (&api.WriteOptions{}).WithContext(ctx)
	q := (&api.QueryOptions{}).WithContext(ctx)
	cluster, err := newConsul(l.consul, l.service.common.Consul)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{"agent": a.Consul.Token, "nomad": a.Nomad.ConsulToken} {
		c, err := newConsul(l.consul, secret)
		if err != nil {
			t.Fatal(err)
		}
		put := func(key string) error {
			_, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte("x")}, w)
			return err
		}
		register := func(node, service string) error {
			_, err := c.Catalog().Register(&api.CatalogRegistration{Node: node, Address: "10.99.0.9", Service: &api.AgentService{Service: service, Port: 1}}, w)
			return err
		}
		tidy := func(service string) error {
			e := &api.CatalogRegistration{Node: "gone", Address: "10.99.0.9", Service: &api.AgentService{Service: service, Port: 1}}
			if _, err := cluster.Catalog().Register(e, w); err != nil {
				t.Fatal(err)
			}
			_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: "gone", ServiceID: service}, w)
			return err
		}
		get := func(key string) error {
			p, _, err := c.KV().Get(key, q)
			if err == nil && p == nil {
				err = errors.New("nothing")
			}
			return err
		}
		for _, x := range []struct {
			what string
			err  error
			ok   bool
		}{
			{"own hint", put("plenum/endpoints/b8"), name == "agent"},
			{"another's hint", put("plenum/endpoints/b1"), false},
			{"a hint below its own", put("plenum/endpoints/b8/x"), false},
			{"own record", put("plenum/hosts/b8"), false},
			{"another's record", put("plenum/hosts/b1"), false},
			{"cluster", put("plenum/cluster"), false},
			{"room", put("plenum/rooms/x"), false},
			{"pin", put("plenum/pins/x"), false},
			{"private", put(statesPrefix + "b8"), false},
			{"token", put(tokensPrefix + "x"), false},
			{"read records", get("plenum/hosts/b1"), name == "agent"},
			{"read private", get(statesPrefix + "b8"), false},
			{"own service", register("b8", "plenum-agent-b8"), name == "agent"},
			{"another's service on its node", register("b8", "plenum-agent-b1"), false},
			{"its service on another's node", register("s1", "plenum-agent-b8"), false},
			{"a shard", register("b8", "plenum-shard"), false},
			{"consul", register("s1", "consul"), false},
			{"what a bridge left", tidy("plenum-bridge"), name == "nomad"},
			{"what a shard left", tidy("plenum-shard"), false},
			{"a session", func() error { _, _, err := c.Session().Create(&api.SessionEntry{Node: "s1"}, w); return err }(), false},
			{"a token", func() error { _, _, err := c.ACL().TokenCreate(&api.ACLToken{}, w); return err }(), false},
			{"tokens", func() error {
				all, _, err := c.ACL().TokenList(q)
				if err == nil && len(all) == 0 {
					err = errors.New("none")
				}
				return err
			}(), false},
			{"keyring", func() error { _, err := c.Operator().KeyringList(q); return err }(), false},
			{"raft", func() error { _, err := c.Operator().RaftGetConfiguration(q); return err }(), false},
			{"snapshot", func() error {
				r, _, err := c.Snapshot().Save(q)
				if err == nil {
					r.Close()
				}
				return err
			}(), false},
			{"leave of a server", c.Agent().ForceLeave("s1"), false},
		} {
			if (x.err == nil) != x.ok {
				t.Errorf("%s token, %s: %v", name, x.what, x.err)
			}
		}
	}
	// Nomad knows neither token, and nobody without one.
	for _, secret := range []string{"", a.Consul.Token, a.Nomad.ConsulToken, a.Nomad.Introduction} {
		c, err := newNomad(l.nomad, secret, "", "test")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Nodes().List(nil); err == nil {
			t.Error("Nomad lists nodes for a host's token")
		}
		if _, _, err := c.Variables().Read("plenum/accounts", nil); err == nil {
			t.Error("Nomad reads a variable for a host's token")
		}
	}
	// Vault: whatever a host has, it is no token, and logs in nowhere.
	for _, secret := range []string{a.Consul.Token, a.Nomad.Introduction} {
		for _, path := range []string{"transit/sign/hosts", "transit/sign/roster", "pki/sign/host", "plenum/data/join/common", "auth/token/create"} {
			if code := vaultCode(t, l.vaultAt, secret, path); code != 403 && code != 500 { // 500: no token of Vault by its form
				t.Errorf("Vault answers %d to %s", code, path)
			}
		}
	}
	anonymous, _ := newConsul(l.consul, "")
	if _, _, err := anonymous.KV().Keys("plenum/", "", q); err == nil {
		if keys, _, _ := anonymous.KV().Keys("plenum/", "", q); len(keys) > 0 {
			t.Errorf("anybody lists %v", keys)
		}
	}
	if m, err := anonymous.Agent().Members(false); err == nil && len(m) > 0 {
		t.Errorf("anybody sees %d members", len(m))
	}
}

// addresses: E35. Fifty hosts join at once and none shares an address; then two and two, a thousand times.
func (l *lab) addresses(t *testing.T) {
	ctx := t.Context()
	st, _, err := l.service.store(ctx)
	if err != nil {
		t.Fatal(err)
	}
	taken := sync.Map{}
	take := func(name string) {
		n, err := st.number(ctx, name, 1, 1<<16-2)
		if err != nil {
			t.Error(err)
			return
		}
		if who, dup := taken.LoadOrStore(n, name); dup && who != name {
			t.Errorf("%s and %s have number %d", name, who, n)
		}
	}
	together := func(names ...string) {
		var wg sync.WaitGroup
		for _, n := range names {
			wg.Go(func() { take(n) })
		}
		wg.Wait()
	}
	var fifty []string
	for i := range 50 {
		fifty = append(fifty, fmt.Sprintf("e%d", i))
	}
	together(fifty...)
	tries := 1000
	if testing.Short() {
		tries = 50
	}
	for i := range tries {
		x, y := fmt.Sprintf("x%d", i), fmt.Sprintf("y%d", i)
		together(x, y)
		for _, n := range []string{x, y} { // given back, so that the next two race for the same
			taken.Range(func(k, v any) bool {
				if v == n {
					taken.Delete(k)
					if err := st.delete(ctx, numbersPrefix+formatNumber(k.(uint32))); err != nil {
						t.Error(err)
					}
				}
				return true
			})
		}
	}
	for _, n := range fifty {
		if got, err := st.number(ctx, n, 1, 1<<16-2); err != nil {
			t.Error(err)
		} else if who, _ := taken.Load(got); who != n {
			t.Errorf("%s has number %d of %v", n, got, who)
		}
	}
}

// revoked puts a host out while Vault is sealed.
func (l *lab) revoked(t *testing.T) {
	ctx := t.Context()
	k := newKeys(t)
	c := l.client(k)
	a, err := c.Enrol(ctx, l.token("ber", RoleBridge), request("bad", k))
	if err != nil {
		t.Fatal(err)
	}
	k.keys.Nebula = newKeys(t).keys.Nebula // a second certificate
	if a, err = c.Renew(ctx, request("bad", k)); err != nil {
		t.Fatal(err)
	}
	spare := l.token("ber", RoleBridge)
	l.procs["vault"].kill()
	l.again["vault"]()
	// Sealed now: nothing is signed, and the host hears why.
	l.eventually("vault answers", func() error { _, err := l.vault.Status(ctx); return err })
	n := newKeys(t)
	_, err = l.client(n).Enrol(ctx, spare, request("late", n))
	wantRefusal(t, "enrol with Vault sealed", ReasonSealed, err)
	_, err = c.Renew(ctx, request("bad", k))
	wantRefusal(t, "renew with Vault sealed", ReasonSealed, err)

	began := time.Now()
	if err := l.admin.Revoke(ctx, "bad", "ada", false); err != nil {
		t.Fatal(err)
	}
	t.Logf("revoked in %s", time.Since(began).Round(time.Millisecond))
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("revoking took %s", d)
	}
	st, cm, _ := l.service.store(ctx)
	r, err := l.service.published(ctx, st, cm, "bad")
	if err != nil || !r.Revoked || r.Epoch != a.Epoch+1 || len(r.Fingerprints) != 2 {
		t.Errorf("tombstone: %+v, %v", r, err)
	}
	if err := l.tokenWorks(ctx, a.Consul.Token); err == nil {
		t.Error("the Consul token still works")
	}
	l.eventually("the gossip key is another", func() error {
		ring, err := rings(ctx, st.client)
		if err == nil && (len(ring.Keys) != 1 || ring.Keys[a.Consul.Gossip] > 0) {
			err = fmt.Errorf("keys %v", ring.Keys)
		}
		return err
	})
	if err := l.vault.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = c.Renew(ctx, request("bad", k))
	wantRefusal(t, "renew after revoke", ReasonRevoked, err)
	_, err = c.Enrol(ctx, l.token("ber", RoleBridge), request("bad", k))
	wantRefusal(t, "enrol of a revoked key", ReasonRevoked, err)
	_, err = c.Enrol(ctx, l.token("ber", RoleBridge), request("other", k))
	wantRefusal(t, "enrol of a revoked key by another name", ReasonRevoked, err)
	// Everybody else goes on, and hears of it; the join that was refused ends.
	b, err := l.client(n).Enrol(ctx, spare, request("late", n))
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Blocklist) < 2 || b.Consul.Gossip == a.Consul.Gossip {
		t.Errorf("blocklist %v", b.Blocklist)
	}
	if b.Control == (netip.Prefix{}) {
		t.Error("no address")
	}
	if lines := l.audited(func(e Event) bool { return e.What == "revoke" && e.Host == "bad" && e.Admin == "ada" }); len(lines) != 1 {
		t.Errorf("audit: %+v", lines)
	}
}
