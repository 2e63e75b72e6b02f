package auth

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"

	"mellium.im/sasl"
)

func accounts(t testing.TB) *Accounts {
	t.Helper()
	a, err := NewAccounts("auth.localhost", []string{"jvb:secret:with:colons", "recorder@hidden.localhost:pw"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestNewAccounts(t *testing.T) {
	a := accounts(t)
	for name, want := range map[string]bool{
		"jvb@auth.localhost": true, "JVB@auth.localhost": true, "recorder@hidden.localhost": true,
		"jvb": false, "recorder@auth.localhost": false,
	} {
		if got := a.Has(name); got != want {
			t.Errorf("Has(%q) = %v", name, got)
		}
	}
	for _, bad := range []string{"jvb", "jvb:", ":x", "a b:x", "a@b@c:x", "a/b:x"} {
		if _, err := NewAccounts("d", []string{bad}); err == nil {
			t.Errorf("account %q accepted", bad)
		}
	}
	if _, err := NewAccounts("d", []string{"a:1", "A@d:2"}); err == nil {
		t.Error("a name that is there twice was accepted")
	}
}

// login runs mellium's client against an Exchange and returns the server's verdict and the client's.
func login(t *testing.T, a *Accounts, m sasl.Mechanism, user, password string) (server, client error) {
	t.Helper()
	c := sasl.NewClient(m, sasl.Credentials(func() ([]byte, []byte, []byte) {
		return []byte(user), []byte(password), nil
	}))
	x, err := a.NewExchange(m.Name, "auth.localhost")
	if err != nil {
		t.Fatal(err)
	}
	var in []byte
	for range 5 {
		more, out, err := c.Step(in)
		if err != nil {
			return nil, err
		}
		if len(out) == 0 && !more {
			return nil, nil
		}
		reply, done, err := x.Step(out)
		if err != nil {
			return err, nil
		}
		if done && !more {
			if x.Name() != user+"@auth.localhost" {
				t.Errorf("logged in as %q", x.Name())
			}
			return nil, nil
		}
		in = reply
	}
	t.Fatal("login does not end")
	return nil, nil
}

func TestLoginWithIndependentClient(t *testing.T) {
	a := accounts(t)
	for _, m := range []sasl.Mechanism{sasl.Plain, sasl.ScramSha1, sasl.ScramSha256} {
		for _, tt := range []struct {
			user, password string
			want           error
		}{
			{"jvb", "secret:with:colons", nil},
			{"jvb", "secret", ErrDenied},
			{"nobody", "secret", ErrDenied},
			{"recorder", "pw", ErrDenied}, // an account of another domain
		} {
			server, client := login(t, a, m, tt.user, tt.password)
			if !errors.Is(server, tt.want) || client != nil {
				t.Errorf("%s %s/%s: server %v, client %v, want %v", m.Name, tt.user, tt.password, server, client, tt.want)
			}
		}
	}
}

// The example conversation of RFC 5802, section 5, with the server's nonce and salt of the text.
func TestSCRAMVector(t *testing.T) {
	salt, _ := base64.StdEncoding.DecodeString("QSXCR+Q6sek8bf92")
	a := &Accounts{byName: map[string]account{"user@d": {sha1: newVerifier(sha1.New, "pencil", salt)}}}
	x, _ := a.NewExchange("SCRAM-SHA-1", "d")
	x.nonce = "3rfcNHYJY1ZVvWVs7j"
	out, done, err := x.Step([]byte("n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL"))
	if want := "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096"; string(out) != want || done || err != nil {
		t.Fatalf("first: %q %v %v", out, done, err)
	}
	out, done, err = x.Step([]byte("c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="))
	if want := "v=rmF9pqV8S7suAoZWja4dJRkFsKQ="; string(out) != want || !done || err != nil {
		t.Fatalf("final: %q %v %v", out, done, err)
	}
	if _, _, err := x.Step(nil); err == nil {
		t.Error("a third message was accepted")
	}
}

func TestExchangeRefuses(t *testing.T) {
	a := accounts(t)
	for _, tt := range []struct{ mechanism, in string }{
		{"PLAIN", ""}, {"PLAIN", "jvb\x00x"}, {"PLAIN", "\x00jvb\x00"}, {"PLAIN", "\x00\x00x"},
		{"PLAIN", "focus\x00jvb\x00secret:with:colons"},
		{"PLAIN", "\x00jvb@elsewhere\x00secret:with:colons"},
		{"PLAIN", "\x00jvb\x00" + strings.Repeat("x", 2000)},
		{"SCRAM-SHA-1", ""}, {"SCRAM-SHA-1", "n,,"}, {"SCRAM-SHA-1", "n,,n=jvb"}, {"SCRAM-SHA-1", "n,,n=jvb,r="},
		{"SCRAM-SHA-1", "p=tls-unique,,n=jvb,r=abc"}, {"SCRAM-SHA-1", "n,,n=j=vb,r=abc"},
		{"SCRAM-SHA-1", "n,a=focus,n=jvb,r=abc"}, {"SCRAM-SHA-1", "n,,m=ext,n=jvb,r=abc"},
	} {
		x, err := a.NewExchange(tt.mechanism, "auth.localhost")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x.Step([]byte(tt.in)); err == nil {
			t.Errorf("%s %q accepted", tt.mechanism, tt.in)
		}
	}
	for _, m := range []string{"", "EXTERNAL", "SCRAM-SHA-1-PLUS", "ANONYMOUS"} {
		if _, err := a.NewExchange(m, "d"); !errors.Is(err, ErrMechanism) {
			t.Errorf("mechanism %q: %v", m, err)
		}
	}
}

func TestUnknownNamesLookReal(t *testing.T) {
	a := accounts(t)
	salt := func(name string) string {
		x, _ := a.NewExchange("SCRAM-SHA-256", "auth.localhost")
		out, _, err := x.Step([]byte("n,,n=" + name + ",r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(out), ",s=")
		return after
	}
	if once, again := salt("ghost"), salt("ghost"); once != again {
		t.Error("the salt of an unknown name changes between logins, that of a known one does not")
	}
	if len(salt("ghost")) != len(salt("jvb")) || salt("ghost") == salt("spectre") {
		t.Error("unknown names can be told from known ones")
	}
}

func TestAnonymous(t *testing.T) {
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if a, b := Anonymous(), Anonymous(); a == b || !uuid.MatchString(a) {
		t.Errorf("Anonymous: %s, %s", a, b)
	}
}

func FuzzExchange(f *testing.F) {
	f.Add("SCRAM-SHA-1", []byte("n,,n=jvb,r=abc"), []byte("c=biws,r=abc,p=AAAA"))
	f.Add("SCRAM-SHA-256", []byte("y,a=jvb,n=j=3Db,r=abc,x=1"), []byte("c=,r=,p="))
	f.Add("PLAIN", []byte("\x00jvb\x00x"), []byte(""))
	a := accounts(f)
	f.Fuzz(func(t *testing.T, mechanism string, first, second []byte) {
		x, err := a.NewExchange(mechanism, "auth.localhost")
		if err != nil {
			return
		}
		if _, done, err := x.Step(first); err == nil && !done {
			if _, done, _ := x.Step(second); done {
				t.Fatal("logged in without the password")
			}
		} else if done && err == nil && string(first) != "\x00jvb\x00secret:with:colons" && !strings.HasSuffix(string(first), "\x00secret:with:colons") {
			t.Fatal("logged in without the password")
		}
	})
}
