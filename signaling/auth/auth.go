// Package auth decides who a session is: an anonymous guest, or an account that proved its password.
// It is pure: no socket, no clock, no goroutine. It does not parse XMPP; package session carries the
// bytes of a mechanism in and out of stanzas.
//
// Passwords are not kept. An account is its SCRAM verifiers (RFC 5802, section 3), from which neither
// the password nor anything that logs in elsewhere can be computed. mellium.im/sasl, which our clients
// use, keeps the salted password on the server's side, and that alone is enough to log in; so the
// server's side is here, and mellium's client is the independent implementation in the tests.
package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync/atomic"
)

// Errors of logging in. The peer is told no more than not-authorized or malformed-request.
var (
	ErrDenied    = errors.New("wrong name or password")
	ErrMalformed = errors.New("malformed SASL message")
	ErrMechanism = errors.New("unknown SASL mechanism")
)

// iterations of PBKDF2 for verifiers made from plain passwords: the minimum of RFC 5802 and RFC 7677,
// what every SCRAM client accepts. The passwords here are generated ones.
const iterations = 4096

// maxPasswordBytes bounds what a PLAIN login can make us hash.
const maxPasswordBytes = 1024

// A Verifier is what a server keeps to check one account by one hash function.
type Verifier struct {
	Salt       []byte
	Iterations int
	StoredKey  []byte
	ServerKey  []byte
}

// An account has one verifier for each hash function that is offered.
type account struct{ sha1, sha256 Verifier }

// Accounts is a set of accounts, keyed by bare address: those that it was made with, which stay, and those of the
// last Load.
type Accounts struct {
	domain string
	byName map[string]account
	loaded atomic.Pointer[map[string]account]
	decoy  []byte // makes the salts that unknown names are answered with
}

// NewAccounts makes accounts from lines NAME:PASSWORD. A NAME without a domain is in the domain given.
// A name that comes twice is an error, and so is one without a password.
func NewAccounts(domain string, lines []string) (*Accounts, error) {
	a := &Accounts{domain: domain, byName: make(map[string]account, len(lines)), decoy: random(32)}
	for _, line := range lines {
		name, password, ok := strings.Cut(line, ":")
		switch {
		case !ok || name == "" || password == "":
			return nil, fmt.Errorf("account %q: want NAME:PASSWORD", name)
		case !plain(name):
			return nil, fmt.Errorf("account %q: a name has no blanks and none of /\"&'<>", name)
		case len(password) > maxPasswordBytes:
			return nil, fmt.Errorf("account %q: the password is longer than %d bytes", name, maxPasswordBytes)
		}
		name = a.bare(name)
		if _, twice := a.byName[name]; twice {
			return nil, fmt.Errorf("account %q is there twice", name)
		}
		a.byName[name] = account{
			sha1:   newVerifier(sha1.New, password, random(16)),
			sha256: newVerifier(sha256.New, password, random(16)),
		}
	}
	return a, nil
}

func plain(name string) bool {
	return !strings.ContainsAny(name, " \t\r\n/\"&'<>") && strings.Count(name, "@") <= 1
}

// bare is the key of a name: in our domain unless it says another.
func (a *Accounts) bare(name string) string {
	if !strings.Contains(name, "@") {
		name += "@" + a.domain
	}
	return strings.ToLower(name)
}

func (a *Accounts) find(name string) (account, bool) {
	name = strings.ToLower(name)
	if acc, ok := a.byName[name]; ok {
		return acc, true
	}
	if loaded := a.loaded.Load(); loaded != nil {
		acc, ok := (*loaded)[name]
		return acc, ok
	}
	return account{}, false
}

// Has reports whether there is an account with this bare address.
func (a *Accounts) Has(name string) bool {
	if a == nil {
		return false
	}
	_, ok := a.find(name)
	return ok
}

// Loaded reports whether an account came by Load: in a cluster it is that of the host of its name.
func (a *Accounts) Loaded(name string) bool {
	if a == nil {
		return false
	}
	loaded := a.loaded.Load()
	if loaded == nil {
		return false
	}
	_, ok := (*loaded)[a.bare(name)]
	return ok
}

// Len returns the number of accounts.
func (a *Accounts) Len() int {
	if a == nil {
		return 0
	}
	n := len(a.byName)
	if loaded := a.loaded.Load(); loaded != nil {
		n += len(*loaded)
	}
	return n
}

// check reports whether password is that of the account. It takes the same time for an unknown name.
func (a *Accounts) check(name, password string) bool {
	v, known := a.verifier(name, sha256.New)
	got := newVerifierN(sha256.New, password, v.Salt, v.Iterations)
	return subtle.ConstantTimeCompare(got.StoredKey, v.StoredKey) == 1 && known
}

// verifier returns an account's verifier for one hash function. For an unknown name it makes one that
// nothing satisfies and that stays the same, so that a stranger cannot tell which names exist.
func (a *Accounts) verifier(name string, h func() hash.Hash) (v Verifier, known bool) {
	acc, known := a.find(name)
	switch {
	case !known:
		return Verifier{
			Salt:       mac(sha256.New, a.decoy, []byte(name))[:16],
			Iterations: iterations,
			StoredKey:  mac(h, a.decoy, []byte("stored "+name)),
			ServerKey:  mac(h, a.decoy, []byte("server "+name)),
		}, false
	case h().Size() == sha1.Size:
		return acc.sha1, true
	default:
		return acc.sha256, true
	}
}

// newVerifier computes a verifier (RFC 5802, section 3).
func newVerifier(h func() hash.Hash, password string, salt []byte) Verifier {
	return newVerifierN(h, password, salt, iterations)
}

func newVerifierN(h func() hash.Hash, password string, salt []byte, n int) Verifier {
	salted, err := pbkdf2.Key(h, password, salt, n, h().Size())
	if err != nil {
		panic("auth: " + err.Error()) // only for key lengths that no hash here has
	}
	stored := h()
	stored.Write(mac(h, salted, []byte("Client Key")))
	return Verifier{
		Salt:       salt,
		Iterations: n,
		StoredKey:  stored.Sum(nil),
		ServerKey:  mac(h, salted, []byte("Server Key")),
	}
}

// Anonymous returns a new local part for a guest: a random UUID. The client takes its first eight
// digits as nickname and endpoint id, and only if they are hexadecimal.
func Anonymous() string {
	b := random(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Token returns 96 random bits in hexadecimal: a resumption token, a stream id, a resource.
func Token() string { return hex.EncodeToString(random(12)) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

func mac(h func() hash.Hash, key, msg []byte) []byte {
	m := hmac.New(h, key)
	m.Write(msg)
	return m.Sum(nil)
}
