package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/hashicorp/consul/api"
	"github.com/miekg/dns"

	"plenum/overlay/netlab/stack"
)

const name = "meet.plenum.test"

// pebble starts the real ACME server that certificate authorities test with. It believes that name is at 127.0.0.1,
// and asks there on httpAddr's port.
func pebble(t *testing.T, httpAddr string) (directory string, roots *x509.CertPool) {
	t.Helper()
	conn, err := net.Listen("tcp", "127.0.0.1:0") // which is how it asks
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan error)
	go func() { ended <- server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); <-ended })

	dir := t.TempDir()
	own := filepath.Join(dir, "own.pem")
	if err := placeholder(own, "localhost"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	_, port, _ := net.SplitHostPort(httpAddr)
	listen := freeAddr(t)
	config := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(config, fmt.Appendf(nil, `{"pebble": {"listenAddress": %q, "managementListenAddress": %q,
		"certificate": %q, "privateKey": %q, "httpPort": %s, "tlsPort": 5001, "profiles": {"default": {"description": "x", "validityPeriod": 7776000}}}}`,
		listen, freeAddr(t), own, own, port), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(stack.Path(t, "pebble"), "-config", config, "-dnsserver", conn.Addr().String())
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("pebble: %s", text)
		}
	})
	until(t, "pebble answers", func() bool {
		conn, err := net.Dial("tcp", listen)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	_, port, _ = net.SplitHostPort(listen)
	return "https://localhost:" + port + "/dir", roots
}

// leaf is the certificate that is shown at addr.
func leaf(addr string) (*x509.Certificate, error) {
	conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// TestCertificates has two edges behind one name get one certificate from a real ACME server: whichever is asked
// answers the challenge, both HAProxies show it without a reload, and a replaced one reaches both while a
// connection goes on.
func TestCertificates(t *testing.T) {
	leaks(t)
	server := stack.Consul(t)
	client, err := api.NewClient(&api.Config{Address: server.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	const secret = "a secret of all edges"
	first := freeAddr(t)
	directory, roots := pebble(t, first)
	var stands []*stand
	for i := range 2 {
		web := freeAddr(t)
		if i == 0 {
			web = first
		}
		stands = append(stands, start(t, Config{
			Proxy: Proxy{HTTP: web, HTTPS: freeAddr(t), Names: []string{name}, Answer: freeAddr(t)},
			Authority: &Authority{Directory: directory, Roots: roots, Secret: secret, Consul: client,
				Interval: 200 * time.Millisecond},
		}))
	}
	shard, _ := shardAt(t, "muc-1")
	for _, s := range stands {
		s.views <- View{Shards: []Shard{shard}}
	}
	var serial string
	for _, s := range stands {
		until(t, "a certificate of the authority", func() bool {
			c, err := leaf(s.https)
			if err != nil || c.Issuer.CommonName == name {
				return false
			}
			if serial == "" {
				serial = c.SerialNumber.String()
			}
			return c.SerialNumber.String() == serial
		})
	}

	// A connection is open while the certificate is replaced.
	conn, err := tls.Dial("tcp", stands[0].https, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := filepath.Join(t.TempDir(), "other.pem")
	if err := placeholder(other, name); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	block, key := pem.Decode(text)
	shared, err := newSafe(client, secret)
	if err != nil {
		t.Fatal(err)
	}
	keys, issuer := certmagic.StorageKeys, stands[0].edge.keeper.issuer.IssuerKey()
	if err := errors.Join(shared.Store(t.Context(), keys.SiteCert(issuer, name), pem.EncodeToMemory(block)),
		shared.Store(t.Context(), keys.SitePrivateKey(issuer, name), key)); err != nil {
		t.Fatal(err)
	}
	for _, s := range stands {
		until(t, "the replaced certificate", func() bool {
			c, err := leaf(s.https)
			return err == nil && c.Issuer.CommonName == name
		})
	}
	if _, err := fmt.Fprintf(conn, "GET /x HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 100)); err != nil || n == 0 {
		t.Errorf("a connection from before: %d bytes, %v", n, err)
	}
	if code, _ := get(t, stands[0].url+"/x"); code != http.StatusMovedPermanently {
		t.Errorf("plain HTTP is answered %d", code)
	}
}

// TestSafe keeps values from who has another secret, and from being moved under another name.
func TestSafe(t *testing.T) {
	leaks(t)
	server := stack.Consul(t)
	client, err := api.NewClient(&api.Config{Address: server.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	s, err := newSafe(client, "the secret of all edges")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newSafe(client, "short"); err == nil {
		t.Error("a short secret is taken")
	}
	if err := errors.Join(s.Store(ctx, "a/b/c", []byte("key of c")), s.Store(ctx, "a/d", []byte("key of d"))); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(ctx, "a/b/c"); err != nil || string(got) != "key of c" {
		t.Errorf("a/b/c is %q, %v", got, err)
	}
	if kv, _, err := client.KV().Get(safePrefix+"a/d", nil); err != nil || string(kv.Value) == "key of d" {
		t.Errorf("in Consul: %v, %v", kv, err)
	} else if _, err := client.KV().Put(&api.KVPair{Key: safePrefix + "a/e", Value: kv.Value}, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(ctx, "a/e"); err == nil {
		t.Errorf("moved there: %q", got)
	}
	if other, _ := newSafe(client, "the secret of nobody here"); other != nil {
		if got, err := other.Load(ctx, "a/d"); err == nil {
			t.Errorf("with another secret: %q", got)
		}
	}
	if _, err := s.Load(ctx, "a/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if list, err := s.List(ctx, "a", false); err != nil || fmt.Sprint(list) != "[a/b a/d a/e]" {
		t.Errorf("list: %v, %v", list, err)
	}
	if list, err := s.List(ctx, "a", true); err != nil || fmt.Sprint(list) != "[a/b/c a/d a/e]" {
		t.Errorf("list: %v, %v", list, err)
	}
	if i, err := s.Stat(ctx, "a/b"); err != nil || i.IsTerminal {
		t.Errorf("a/b: %+v, %v", i, err)
	}
	if err := s.Delete(ctx, "a"); err != nil || s.Exists(ctx, "a/b/c") || s.Exists(ctx, "a") {
		t.Errorf("deleted: %v", err)
	}
	if err := s.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	second, _ := newSafe(client, "the secret of all edges")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := second.Lock(short, "x"); err == nil {
		t.Error("locked twice")
	}
	if err := s.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
	if err := second.Lock(ctx, "x"); err != nil {
		t.Error(err)
	}
	if err := second.Unlock(ctx, "x"); err != nil {
		t.Error(err)
	}
}

// TestFiles shows a certificate that somebody puts into its file, without a reload.
func TestFiles(t *testing.T) {
	leaks(t)
	s := start(t, Config{Proxy: Proxy{HTTP: freeAddr(t), HTTPS: freeAddr(t), Names: []string{name}, Answer: "127.0.0.1:1"}})
	first, err := leaf(s.https)
	if err != nil {
		t.Fatal(err)
	}
	file := s.edge.cfg.Proxy.certificate(name)
	other := filepath.Join(t.TempDir(), "other.pem")
	if err := placeholder(other, name); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte("-----BEGIN PRIV"), []byte("\r\n\n\n-----BEGIN PRIV")), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the new certificate", func() bool {
		c, err := leaf(s.https)
		return err == nil && c.SerialNumber.Cmp(first.SerialNumber) != 0
	})
}
