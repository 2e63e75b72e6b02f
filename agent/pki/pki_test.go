package pki

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/slackhq/nebula/cert"
	"go.uber.org/goleak"

	"plenum/overlay/netlab/stack"
	"plenum/overlay/roster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// vault starts a server with its storage on disk, as a cluster's, and returns its address and a way to start it again;
// a restart that is given false ends it.
func vault(t *testing.T) (address string, restart func(...bool)) {
	t.Helper()
	dir := t.TempDir()
	ports := stack.Ports(t, 2)
	address = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	file := filepath.Join(dir, "vault.hcl")
	err := os.WriteFile(file, fmt.Appendf(nil, `
disable_mlock = true
api_addr = %q
cluster_addr = "https://127.0.0.1:%d"
storage "raft" {
  path = %q
  node_id = "n%[4]d"
  performance_multiplier = 1
}
listener "tcp" {
  address = "127.0.0.1:%[4]d"
  cluster_address = "127.0.0.1:%[2]d"
  tls_disable = true
}
`, address, ports[1], dir, ports[0]), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	path := stack.Path(t, "vault")
	var stop func()
	start := func() {
		var out bytes.Buffer
		cmd := exec.Command(path, "server", "-config", file)
		cmd.Env, cmd.Stdout, cmd.Stderr = stack.Environment(dir), &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		done, started := make(chan struct{}), make(chan error)
		go func() {
			runtime.LockOSThread() // Pdeathsig goes by the thread
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait()
				close(done)
			}
		}()
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		stop = func() { _ = cmd.Process.Kill(); <-done }
		for range 600 {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]))
			if err == nil {
				c.Close()
				return
			}
			select {
			case <-done:
				t.Fatalf("vault ended: %s", out.Bytes())
			case <-time.After(50 * time.Millisecond):
			}
		}
		t.Fatal("vault does not listen")
	}
	start()
	t.Cleanup(func() { stop() })
	return address, func(again ...bool) {
		if stop(); len(again) == 0 {
			start()
		}
	}
}

func config(t *testing.T, address string) Config {
	return Config{Address: address, Cluster: "test", Control: netip.MustParsePrefix("10.99.0.0/16"), KeyFile: filepath.Join(t.TempDir(), "vault", "keys.json")}
}

func setup(t *testing.T, cfg Config) *Vault {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

func x25519(t *testing.T) []byte {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.PublicKey().Bytes()
}

func csr(t *testing.T) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"server.test.consul"}}, k)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var bridge = Subject{Host: "b1", Control: netip.MustParsePrefix("10.99.0.7/16"), Roles: []string{"bridge"}}
var server = Subject{Host: "s1", Control: netip.MustParsePrefix("10.99.0.1/16"), Roles: []string{"bridge", "server"}}

// TestSetup takes a new Vault to where it signs, again to see that nothing changes, and through restart and seal.
func TestSetup(t *testing.T) {
	ctx := t.Context()
	address, restart := vault(t)
	admin, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, address)
	cfg.Admins, cfg.Audit = []string{admin.Recipient().String()}, filepath.Join(t.TempDir(), "audit.log")
	v := setup(t, cfg)

	keys, err := LoadKeys(cfg.KeyFile)
	if err != nil || keys.Root != "" || len(keys.Unseal) != 1 || keys.Credential == "" {
		t.Fatalf("keys after setup: %d unseal, root %t, %v", len(keys.Unseal), keys.Root != "", err)
	}
	if info, err := os.Stat(cfg.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	before, err := v.Trust(ctx)
	if err != nil {
		t.Fatal(err)
	}
	setup(t, cfg)
	// A setup that was killed before its end is done again with a root token made anew, and changes no CA.
	cut := keys
	cut.Credential = ""
	if err := cut.Save(cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	v = setup(t, cfg)
	after, err := v.Trust(ctx)
	if err != nil || after.NebulaPEM() != before.NebulaPEM() || after.TLSPEM() != before.TLSPEM() {
		t.Errorf("a second setup changed what is trusted: %v", err)
	}
	if b, err := os.ReadFile(cfg.Audit); err != nil || !bytes.Contains(b, []byte("approle/login")) {
		t.Errorf("the audit device has %d bytes: %v", len(b), err)
	}

	// The break-glass key opens with the admin's key, and signs for hosts that trust it from day one.
	armored, err := v.BreakGlassKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(armored)), admin)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if _, err := text.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	key, _, _, err := cert.UnmarshalSigningPrivateKeyFromPEM(text.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	ca, _, err := cert.UnmarshalCertificateFromPEM([]byte(after.Nebula[2].PEM))
	if err != nil || !bytes.Equal(ed25519.PrivateKey(key).Public().(ed25519.PublicKey), ca.PublicKey()) {
		t.Errorf("the break-glass key is not that of the CA: %v", err)
	}
	rescue := cert.TBSCertificate{Version: cert.Version2, Curve: cert.Curve_CURVE25519, Name: "rescue", Groups: []string{"server"}, PublicKey: x25519(t),
		Networks: []netip.Prefix{netip.MustParsePrefix("10.99.255.1/16")}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	crt, err := rescue.Sign(ca, cert.Curve_CURVE25519, key)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := cert.NewCAPoolFromPEM([]byte(after.NebulaPEM()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.VerifyCertificate(time.Now(), crt); err != nil {
		t.Errorf("hosts do not believe what the break-glass key has signed: %v", err)
	}

	// The audit file's disk is full: the other device is enough.
	if err := errors.Join(os.Remove(cfg.Audit), os.Symlink("/dev/full", cfg.Audit)); err != nil {
		t.Fatal(err)
	}
	restart()
	if _, err := v.SignNebula(ctx, &after, bridge, x25519(t)); !errors.Is(err, ErrSealed) {
		t.Errorf("signed while sealed: %v", err)
	}
	if err := v.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := v.SignNebula(ctx, &after, bridge, x25519(t)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// TestSign verifies what is signed as its users will, and what must not be.
func TestSign(t *testing.T) {
	ctx := t.Context()
	address, _ := vault(t)
	cfg := config(t, address)
	v := setup(t, cfg)
	trust, err := v.Trust(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := cert.NewCAPoolFromPEM([]byte(trust.NebulaPEM()))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("nebula", func(t *testing.T) {
		for _, s := range []Subject{bridge, server} {
			c, err := v.SignNebula(ctx, &trust, s, x25519(t))
			if err != nil {
				t.Fatal(err)
			}
			crt, _, err := cert.UnmarshalCertificateFromPEM([]byte(c.PEM))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pool.VerifyCertificate(time.Now(), crt); err != nil || crt.Name() != s.Host {
				t.Errorf("%s: %v", s.Host, err)
			}
			if d := time.Until(c.Expires).Round(time.Hour); s.Host == "b1" && d != 14*24*time.Hour || s.Host == "s1" && d != 90*24*time.Hour {
				t.Errorf("%s lives %s", s.Host, d)
			}
		}
	})
	t.Run("bounds", func(t *testing.T) {
		// The service is made to sign a server with the hosts' CA: the CA itself stops it, and so would every peer.
		if _, err := v.signNebula(ctx, &trust, Hosts, server, x25519(t)); err == nil {
			t.Error("the hosts' CA signed a server")
		}
		outside := bridge
		outside.Control = netip.MustParsePrefix("10.98.0.7/16")
		if _, err := v.SignNebula(ctx, &trust, outside, x25519(t)); err == nil {
			t.Error("an address outside of the overlay was signed")
		}
		_, err := v.write(ctx, "pki/sign/host", map[string]any{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr(t)})),
			"common_name": "server.test.consul"})
		if err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("the hosts' role signed a server's name: %v", err)
		}
	})
	t.Run("tls", func(t *testing.T) {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(trust.TLSPEM())) {
			t.Fatal("no TLS CA")
		}
		for _, x := range []struct {
			s    Subject
			name string
			ok   bool
		}{{bridge, "client.test.consul", true}, {bridge, "b1.node.test.consul", true}, {bridge, "server.test.consul", false}, {bridge, "server.test.nomad", false},
			{server, "server.test.consul", true}, {server, "server.test.nomad", true}, {server, "s1.server.test.consul", true}, {server, "127.0.0.1", true}} {
			c, err := v.SignTLS(ctx, x.s, csr(t))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := pem.Decode([]byte(c.PEM))
			crt, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			_, err = crt.Verify(x509.VerifyOptions{Roots: roots, DNSName: x.name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
			if (err == nil) != x.ok {
				t.Errorf("%s for %s: %v", x.s.Host, x.name, err)
			}
		}
		if _, err := v.SignTLS(ctx, bridge, []byte("no request")); !errors.Is(err, ErrRequest) {
			t.Errorf("no request: %v", err)
		}
	})
	t.Run("record", func(t *testing.T) {
		rec := roster.Record{Host: "b1", Epoch: 1, HostKey: make([]byte, 32), WireGuard: make([]byte, 32), Control: bridge.Control.Addr(), Media: netip.MustParseAddr("10.98.0.7")}
		e, err := v.SignRecord(ctx, rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := roster.Verify(trust.Roster, e); err != nil {
			t.Error(err)
		}
	})
	t.Run("service token", func(t *testing.T) {
		// What a thief of the join service's token cannot do.
		for _, path := range []string{"transit/keys/hosts/rotate", "transit/keys/hosts/config", "pki/roles/host", "pki/root/generate/internal", "pki/sign-verbatim/host",
			"auth/token/create", "sys/policies/acl/plenum-join", "plenum/data/trust", "sys/seal", "transit/export/signing-key/hosts", "sys/storage/raft/snapshot"} {
			if _, err := v.write(ctx, path, map[string]any{"data": map[string]any{"json": "{}"}}); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
	t.Run("rotate", func(t *testing.T) { rotate(t, v, trust) })
}

// rotate goes through the stages: at every one what was signed before is still believed, until the last.
func rotate(t *testing.T, v *Vault, old Trust) {
	ctx := t.Context()
	root, err := v.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Revoke(context.WithoutCancel(ctx), root)
	before, err := v.SignNebula(ctx, &old, bridge, x25519(t))
	if err != nil {
		t.Fatal(err)
	}
	believed := func(trust *Trust, c Certificate) bool {
		pool, err := cert.NewCAPoolFromPEM([]byte(trust.NebulaPEM()))
		if err != nil {
			t.Fatal(err)
		}
		crt, _, err := cert.UnmarshalCertificateFromPEM([]byte(c.PEM))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pool.VerifyCertificate(time.Now(), crt)
		return err == nil
	}
	if _, err := v.Rotate(ctx, root, StageIssue); !errors.Is(err, ErrStage) {
		t.Errorf("issue without trust: %v", err)
	}
	trust, err := v.Rotate(ctx, root, StageTrust)
	if err != nil {
		t.Fatal(err)
	}
	during, err := v.SignNebula(ctx, &trust, bridge, x25519(t))
	if err != nil || !believed(&old, during) || !believed(&trust, before) || len(trust.TLS) != 2 {
		t.Errorf("trust: %v", err)
	}
	if trust, err = v.Rotate(ctx, root, StageIssue); err != nil {
		t.Fatal(err)
	}
	after, err := v.SignNebula(ctx, &trust, bridge, x25519(t))
	if err != nil || believed(&old, after) || !believed(&trust, after) || !believed(&trust, before) {
		t.Errorf("issue: %v", err)
	}
	c, err := v.SignTLS(ctx, bridge, csr(t))
	if err != nil {
		t.Fatal(err)
	}
	if trust, err = v.Rotate(ctx, root, StageRetire); err != nil {
		t.Fatal(err)
	}
	if believed(&trust, before) || !believed(&trust, after) || len(trust.TLS) != 1 {
		t.Error("retire")
	}
	b, _ := pem.Decode([]byte(c.PEM))
	crt, _ := x509.ParseCertificate(b.Bytes)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(trust.TLSPEM()))
	if _, err := crt.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Errorf("TLS after retire: %v", err)
	}
}

// TestWrap opens a secret once, and refuses what was wrapped by somebody else.
func TestWrap(t *testing.T) {
	ctx := t.Context()
	address, _ := vault(t)
	cfg := config(t, address)
	v := setup(t, cfg)
	type content struct{ Region string }
	token, err := v.Wrap(ctx, content{"ber"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("wrapped secret of %d bytes", len(token))
	if err := v.Inspect(ctx, token); err != nil {
		t.Error(err)
	}
	var c content
	if err := v.Unwrap(ctx, token, &c); err != nil || c.Region != "ber" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := v.Inspect(ctx, token); !errors.Is(err, ErrWrapped) {
		t.Errorf("inspected after it was opened: %v", err)
	}
	if err := v.Unwrap(ctx, token, &c); !errors.Is(err, ErrWrapped) {
		t.Errorf("opened twice: %v", err)
	}
	// A forger has some token of Vault and wraps what another path answers.
	root, err := v.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f, err := v.as(root)
	if err != nil {
		t.Fatal(err)
	}
	f.SetWrappingLookupFunc(func(string, string) string { return "60s" })
	s, err := f.Logical().WriteWithContext(ctx, "plenum/data/join/forged", map[string]any{"data": wrapJSON(content{"muc"})})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Inspect(ctx, s.WrapInfo.Token); !errors.Is(err, ErrWrapped) {
		t.Errorf("forged: %v", err)
	}
	if err := v.Inspect(ctx, "hvs.nothing"); !errors.Is(err, ErrWrapped) {
		t.Errorf("unknown: %v", err)
	}
	n := 0
	for range 2 {
		got, err := Shared(ctx, v, "number", func() (int, error) { n++; return n, nil })
		if err != nil || got != 1 {
			t.Errorf("shared: %d, %v", got, err)
		}
	}
}

// TestServers makes three servers of one, loses the first, and goes on.
func TestServers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	leader, stop := vault(t)
	cfg := config(t, leader)
	v := setup(t, cfg)
	keys, err := v.Keys()
	if err != nil {
		t.Fatal(err)
	}
	var others []*Vault
	var accessors []string
	for range 2 {
		address, _ := vault(t)
		c := config(t, address)
		credential, accessor, err := v.Credential(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if credential == keys.Credential {
			t.Error("two servers have one credential")
		}
		if err := (Keys{Unseal: keys.Unseal, Credential: credential}).Save(c.KeyFile); err != nil {
			t.Fatal(err)
		}
		o, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.RaftJoin(ctx, leader, "", "", ""); err != nil {
			t.Fatal(err)
		}
		for { // it takes the seal's settings from the leader in the background
			if err = o.Unseal(ctx); err == nil || ctx.Err() != nil {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, o)
		accessors = append(accessors, accessor)
	}
	record := roster.Record{Host: "b1", Epoch: 1, HostKey: make([]byte, 32), WireGuard: make([]byte, 32), Control: bridge.Control.Addr(), Media: netip.MustParseAddr("10.98.0.7")}
	signs := func(o *Vault) {
		t.Helper()
		var err error
		for {
			if _, err = o.SignRecord(ctx, record); err == nil {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("nothing is signed: %v", err)
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	for _, o := range others {
		signs(o)
	}
	// A member becomes a voter after ten seconds of standing; before that the loss of the first would be the end.
	for voters := 0; voters < 3; {
		root, err := v.Root(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := v.as(root)
		st, err := c.Sys().RaftAutopilotStateWithContext(ctx)
		if err != nil {
			t.Fatal(err)
		}
		voters = len(st.Voters)
		if err := v.Revoke(ctx, root); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d voters", voters)
		case <-time.After(500 * time.Millisecond):
		}
	}
	stop(false)
	for _, o := range others {
		signs(o)
	}
	// One of them is a thief's now: what it logs in with ends.
	for range 2 {
		if err := others[0].Dismiss(ctx, accessors[1]); err != nil {
			t.Error(err)
		}
	}
	others[1].forget()
	if _, err := others[1].Trust(ctx); err == nil {
		t.Error("a credential that was ended logs in")
	}
	signs(others[0])
}

// TestRestore puts a snapshot onto a new server, which opens with the old keys and signs for the old hosts.
func TestRestore(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	address, stop := vault(t)
	v := setup(t, config(t, address))
	old, err := v.Trust(ctx)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := v.Keys()
	if err != nil {
		t.Fatal(err)
	}
	root, err := v.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	if err := v.Snapshot(ctx, root, &snapshot); err != nil {
		t.Fatal(err)
	}
	stop(false)

	address, _ = vault(t)
	cfg := config(t, address)
	n := setup(t, cfg)
	if root, err = n.Root(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.Restore(ctx, root, &snapshot); err != nil {
		t.Fatal(err)
	}
	if err := keys.Save(cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	for {
		if err = n.Unseal(ctx); err == nil {
			var now Trust
			if now, err = n.Trust(ctx); err == nil {
				if now.NebulaPEM() != old.NebulaPEM() {
					err = errors.New("the CAs are others")
				} else if _, err = n.SignNebula(ctx, &now, bridge, x25519(t)); err == nil {
					return
				}
			}
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
