//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
)

// An authority is pebble, the real ACME server that authorities test with, on a host of its own with a name server beside
// it. Nobody but the lab trusts it.
type authority struct {
	*netlab.Host
	c         *cluster
	dir       string
	directory string // URL, for edges
	api       []byte // PEM by which the directory proves itself
	key       string // SHA-256 of the key that certificates of edges are signed with, as Chromium has it
}

// roots is the file with what certificates of edges end in.
func (a *authority) roots() string { return filepath.Join(a.dir, "roots.pem") }

// newAuthority makes the host.
func (c *cluster) newAuthority() (*authority, error) {
	a := &authority{Host: c.lab.Host("ca"), c: c, dir: filepath.Join(c.dir, "ca")}
	c.lab.Link(a.Host, c.wan, netlab.LinkConfig{})
	return a, os.Mkdir(a.dir, 0o755)
}

// start starts both servers and waits until they answer.
func (a *authority) start() error {
	names, err := a.Listen("tcp", "127.0.0.1:53")
	if err != nil {
		return err
	}
	server := &dns.Server{Listener: names, Handler: dns.HandlerFunc(a.answer)}
	ended := make(chan error)
	go func() { ended <- server.ActivateAndServe() }()
	a.c.t.Cleanup(func() {
		names.Close()
		<-ended
	})
	own := filepath.Join(a.dir, "api.pem")
	var key []byte
	if a.api, key, err = selfSigned(a.Addr()); err != nil {
		return err
	}
	address, management := netip.AddrPortFrom(a.Addr(), 443).String(), netip.AddrPortFrom(a.Addr(), 444).String()
	config := filepath.Join(a.dir, "pebble.json")
	if err := errors.Join(os.WriteFile(own, slices.Concat(a.api, key), 0o600), os.WriteFile(config, fmt.Appendf(nil, `{"pebble": {"listenAddress": %q,
		"managementListenAddress": %q, "certificate": %q, "privateKey": %q, "httpPort": 80, "tlsPort": 443,
		"profiles": {"default": {"description": "ninety days", "validityPeriod": 7776000}}}}`, address, management, own, own), 0o600)); err != nil {
		return err
	}
	path, err := stack.Build("pebble")
	if err != nil {
		return err
	}
	cmd := exec.Command(path, "-config", config, "-dnsserver", "127.0.0.1:53")
	cmd.Env, cmd.Dir = append(stack.Environment(a.dir), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"), a.dir
	a.StartCmd(cmd)
	a.directory = "https://" + address + "/dir"

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.api)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: a.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool}}}
	var roots, signer []byte
	err = a.c.eventually(30*time.Second, func() (err error) {
		if roots, err = fetch(client, "https://"+management+"/roots/0"); err == nil {
			signer, err = fetch(client, "https://"+management+"/intermediates/0")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the certificate authority: %w", err)
	}
	block, _ := pem.Decode(signer)
	if block == nil {
		return fmt.Errorf("the certificate authority signs with %q", signer)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	a.key = base64.StdEncoding.EncodeToString(sum[:])
	return os.WriteFile(a.roots(), roots, 0o644)
}

func fetch(client *http.Client, url string) ([]byte, error) {
	res, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, res.Status, body)
	}
	return body, err
}

// answer is the name server: of the edges behind a name, those that take connections, as plenum dns has it.
func (a *authority) answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	for _, edge := range a.c.with("edge") {
		if q.Question[0].Qtype != dns.TypeA || !slices.Contains(edge.names(), name) {
			continue
		}
		ctx, cancel := context.WithTimeout(a.c.ctx, time.Second)
		conn, err := a.Dial(ctx, "tcp", net.JoinHostPort(edge.Addr().String(), "80"))
		cancel()
		if err != nil {
			continue
		}
		conn.Close()
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A: edge.Addr().AsSlice()})
	}
	_ = w.WriteMsg(m)
}

// selfSigned makes a certificate for an address, and its key.
func selfSigned(addr netip.Addr) (certificate, key []byte, err error) {
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), IPAddresses: []net.IP{addr.AsSlice()},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &pair.PublicKey, pair)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(pair)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), err
}
