// Package pki is Vault as the join service sees it: two CAs for Nebula and the key of the roster in the transit engine,
// a CA for TLS in the PKI engine, wrapped secrets for join tokens, and a few values that servers share. Keys of CAs
// never leave Vault. Only server hosts use it, over loopback; what a host may be given is agent/join's to decide.
package pki

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/vault/api"
)

// A Config says where Vault is and for whom it signs.
type Config struct {
	Address string       // of Vault's listener on loopback; default http://127.0.0.1:8200
	Cluster string       // its name, a DNS label
	Control netip.Prefix // outside of it no Nebula certificate can be signed
	KeyFile string       // where Keys are kept, for root only

	HostLife   time.Duration // of a host's certificates; default 14 days
	ServerLife time.Duration // of a server's; default 90 days
	CALife     time.Duration // default 10 years

	// Audit is the file of Vault's first audit device; the second is the server's standard output, so that a full
	// disk does not stop it. Empty makes none.
	Audit string

	// Shares above 1 is the strict way: the unseal key in so many shares of which Threshold are needed, given to
	// HandOut once and kept nowhere.
	Shares, Threshold int
	HandOut           func(shares []string) error

	Admins []string // age recipients that can open the break-glass CA's key

	Now func() time.Time // default time.Now
}

func (c Config) validate() (Config, error) {
	if c.Address == "" {
		c.Address = "http://127.0.0.1:8200"
	}
	if c.HostLife == 0 {
		c.HostLife = 14 * 24 * time.Hour
	}
	if c.ServerLife == 0 {
		c.ServerLife = 90 * 24 * time.Hour
	}
	if c.CALife == 0 {
		c.CALife = 10 * 365 * 24 * time.Hour
	}
	if c.Shares == 0 {
		c.Shares, c.Threshold = 1, 1
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Cluster == "":
		return c, errors.New("pki: the cluster has no name")
	case c.KeyFile == "":
		return c, errors.New("pki: no file for the unseal key is given")
	case c.Shares > 1 && c.HandOut == nil:
		return c, errors.New("pki: nobody takes the shares of the unseal key")
	}
	return c, nil
}

// Keys are what a server host needs to unseal Vault and to log in to it. They are as good as the cluster.
type Keys struct {
	Unseal     []string `json:"unseal,omitempty"`     // none where people hold the shares
	Root       string   `json:"root,omitempty"`       // only between initialisation and the end of Setup
	Credential string   `json:"credential,omitempty"` // ROLE-ID:SECRET-ID of the join service
}

// ErrNoKeys is a host without Vault's keys: no server, or one that Setup never ended on.
var ErrNoKeys = errors.New("no keys of Vault here: run plenum init, or join with the role server")

// LoadKeys reads the file that Save wrote.
func LoadKeys(path string) (Keys, error) {
	var k Keys
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return k, ErrNoKeys
	}
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// Save writes the keys whole, for root only.
func (k Keys) Save(path string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return WriteFile(path, b, 0o600)
}

// WriteFile writes a file whole: after a loss of power it holds the old bytes or the new ones. The folder is made,
// for root only, if it is not there.
func WriteFile(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return renameio.WriteFile(path, b, mode)
}

// ErrSealed is Vault that is sealed, not initialised or not running: nothing can be signed now.
var ErrSealed = errors.New("Vault is sealed or unreachable")

// Vault is one. Its methods may be called from any goroutine.
type Vault struct {
	cfg    Config
	client *api.Client // with no token

	mu     sync.Mutex
	token  *api.Client // as the join service
	expiry time.Time
}

// New prepares for a Vault; nothing is asked yet.
func New(cfg Config) (*Vault, error) {
	cfg, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	c := api.DefaultConfig()
	if c.Error != nil {
		return nil, c.Error
	}
	c.Address, c.MaxRetries, c.Timeout = cfg.Address, 0, 15*time.Second
	c.HttpClient.Transport.(*http.Transport).DisableKeepAlives = true // loopback: nothing to save
	client, err := api.NewClient(c)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	client.ClearToken()
	client.SetNamespace("")
	return &Vault{cfg: cfg, client: client}, nil
}

// Keys are those of this server host.
func (v *Vault) Keys() (Keys, error) { return LoadKeys(v.cfg.KeyFile) }

// A Status is how a Vault is.
type Status struct {
	Initialized, Sealed, Active bool
}

// Status asks Vault how it is.
func (v *Vault) Status(ctx context.Context) (Status, error) {
	s, err := v.client.Sys().SealStatusWithContext(ctx)
	if err != nil {
		return Status{}, explain(err)
	}
	st := Status{Initialized: s.Initialized, Sealed: s.Sealed}
	if st.Initialized && !st.Sealed {
		l, err := v.client.Sys().LeaderWithContext(ctx)
		if err != nil {
			return st, explain(err)
		}
		st.Active = l.IsSelf
	}
	return st, nil
}

// Unseal opens Vault with the keys that the key file holds, or the given ones. It does nothing to an open one.
func (v *Vault) Unseal(ctx context.Context, shares ...string) error {
	if len(shares) == 0 {
		keys, err := LoadKeys(v.cfg.KeyFile)
		if err != nil {
			return err
		}
		shares = keys.Unseal
	}
	st, err := v.client.Sys().SealStatusWithContext(ctx)
	if err != nil {
		return explain(err)
	}
	for _, key := range shares {
		if !st.Sealed {
			break
		}
		if st, err = v.client.Sys().UnsealWithContext(ctx, key); err != nil {
			return explain(err)
		}
	}
	if st.Sealed {
		return fmt.Errorf("%w: %w: %d of %d are given", ErrSealed, ErrShares, st.Progress, st.T)
	}
	return v.await(ctx)
}

// ErrShares is a Vault that needs more shares of its key to open.
var ErrShares = errors.New("more shares of the unseal key are needed")

// await returns when Vault has a leader and answers.
func (v *Vault) await(ctx context.Context) error {
	for {
		h, err := v.client.Sys().HealthWithContext(ctx)
		if err == nil && h.Sealed {
			return fmt.Errorf("%w: it was sealed again", ErrSealed)
		}
		if err == nil && h.Initialized {
			if l, err := v.client.Sys().LeaderWithContext(ctx); err == nil && (!l.HAEnabled || l.LeaderAddress != "") {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: no leader: %w", ErrSealed, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// RaftJoin makes a Vault that was never initialised a member of the cluster of leader, the URL of another server's
// listener on control; tlsCA, cert and key are PEM. It goes on trying by itself; Unseal it next, until that succeeds.
func (v *Vault) RaftJoin(ctx context.Context, leader, tlsCA, cert, key string) error {
	_, err := v.client.Sys().RaftJoinWithContext(ctx, &api.RaftJoinRequest{LeaderAPIAddr: leader, LeaderCACert: tlsCA,
		LeaderClientCert: cert, LeaderClientKey: key, Retry: true})
	return explain(err)
}

// Root makes a root token out of the shares of the unseal key (those of the key file if none are given). Revoke it
// when done.
func (v *Vault) Root(ctx context.Context, shares ...string) (string, error) {
	if len(shares) == 0 {
		keys, err := LoadKeys(v.cfg.KeyFile)
		if err != nil {
			return "", err
		}
		shares = keys.Unseal
	}
	sys := v.client.Sys()
	if err := sys.GenerateRootCancelWithContext(ctx); err != nil {
		return "", explain(err)
	}
	st, err := sys.GenerateRootInitWithContext(ctx, "", "")
	if err != nil {
		return "", explain(err)
	}
	otp := st.OTP
	for _, share := range shares {
		if st, err = sys.GenerateRootUpdateWithContext(ctx, share, st.Nonce); err != nil {
			return "", explain(err)
		}
		if st.Complete {
			return decode(st.EncodedRootToken, otp)
		}
	}
	_ = sys.GenerateRootCancelWithContext(ctx)
	return "", fmt.Errorf("%w: %d of %d are given (--share)", ErrShares, len(shares), st.Required)
}

// Revoke ends a root token.
func (v *Vault) Revoke(ctx context.Context, root string) error {
	c, err := v.as(root)
	if err != nil {
		return err
	}
	return explain(c.Auth().Token().RevokeSelfWithContext(ctx, ""))
}

// Snapshot writes Vault's storage, encrypted by the unseal key.
func (v *Vault) Snapshot(ctx context.Context, root string, w io.Writer) error {
	c, err := v.as(root)
	if err != nil {
		return err
	}
	return explain(c.Sys().RaftSnapshotWithContext(ctx, w))
}

// Restore puts back what Snapshot wrote, on a Vault whose unseal key may be another. A moment later it seals itself, and
// opens by the key of the snapshot: put that into the key file and Unseal until Trust is the old one.
func (v *Vault) Restore(ctx context.Context, root string, r io.Reader) error {
	c, err := v.as(root)
	if err != nil {
		return err
	}
	return explain(c.Sys().RaftSnapshotRestoreWithContext(ctx, r, true))
}

// as is a client with a token.
func (v *Vault) as(token string) (*api.Client, error) {
	c, err := v.client.CloneWithHeaders()
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	c.SetToken(token)
	return c, nil
}

// service is a client with the join service's token, which is short-lived: whatever time Vault was away, the
// credential gets a new one.
func (v *Vault) service(ctx context.Context) (*api.Client, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now() // Vault's clock is this host's
	if v.token != nil && now.Before(v.expiry) {
		return v.token, nil
	}
	keys, err := LoadKeys(v.cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	role, secret, ok := strings.Cut(keys.Credential, ":")
	if !ok {
		return nil, ErrNoKeys
	}
	s, err := v.client.Logical().WriteWithContext(ctx, "auth/approle/login", map[string]any{"role_id": role, "secret_id": secret})
	if err != nil {
		return nil, explain(err)
	}
	c, err := v.as(s.Auth.ClientToken)
	if err != nil {
		return nil, err
	}
	v.token, v.expiry = c, now.Add(time.Duration(s.Auth.LeaseDuration)*time.Second/2)
	return c, nil
}

// forget drops the token, which Vault does not know any more.
func (v *Vault) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.token = nil
}

// write posts data to path as the join service.
func (v *Vault) write(ctx context.Context, path string, data map[string]any) (*api.Secret, error) {
	return v.do(ctx, func(c *api.Client) (*api.Secret, error) { return c.Logical().WriteWithContext(ctx, path, data) })
}

func (v *Vault) read(ctx context.Context, path string) (*api.Secret, error) {
	return v.do(ctx, func(c *api.Client) (*api.Secret, error) { return c.Logical().ReadWithContext(ctx, path) })
}

// do asks as the join service, and once more with a new token if Vault refuses the one there was: it may have been
// restored from a snapshot.
func (v *Vault) do(ctx context.Context, ask func(*api.Client) (*api.Secret, error)) (*api.Secret, error) {
	for again := false; ; again = true {
		c, err := v.service(ctx)
		if err != nil {
			return nil, err
		}
		s, err := ask(c)
		var e *api.ResponseError
		if errors.As(err, &e) && e.StatusCode == http.StatusForbidden && !again {
			v.forget()
			continue
		}
		return s, explain(err)
	}
}

// explain turns what Vault says when it is sealed or away into ErrSealed. Errors of ours stay what they are.
func explain(err error) error {
	if err == nil {
		return nil
	}
	var e *api.ResponseError
	if errors.As(err, &e) {
		if e.StatusCode >= 500 {
			return fmt.Errorf("%w: %s", ErrSealed, strings.Join(e.Errors, "; "))
		}
		return fmt.Errorf("vault: %d: %s", e.StatusCode, strings.Join(e.Errors, "; "))
	}
	var dial *url.Error
	if errors.Is(err, context.Canceled) || !errors.As(err, &dial) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrSealed, err)
}
