package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/hashicorp/vault/api"
	"github.com/slackhq/nebula/cert"
)

// A Kind of CA for Nebula.
type Kind string

// Transit signs any bytes, so what a CA may sign is bound in the CA itself: no certificate of Hosts is a server.
const (
	Servers    Kind = "servers"
	Hosts      Kind = "hosts"
	BreakGlass Kind = "break-glass" // its key is the admins', for the day that Vault is lost
)

// HostGroups are all groups that a certificate of Hosts may have.
var HostGroups = []string{"bridge", "edge", "recorder", "shard"}

// A CA is a certificate that hosts trust.
type CA struct {
	Kind    Kind   `json:"kind"`
	Version int    `json:"version"` // of the key in transit
	PEM     string `json:"pem"`
	Issuing bool   `json:"issuing,omitempty"`
}

// Trust is what every host believes.
type Trust struct {
	Nebula     []CA              `json:"nebula"`
	TLS        []string          `json:"tls"` // PEM
	Roster     ed25519.PublicKey `json:"roster"`
	Generation int               `json:"generation"` // grows with every stage of a rotation
	Stage      Stage             `json:"stage,omitempty"`
}

// NebulaPEM is every CA for Nebula in one text, TLSPEM every one for TLS.
func (t *Trust) NebulaPEM() string {
	var b strings.Builder
	for _, ca := range t.Nebula {
		b.WriteString(ca.PEM)
	}
	return b.String()
}

// TLSPEM is every CA for TLS in one text.
func (t *Trust) TLSPEM() string { return strings.Join(t.TLS, "") }

func (t *Trust) issuing(k Kind) (CA, error) {
	i := slices.IndexFunc(t.Nebula, func(c CA) bool { return c.Kind == k && c.Issuing })
	if i < 0 {
		return CA{}, fmt.Errorf("no CA for %s issues", k)
	}
	return t.Nebula[i], nil
}

// Trust reads what hosts are to believe now.
func (v *Vault) Trust(ctx context.Context) (Trust, error) {
	var t Trust
	found, err := v.readJSON(ctx, "trust", &t)
	if err == nil && !found {
		err = errors.New("vault: set up half only: run plenum init again")
	}
	return t, err
}

// BreakGlassKey is the break-glass CA's key, encrypted to the admins that there were when the cluster was made.
func (v *Vault) BreakGlassKey(ctx context.Context) (string, error) {
	var key string
	_, err := v.readJSON(ctx, "break-glass", &key)
	return key, err
}

// makeTrust makes the CAs once.
func (v *Vault) makeTrust(ctx context.Context, root *api.Client) error {
	s, err := root.Logical().ReadWithContext(ctx, kv+"/data/trust")
	var e *api.ResponseError
	if err == nil && s != nil && s.Data["data"] != nil {
		return nil
	}
	if err != nil && !errors.As(err, &e) {
		return err
	}
	t := Trust{Generation: 1}
	for _, k := range []Kind{Servers, Hosts} {
		ca, err := v.nebulaCA(ctx, root, k, 1)
		if err != nil {
			return err
		}
		ca.Issuing = true
		t.Nebula = append(t.Nebula, ca)
	}
	if len(v.cfg.Admins) > 0 {
		ca, key, err := v.breakGlass()
		if err != nil {
			return err
		}
		if err := putOnce(ctx, root, "break-glass", wrapJSON(key)); err != nil {
			return err
		}
		t.Nebula = append(t.Nebula, ca)
	}
	pem, err := root.Logical().ReadWithContext(ctx, pkiMount+"/cert/ca")
	if err != nil {
		return err
	}
	t.TLS = []string{withNewline(fmt.Sprint(pem.Data["certificate"]))}
	if t.Roster, err = publicKey(ctx, root, "roster", 1); err != nil {
		return err
	}
	return putOnce(ctx, root, "trust", wrapJSON(t))
}

func withNewline(pem string) string { return strings.TrimSpace(pem) + "\n" }

// nebulaCA makes the certificate of a CA whose key is version n of the transit key of its name.
func (v *Vault) nebulaCA(ctx context.Context, c *api.Client, k Kind, n int) (CA, error) {
	key, err := publicKey(ctx, c, string(k), n)
	if err != nil {
		return CA{}, err
	}
	tbs := v.caTemplate(k, n, key)
	crt, err := tbs.SignWith(nil, cert.Curve_CURVE25519, func(b []byte) ([]byte, error) { return transitSign(ctx, c, string(k), n, b) })
	if err != nil {
		return CA{}, err
	}
	pem, err := crt.MarshalPEM()
	return CA{Kind: k, Version: n, PEM: string(pem)}, err
}

func (v *Vault) caTemplate(k Kind, n int, key []byte) *cert.TBSCertificate {
	now := v.cfg.Now()
	tbs := &cert.TBSCertificate{Version: cert.Version2, Curve: cert.Curve_CURVE25519, IsCA: true, PublicKey: key,
		Name: fmt.Sprintf("plenum %s %s %d", v.cfg.Cluster, k, n), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(v.cfg.CALife)}
	if v.cfg.Control.IsValid() {
		tbs.Networks = []netip.Prefix{v.cfg.Control.Masked()}
	}
	if k == Hosts {
		tbs.Groups = HostGroups
	}
	return tbs
}

// breakGlass makes a CA here, and its key encrypted to the admins; the clear key is forgotten.
func (v *Vault) breakGlass() (CA, string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return CA{}, "", err
	}
	crt, err := v.caTemplate(BreakGlass, 1, public).Sign(nil, cert.Curve_CURVE25519, private)
	if err != nil {
		return CA{}, "", err
	}
	pem, err := crt.MarshalPEM()
	if err != nil {
		return CA{}, "", err
	}
	key, err := Encrypt(cert.MarshalSigningPrivateKeyToPEM(cert.Curve_CURVE25519, private), v.cfg.Admins)
	return CA{Kind: BreakGlass, Version: 1, PEM: string(pem)}, key, err
}

// Encrypt is plain in the armored form of age, for the given recipients (age1…).
func Encrypt(plain []byte, recipients []string) (string, error) {
	var to []age.Recipient
	for _, s := range recipients {
		r, err := age.ParseX25519Recipient(s)
		if err != nil {
			return "", fmt.Errorf("%s is no age recipient (age1…, made by age-keygen): %w", s, err)
		}
		to = append(to, r)
	}
	var b strings.Builder
	a := armor.NewWriter(&b)
	w, err := age.Encrypt(a, to...)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(plain); err != nil {
		return "", err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return "", err
	}
	return b.String(), nil
}

// publicKey is version n of a transit key.
func publicKey(ctx context.Context, c *api.Client, name string, n int) (ed25519.PublicKey, error) {
	s, err := c.Logical().ReadWithContext(ctx, transit+"/keys/"+name)
	if err != nil {
		return nil, err
	}
	if s != nil {
		versions, _ := s.Data["keys"].(map[string]any)
		k, _ := versions[fmt.Sprint(n)].(map[string]any)
		text, _ := k["public_key"].(string)
		if b, err := base64.StdEncoding.DecodeString(text); err == nil && len(b) == ed25519.PublicKeySize {
			return b, nil
		}
	}
	return nil, fmt.Errorf("no version %d of key %s", n, name)
}

// wrapJSON is how a value lies in the KV engine: one field of text, so that numbers stay what they are.
func wrapJSON(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		panic("pki: " + err.Error())
	}
	return map[string]any{"json": string(b)}
}

func (v *Vault) readJSON(ctx context.Context, path string, to any) (bool, error) {
	s, err := v.read(ctx, kv+"/data/"+path)
	if err != nil {
		return false, err
	}
	return unwrapJSON(s, to)
}

func unwrapJSON(s *api.Secret, to any) (bool, error) {
	if s == nil {
		return false, nil
	}
	data, _ := s.Data["data"].(map[string]any)
	text, ok := data["json"].(string)
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal([]byte(text), to)
}

// Shared reads a value that the join services of all servers share into to; make gives the first one. Of several
// that make it at once, one wins.
func Shared[T any](ctx context.Context, v *Vault, name string, make func() (T, error)) (T, error) {
	for {
		var t T
		found, err := v.readJSON(ctx, "join/"+name, &t)
		if err != nil || found {
			return t, err
		}
		if t, err = make(); err != nil {
			return t, err
		}
		_, err = v.do(ctx, func(c *api.Client) (*api.Secret, error) {
			return nil, putOnce(ctx, c, "join/"+name, wrapJSON(t))
		})
		if err != nil {
			return t, err
		}
	}
}
