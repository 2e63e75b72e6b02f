package join

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"
)

// MaxSkew is how far apart the clocks of a host and of the service may be when it joins. Certificates are believed from
// a minute before they were made, so more than this breaks them.
const MaxSkew = time.Minute

// A Client talks to the join services of a cluster, any of them. It sends nothing before the pin is verified.
type Client struct {
	Addresses []string // host:port, tried in this order
	Pin       []byte   // SHA-256 of the services' public key

	Host ed25519.PrivateKey // signs requests
	TLS  crypto.Signer      // signs the certificate request

	Progress func(step string) // what is being done or waited for; nil for nobody
	Now      func() time.Time  // default time.Now
}

// NewClient is a client for the cluster of a token.
func NewClient(t Token, host ed25519.PrivateKey, tls crypto.Signer) *Client {
	return &Client{Addresses: t.Addresses, Pin: t.Pin, Host: host, TLS: tls}
}

// ErrPin is a server that is not the join service: somebody is in between, or the token is of another cluster.
var ErrPin = errors.New("the server's key is not the one that the token tells; nothing was sent to it")

// ErrUnreachable is that no join service answers.
var ErrUnreachable = errors.New("no join service answers")

// Error makes a Refusal an error that says what to do.
func (r Refusal) Error() string {
	if r.Reason == ReasonBad {
		return r.Text
	}
	return r.Text + " (" + r.Reason + ")"
}

// Is makes errors.Is(err, Refusal{Reason: ReasonUsed}) true for that reason whatever the text.
func (r Refusal) Is(target error) bool {
	t, ok := target.(Refusal)
	return ok && t.Reason == r.Reason && t.Text == ""
}

// temporary reports whether the same request may be granted later.
func (r Refusal) temporary() bool {
	return r.Reason == ReasonSealed || r.Reason == ReasonNoQuorum || r.Reason == ReasonBusy
}

// Temporary reports whether the same request may be granted later: no service answers, none has a leader, Vault is
// sealed.
func Temporary(err error) bool {
	var r Refusal
	if errors.As(err, &r) {
		return r.temporary()
	}
	return errors.Is(err, ErrUnreachable) && !errors.Is(err, ErrPin)
}

const (
	maxAnswerBytes = 4 << 20
	maxBinaryBytes = 512 << 20
	tryFor         = 10 * time.Second // one address
)

// Enrol trades a token for a place in the cluster. The same host may repeat it until the token expires.
func (c *Client) Enrol(ctx context.Context, t Token, r Request) (Answer, error) {
	if now := c.now(); now.After(t.Expires.Add(MaxSkew)) {
		// By a clock that is wrong nobody makes another token in vain.
		if ch, err := c.Challenge(ctx); err == nil && skewed(ch.Time, now) != nil {
			return Answer{}, skewed(ch.Time, now)
		}
		return Answer{}, Refusal{ReasonExpired, fmt.Sprintf("the token expired at %s (this host's clock says %s): make another with plenum token create", t.Expires.Format(time.RFC3339), now.Format(time.RFC3339))}
	}
	r.Token, r.Region, r.Roles = t.Secret, t.Region, t.Roles
	var a Answer
	err := c.post(ctx, PathEnrol, r, true, &a)
	return a, err
}

// Renew asks for new certificates, and what else changed. Certificates that have expired do not matter.
func (c *Client) Renew(ctx context.Context, r Request) (Answer, error) {
	r.Token, r.Region, r.Roles = "", "", nil
	var a Answer
	err := c.post(ctx, PathRenew, r, false, &a)
	return a, err
}

// Retire drains this host, and tells what runs on it yet. It comes before Leave, as often as something does.
func (c *Client) Retire(ctx context.Context, r Request) (l Leaving, err error) {
	r.Token, r.Region, r.Roles = "", "", nil
	err = c.post(ctx, PathRetire, r, false, &l)
	return l, err
}

// Reboot drains this host for a reboot, and tells what runs on it yet. Refused with ReasonBusy while another one reboots.
func (c *Client) Reboot(ctx context.Context, r Request) (l Leaving, err error) {
	r.Token, r.Region, r.Roles = "", "", nil
	err = c.post(ctx, PathReboot, r, false, &l)
	return l, err
}

// Back says that this host has rebooted, or stays: it gets tasks again.
func (c *Client) Back(ctx context.Context, r Request) error {
	r.Token, r.Region, r.Roles = "", "", nil
	return c.post(ctx, PathBack, r, false, nil)
}

// Leave makes the cluster forget this host.
func (c *Client) Leave(ctx context.Context, r Request) error {
	r.Token, r.Region, r.Roles = "", "", nil
	return c.post(ctx, PathLeave, r, false, nil)
}

// Challenge asks for the service's time, and at which address it sees this host.
func (c *Client) Challenge(ctx context.Context) (Challenge, error) {
	var ch Challenge
	err := c.each(ctx, func(ctx context.Context, h *http.Client, base string) error {
		return c.ask(ctx, h, http.MethodGet, base+PathChallenge, nil, &ch)
	})
	return ch, err
}

// Binary writes a program of the cluster to w. What was written is good only if the error is nil.
func (c *Client) Binary(ctx context.Context, b Binary, w io.Writer) error {
	c.progress("fetching " + b.Name + " " + b.Version)
	return c.each(ctx, func(ctx context.Context, h *http.Client, base string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+PathBinary+b.Name+"/"+runtime.GOARCH, nil)
		if err != nil {
			return err
		}
		res, err := h.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return refusal(res)
		}
		// Nothing unverified reaches w's reader as a whole: a sum that differs is an error after all bytes.
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(res.Body, maxBinaryBytes)); err != nil {
			return final{err}
		}
		if !bytes.Equal(sum.Sum(nil), b.SHA256) {
			return final{fmt.Errorf("%s %s is not what the cluster told: its SHA-256 differs", b.Name, b.Version)}
		}
		return nil
	})
}

// final is an error after which no other address is tried, for something was written already.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// post takes a challenge from a service and sends it the signed request.
func (c *Client) post(ctx context.Context, path string, r Request, strict bool, answer any) error {
	if c.TLS != nil && len(r.CSR) == 0 && (path == PathEnrol || path == PathRenew) {
		csr, err := CSR(c.TLS)
		if err != nil {
			return err
		}
		r.CSR = csr
	}
	return c.each(ctx, func(ctx context.Context, h *http.Client, base string) error {
		var ch Challenge
		if err := c.ask(ctx, h, http.MethodGet, base+PathChallenge, nil, &ch); err != nil {
			return err
		}
		r.Time = c.now()
		if err := skewed(ch.Time, r.Time); err != nil && strict {
			return err
		}
		r.Nonce = ch.Nonce
		body, err := sign(c.Host, path, r)
		if err != nil {
			return err
		}
		return c.ask(ctx, h, http.MethodPost, base+path, body, answer)
	})
}

// CSR is a certificate request (DER) for a key: it proves that the host has it, and names nothing.
func CSR(key crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
}

// skewed refuses a host whose clock is too far off.
func skewed(service, host time.Time) error {
	if d := host.Sub(service).Round(time.Second); d > MaxSkew || d < -MaxSkew {
		word := "ahead of"
		if d < 0 {
			word = "behind"
		}
		return Refusal{ReasonClock, fmt.Sprintf("this host's clock is %s %s the cluster's: set it (timedatectl set-ntp true) and join again", d.Abs(), word)}
	}
	return nil
}

// signedAs keeps the host key's other signatures from being taken for requests.
const signedAs = "plenum join 1\n"

// sign is the JSON of r with its signature.
func sign(key ed25519.PrivateKey, path string, r Request) ([]byte, error) {
	r.Signature = nil
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	r.Signature = ed25519.Sign(key, message(path, body))
	return json.Marshal(r)
}

func message(path string, body []byte) []byte {
	return append([]byte(signedAs+path+"\n"), body...)
}

// each calls f for one address after the other until one answers. A refusal is an answer, but for one that another
// service may not repeat.
func (c *Client) each(ctx context.Context, f func(ctx context.Context, h *http.Client, base string) error) error {
	if len(c.Pin) != sha256.Size || len(c.Addresses) == 0 {
		return errors.New("no join service is known")
	}
	transport := &http.Transport{DisableKeepAlives: false, MaxIdleConns: 1, TLSHandshakeTimeout: tryFor, ResponseHeaderTimeout: time.Minute,
		DialContext: (&net.Dialer{Timeout: tryFor}).DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the pin is stricter
			VerifyConnection: c.verify}}
	defer transport.CloseIdleConnections()
	h := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var all []error
	for _, address := range c.Addresses {
		c.progress("asking " + address)
		err := f(ctx, h, "https://"+address)
		var r Refusal
		var stop final
		switch {
		case err == nil:
			return nil
		case errors.As(err, &stop):
			return stop.error
		case errors.As(err, &r) && !r.temporary():
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		all = append(all, fmt.Errorf("%s: %w", address, err))
	}
	err := errors.Join(all...)
	var r Refusal
	if errors.As(err, &r) || errors.Is(err, ErrPin) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// verify holds the server's key against the pin, before a byte of a request is sent.
func (c *Client) verify(s tls.ConnectionState) error {
	sum := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if subtle.ConstantTimeCompare(sum[:], c.Pin) != 1 {
		return ErrPin
	}
	return nil
}

func (c *Client) ask(ctx context.Context, h *http.Client, method, url string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return refusal(res)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil || answer == nil {
		return err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("an answer that cannot be read: %w", err)
	}
	return nil
}

func refusal(res *http.Response) error {
	var r Refusal
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil || r.Reason == "" {
		return fmt.Errorf("the service answers %s", res.Status)
	}
	return r
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) progress(step string) {
	if c.Progress != nil {
		c.Progress(cmp.Or(step, "waiting"))
	}
}
