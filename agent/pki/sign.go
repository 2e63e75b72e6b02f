package pki

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/slackhq/nebula/cert"

	"plenum/overlay/roster"
)

// A Subject is the host that certificates are for.
type Subject struct {
	Host    string
	Control netip.Prefix // own address with the length of the plane's prefix
	Roles   []string     // its groups; with the role server the CA is that of servers
}

func (s Subject) kind() (Kind, string) {
	if slices.Contains(s.Roles, "server") {
		return Servers, "server"
	}
	return Hosts, "host"
}

// A Certificate is one that was signed.
type Certificate struct {
	PEM         string
	Fingerprint string // hex SHA-256, as blocklists have it
	Expires     time.Time
}

// SignNebula signs a certificate for the X25519 key.
func (v *Vault) SignNebula(ctx context.Context, t *Trust, s Subject, key []byte) (Certificate, error) {
	kind, _ := s.kind()
	return v.signNebula(ctx, t, kind, s, key)
}

func (v *Vault) signNebula(ctx context.Context, t *Trust, kind Kind, s Subject, key []byte) (Certificate, error) {
	ca, err := t.issuing(kind)
	if err != nil {
		return Certificate{}, err
	}
	signer, _, err := cert.UnmarshalCertificateFromPEM([]byte(ca.PEM))
	if err != nil {
		return Certificate{}, err
	}
	now := v.cfg.Now()
	tbs := &cert.TBSCertificate{Version: cert.Version2, Curve: cert.Curve_CURVE25519, Name: s.Host, Groups: s.Roles,
		Networks: []netip.Prefix{s.Control}, PublicKey: key, NotBefore: now.Add(-clockSlack), NotAfter: now.Add(v.life(kind))}
	if end := signer.NotAfter(); tbs.NotAfter.After(end) {
		tbs.NotAfter = end
	}
	crt, err := tbs.SignWith(signer, cert.Curve_CURVE25519, func(b []byte) ([]byte, error) {
		c, err := v.service(ctx)
		if err != nil {
			return nil, err
		}
		return transitSign(ctx, c, string(kind), ca.Version, b)
	})
	if err != nil {
		return Certificate{}, explainSign(err)
	}
	text, err := crt.MarshalPEM()
	if err != nil {
		return Certificate{}, err
	}
	print, err := crt.Fingerprint()
	return Certificate{PEM: string(text), Fingerprint: print, Expires: crt.NotAfter()}, err
}

// clockSlack is how far behind a host's clock may be and still believe a certificate that was made just now.
const clockSlack = time.Minute

func (v *Vault) life(k Kind) time.Duration {
	if k == Servers {
		return v.cfg.ServerLife
	}
	return v.cfg.HostLife
}

// explainSign keeps what explain said already.
func explainSign(err error) error {
	if errors.Is(err, ErrSealed) || errors.Is(err, ErrNoKeys) {
		return err
	}
	return fmt.Errorf("nebula certificate: %w", err)
}

// SignTLS signs a certificate for the key of a certificate request (DER), which proves that the host has it. The names
// are those that Consul and Nomad want to see of a server or a client; what the request asks for is ignored.
func (v *Vault) SignTLS(ctx context.Context, s Subject, csr []byte) (Certificate, error) {
	kind, role := s.kind()
	return v.signTLS(ctx, kind, role, s, csr)
}

// ErrRequest is a certificate request that is none, or not signed by its key.
var ErrRequest = errors.New("not a certificate request")

func (v *Vault) signTLS(ctx context.Context, kind Kind, role string, s Subject, csr []byte) (Certificate, error) {
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return Certificate{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := r.CheckSignature(); err != nil {
		return Certificate{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	c := v.cfg.Cluster
	names := []string{"client." + c + ".nomad", s.Host + ".node." + c + ".consul", "localhost"}
	first := "client." + c + ".consul"
	if role == "server" {
		first = "server." + c + ".consul"
		names = append(names, "client."+c+".consul", "server."+c+".nomad", s.Host+".server."+c+".consul", "join."+c)
	}
	a, err := v.write(ctx, pkiMount+"/sign/"+role, map[string]any{
		"csr":         string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"common_name": first, "alt_names": strings.Join(names, ","), "ip_sans": s.Control.Addr().String() + ",127.0.0.1",
		"ttl": seconds(v.life(kind)), "format": "pem",
	})
	if err != nil {
		return Certificate{}, err
	}
	text := withNewline(fmt.Sprint(a.Data["certificate"]))
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return Certificate{}, errors.New("vault: a certificate that cannot be read")
	}
	x, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Certificate{}, err
	}
	sum := sha256.Sum256(block.Bytes)
	return Certificate{PEM: text, Fingerprint: hex.EncodeToString(sum[:]), Expires: x.NotAfter}, nil
}

// SignRecord is the envelope of a record, signed with the roster key.
func (v *Vault) SignRecord(ctx context.Context, r roster.Record) ([]byte, error) {
	return roster.SignWith(func(b []byte) ([]byte, error) {
		c, err := v.service(ctx)
		if err != nil {
			return nil, err
		}
		return transitSign(ctx, c, "roster", 0, b)
	}, r)
}

// transitSign signs bytes with a version of a key, 0 for the newest. Ed25519 hashes by itself: prehashed is false.
func transitSign(ctx context.Context, c *api.Client, key string, version int, b []byte) ([]byte, error) {
	s, err := c.Logical().WriteWithContext(ctx, transit+"/sign/"+key, map[string]any{
		"input": base64.StdEncoding.EncodeToString(b), "prehashed": false, "key_version": version,
	})
	if err != nil {
		return nil, explain(err)
	}
	parts := strings.Split(fmt.Sprint(s.Data["signature"]), ":") // vault:vN:base64
	if len(parts) != 3 {
		return nil, errors.New("vault: a signature that cannot be read")
	}
	return base64.StdEncoding.DecodeString(parts[2])
}

// Credential makes what another server's join service logs in with, and the accessor by which Dismiss ends it.
func (v *Vault) Credential(ctx context.Context) (credential, accessor string, err error) {
	c, err := v.service(ctx)
	if err != nil {
		return "", "", err
	}
	credential, accessor, err = newCredential(ctx, c)
	return credential, accessor, explain(err)
}

// Dismiss ends a credential. One that is gone already is no error.
func (v *Vault) Dismiss(ctx context.Context, accessor string) error {
	_, err := v.write(ctx, "auth/approle/role/"+role+"/secret-id-accessor/destroy", map[string]any{"secret_id_accessor": accessor})
	if err != nil && (strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "failed to find accessor")) {
		return nil
	}
	return err
}

// wrapPath is where wrapped secrets of tokens come from; any other path is a forgery.
const wrapPath = "sys/wrapping/wrap"

// ErrWrapped is a wrapped secret that Vault does not know, that was opened before, or that this service did not wrap.
var ErrWrapped = errors.New("not a secret that was wrapped here, or opened before")

// Wrap hides a value in a token that opens once, within ttl.
func (v *Vault) Wrap(ctx context.Context, value any, ttl time.Duration) (string, error) {
	me, err := v.service(ctx)
	if err != nil {
		return "", err
	}
	c, err := v.as(me.Token())
	if err != nil {
		return "", err
	}
	c.SetWrappingLookupFunc(func(string, string) string { return seconds(max(ttl, time.Second)) })
	s, err := c.Logical().WriteWithContext(ctx, wrapPath, wrapJSON(value))
	if err != nil {
		return "", explain(err)
	}
	return s.WrapInfo.Token, nil
}

// Inspect verifies that a wrapped secret is unopened and comes from Wrap, and does not open it.
func (v *Vault) Inspect(ctx context.Context, token string) error {
	s, err := v.write(ctx, "sys/wrapping/lookup", map[string]any{"token": token})
	switch {
	case errors.Is(err, ErrSealed), errors.Is(err, ErrNoKeys):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrWrapped, err)
	case s == nil || s.Data["creation_path"] != wrapPath:
		return fmt.Errorf("%w: made by another path", ErrWrapped)
	}
	return nil
}

// Unwrap opens a wrapped secret, once, into to. Inspect it first.
func (v *Vault) Unwrap(ctx context.Context, token string, to any) error {
	c, err := v.as(token)
	if err != nil {
		return err
	}
	s, err := c.Logical().UnwrapWithContext(ctx, "")
	if err != nil {
		if err = explain(err); errors.Is(err, ErrSealed) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrWrapped, err)
	}
	text, ok := s.Data["json"].(string)
	if !ok || json.Unmarshal([]byte(text), to) != nil {
		return fmt.Errorf("%w: something else is in it", ErrWrapped)
	}
	return nil
}

// RemovePeer takes a server out of the votes of Vault's storage, where it has one. ErrSealed comes back while Vault
// cannot.
func (v *Vault) RemovePeer(ctx context.Context, host string) error {
	s, err := v.read(ctx, "sys/storage/raft/configuration")
	if err != nil {
		return err
	}
	if s == nil { // it loses or gets its leader just now
		return fmt.Errorf("%w: no leader", ErrSealed)
	}
	b, err := json.Marshal(s.Data["config"])
	if err != nil {
		return err
	}
	var c struct {
		Servers []struct {
			Node string `json:"node_id"`
		} `json:"servers"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	for _, p := range c.Servers {
		if p.Node == host && len(c.Servers) > 1 {
			_, err := v.write(ctx, "sys/storage/raft/remove-peer", map[string]any{"server_id": host})
			return err
		}
	}
	return nil
}
