package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"plenum/agent/pki"
)

// A Cluster is what is chosen once, when it is made.
type Cluster struct {
	Name    string       `json:"name"`
	Control netip.Prefix `json:"control"` // of the planes
	Media   netip.Prefix `json:"media"`
}

func (c Cluster) validate() error {
	switch {
	case !validName(c.Name):
		return fmt.Errorf("the cluster's name %q is no DNS label of at most 40 bytes", c.Name)
	case !c.Control.IsValid() || !c.Media.IsValid() || c.Control.Overlaps(c.Media):
		return fmt.Errorf("the prefixes %s and %s of the overlays are invalid or overlap", c.Control, c.Media)
	}
	return nil
}

// address is the n-th address of a prefix, with the prefix's length.
func address(p netip.Prefix, n uint32) netip.Prefix {
	a := p.Masked().Addr().As16()
	for i, carry := 15, uint64(n); i >= 0 && carry > 0; i-- {
		carry += uint64(a[i])
		a[i] = byte(carry)
		carry >>= 8
	}
	out := netip.AddrFrom16(a)
	if p.Addr().Is4() {
		out = out.Unmap()
	}
	return netip.PrefixFrom(out, p.Bits())
}

// numbers are those that may be given away: the first address of a prefix is none, nor the last.
func (c Cluster) numbers() (first, last uint32) {
	size := func(p netip.Prefix) uint32 {
		return 1<<min(p.Addr().BitLen()-p.Bits(), 20) - 2
	}
	return 1, min(size(c.Control), size(c.Media))
}

// Common is what the join services of a cluster share: in Vault, and in a file of every server host, so that a sealed
// Vault stops nothing but signing.
type common struct {
	Cluster
	Key         []byte `json:"key"`         // of the service's TLS, PKCS 8
	Certificate []byte `json:"certificate"` // self-made; clients go by the pin
	Consul      string `json:"consul"`      // management token
	Nomad       string `json:"nomad"`       // management token
	Gossip      string `json:"gossip"`      // Consul's first gossip key
	NomadGossip string `json:"nomad_gossip"`
	RosterKey   []byte `json:"roster_key"`
}

func newCommon(c Cluster, roster []byte, now time.Time) (common, error) {
	if err := c.validate(); err != nil {
		return common{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return common{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return common{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "join." + c.Name}, DNSNames: []string{"join." + c.Name},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.AddDate(100, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	crt, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return common{}, err
	}
	return common{Cluster: c, Key: der, Certificate: crt, Consul: uuid(), Nomad: uuid(), Gossip: gossipKey(), NomadGossip: gossipKey(), RosterKey: roster}, nil
}

func (c *common) certificate() (tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(c.Key)
	return tls.Certificate{Certificate: [][]byte{c.Certificate}, PrivateKey: key}, err
}

// pin is what tokens tell of the service's key.
func (c *common) pin() []byte {
	crt, err := x509.ParseCertificate(c.Certificate)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(crt.RawSubjectPublicKeyInfo)
	return sum[:]
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func gossipKey() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

// share reads what the services share from Vault, or from this host's file while Vault is sealed; c names the cluster
// that is being made, and is nil for one that is there.
func (s *Service) share(ctx context.Context, c *Cluster) (common, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.common != nil {
		return *s.common, nil
	}
	file := filepath.Join(s.cfg.Dir, "common.json")
	var shared common
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &shared) == nil && shared.Name != "" {
		s.common = &shared
		return shared, nil
	}
	shared, err := pki.Shared(ctx, s.cfg.Vault, "common", func() (common, error) {
		if c == nil {
			return common{}, errors.New("this Vault is of no cluster yet: run plenum init")
		}
		t, err := s.cfg.Vault.Trust(ctx)
		if err != nil {
			return common{}, err
		}
		return newCommon(*c, t.Roster, s.cfg.Now())
	})
	if err != nil {
		return common{}, err
	}
	b, err := json.Marshal(shared)
	if err != nil {
		return common{}, err
	}
	if err := pki.WriteFile(file, b, 0o600); err != nil {
		return common{}, err
	}
	s.common = &shared
	return shared, nil
}

// BootstrapConsul makes a new Consul this cluster's, with its first host: ACLs, policies, the cluster's and the host's
// entries. Found comes before. Everything may be done again.
func (s *Service) BootstrapConsul(ctx context.Context) error {
	c, err := s.share(ctx, nil)
	if err != nil {
		return err
	}
	anonymous, err := newConsul(s.cfg.Consul, "")
	if err != nil {
		return err
	}
	client, err := newConsul(s.cfg.Consul, c.Consul)
	if err != nil {
		return err
	}
	if err := await(ctx, func() error {
		_, _, err := anonymous.ACL().BootstrapWithToken(c.Consul)
		if err != nil {
			if _, _, own := client.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx)); own == nil {
				return nil // done before
			}
		}
		return err
	}); err != nil {
		return fmt.Errorf("consul: ACLs: %w", err)
	}
	if err := policies(ctx, client, c.Name); err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	st := store{client}
	if err := st.put(ctx, ClusterKey, public(c, 1), 0); err != nil && !errors.Is(err, errRace) {
		return err
	}
	return s.registerFirst(ctx, st)
}

// await repeats f, which fails while a server has no leader yet.
func await(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// A Public is the cluster as every host may know it.
type Public struct {
	Cluster
	RosterKey  []byte `json:"roster_key"`
	Pin        []byte `json:"pin"`
	Generation int    `json:"generation"` // of what is to be trusted
}

func public(c common, generation int) Public {
	return Public{c.Cluster, c.RosterKey, c.pin(), generation}
}

// Rules of Consul. A host reads what peers need and writes what is its own: its node, plenum-agent-HOST, its hint.
func hostRules(host string) string {
	return fmt.Sprintf(`
node %[1]q { policy = "write" }
agent %[1]q { policy = "write" }
service "plenum-agent-%[1]s" { policy = "write" }
key "plenum/endpoints/%[1]s" { policy = "write" }
key "plenum/cluster" { policy = "read" }
key_prefix "plenum/hosts/" { policy = "read" }
key_prefix "plenum/endpoints/" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
`, host)
}

// nomadRules are those of a host's Nomad, which registers itself; its tasks' services go by their own identities.
func nomadRules(server bool) string {
	rules := `
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
service "nomad-client" { policy = "write" }
`
	if server {
		rules += `service "nomad" { policy = "write" }` + "\n"
	}
	return rules
}

const (
	shardRules = `
session_prefix "" { policy = "write" }
key_prefix "plenum/rooms/" { policy = "write" }
key_prefix "plenum/pins/" { policy = "write" }
key "plenum/cluster" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
`
	edgeRules = `
key_prefix "plenum/bans/" { policy = "read" }
key_prefix "plenum/certificates/" { policy = "write" }
session_prefix "" { policy = "write" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
`
	readerRules = `
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
`
	adminRules = `
acl = "write"
operator = "write"
keyring = "write"
agent_prefix "" { policy = "write" }
node_prefix "" { policy = "write" }
service_prefix "" { policy = "write" }
session_prefix "" { policy = "write" }
key_prefix "plenum/" { policy = "write" }
`
)

// workloads is Nomad's auth method in Consul: a task or a service proves itself by a JWT that Nomad signed.
const workloads = "nomad-workloads"

func policies(ctx context.Context, c *api.Client, cluster string) error {
	w := (&api.WriteOptions{}).WithContext(ctx)
	for name, rules := range map[string]string{"plenum-nomad-client": nomadRules(false), "plenum-nomad-server": nomadRules(true),
		"plenum-shard": shardRules, "plenum-edge": edgeRules, "plenum-reader": readerRules, "plenum-admin": adminRules} {
		if err := ensurePolicy(ctx, c, name, rules); err != nil {
			return err
		}
	}
	for _, name := range []string{"plenum-shard", "plenum-edge", "plenum-reader"} {
		r, _, err := c.ACL().RoleReadByName(name, (&api.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		if r == nil {
			if _, _, err := c.ACL().RoleCreate(&api.ACLRole{Name: name, Policies: []*api.ACLTokenPolicyLink{{Name: name}}}, w); err != nil {
				return err
			}
		}
	}
	return nil
}

func ensurePolicy(ctx context.Context, c *api.Client, name, rules string) error {
	w := (&api.WriteOptions{}).WithContext(ctx)
	p, _, err := c.ACL().PolicyReadByName(name, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil && !strings.Contains(err.Error(), "not found"):
		return fmt.Errorf("policy %s: %w", name, err)
	case p == nil:
		_, _, err = c.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, w)
		if err != nil && strings.Contains(err.Error(), "already exists") {
			return nil // somebody else, at the same time
		}
	case p.Rules != rules:
		p.Rules = rules
		_, _, err = c.ACL().PolicyUpdate(p, w)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("policy %s: %w", name, err)
	}
	return nil
}

// authMethod lets workloads of Nomad log in to Consul: services by their name, tasks of jobs shard-… and edge-… with the
// rights of their kind, those of bridges and of Prometheus with that to read the catalogue, other tasks with none. Tokens
// have no end of their own: Nomad takes them back with the task, and does not renew them. Every server asks the Nomad
// beside it for the keys.
func authMethod(ctx context.Context, c *api.Client, nomadURL, caPEM string) error {
	w := (&api.WriteOptions{}).WithContext(ctx)
	config := map[string]any{
		"JWKSURL": nomadURL + "/.well-known/jwks.json", "JWTSupportedAlgs": []string{"RS256"}, "BoundAudiences": []string{"consul.io"},
		"ClaimMappings": map[string]string{"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id", "nomad_task": "nomad_task", "nomad_service": "nomad_service"},
	}
	if strings.HasPrefix(nomadURL, "https:") {
		config["JWKSCACert"] = caPEM
	}
	m := &api.ACLAuthMethod{Name: workloads, Type: "jwt", DisplayName: "Nomad's workloads", Config: config, TokenLocality: "local"}
	have, _, err := c.ACL().AuthMethodRead(workloads, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil && !strings.Contains(err.Error(), "not found") && !strings.Contains(err.Error(), "404"):
		return err
	case have == nil:
		_, _, err = c.ACL().AuthMethodCreate(m, w)
	default:
		_, _, err = c.ACL().AuthMethodUpdate(m, w)
	}
	if err != nil {
		return err
	}
	rules, _, err := c.ACL().BindingRuleList(workloads, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	for _, r := range []*api.ACLBindingRule{
		{Description: "services", Selector: `"nomad_service" in value`, BindType: api.BindingRuleBindTypeService, BindName: "${value.nomad_service}"},
		{Description: "shards", Selector: `"nomad_service" not in value and value.nomad_job_id matches "^shard-[a-z0-9-]+$"`, BindType: api.BindingRuleBindTypeRole, BindName: "plenum-shard"},
		{Description: "edges", Selector: `"nomad_service" not in value and value.nomad_job_id matches "^edge-[a-z0-9-]+$"`, BindType: api.BindingRuleBindTypeRole, BindName: "plenum-edge"},
		{Description: "readers", Selector: `"nomad_service" not in value and value.nomad_job_id matches "^(bridge-[a-z0-9-]+|prometheus)$"`, BindType: api.BindingRuleBindTypeRole, BindName: "plenum-reader"},
	} {
		r.AuthMethod = workloads
		var old *api.ACLBindingRule
		for _, o := range rules {
			if o.Description == r.Description {
				old = o
			}
		}
		switch {
		case old == nil:
			_, _, err = c.ACL().BindingRuleCreate(r, w)
		case old.Selector != r.Selector || old.BindName != r.BindName:
			r.ID = old.ID
			_, _, err = c.ACL().BindingRuleUpdate(r, w)
		}
		if err != nil {
			return fmt.Errorf("binding rule %s: %w", r.Description, err)
		}
	}
	return nil
}

// BootstrapNomad makes a new Nomad this cluster's: ACLs, pools, its auth method in Consul. It returns the introduction
// for the first host's client. Everything may be done again.
func (s *Service) BootstrapNomad(ctx context.Context) (introduction string, err error) {
	c, err := s.share(ctx, nil)
	if err != nil {
		return "", err
	}
	open, err := newNomad(s.cfg.Nomad, "", s.cfg.CA, c.Name)
	if err != nil {
		return "", err
	}
	client, err := newNomad(s.cfg.Nomad, c.Nomad, s.cfg.CA, c.Name)
	if err != nil {
		return "", err
	}
	w := (&nomad.WriteOptions{}).WithContext(ctx)
	if err := await(ctx, func() error {
		_, _, err := open.ACLTokens().BootstrapOpts(c.Nomad, w)
		if err != nil {
			if _, _, own := client.ACLTokens().Self((&nomad.QueryOptions{}).WithContext(ctx)); own == nil {
				return nil
			}
		}
		return err
	}); err != nil {
		return "", fmt.Errorf("nomad: ACLs: %w", err)
	}
	for _, role := range []string{RoleServer, RoleEdge, RoleShard, RoleBridge} {
		pool := &nomad.NodePool{Name: Pool([]string{role}), Description: "hosts whose highest role is " + role}
		if _, err := client.NodePools().Register(pool, w); err != nil {
			return "", fmt.Errorf("nomad: pool %s: %w", pool.Name, err)
		}
	}
	consul, err := newConsul(s.cfg.Consul, c.Consul)
	if err != nil {
		return "", err
	}
	ca := ""
	if s.cfg.CA != "" {
		b, err := os.ReadFile(s.cfg.CA)
		if err != nil {
			return "", err
		}
		ca = string(b)
	}
	// The keys exist a moment after the leader.
	if err := await(ctx, func() error { return jwks(ctx, client) }); err != nil {
		return "", fmt.Errorf("nomad: signing keys: %w", err)
	}
	if err := authMethod(ctx, consul, s.cfg.Nomad, ca); err != nil {
		return "", fmt.Errorf("consul: Nomad's auth method: %w", err)
	}
	first, err := s.loadFirst()
	if err != nil {
		return "", err
	}
	if err := account(ctx, client, first.Host); err != nil {
		return "", err
	}
	return introduce(ctx, client, first.Host, Pool(first.Roles))
}

func jwks(ctx context.Context, c *nomad.Client) error {
	r, err := c.Raw().Response("/.well-known/jwks.json", (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	defer r.Close()
	var keys struct{ Keys []json.RawMessage }
	if err := json.NewDecoder(http.MaxBytesReader(nil, r, 1<<20)).Decode(&keys); err != nil {
		return err
	}
	if len(keys.Keys) == 0 {
		return errors.New("none yet")
	}
	return nil
}
