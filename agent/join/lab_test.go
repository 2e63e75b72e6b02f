package join

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/goleak"

	"plenum/agent/pki"
	"plenum/overlay/netlab/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A process is a server that ends with its test.
type process struct {
	cmd  *exec.Cmd
	out  syncBuffer
	done chan struct{}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t testing.TB, dir, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = stack.Environment(dir), dir, &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig goes by the thread
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			out := p.out.String()
			t.Logf("%s: …%s", filepath.Base(path), out[max(0, len(out)-3000):])
		}
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func write(t testing.TB, path string, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A keyring is the private keys of a host.
type keyring struct {
	host ed25519.PrivateKey
	tls  *ecdsa.PrivateKey
	keys Keys
}

func newKeys(t testing.TB) keyring {
	t.Helper()
	_, host, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tls, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkix, err := x509.MarshalPKIXPublicKey(tls.Public())
	if err != nil {
		t.Fatal(err)
	}
	x := func() []byte {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k.PublicKey().Bytes()
	}
	return keyring{host, tls, Keys{Host: host.Public().(ed25519.PublicKey), Nebula: x(), WireGuard: x(), TLS: pkix}}
}

// A lab is a cluster of one server host on loopback: the real Vault with its storage on disk, the real Consul with ACLs
// and gossip key, the real Nomad with ACLs and strict introduction where asked, and the service.
type lab struct {
	t       testing.TB
	dir     string
	vault   *pki.Vault
	vaultAt string
	consul  string // host:port
	nomad   string // URL
	rpc     int    // Nomad's
	gossip  int    // Consul's serf

	service *Service
	address string // of the service
	admin   Admin
	first   keyring
	answer  Answer
	person  *age.X25519Identity
	bundle  string // ada's tokens

	procs map[string]*process
	again map[string]func() // starts one anew
}

type options struct {
	tweak func(*pki.Config)
	serve func(*Config)
}

func newLab(t testing.TB, o options) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), first: newKeys(t), procs: map[string]*process{}, again: map[string]func(){}}
	var err error
	if l.person, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	p := stack.Ports(t, 11)
	l.vaultAt = fmt.Sprintf("http://127.0.0.1:%d", p[0])
	l.startVault(p[0], p[1])
	cluster := Cluster{Name: "test", Control: netip.MustParsePrefix("10.99.0.0/16"), Media: netip.MustParsePrefix("10.98.0.0/16")}
	cfg := pki.Config{Address: l.vaultAt, Cluster: cluster.Name, Control: cluster.Control, KeyFile: filepath.Join(l.dir, "vault-keys.json"),
		Admins: []string{l.person.Recipient().String()}}
	if o.tweak != nil {
		o.tweak(&cfg)
	}
	if l.vault, err = pki.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	if err := l.vault.Setup(ctx); err != nil {
		t.Fatal(err)
	}

	l.consul, l.nomad = fmt.Sprintf("127.0.0.1:%d", p[2]), fmt.Sprintf("http://127.0.0.1:%d", p[5])
	l.address, l.admin = fmt.Sprintf("127.0.0.1:%d", p[8]), Admin{Socket: filepath.Join(l.dir, "join.sock")}
	var log bytes.Buffer
	sc := Config{Vault: l.vault, Consul: l.consul, Nomad: l.nomad, Dir: filepath.Join(l.dir, "join"), Listen: l.address, Socket: l.admin.Socket,
		Log: slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil)), Watch: 200 * time.Millisecond}
	if o.serve != nil {
		o.serve(&sc)
	}
	if l.service, err = New(sc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.service.Close() })
	csr, err := CSR(l.first.tls)
	if err != nil {
		t.Fatal(err)
	}
	l.answer, err = l.service.Found(ctx, cluster, "muc", "ada", Request{Host: "s1", Keys: l.first.keys, Roles: []string{RoleServer}, CSR: csr,
		Facts: Facts{Arch: "amd64", Underlay: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:51820")}}})
	if err != nil {
		t.Fatal(err)
	}
	l.gossip = p[4]
	l.startConsul(p[2], p[3], p[4])
	if err := l.service.BootstrapConsul(ctx); err != nil {
		t.Fatal(err)
	}
	l.rpc = p[6]
	l.startNomad(p[5], p[6], p[7])
	if _, err := l.service.BootstrapNomad(ctx); err != nil {
		t.Fatal(err)
	}
	ada, err := l.service.AdminAdd(ctx, "ada", l.person.Recipient().String(), "")
	if err != nil {
		t.Fatal(err)
	}
	l.bundle = ada.Bundle
	l.serve()
	return l
}

type syncWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// serve runs the service until the test ends.
func (l *lab) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.service.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Errorf("service: %v", err)
		}
	})
	l.eventually("the service listens", func() error {
		c, err := net.Dial("unix", l.admin.Socket)
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (l *lab) eventually(what string, f func() error) {
	l.t.Helper()
	end := time.Now().Add(90 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (l *lab) run(name string, begin func() *process) {
	l.again[name] = func() { l.procs[name] = begin() }
	l.again[name]()
}

func (l *lab) startVault(api, cluster int) {
	dir := filepath.Join(l.dir, "vault")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	type object = map[string]any
	file := write(l.t, filepath.Join(l.dir, "vault.json"), object{"disable_mlock": true, "api_addr": l.vaultAt, "cluster_addr": fmt.Sprintf("https://127.0.0.1:%d", cluster),
		"storage":  object{"raft": object{"path": dir, "node_id": "s1", "performance_multiplier": 1}},
		"listener": []object{{"tcp": object{"address": fmt.Sprintf("127.0.0.1:%d", api), "cluster_address": fmt.Sprintf("127.0.0.1:%d", cluster), "tls_disable": true}}}})
	l.run("vault", func() *process { return start(l.t, l.dir, stack.Path(l.t, "vault"), "server", "-config", file) })
	l.eventually("vault listens", func() error {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", api))
		if err == nil {
			c.Close()
		}
		return err
	})
}

func (l *lab) startConsul(http, server, serf int) {
	type object = map[string]any
	file := write(l.t, filepath.Join(l.dir, "consul.json"), object{"datacenter": "test", "node_name": "s1", "server": true, "bootstrap_expect": 1, "data_dir": filepath.Join(l.dir, "consul"),
		"bind_addr": "127.0.0.1", "encrypt": l.answer.Consul.Gossip, "connect": object{"enabled": false},
		"ports":       object{"http": http, "server": server, "serf_lan": serf, "serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1},
		"performance": object{"raft_multiplier": 1}, "session_ttl_min": "5s",
		"acl": object{"enabled": true, "default_policy": "deny", "tokens": object{"agent": l.answer.Consul.Token}}})
	l.run("consul", func() *process { return start(l.t, l.dir, stack.Path(l.t, "consul"), "agent", "-config-file", file) })
}

func (l *lab) startNomad(http, rpc, serf int) {
	type object = map[string]any
	file := write(l.t, filepath.Join(l.dir, "nomad.json"), object{"region": "test", "datacenter": "muc", "name": "s1", "data_dir": filepath.Join(l.dir, "nomad"), "bind_addr": "127.0.0.1",
		"advertise": object{"http": "127.0.0.1", "rpc": "127.0.0.1", "serf": "127.0.0.1"},
		"ports":     object{"http": http, "rpc": rpc, "serf": serf}, "acl": object{"enabled": true},
		"server": object{"enabled": true, "bootstrap_expect": 1, "raft_multiplier": 1, "client_introduction": object{"enforcement": "strict"}},
		"consul": object{"address": l.consul, "token": l.answer.Nomad.ConsulToken, "client_auto_join": false, "server_auto_join": false,
			"service_identity": object{"aud": []string{"consul.io"}, "ttl": "1h"}, "task_identity": object{"aud": []string{"consul.io"}, "ttl": "1h"}}})
	l.run("nomad", func() *process { return start(l.t, l.dir, stack.Path(l.t, "nomad"), "agent", "-config", file) })
}

// client is a host's client of the lab's service.
func (l *lab) client(k keyring) *Client {
	return &Client{Addresses: []string{l.address}, Pin: l.answer.Pin, Host: k.host, TLS: k.tls}
}

// token makes one as an operator does.
func (l *lab) token(region string, roles ...string) Token {
	l.t.Helper()
	info, err := l.admin.TokenCreate(l.t.Context(), TokenRequest{Region: region, Roles: roles})
	if err != nil {
		l.t.Fatal(err)
	}
	t, err := ParseToken(info.Text)
	if err != nil {
		l.t.Fatalf("%s: %v", info.Text, err)
	}
	t.Addresses = []string{l.address} // of this lab, whose ports are its own
	return t
}

func request(name string, k keyring) Request {
	return Request{Host: name, Keys: k.keys, Facts: Facts{Arch: "amd64", Release: "test"}}
}
