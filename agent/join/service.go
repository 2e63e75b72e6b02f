package join

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"plenum/agent/pki"
)

// A Config is a join service on one server host.
type Config struct {
	Vault  *pki.Vault
	Consul string // host:port of this host's agent, plain HTTP on loopback
	Nomad  string // URL of this host's agent, such as https://127.0.0.1:4646
	CA     string // file of the TLS CAs, for Nomad

	Dir    string // /var/lib/plenum/join: what services share, the audit file; for root only
	Listen string // host:port; default :8443
	Socket string // of the admin interface; default /run/plenum/join.sock; "-" is none

	Binaries []File // that hosts may fetch

	Log *slog.Logger
	Now func() time.Time // default time.Now

	// Watch is how often Nomad's nodes are compared with what was given out. Default 5 s.
	Watch time.Duration
}

// A File is a program that hosts may fetch.
type File struct {
	Name, Arch, Version, Path string
}

// A Service lets hosts in, renews what they have, and puts them out. There is one on every server host; what they share
// is in Consul and Vault.
type Service struct {
	cfg    Config
	log    *slog.Logger
	audit  *audit
	nonces nonces
	slots  chan struct{} // requests that are worked on
	peers  peers

	mu     sync.Mutex
	common *common
	files  map[string]Binary // by NAME/ARCH
}

const (
	maxBody      = 64 << 10
	maxRequests  = 64  // at once; the 65th waits
	maxConns     = 512 // at once
	requestLimit = 2 * time.Minute
)

// New opens the audit file. It asks nobody.
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == "" {
		cfg.Listen = fmt.Sprintf(":%d", Port)
	}
	if cfg.Socket == "" {
		cfg.Socket = "/run/plenum/join.sock"
	}
	if cfg.Watch == 0 {
		cfg.Watch = 5 * time.Second
	}
	if cfg.Vault == nil || cfg.Consul == "" || cfg.Nomad == "" || cfg.Dir == "" {
		return nil, errors.New("join: the service needs Vault, Consul, Nomad and a folder")
	}
	a, err := openAudit(filepath.Join(cfg.Dir, auditFile), cfg.Log)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, log: cfg.Log, audit: a, slots: make(chan struct{}, maxRequests), files: map[string]Binary{}}, nil
}

// Close closes the audit file of a service that does not run.
func (s *Service) Close() error { return s.audit.close() }

// Run serves hosts and admins until ctx is cancelled.
func (s *Service) Run(ctx context.Context) error {
	c, err := s.awaitCommon(ctx)
	if err != nil {
		return err
	}
	crt, err := c.certificate()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		return err
	}
	public := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{crt}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(ctx, public, tls.NewListener(limit(listener, maxConns), config)) })
	if s.cfg.Socket != "-" {
		socket, err := listenUnix(s.cfg.Socket)
		if err != nil {
			listener.Close()
			return err
		}
		admin := &http.Server{Handler: s.adminHandler(), ReadHeaderTimeout: 5 * time.Second}
		g.Go(func() error { return serve(ctx, admin, socket) })
	}
	g.Go(func() error { return s.watch(ctx) })
	s.log.Info("join service is open", "address", listener.Addr().String(), "cluster", c.Name)
	return g.Wait()
}

// awaitCommon waits for Vault where this host has never seen it open.
func (s *Service) awaitCommon(ctx context.Context) (common, error) {
	told := false
	for {
		c, err := s.share(ctx, nil)
		if err == nil {
			return c, nil
		}
		if !told {
			s.log.Warn("join service waits for Vault", "err", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return c, nil
		case <-time.After(time.Second):
		}
	}
}

func serve(ctx context.Context, h *http.Server, l net.Listener) error {
	h.BaseContext = func(net.Listener) context.Context { return ctx }
	stopped := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if h.Shutdown(grace) != nil {
			h.Close()
		}
	})
	defer stopped()
	err := h.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

func (s *Service) handler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET "+PathChallenge, s.challenge)
	m.HandleFunc("POST "+PathEnrol, s.request(PathEnrol, s.enrol))
	m.HandleFunc("POST "+PathRenew, s.request(PathRenew, s.renew))
	m.HandleFunc("POST "+PathLeave, s.request(PathLeave, s.leave))
	m.HandleFunc("POST "+PathRetire, s.request(PathRetire, s.retire))
	m.HandleFunc("POST "+PathReboot, s.request(PathReboot, s.reboot))
	m.HandleFunc("POST "+PathBack, s.request(PathBack, s.back))
	m.HandleFunc("GET "+PathBinary+"{name}/{arch}", s.binary)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.peers.allow(remote(r), s.cfg.Now()) {
			refuse(w, http.StatusTooManyRequests, Refusal{ReasonBad, "too many requests from this address: wait a minute"})
			return
		}
		m.ServeHTTP(w, r)
	})
}

func (s *Service) challenge(w http.ResponseWriter, r *http.Request) {
	now := s.cfg.Now()
	reply(w, Challenge{Nonce: s.nonces.make(now), Time: now, Seen: remote(r)})
}

// request wraps what a signed request asks for: parse, nonce, signature, then do, then the audit line, then the answer.
func (s *Service) request(path string, do func(context.Context, Request, *Event) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			refuse(w, http.StatusBadRequest, Refusal{ReasonBad, "a request of more than 64 KiB, or half of one"})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
		defer cancel()
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return
		}
		e := Event{Time: s.cfg.Now(), What: strings.TrimPrefix(path, "/v1/"), From: remote(r)}
		var answer any
		q, err := parseRequest(path, body)
		if e.Host = q.Host; err == nil {
			err = s.fresh(q)
		}
		if err == nil {
			answer, err = do(ctx, q, &e)
		}
		refusal := s.refusal(err)
		if err != nil {
			e.Reason, e.Text = refusal.Reason, refusal.Text
			s.attribute(ctx, q, &e)
		}
		if err := s.audit.write(e); err != nil {
			s.log.Error("nothing is granted without an audit line", "err", err)
			refuse(w, http.StatusServiceUnavailable, Refusal{ReasonSealed, "the service cannot write its audit file: free space on the server hosts"})
			return
		}
		if err != nil {
			refuse(w, status(refusal), refusal)
			return
		}
		reply(w, answer)
	}
}

// attribute names the admin who stands for a token or a host, where the refusal came before that was looked up.
func (s *Service) attribute(ctx context.Context, q Request, e *Event) {
	st, _, err := s.store(ctx)
	if err != nil || e.Admin != "" {
		return
	}
	if q.Token != "" {
		var t tokenState
		if index, err := st.get(ctx, tokensPrefix+digest(q.Token), &t); err == nil && index != 0 {
			e.Token, e.Admin = t.ID, t.Admin
		}
		return
	}
	var h hostState
	if index, err := st.get(ctx, statesPrefix+q.Host, &h); err == nil && index != 0 && validName(q.Host) {
		e.Admin = h.Admin
	}
}

// parseRequest reads a request and verifies that the host key in it has signed these very bytes' content.
func parseRequest(path string, body []byte) (Request, error) {
	var q Request
	if err := json.Unmarshal(body, &q); err != nil {
		return Request{}, Refusal{ReasonBad, "not a request: " + err.Error()}
	}
	switch {
	case !validName(q.Host):
		q.Host = ""
		return q, Refusal{ReasonBad, "a host's name has a-z, 0-9 and inner hyphens, at most 40 bytes"}
	case len(q.Keys.Host) != ed25519.PublicKeySize || len(q.Keys.Nebula) != 32 || len(q.Keys.WireGuard) != 32 || len(q.Keys.Next) != 0 && len(q.Keys.Next) != 32:
		return q, Refusal{ReasonBad, "a key has not 32 bytes"}
	case len(q.Keys.TLS) > 1024 || len(q.CSR) > 4096 || len(q.Token) > 512 || len(q.Roles) > 8 || len(q.Region) > 40 || len(q.Fresh) > 8 || len(q.Nonce) > 64 ||
		len(q.Facts.Underlay) > 16 || len(q.Facts.Public) > 16 || len(q.Facts.Arch)+len(q.Facts.Release)+len(q.Facts.NAT) > 256:
		return q, Refusal{ReasonBad, "something in the request is too long"}
	}
	signature := q.Signature
	q.Signature = nil
	signed, err := json.Marshal(q)
	if err != nil {
		return q, Refusal{ReasonBad, err.Error()}
	}
	if !ed25519.Verify(q.Keys.Host, message(path, signed), signature) {
		return q, Refusal{ReasonSignature, "the request is not signed by its host key"}
	}
	return q, nil
}

// fresh refuses what was sent before.
func (s *Service) fresh(q Request) error {
	if !s.nonces.take(q.Nonce, s.cfg.Now()) {
		return Refusal{ReasonSignature, "the challenge is unknown, used or more than a minute old: ask for another"}
	}
	return nil
}

// refusal is what the host hears of an error.
func (s *Service) refusal(err error) Refusal {
	var r Refusal
	switch {
	case err == nil:
	case errors.As(err, &r):
	case errors.Is(err, pki.ErrSealed):
		r = Refusal{ReasonSealed, "Vault is sealed, so nothing can be signed now: an admin runs plenum unseal on a server host; this goes on by itself then"}
	case errors.Is(err, errNoQuorum), errors.Is(err, context.DeadlineExceeded):
		r = Refusal{ReasonNoQuorum, "the cluster's servers have no leader now; this goes on by itself when they have"}
	case errors.Is(err, pki.ErrRequest), errors.Is(err, pki.ErrStage), errors.Is(err, pki.ErrShares) && !errors.Is(err, pki.ErrSealed):
		r = Refusal{ReasonBad, err.Error()}
	default:
		r = Refusal{ReasonNoQuorum, "the service failed: " + err.Error()}
	}
	if err != nil && r.Text != err.Error() {
		s.log.Debug("refused", "reason", r.Reason, "err", err)
	}
	return r
}

func status(r Refusal) int {
	switch r.Reason {
	case ReasonSealed, ReasonNoQuorum, ReasonBusy:
		return http.StatusServiceUnavailable
	case ReasonBad:
		return http.StatusBadRequest
	}
	return http.StatusForbidden
}

func refuse(w http.ResponseWriter, code int, r Refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(r)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v)
}

func remote(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// binary hands out a program. It is no secret: whoever knows the pin knows the sum, and who does not may have it too.
func (s *Service) binary(w http.ResponseWriter, r *http.Request) {
	for _, f := range s.cfg.Binaries {
		if f.Name != r.PathValue("name") || f.Arch != r.PathValue("arch") {
			continue
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(30 * time.Minute))
		file, err := os.Open(f.Path)
		if err != nil {
			break
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			break
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", info.ModTime(), file)
		return
	}
	refuse(w, http.StatusNotFound, Refusal{ReasonBad, "the service has no such program for this architecture: put it beside the others on the server hosts"})
}

// binaries are the programs for an architecture, with sums that are computed once.
func (s *Service) binaries(arch string) ([]Binary, error) {
	var all []Binary
	for _, f := range s.cfg.Binaries {
		if f.Arch != arch {
			continue
		}
		key := f.Name + "/" + f.Arch
		s.mu.Lock()
		b, ok := s.files[key]
		s.mu.Unlock()
		if !ok {
			file, err := os.Open(f.Path)
			if err != nil {
				return nil, err
			}
			sum := sha256.New()
			_, err = io.Copy(sum, file)
			file.Close()
			if err != nil {
				return nil, err
			}
			b = Binary{Name: f.Name, Version: f.Version, SHA256: sum.Sum(nil)}
			s.mu.Lock()
			s.files[key] = b
			s.mu.Unlock()
		}
		all = append(all, b)
	}
	return all, nil
}

// nonces are challenges that were given out. Only this service takes them, each once.
type nonces struct {
	mu  sync.Mutex
	out map[string]time.Time
}

const (
	nonceLife = time.Minute
	maxNonces = 4096
)

func (n *nonces) make(now time.Time) []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.out == nil || len(n.out) >= maxNonces {
		n.sweepLocked(now)
	}
	n.out[string(b)] = now
	return b
}

// sweepLocked forgets what is too old, and everything if that is not enough: who waits asks again.
func (n *nonces) sweepLocked(now time.Time) {
	for k, t := range n.out {
		if now.Sub(t) > nonceLife {
			delete(n.out, k)
		}
	}
	if n.out == nil || len(n.out) >= maxNonces {
		n.out = map[string]time.Time{}
	}
}

func (n *nonces) take(b []byte, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.out[string(b)]
	delete(n.out, string(b))
	return ok && now.Sub(t) <= nonceLife
}

// peers limits what one address may ask: a burst of 120, then two a second. Hosts behind one NAT share it.
type peers struct {
	mu  sync.Mutex
	all map[string]bucket
}

type bucket struct {
	level float64
	at    time.Time
}

const (
	bucketSize = 120
	bucketRate = 2
	maxPeers   = 8192
)

func (p *peers) allow(address string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil || len(p.all) > maxPeers {
		p.all = map[string]bucket{}
	}
	b, ok := p.all[address]
	if !ok {
		b = bucket{bucketSize, now}
	}
	b.level = min(bucketSize, b.level+now.Sub(b.at).Seconds()*bucketRate)
	b.at = now
	ok = b.level >= 1
	if ok {
		b.level--
	}
	p.all[address] = b
	return ok
}

// limit accepts at most n connections at once; others wait in the kernel.
func limit(l net.Listener, n int) net.Listener { return &limited{l, make(chan struct{}, n)} }

type limited struct {
	net.Listener
	slots chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &counted{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	defer c.release()
	return c.Conn.Close()
}
