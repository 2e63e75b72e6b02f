//go:build linux

package roster

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"plenum/overlay/netlab/stack"
)

// A follower runs a Consul source into a book, as the engine does.
type follower struct {
	t    *testing.T
	book *Book
	last Listing
	news chan delivery
	errs int
}

type delivery struct {
	l   Listing
	err error
}

func follow(t *testing.T, c Consul) *follower {
	t.Helper()
	f := &follower{t: t, book: NewBook(public(key(1))), news: make(chan delivery, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Watch(ctx, func(l Listing, err error) { f.news <- delivery{l, err} })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

// until takes deliveries in until ok, and returns how long that took.
func (f *follower) until(ok func() bool) time.Duration {
	f.t.Helper()
	start := time.Now()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case d := <-f.news:
			if d.err != nil {
				f.errs++
				f.t.Logf("told: %v", d.err)
				continue
			}
			f.last = d.l
			for host, envelope := range d.l.Hosts {
				_, _ = f.book.Accept(host, envelope)
			}
		case <-late:
			f.t.Fatalf("after 30 s: listing %+v, refused %v, %d errors", f.last, f.book.Refused(), f.errs)
		}
	}
	return time.Since(start)
}

func (f *follower) epoch(host string) uint64 {
	for _, r := range f.book.Records() {
		if r.Host == host {
			return r.Epoch
		}
	}
	return 0
}

func client(t *testing.T, address, token string) *api.KV {
	t.Helper()
	cfg := api.DefaultNonPooledConfig()
	cfg.Address, cfg.Token = address, token
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c.KV()
}

func put(t *testing.T, kv *api.KV, name string, value []byte) {
	t.Helper()
	if _, err := kv.Put(&api.KVPair{Key: name, Value: value}, nil); err != nil {
		t.Fatal(err)
	}
}

// TestConsul follows a real Consul: what is written there arrives by a blocking query; what is forged, replayed or filed
// elsewhere is refused and counted; and when it is gone, what was known stays known.
func TestConsul(t *testing.T) {
	server := stack.Consul(t)
	kv := client(t, server.Address, "")
	good, evil := key(1), key(2)
	f := follow(t, Consul{Address: server.Address})
	first := sign(t, good, host("a", 1, 1))
	put(t, kv, "plenum/hosts/a", first)
	put(t, kv, "plenum/endpoints/a", []byte(`{"media":["192.0.2.1:51820"],"control":["192.0.2.1:4242"]}`))
	f.until(func() bool { return f.epoch("a") == 1 && len(f.last.Endpoints["a"].Media) == 1 })

	for epoch := uint64(2); epoch < 6; epoch++ {
		put(t, kv, "plenum/hosts/a", sign(t, good, host("a", 1, epoch)))
		d := f.until(func() bool { return f.epoch("a") == epoch })
		t.Logf("a change arrives after %s", d)
		if d > 10*time.Second { // by asking now and then it would be minutes
			t.Errorf("a change arrives after %s", d)
		}
	}
	refused := func(reason string) func() bool { return func() bool { return f.book.Refused()[reason] > 0 } }
	put(t, kv, "plenum/hosts/a", first)
	f.until(refused("older"))
	put(t, kv, "plenum/hosts/a", sign(t, evil, host("a", 1, 9)))
	f.until(refused("forged"))
	put(t, kv, "plenum/hosts/b", sign(t, good, host("a", 1, 9)))
	f.until(refused("misplaced"))
	put(t, kv, "plenum/hosts/b", []byte("no record"))
	f.until(refused("malformed"))
	put(t, kv, "plenum/hosts/b", bytes.Repeat([]byte("x"), maxEnvelopeBytes+1)) // not even looked at
	put(t, kv, "plenum/endpoints/b", []byte(`{"media":"everywhere"}`))
	put(t, kv, "plenum/hosts/c", sign(t, good, host("c", 3, 1)))
	f.until(func() bool { return f.epoch("c") == 1 })
	if f.epoch("a") != 5 || len(f.book.Records()) != 2 || f.last.Hosts["b"] != nil || len(f.last.Endpoints) != 1 {
		t.Errorf("records %+v, listing %+v", f.book.Records(), f.last)
	}

	server.Kill()
	f.until(func() bool { return f.errs == 2 }) // both queries, once each
	if d := time.After(3 * consulRetry); true {
		select {
		case <-d:
		case n := <-f.news:
			t.Errorf("told again: %+v", n)
		}
	}
	if f.epoch("a") != 5 || len(f.last.Hosts) == 0 {
		t.Error("what was known went with Consul")
	}
}

// TestConsulToken reads with a token that may read what a host needs and nothing else. A token without that right is an
// error that says so, for Consul itself would just show nothing; a better one in the file ends it.
func TestConsulToken(t *testing.T) {
	const root = "7f6c3c4e-3c07-4a39-b0a3-5b1e3b1f0c5e"
	address := start(t, fmt.Sprintf(`acl { enabled = true, default_policy = "deny", tokens { initial_management = %q } }`, root))
	kv := client(t, address, root)
	eventuallyPut(t, kv)
	put(t, kv, "plenum/hosts/a", sign(t, key(1), host("a", 1, 1)))
	cfg := api.DefaultNonPooledConfig()
	cfg.Address, cfg.Token = address, root
	admin, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	token := func(name, rules string) string {
		p, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
		if err != nil {
			t.Fatal(err)
		}
		made, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: p.ID}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return made.SecretID
	}
	weak := token("weak", `key_prefix "other/" { policy = "read" }`)
	enough := token("overlay", `key_prefix "plenum/hosts/" { policy = "read" } key_prefix "plenum/endpoints/" { policy = "read" }`)
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(weak)
	f := follow(t, Consul{Address: address, TokenFile: file})
	f.until(func() bool { return f.errs > 0 })
	if len(f.last.Hosts) != 0 {
		t.Errorf("the weak token shows %v", f.last.Hosts)
	}
	write(enough)
	f.until(func() bool { return f.epoch("a") == 1 })
	put(t, kv, "plenum/hosts/a", sign(t, key(1), host("a", 1, 2)))
	f.until(func() bool { return f.epoch("a") == 2 })
}

// start runs a Consul of the test's own, with the configuration given, at an address of loopback that nobody else has.
func start(t *testing.T, config string) string {
	t.Helper()
	pid := os.Getpid()
	at := netip.AddrFrom4([4]byte{127, byte(64 + pid>>16&63), byte(pid >> 8), byte(pid)})
	cmd := exec.Command(stack.Path(t, "consul"), "agent", "-dev", "-bind", at.String(), "-client", at.String(), "-hcl", config,
		"-hcl", `ports { dns = -1, grpc = -1, grpc_tls = -1, serf_wan = -1 }`)
	cmd.Env, cmd.Dir = stack.Environment(t.TempDir()), t.TempDir()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			lines := strings.Split(out.String(), "\n")
			t.Log(strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	})
	return netip.AddrPortFrom(at, 8500).String()
}

// eventuallyPut waits until Consul takes a key.
func eventuallyPut(t *testing.T, kv *api.KV) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for {
		_, err := kv.Put(&api.KVPair{Key: "ready"}, nil)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal(err)
		}
	}
}
