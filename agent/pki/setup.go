package pki

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// Mounts, keys and roles. The names are Vault's own wherever it has some.
const (
	transit  = "transit"
	pkiMount = "pki"
	kv       = "plenum"
	approle  = "approle"
	role     = "plenum-join"
)

// policy is all that the join service may do: sign with the three keys and by the two roles, wrap a token's content,
// read and keep what servers share, and give another server a credential like its own. It may not read a key, change a
// role or a CA, or make a token of another kind.
const policy = `
path "transit/sign/servers"  { capabilities = ["update"] }
path "transit/sign/hosts"    { capabilities = ["update"] }
path "transit/sign/roster"   { capabilities = ["update"] }
path "transit/keys/roster"   { capabilities = ["read"] }
path "pki/sign/server"       { capabilities = ["update"] }
path "pki/sign/host"         { capabilities = ["update"] }
path "plenum/data/trust"     { capabilities = ["read"] }
path "plenum/data/break-glass" { capabilities = ["read"] }
path "plenum/data/join/*"    { capabilities = ["create", "read", "update"] }
path "sys/wrapping/wrap"     { capabilities = ["update"] }
path "sys/storage/raft/configuration" { capabilities = ["read"] }
path "sys/storage/raft/remove-peer"   { capabilities = ["update"] }
path "sys/wrapping/lookup"   { capabilities = ["update"] }
path "auth/approle/role/plenum-join/role-id"   { capabilities = ["read"] }
path "auth/approle/role/plenum-join/secret-id" { capabilities = ["update"] }
path "auth/approle/role/plenum-join/secret-id-accessor/destroy" { capabilities = ["update"] }
`

// Setup brings a Vault that is running to where the join service needs it, from wherever it is: initialised, unsealed,
// with engines, keys, CAs, policies and two audit devices, and the keys in the key file. It changes nothing of what is
// there already, and leaves no root token behind.
func (v *Vault) Setup(ctx context.Context) error {
	keys, err := v.initialize(ctx)
	if err != nil {
		return err
	}
	if err := v.Unseal(ctx, keys.Unseal...); err != nil {
		return err
	}
	if keys.Root == "" && keys.Credential != "" && v.complete(ctx) {
		return nil
	}
	if keys.Root == "" {
		if keys.Root, err = v.Root(ctx, keys.Unseal...); err != nil {
			return err
		}
	}
	root, err := v.as(keys.Root)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context, *api.Client) error
	}{{"audit", v.audit}, {"engines", engines}, {"keys", transitKeys}, {"TLS CA", v.tlsCA}, {"policy", v.policy}, {"trust", v.makeTrust}} {
		if err := step.do(ctx, root); err != nil {
			return fmt.Errorf("vault: %s: %w", step.name, explain(err))
		}
	}
	if keys.Credential == "" {
		if keys.Credential, _, err = newCredential(ctx, root); err != nil {
			return fmt.Errorf("vault: credential: %w", explain(err))
		}
	}
	if err := root.Auth().Token().RevokeSelfWithContext(ctx, ""); err != nil {
		return explain(err)
	}
	if keys.Root = ""; v.cfg.Shares > 1 {
		keys.Unseal = nil
	}
	return keys.Save(v.cfg.KeyFile)
}

// complete reports whether an earlier Setup came to its end.
func (v *Vault) complete(ctx context.Context) bool {
	_, err := v.Trust(ctx)
	return err == nil
}

func (v *Vault) initialize(ctx context.Context) (Keys, error) {
	keys, err := LoadKeys(v.cfg.KeyFile)
	if err != nil && !errors.Is(err, ErrNoKeys) {
		return Keys{}, err
	}
	done, err := v.client.Sys().InitStatusWithContext(ctx)
	if err != nil {
		return Keys{}, explain(err)
	}
	if done {
		if len(keys.Unseal) == 0 && keys.Credential == "" {
			return Keys{}, fmt.Errorf("vault was initialised before and its key is not in %s: put the file back, or empty Vault's storage if this cluster never was", v.cfg.KeyFile)
		}
		return keys, nil
	}
	r, err := v.client.Sys().InitWithContext(ctx, &api.InitRequest{SecretShares: v.cfg.Shares, SecretThreshold: v.cfg.Threshold})
	if err != nil {
		return Keys{}, explain(err)
	}
	keys = Keys{Unseal: r.KeysB64, Root: r.RootToken}
	if v.cfg.Shares > 1 {
		if err := v.cfg.HandOut(r.KeysB64); err != nil {
			return Keys{}, err
		}
	}
	return keys, keys.Save(v.cfg.KeyFile) // with the shares until Setup ends: a killed one can go on
}

func (v *Vault) audit(ctx context.Context, root *api.Client) error {
	if v.cfg.Audit == "" {
		return nil
	}
	have, err := root.Sys().ListAuditWithContext(ctx)
	if err != nil {
		return err
	}
	for name, path := range map[string]string{"file/": v.cfg.Audit, "stdout/": "stdout"} {
		if have[name] != nil {
			continue
		}
		o := &api.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": path}}
		if err := root.Sys().EnableAuditWithOptionsWithContext(ctx, name, o); err != nil {
			return err
		}
	}
	return nil
}

func engines(ctx context.Context, root *api.Client) error {
	have, err := root.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return err
	}
	for path, in := range map[string]*api.MountInput{
		transit:  {Type: "transit"},
		pkiMount: {Type: "pki", Config: api.MountConfigInput{MaxLeaseTTL: "87660h"}},
		kv:       {Type: "kv", Options: map[string]string{"version": "2"}},
	} {
		if have[path+"/"] != nil {
			continue
		}
		if err := root.Sys().MountWithContext(ctx, path, in); err != nil {
			return err
		}
	}
	auth, err := root.Sys().ListAuthWithContext(ctx)
	if err != nil || auth[approle+"/"] != nil {
		return err
	}
	return root.Sys().EnableAuthWithOptionsWithContext(ctx, approle, &api.EnableAuthOptions{Type: "approle"})
}

func transitKeys(ctx context.Context, root *api.Client) error {
	for _, name := range []string{string(Servers), string(Hosts), "roster"} {
		_, err := root.Logical().WriteWithContext(ctx, transit+"/keys/"+name, map[string]any{"type": "ed25519", "exportable": false, "allow_plaintext_backup": false})
		if err != nil { // making one that exists is no error
			return err
		}
	}
	return nil
}

func (v *Vault) tlsCA(ctx context.Context, root *api.Client) error {
	issuers, err := root.Logical().ListWithContext(ctx, pkiMount+"/issuers")
	if err != nil {
		return err
	}
	if issuers == nil {
		if _, err := root.Logical().WriteWithContext(ctx, pkiMount+"/root/generate/internal", v.tlsRoot(1)); err != nil {
			return err
		}
	}
	c := v.cfg.Cluster
	hosts := []string{"client." + c + ".consul", "client." + c + ".nomad", "node." + c + ".consul", "localhost"}
	servers := append([]string{"server." + c + ".consul", "server." + c + ".nomad", "join." + c}, hosts...)
	for name, r := range map[string]struct {
		domains []string
		life    time.Duration
	}{"host": {hosts, v.cfg.HostLife}, "server": {servers, v.cfg.ServerLife}} {
		_, err := root.Logical().WriteWithContext(ctx, pkiMount+"/roles/"+name, map[string]any{
			"allowed_domains": r.domains, "allow_bare_domains": true, "allow_subdomains": true, "allow_wildcard_certificates": false,
			"allow_localhost": true, "allow_ip_sans": true, "server_flag": true, "client_flag": true, "key_type": "any",
			"use_csr_common_name": false, "use_csr_sans": false, "ttl": seconds(r.life), "max_ttl": seconds(r.life), "no_store": true,
			"not_before_duration": "60s", "organization": "plenum " + c,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (v *Vault) tlsRoot(n int) map[string]any {
	return map[string]any{"common_name": fmt.Sprintf("plenum %s TLS %d", v.cfg.Cluster, n), "issuer_name": fmt.Sprintf("tls-%d", n),
		"key_type": "ec", "key_bits": 256, "ttl": seconds(v.cfg.CALife), "not_before_duration": "1h", "max_path_length": 0}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int64(d/time.Second)) }

func (v *Vault) policy(ctx context.Context, root *api.Client) error {
	if err := root.Sys().PutPolicyWithContext(ctx, role, policy); err != nil {
		return err
	}
	// A new server votes soon, for until then the cluster survives no loss.
	if _, err := root.Logical().WriteWithContext(ctx, "sys/storage/raft/autopilot/configuration", map[string]any{"server_stabilization_time": "2s"}); err != nil {
		return err
	}
	// Only from loopback, and without an end: a cluster that was off for a year logs in again.
	_, err := root.Logical().WriteWithContext(ctx, "auth/approle/role/"+role, map[string]any{
		"token_policies": []string{role}, "token_no_default_policy": true, "token_ttl": "1h", "token_max_ttl": "1h", "secret_id_ttl": "0",
		"secret_id_num_uses": 0, "secret_id_bound_cidrs": []string{"127.0.0.0/8"}, "token_bound_cidrs": []string{"127.0.0.0/8"},
	})
	return err
}

// newCredential makes another ROLE-ID:SECRET-ID.
func newCredential(ctx context.Context, c *api.Client) (credential, accessor string, err error) {
	r, err := c.Logical().ReadWithContext(ctx, "auth/approle/role/"+role+"/role-id")
	if err != nil {
		return "", "", err
	}
	s, err := c.Logical().WriteWithContext(ctx, "auth/approle/role/"+role+"/secret-id", nil)
	if err != nil {
		return "", "", err
	}
	return fmt.Sprint(r.Data["role_id"], ":", s.Data["secret_id"]), fmt.Sprint(s.Data["secret_id_accessor"]), nil
}

// decode takes the one-time password off a root token.
func decode(encoded, otp string) (string, error) {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
	if err != nil || len(b) != len(otp) {
		return "", errors.New("vault: a root token that cannot be read")
	}
	for i := range b {
		b[i] ^= otp[i]
	}
	return string(b), nil
}

// putOnce writes a value to the KV engine unless there is one. The engine answers 400 while it is being made.
func putOnce(ctx context.Context, c *api.Client, path string, value map[string]any) error {
	for {
		_, err := c.Logical().WriteWithContext(ctx, kv+"/data/"+path, map[string]any{"data": value, "options": map[string]any{"cas": 0}})
		var e *api.ResponseError
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &e) || e.StatusCode != http.StatusBadRequest:
			return err
		case strings.Contains(err.Error(), "check-and-set"):
			return nil
		case !strings.Contains(err.Error(), "Upgrading"):
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
