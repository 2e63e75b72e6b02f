package edge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/google/renameio/v2"
	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Authority is where an edge gets the certificates of Proxy.Names from, by ACME (RFC 8555). Any edge of the cluster
// answers any other's challenge, and has the certificate a few seconds after it was issued to one of them.
type Authority struct {
	Directory string      // URL; empty: Let's Encrypt
	Email     string      // where the authority writes to; may be empty
	Secret    string      // under which keys lie in Consul: the same for all edges
	Consul    *api.Client //
	Roots     *x509.CertPool
	Interval  time.Duration // how often an edge looks for what another got; default 15 s
}

// A display gives HAProxy the certificates of names as they come, without a reload.
type display struct {
	names    []string
	interval time.Duration                                          // between two looks
	load     func(ctx context.Context, name string) ([]byte, error) // the chain and the key; fs.ErrNotExist: none yet
	haproxy  runtime
	file     func(name string) string
	shown    map[string][sha256.Size]byte // by name
	until    *prometheus.GaugeVec
	log      *slog.Logger
}

// newDisplay shows what lies in the files of p.
func newDisplay(p Proxy, until *prometheus.GaugeVec, log *slog.Logger) *display {
	return &display{names: p.Names, interval: 3 * time.Second, file: p.certificate, haproxy: runtime{p.Path(fileAdmin)},
		load:  func(_ context.Context, name string) ([]byte, error) { return os.ReadFile(p.certificate(name)) },
		shown: map[string][sha256.Size]byte{}, until: until, log: log}
}

// A custodian obtains certificates and renews them.
type custodian struct {
	*display
	safe   *safe
	config *certmagic.Config
	cache  *certmagic.Cache
	issuer *certmagic.ACMEIssuer
	answer net.Listener
}

func newCustodian(p Proxy, a Authority, until *prometheus.GaugeVec, log *slog.Logger) (*custodian, error) {
	s, err := newSafe(a.Consul, a.Secret)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", p.Answer)
	if err != nil {
		return nil, err
	}
	c := &custodian{display: newDisplay(p, until, log), safe: s, answer: l}
	c.load, c.interval = c.fetch, cmp.Or(a.Interval, 15*time.Second)
	quiet := zap.NewNop()
	c.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return c.config, nil },
		Logger:           quiet,
	})
	c.config = certmagic.New(c.cache, certmagic.Config{
		Storage: s, Logger: quiet, OCSP: certmagic.OCSPConfig{DisableStapling: true},
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			switch event {
			case "cert_failed":
				log.Warn("no certificate was to be had", "name", data["identifier"], "err", data["error"])
			case "cert_obtained":
				log.Info("certificate", "name", data["identifier"], "renewal", data["renewal"])
			}
			return nil
		},
	})
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	directory := a.Directory
	if directory == "" {
		directory = certmagic.LetsEncryptProductionCA
	}
	// certmagic finds its port taken by this very process, and leaves answering to it.
	c.issuer = certmagic.NewACMEIssuer(c.config, certmagic.ACMEIssuer{
		CA: directory, TestCA: directory, Email: a.Email, Agreed: true, TrustedRoots: a.Roots,
		DisableTLSALPNChallenge: true, ListenHost: host, AltHTTPPort: number, Logger: quiet,
	})
	c.config.Issuers = []certmagic.Issuer{c.issuer}
	return c, nil
}

// run obtains and renews until ctx ends.
func (c *custodian) run(ctx context.Context) error {
	defer c.cache.Stop()
	server := &http.Server{Handler: c.issuer.HTTPChallengeHandler(http.NotFoundHandler()), ReadHeaderTimeout: 5 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if !c.ready(ctx) {
			return nil
		}
		if err := c.config.ManageAsync(ctx, c.names); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		c.follow(ctx)
		return nil
	})
	g.Go(func() error {
		if err := server.Serve(c.answer); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { <-ctx.Done(); return server.Close() })
	return g.Wait()
}

// fetch returns what an edge obtained.
func (c *custodian) fetch(ctx context.Context, name string) ([]byte, error) {
	keys := certmagic.StorageKeys
	chain, err := c.safe.Load(ctx, keys.SiteCert(c.issuer.IssuerKey(), name))
	if err != nil {
		return nil, err
	}
	key, err := c.safe.Load(ctx, keys.SitePrivateKey(c.issuer.IssuerKey(), name))
	if err != nil {
		return nil, err
	}
	return append(append([]byte{}, chain...), key...), nil
}

// ready waits until HAProxy is there, for an authority asks at once, and a refusal takes a minute to forget.
func (c *display) ready(ctx context.Context) bool {
	for {
		if _, err := c.haproxy.do(ctx, "show version"); err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// follow gives HAProxy each certificate that is new: from the safe, whichever edge obtained it, or from its file.
func (c *display) follow(ctx context.Context) {
	for {
		wait := c.interval
		for _, name := range c.names {
			err := c.show(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				wait = min(wait, time.Second) // people wait for the first one
			} else if err != nil && ctx.Err() == nil {
				c.log.Warn("certificate", "name", name, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// show gives HAProxy the certificate of a name unless it has it.
func (c *display) show(ctx context.Context, name string) error {
	text, err := c.load(ctx, name)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	if c.shown[name] == sum {
		return nil
	}
	if block, _ := pem.Decode(text); block != nil {
		if leaf, err := x509.ParseCertificate(block.Bytes); err == nil {
			c.until.WithLabelValues(name).Set(float64(leaf.NotAfter.Unix()))
		}
	}
	file := c.file(name)
	if has, err := os.ReadFile(file); err != nil || !bytes.Equal(has, text) {
		if err := renameio.WriteFile(file, text, 0o600); err != nil { // for a HAProxy that starts anew
			return err
		}
	}
	var given strings.Builder // without blank lines, the first of which would end it
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			given.WriteString(line + "\n")
		}
	}
	if err := c.haproxy.quiet(ctx, "set ssl cert "+file+" <<\n"+given.String(), "Transaction created", "Transaction updated"); err != nil {
		return err
	}
	if err := c.haproxy.quiet(ctx, "commit ssl cert "+file, "Committing"); err != nil {
		return err
	}
	c.shown[name] = sum
	return nil
}

// placeholder makes a certificate that nobody trusts, for HAProxy to begin with, unless there is one.
func placeholder(file, name string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	return renameio.WriteFile(file, text, 0o600)
}
