package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// wrapElsewhere wraps what another path of Vault answers.
func wrapElsewhere(t *testing.T, at, root string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, at+"/v1/sys/tools/random/32", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", root)
	req.Header.Set("X-Vault-Wrap-TTL", "60s")
	res, err := quick.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var v struct {
		WrapInfo struct{ Token string } `json:"wrap_info"`
	}
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil || v.WrapInfo.Token == "" {
		t.Fatalf("wrap: %v", err)
	}
	return v.WrapInfo.Token
}

var quick = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func vaultCode(t *testing.T, at, secret, path string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, at+"/v1/"+path, strings.NewReader(`{"input":"aGk="}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", secret)
	res, err := quick.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// TestPin: whoever is in between gets a handshake, and not a byte of a request.
func TestPin(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	crt, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{crt}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	type heard struct {
		n   int
		err error
	}
	got := make(chan heard, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- heard{0, err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1024)
		n, err := c.Read(b)
		got <- heard{n, err}
	}()
	k := newKeys(t)
	pin := sha256.Sum256([]byte("the real one"))
	token := Token{Cluster: "test", Addresses: []string{l.Addr().String()}, Pin: pin[:], Secret: "hvs.secret", Region: "ber", Roles: []string{RoleBridge}, Expires: time.Now().Add(time.Hour)}
	_, err = NewClient(token, k.host, k.tls).Enrol(t.Context(), token, request("b1", k))
	if !errors.Is(err, ErrPin) {
		t.Errorf("enrol: %v", err)
	}
	if h := <-got; h.n != 0 || h.err == nil {
		t.Errorf("%d bytes were sent to a server that is not the pinned one, %v", h.n, h.err)
	}
	l.Close()
}

// TestAddresses: the next service is asked where one is down, and nobody is where all are.
func TestAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := l.Addr().String()
	l.Close()
	k := newKeys(t)
	var steps []string
	c := &Client{Addresses: []string{down, down}, Pin: make([]byte, 32), Host: k.host, TLS: k.tls, Progress: func(s string) { steps = append(steps, s) }}
	if _, err := c.Renew(t.Context(), request("b1", k)); !errors.Is(err, ErrUnreachable) || len(steps) != 2 {
		t.Errorf("%v after %v", err, steps)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Renew(ctx, request("b1", k)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestReplay: a request that was granted is not granted again, nor for another path.
func TestReplay(t *testing.T) {
	s := &Service{cfg: Config{Now: time.Now}}
	k := newKeys(t)
	q := request("b1", k)
	q.Nonce = s.nonces.make(time.Now())
	body, err := sign(k.host, PathRenew, q)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parseRequest(PathLeave, body)
	wantRefusal(t, "another path", ReasonSignature, err)
	got, err := parseRequest(PathRenew, body)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.fresh(got); err != nil {
		t.Error(err)
	}
	wantRefusal(t, "again", ReasonSignature, s.fresh(got))
	late := s.nonces.make(time.Now().Add(-2 * time.Minute))
	wantRefusal(t, "late", ReasonSignature, s.fresh(Request{Nonce: late}))
	altered := bytes.Replace(body, []byte(`"b1"`), []byte(`"b2"`), 1)
	_, err = parseRequest(PathRenew, altered)
	wantRefusal(t, "altered", ReasonSignature, err)
}

// TestFlood: one address cannot keep the others out, and nonces do not fill the memory.
func TestFlood(t *testing.T) {
	var p peers
	now := time.Now()
	granted := 0
	for range 1000 {
		if p.allow("192.0.2.1", now) {
			granted++
		}
	}
	if granted != bucketSize || !p.allow("192.0.2.2", now) || !p.allow("192.0.2.1", now.Add(time.Second)) {
		t.Errorf("%d of 1000 granted at once", granted)
	}
	var n nonces
	for range 3 * maxNonces {
		n.make(now)
	}
	if len(n.out) > maxNonces {
		t.Errorf("%d nonces", len(n.out))
	}
}

func TestToken(t *testing.T) {
	pin := sha256.Sum256(nil)
	want := Token{Cluster: "meet", Addresses: []string{"192.0.2.1:8443", "[2001:db8::1]:8443"}, Pin: pin[:],
		Secret: "hvs.CAESIJz3k-5fYkqk0-bSa3S9YqkUeSN0zqVqsB1Xr_cBqV5cGh4KHGh2cy5XWE5iVjVhS1FIUVdZeEZhT1VhQ1RvVlc", Region: "ber", Roles: []string{RoleShard, RoleBridge}, Expires: time.Unix(1800000000, 0)}
	text := want.String()
	t.Logf("%d bytes: %s", len(text), text)
	got, err := ParseToken(" " + text[:40] + "\n" + text[40:] + "\n")
	if err != nil || got.String() != text || got.Secret != want.Secret || got.Region != "ber" || strings.Join(got.Addresses, " ") != strings.Join(want.Addresses, " ") || !got.Expires.Equal(want.Expires) {
		t.Errorf("%+v, %v", got, err)
	}
	if strings.Join(got.Roles, ",") != "shard,bridge" {
		t.Errorf("roles %v", got.Roles)
	}
	for i := range text {
		for _, bad := range []string{text[:i], text[:i] + "A" + text[i+1:]} {
			if bad == text {
				continue
			}
			if _, err := ParseToken(bad); err == nil {
				t.Fatalf("%d: %s is a token", i, bad)
			}
		}
	}
	want.Secret = "odd"
	if got, err := ParseToken(want.String()); err != nil || got.Secret != "odd" {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(Token{Cluster: "a", Addresses: []string{"b:1"}, Pin: make([]byte, 32), Secret: "hvs.AAAA", Region: "c", Roles: []string{RoleBridge}, Expires: time.Unix(1, 0)}.String())
	f.Add("plenum-AQ")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(got.String()); err != nil || again.String() != got.String() {
			t.Errorf("%+v became %+v: %v", got, again, err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	k := newKeys(f)
	body, err := sign(k.host, PathEnrol, request("b1", k))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"host":"b1","keys":{"host":null},"facts":{"underlay":["x"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseRequest(PathEnrol, b)
		if err == nil && (!validName(q.Host) || len(q.Keys.Host) != 32) {
			t.Errorf("accepted %+v", q)
		}
	})
}

// TestBodies: what is no request is answered, whatever it is.
func TestBodies(t *testing.T) {
	for _, body := range []string{"", "{}", "[]", strings.Repeat("x", maxBody+1), `{"host":"` + strings.Repeat("a", 60000) + `"}`} {
		_, err := parseRequest(PathEnrol, []byte(body))
		wantRefusal(t, body[:min(len(body), 10)], ReasonBad, err)
	}
}
