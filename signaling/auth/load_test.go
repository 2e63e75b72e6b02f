package auth

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// written is an account as Load reads it.
func written(name, password string) string {
	line := name
	for scheme, v := range map[string]Verifier{"SCRAM-SHA-1": newVerifier(sha1.New, password, random(16)), "SCRAM-SHA-256": newVerifier(sha256.New, password, random(16))} {
		b64 := base64.StdEncoding.EncodeToString
		line += fmt.Sprintf(" %s$%d:%s$%s:%s", scheme, v.Iterations, b64(v.Salt), b64(v.StoredKey), b64(v.ServerKey))
	}
	return line + "\n"
}

func TestLoad(t *testing.T) {
	a, err := NewAccounts("auth.meet.local", []string{"own:secret"})
	if err != nil {
		t.Fatal(err)
	}
	check := func(name, password string, want bool) {
		t.Helper()
		if got := a.check(name+"@auth.meet.local", password); got != want {
			t.Errorf("%s with %s is let in: %t", name, password, got)
		}
	}
	if err := a.Load([]byte("\n" + written("h1", "one") + "- -\n" + written("H2", "two"))); err != nil {
		t.Fatal(err)
	}
	check("own", "secret", true)
	check("h1", "one", true)
	check("h1", "two", false)
	check("h2", "two", true)
	if a.Len() != 3 {
		t.Errorf("%d accounts", a.Len())
	}
	good := written("h3", "three")
	for _, bad := range []string{"h3\n", "h3 x y\n", good + good, strings.Replace(good, "$4096:", "$1:", 1), strings.Replace(good, "SHA-256", "SHA-1", 1),
		strings.Replace(good, "h3 ", "h3@a@b ", 1), strings.TrimSpace(good) + "AAAA\n"} {
		err := a.Load([]byte(bad))
		if err == nil {
			t.Errorf("taken: %s", bad)
		} else if strings.Contains(err.Error(), "h3") || strings.Contains(err.Error(), "$4") {
			t.Errorf("the error tells what is in the file: %v", err)
		}
	}
	check("h1", "one", true)
	if err := a.Load([]byte(good)); err != nil {
		t.Fatal(err)
	}
	check("h1", "one", false)
	check("h3", "three", true)
	check("own", "secret", true)
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(written("h1", "one")))
	f.Add([]byte("- -\nx y z\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, _ := NewAccounts("auth.meet.local", nil)
		if err := a.Load(text); err == nil {
			for name, acc := range *a.loaded.Load() {
				if !a.Has(name) || acc.sha1.Iterations < iterations || acc.sha256.Iterations < iterations {
					t.Fatalf("%q", name)
				}
			}
		}
	})
}
