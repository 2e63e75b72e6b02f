package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/slackhq/nebula/cert"

	"plenum/agent/pki"
	"plenum/overlay/netlab/stack"
)

// A cut stands between the service and Consul and lets so many requests through; the answer to the last one is lost,
// as when the service is killed between an effect and the next.
type cut struct {
	left atomic.Int64
	http.Handler
}

func newCut(t *testing.T, to string) (*cut, string) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	c := &cut{Handler: proxy}
	c.left.Store(1 << 30)
	at := fmt.Sprintf("127.0.0.1:%d", stack.Ports(t, 1)[0])
	s := &http.Server{Addr: at, Handler: c}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.ListenAndServe() }()
	t.Cleanup(func() { s.Close(); <-done })
	return c, at
}

func (c *cut) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch n := c.left.Add(-1); {
	case n > 0:
		c.Handler.ServeHTTP(w, r)
	case n == 0:
		c.Handler.ServeHTTP(&deaf{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	default:
		panic(http.ErrAbortHandler)
	}
}

// deaf takes an answer and forgets it.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header         { return d.header }
func (d *deaf) Write(b []byte) (int, error) { return len(b), nil }
func (d *deaf) WriteHeader(int)             {}

// TestFaults breaks one thing after the other under joins and renewals.
func TestFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plenum")
	program := bytes.Repeat([]byte("plenum"), 100_000)
	if err := os.WriteFile(file, program, 0o755); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, options{
		tweak: func(c *pki.Config) { c.HostLife = 4 * time.Second },
		serve: func(c *Config) {
			c.Binaries = []File{{Name: "plenum", Arch: "amd64", Version: "1", Path: file}}
		}})
	ctx := t.Context()
	enrol := func(name string, roles ...string) (*Client, keyring, Answer) {
		t.Helper()
		k := newKeys(t)
		c := l.client(k)
		a, err := c.Enrol(ctx, l.token("ber", roles...), request(name, k))
		if err != nil {
			t.Fatal(err)
		}
		return c, k, a
	}

	t.Run("killed between effects", func(t *testing.T) {
		between, at := newCut(t, l.consul)
		cfg := l.service.cfg
		cfg.Consul = at
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		cuts := 0
		for n := int64(1); ; n++ {
			name := fmt.Sprintf("k%d", n)
			k, token := newKeys(t), l.token("ber", RoleBridge)
			q := request(name, k)
			q.Token, q.Region, q.Roles, q.Time = token.Secret, token.Region, token.Roles, time.Now()
			q.CSR, _ = CSR(k.tls)
			between.left.Store(n)
			_, err := s.enrol(ctx, q, &Event{})
			between.left.Store(1 << 30)
			v, again := s.enrol(ctx, q, &Event{})
			if again != nil {
				t.Fatalf("after a cut at request %d (%v): %v", n, err, again)
			}
			a := v.(Answer)
			st, c, _ := l.service.store(ctx)
			if r, err := l.service.published(ctx, st, c, name); err != nil || r.Epoch != a.Epoch || r.Control != a.Control.Addr() {
				t.Errorf("cut at %d: record %+v, %v", n, r, err)
			}
			taken, _ := st.list(ctx, numbersPrefix)
			numbers := 0
			for _, who := range taken {
				if string(who) == name {
					numbers++
				}
			}
			tokens, _, err2 := st.client.ACL().TokenList(nil)
			for _, x := range tokens {
				if strings.HasSuffix(x.Description, " of "+name) {
					numbers += 10
				}
			}
			if numbers != 21 || err2 != nil {
				t.Errorf("cut at %d: %d addresses, %d tokens, %v", n, numbers%10, numbers/10, err2)
			}
			if err == nil {
				break // the whole of it went through
			}
			cuts++
		}
		if cuts < 10 {
			t.Errorf("%d cuts only", cuts)
		}
		t.Logf("%d places to be killed at", cuts)
	})

	t.Run("two at once", func(t *testing.T) {
		var wg sync.WaitGroup
		var answers [8]Answer
		for i := range answers {
			k, token := newKeys(t), l.token("ber", RoleBridge)
			wg.Go(func() {
				a, err := l.client(k).Enrol(ctx, token, request(fmt.Sprintf("w%d", i), k))
				if err != nil {
					t.Error(err)
				}
				answers[i] = a
			})
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, a := range answers {
			if seen[a.Control.String()] || seen[a.Media.String()] {
				t.Errorf("%s twice", a.Control)
			}
			seen[a.Control.String()], seen[a.Media.String()] = true, true
		}
		// One host that asks twice at once is one host.
		k, token := newKeys(t), l.token("ber", RoleBridge)
		for i := range 2 {
			wg.Go(func() {
				a, err := l.client(k).Enrol(ctx, token, request("twin", k))
				if err != nil {
					t.Error(err)
				}
				answers[i] = a
			})
		}
		wg.Wait()
		if answers[0].Control != answers[1].Control || answers[0].Consul.Token != answers[1].Consul.Token {
			t.Errorf("one host got %s and %s", answers[0].Control, answers[1].Control)
		}
		// And one token that two hosts use at once lets one in.
		one := l.token("ber", RoleBridge)
		var in atomic.Int64
		for i := range 4 {
			k := newKeys(t)
			wg.Go(func() {
				_, err := l.client(k).Enrol(ctx, one, request(fmt.Sprintf("race%d", i), k))
				if err == nil {
					in.Add(1)
				} else if !errors.Is(err, Refusal{Reason: ReasonUsed}) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if in.Load() != 1 {
			t.Errorf("one token let %d hosts in", in.Load())
		}
	})

	t.Run("expired", func(t *testing.T) {
		c, k, a := enrol("old", RoleBridge)
		if until := time.Until(a.RenewAfter); until > 2*time.Second {
			t.Errorf("renewal after %s of a life of 4 s", until)
		}
		l.eventually("the certificate expires", func() error {
			crt, _, err := cert.UnmarshalCertificateFromPEM([]byte(a.NebulaCert))
			if err != nil {
				t.Fatal(err)
			}
			if !crt.Expired(time.Now()) {
				return errors.New("not yet")
			}
			return nil
		})
		b, err := c.Renew(ctx, request("old", k))
		if err != nil || !b.CertificateTo.After(time.Now()) || b.Control != a.Control {
			t.Errorf("renewed after expiry: until %s, %v", b.CertificateTo, err)
		}
	})

	t.Run("no leader", func(t *testing.T) {
		k, token := newKeys(t), l.token("ber", RoleBridge)
		l.procs["consul"].kill()
		_, err := l.client(k).Enrol(ctx, token, request("nl", k))
		wantRefusal(t, "without Consul", ReasonNoQuorum, err)
		l.again["consul"]()
		l.eventually("the join goes on", func() error {
			_, err := l.client(k).Enrol(ctx, token, request("nl", k))
			if err != nil && !errors.Is(err, Refusal{Reason: ReasonNoQuorum}) {
				t.Fatal(err)
			}
			return err
		})
	})

	t.Run("binary", func(t *testing.T) {
		_, k, a := enrol("bin", RoleBridge)
		if len(a.Binaries) != 1 {
			t.Fatalf("binaries: %+v", a.Binaries)
		}
		var got bytes.Buffer
		if err := l.client(k).Binary(ctx, a.Binaries[0], &got); err != nil || !bytes.Equal(got.Bytes(), program) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
		bad := sha256.Sum256([]byte("another"))
		a.Binaries[0].SHA256 = bad[:]
		if err := l.client(k).Binary(ctx, a.Binaries[0], io.Discard); err == nil || !strings.Contains(err.Error(), "SHA-256") {
			t.Errorf("another program: %v", err)
		}
		a.Binaries[0].Name = "../../etc/passwd"
		if err := l.client(k).Binary(ctx, a.Binaries[0], io.Discard); err == nil {
			t.Error("a path was served")
		}
	})

	t.Run("rotation", func(t *testing.T) {
		c, k, old := enrol("rot", RoleBridge)
		server := l.client(l.first)
		renewAll := func() (a Answer) {
			t.Helper()
			hosts, err := l.admin.Hosts(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range hosts {
				switch {
				case h.Host == "rot":
					if a, err = c.Renew(ctx, request("rot", k)); err != nil {
						t.Fatal(err)
					}
				case h.Host == "s1":
					q := request("s1", l.first)
					q.Facts = Facts{Arch: "amd64", Underlay: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:51820")}}
					if _, err := server.Renew(ctx, q); err != nil {
						t.Fatal(err)
					}
				case h.State == "member":
					if err := l.admin.Revoke(ctx, h.Host, "", false); err != nil {
						t.Fatalf("%s: %v", h.Host, err)
					}
				}
			}
			return a
		}
		if err := l.admin.RotateCA(ctx, pki.StageTrust, "ada", false); err != nil {
			t.Fatal(err)
		}
		err := l.admin.RotateCA(ctx, pki.StageIssue, "ada", false)
		wantRefusal(t, "issue while hosts do not trust the new CA", ReasonBad, err)
		trusting := renewAll()
		if trusting.Generation <= old.Generation || len(trusting.NebulaCA) <= len(old.NebulaCA) {
			t.Error("the new CAs are not in the answer")
		}
		if err := l.admin.RotateCA(ctx, pki.StageIssue, "ada", false); err != nil {
			t.Fatal(err)
		}
		renewAll()
		if err := l.admin.RotateCA(ctx, pki.StageRetire, "ada", false); err != nil {
			t.Fatal(err)
		}
		last := renewAll()
		pool, err := cert.NewCAPoolFromPEM([]byte(last.NebulaCA))
		if err != nil {
			t.Fatal(err)
		}
		for name, x := range map[string]struct {
			pem string
			ok  bool
		}{"last": {last.NebulaCert, true}, "old": {old.NebulaCert, false}} {
			crt, _, _ := cert.UnmarshalCertificateFromPEM([]byte(x.pem))
			if _, err := pool.VerifyCertificate(crt.NotBefore().Add(time.Minute), crt); (err == nil) != x.ok {
				t.Errorf("%s certificate: %v", name, err)
			}
		}
		st, err := l.admin.Status(ctx)
		if err != nil || st.Stage != pki.StageRetire || len(st.Late) != 0 {
			t.Errorf("status: %+v, %v", st, err)
		}
		if err := l.admin.RotateGossip(ctx, ""); err != nil {
			t.Error(err)
		}
		if again := renewAll(); again.Consul.Gossip == last.Consul.Gossip {
			t.Error("the gossip key is the old one")
		}
	})

	t.Run("admins", func(t *testing.T) {
		grace, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.admin.AdminAdd(ctx, "grace", "age1nothing", "ada")
		wantRefusal(t, "no recipient", ReasonBad, err)
		info, err := l.admin.AdminAdd(ctx, "grace", grace.Recipient().String(), "ada")
		if err != nil {
			t.Fatal(err)
		}
		open := func(info AdminInfo) string {
			t.Helper()
			r, err := age.Decrypt(armor.NewReader(strings.NewReader(info.Bundle)), grace)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(r)
			token := strings.TrimPrefix(strings.Fields(string(b))[0], "CONSUL_HTTP_TOKEN=")
			if err := l.tokenWorks(ctx, token); err != nil {
				t.Errorf("an admin's token: %v", err)
			}
			return token
		}
		lost := open(info)
		eve, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.admin.AdminAdd(ctx, "grace", eve.Recipient().String(), "ada")
		wantRefusal(t, "the name of another", ReasonName, err)
		if info, err = l.admin.AdminAdd(ctx, "grace", grace.Recipient().String(), "ada"); err != nil {
			t.Fatal(err)
		}
		token := open(info)
		if err := l.tokenWorks(ctx, lost); err == nil {
			t.Error("tokens that were lost work when there are new ones")
		}
		_, err = l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{RoleBridge}})
		wantRefusal(t, "two admins and none named", ReasonBad, err)
		_, err = l.admin.TokenCreate(ctx, TokenRequest{Region: "ber", Roles: []string{RoleBridge}, Admin: "mallory"})
		wantRefusal(t, "nobody's name", ReasonBad, err)
		wantRefusal(t, "revoked by nobody", ReasonBad, l.admin.Revoke(ctx, "s1", "mallory", true))
		wantRefusal(t, "a CA rotated by nobody", ReasonBad, l.admin.RotateCA(ctx, pki.StageTrust, "mallory", true))
		wantRefusal(t, "an admin who goes by nobody", ReasonBad, l.admin.AdminRemove(ctx, "grace", "mallory"))
		wantRefusal(t, "a stage that is none", ReasonBad, l.admin.RotateCA(ctx, "all", "ada", true))
		for _, what := range []string{"token-create", "revoke", "ca-rotate", "admin-rm"} {
			if lines := l.audited(func(e Event) bool { return e.What == what && e.Admin == "mallory" && e.Reason == ReasonBad }); len(lines) != 1 {
				t.Errorf("%d lines of a refused %s", len(lines), what)
			}
		}
		if err := l.admin.AdminRemove(ctx, "grace", "ada"); err != nil {
			t.Fatal(err)
		}
		if err := l.tokenWorks(ctx, token); err == nil {
			t.Error("the token of an admin who was removed works")
		}
		wantRefusal(t, "the last admin", ReasonBad, l.admin.AdminRemove(ctx, "ada", "ada"))
	})

	t.Run("disk full", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		k, token := newKeys(t), l.token("ber", RoleBridge)
		l.service.audit.mu.Lock()
		good := l.service.audit.file
		l.service.audit.file = full
		l.service.audit.mu.Unlock()
		_, err = l.client(k).Enrol(ctx, token, request("df", k))
		wantRefusal(t, "enrol without an audit line", ReasonSealed, err)
		if err := l.service.Revoke(ctx, "rot", "ada", false); err != nil {
			t.Errorf("a full disk keeps a thief in: %v", err)
		}
		l.service.audit.mu.Lock()
		l.service.audit.file = good
		l.service.audit.mu.Unlock()
		full.Close()
		if _, err := l.client(k).Enrol(ctx, token, request("df", k)); err != nil {
			t.Errorf("with space again: %v", err)
		}
	})

	t.Run("restart", func(t *testing.T) {
		_, _, _ = enrol("thief", RoleBridge)
		_, _, _ = enrol("s9", RoleServer)
		cfg := l.service.cfg
		// The file is torn: it is fetched anew. Then Vault is sealed, and the file is all there is.
		if err := os.WriteFile(filepath.Join(cfg.Dir, "common.json"), []byte(`{"name":"te`), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, sealed := range []bool{false, true} {
			if sealed {
				l.procs["vault"].kill()
				l.again["vault"]()
			}
			s, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(ctx, 20*time.Second)
			if c, err := s.awaitCommon(short); err != nil || c.Name != "test" {
				t.Errorf("sealed %t: %v, %v", sealed, c.Name, err)
			}
			if sealed {
				for _, name := range []string{"thief", "s9"} {
					if err := s.Revoke(short, name, "ada", false); err != nil {
						t.Errorf("revoke by a service that was started while Vault is sealed: %v", err)
					}
				}
			}
			cancel()
			s.Close()
		}
		l.eventually("vault answers", func() error { _, err := l.vault.Status(ctx); return err })
		if err := l.vault.Unseal(ctx); err != nil {
			t.Error(err)
		}
		// What had to wait is done when Vault is open, and tombstones go when no certificate is valid any more.
		st, c, err := l.service.store(ctx)
		if err != nil {
			t.Fatal(err)
		}
		l.eventually("the credential of a server that was put out is ended", func() error {
			var h hostState
			if _, err := st.get(ctx, statesPrefix+"s9", &h); err != nil || len(h.Vault) != 0 {
				return fmt.Errorf("%d credentials, %v", len(h.Vault), err)
			}
			return nil
		})
		var epoch uint64
		l.eventually("the tombstone is gone", func() error {
			r, err := l.service.published(ctx, st, c, "thief")
			if errors.Is(err, errNone) {
				return nil
			}
			epoch = r.Epoch
			return fmt.Errorf("epoch %d, %v", r.Epoch, err)
		})
		if _, _, a := enrol("thief", RoleBridge); a.Epoch <= max(epoch, 2) {
			t.Errorf("a host that comes back has epoch %d after %d", a.Epoch, epoch)
		}
	})
}
