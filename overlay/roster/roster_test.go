package roster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func host(name string, n byte, epoch uint64) Record {
	return Record{Host: name, Epoch: epoch, HostKey: bytes.Repeat([]byte{n}, 32), Nebula: bytes.Repeat([]byte{n}, 32),
		WireGuard: bytes.Repeat([]byte{n, 1}, 16), Control: netip.AddrFrom4([4]byte{10, 99, 0, n}), Media: netip.AddrFrom4([4]byte{10, 98, 0, n}),
		Roles: []string{"bridge"}, Region: "ber <&>"}
}

func sign(t testing.TB, k ed25519.PrivateKey, r Record) []byte {
	t.Helper()
	b, err := Sign(k, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBook(t *testing.T) {
	good, evil := key(1), key(2)
	b := NewBook(public(good))
	moved := host("a", 1, 7)
	moved.Control = netip.MustParseAddr("10.99.0.200")
	twin := host("b", 1, 1) // a's addresses and key
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, sign(t, good, host("a", 1, 5)), " ", "\t"); err != nil {
		t.Fatal(err)
	}
	altered := bytes.Replace(sign(t, good, host("a", 1, 9)), []byte("10.99.0.1"), []byte("10.99.0.9"), 1)
	cross, err := json.Marshal(Envelope{JSON: []byte(`{}`), Sig: ed25519.Sign(good, []byte(`{}`))}) // signed, but not as a record
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		under    string
		envelope []byte
		changed  bool
		err      error
	}{
		{"a", sign(t, good, host("a", 1, 5)), true, nil},
		{"a", sign(t, good, host("a", 1, 5)), false, nil}, // read again
		{"a", spaced.Bytes(), false, nil},                 // by a store that writes JSON its own way
		{"a", sign(t, evil, host("a", 1, 6)), false, ErrForged},
		{"a", altered, false, ErrForged},
		{"a", cross, false, ErrForged},
		{"a", sign(t, good, host("a", 1, 4)), false, ErrOlder}, // replayed
		{"a", sign(t, good, host("a", 3, 5)), false, ErrConflict},
		{"b", sign(t, good, host("a", 1, 6)), false, ErrMisplaced},
		{"b", sign(t, good, twin), false, ErrConflict},
		{"a", []byte(`{"json":[],"sig":""}`), false, ErrMalformed},
		{"a", bytes.Repeat([]byte("["), 1<<20), false, ErrMalformed},
		{"a", []byte(`{"json":` + string(bytes.Repeat([]byte(`{"a":`), 100))), false, ErrMalformed},
		{"a", sign(t, good, moved), true, nil},
		{"", sign(t, good, host("c", 3, 1)), true, nil}, // from a peer, filed nowhere
	} {
		changed, err := b.Accept(step.under, step.envelope)
		if changed != step.changed || !errors.Is(err, step.err) {
			t.Errorf("step %d: changed %t, %v; want %t, %v", i, changed, err, step.changed, step.err)
		}
	}
	want := map[string]uint64{"forged": 3, "malformed": 3, "older": 1, "conflict": 2, "misplaced": 1, "full": 0}
	for reason, n := range b.Refused() {
		if n != want[reason] {
			t.Errorf("%d refused as %s, want %d", n, reason, want[reason])
		}
	}
	if all := b.Records(); len(all) != 2 || all[0].Control != moved.Control || all[1].Host != "c" {
		t.Errorf("records %+v", all)
	}
	if r, ok := b.At(moved.Media); !ok || r.Host != "a" {
		t.Errorf("at %s: %+v", moved.Media, r)
	}
}

// TestRestart holds that a host which restarts does not believe what it refused before.
func TestRestart(t *testing.T) {
	k := key(1)
	file := filepath.Join(t.TempDir(), "roster.json")
	b := NewBook(public(k))
	revoked := host("a", 1, 9)
	revoked.Revoked = true
	for _, r := range []Record{host("b", 2, 1), revoked} {
		if _, err := b.Accept(r.Host, sign(t, k, r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Save(file); err != nil {
		t.Fatal(err)
	}
	again := NewBook(public(k))
	if err := again.Restore(file); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Accept("a", sign(t, k, host("a", 1, 8))); !errors.Is(err, ErrOlder) {
		t.Errorf("the record from before the revocation: %v", err)
	}
	stranger := NewBook(public(key(3)))
	if err := stranger.Restore(file); !errors.Is(err, ErrForged) || len(stranger.Records()) != 0 {
		t.Errorf("another cluster's file: %v, %d records", err, len(stranger.Records()))
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "roster.json")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		type delivery struct {
			l   Listing
			err error
		}
		got := make(chan delivery, 10)
		done := make(chan struct{})
		go func() {
			defer close(done)
			File{Path: path}.Watch(ctx, func(l Listing, err error) { got <- delivery{l, err} })
		}()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := len(got); n != 1 {
			t.Fatalf("%d deliveries of a file that is missing", n)
		}
		if d := <-got; !errors.Is(d.err, os.ErrNotExist) {
			t.Errorf("missing: %v", d.err)
		}
		for _, text := range []string{`{"hosts":{"a":{"json":{},"sig":""}},"endpoints":{"a":{"media":["192.0.2.1:51820"]}}}`, `{"hosts":[]}`} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if n := len(got); n != 1 {
				t.Fatalf("%d deliveries of one change", n)
			}
			switch d := <-got; {
			case text[9] == '{' && (d.err != nil || len(d.l.Hosts) != 1 || d.l.Endpoints["a"].Media[0].Port() != 51820):
				t.Errorf("%s: %+v", text, d)
			case text[9] == '[' && !errors.Is(d.err, ErrMalformed):
				t.Errorf("%s: %v", text, d.err)
			}
		}
		cancel()
		<-done
	})
}

func FuzzVerify(f *testing.F) {
	k := key(1)
	f.Add(sign(f, k, host("a", 1, 5)))
	f.Add([]byte(`{"json":{"host":"a","HOST":"b"},"sig":"AAAA"}`))
	f.Add([]byte(`{"json":{"a":"\ud800"},"sig":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Verify(public(k), b)
		if err == nil {
			again, err := Verify(public(k), sign(t, k, r))
			if err != nil || !same(r, again) {
				t.Errorf("%+v became %+v: %v", r, again, err)
			}
		}
		var e Envelope
		if json.Unmarshal(b, &e) != nil {
			return
		}
		once, err := canonical(e.JSON)
		if err != nil {
			return
		}
		if twice, err := canonical(once); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("canonical form %q of %q is not its own: %q, %v", once, e.JSON, twice, err)
		}
	})
}

func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"hosts":{"a":{"json":{},"sig":""}},"endpoints":{"a":{"media":["192.0.2.1:51820"]}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseListing(b)
		if err != nil {
			return
		}
		book := NewBook(public(key(1)))
		for host, envelope := range l.Hosts {
			book.Accept(host, envelope)
		}
		if len(book.Records()) != 0 {
			t.Error("a record without a signature was accepted")
		}
	})
}
