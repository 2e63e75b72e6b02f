package join

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"slices"
	"strings"
	"time"
)

// A Token is what an operator pastes on a bare host. The service believes its Secret alone; the rest tells the host whom
// to believe, and the operator what it is for.
type Token struct {
	Cluster   string
	Addresses []string // host:port of join services
	Pin       []byte   // SHA-256 of their public key, in PKIX form
	Secret    string   // wrapped by Vault, opens once
	Region    string
	Roles     []string
	Expires   time.Time // whole seconds
}

const (
	tokenPrefix   = "plenum-"
	tokenVersion  = 1
	maxTokenBytes = 2048
	vaultPrefix   = "hvs." // of every secret; not spelled out in tokens
)

// ErrToken is a text that is no token, or not all of one.
var ErrToken = errors.New("not a join token, or not all of it: copy the whole line from plenum- on")

// allRoles have the order of their numbers in tokens, from the highest to the lowest.
var allRoles = []string{RoleServer, RoleEdge, RoleShard, RoleBridge, RoleRecorder}

// Pool is the Nomad pool of a host with these roles: that of the highest.
func Pool(roles []string) string {
	for _, r := range []string{RoleServer, RoleEdge, RoleShard, RoleBridge} {
		if slices.Contains(roles, r) {
			return "plenum-" + r
		}
	}
	return "plenum-edge" // recorders go with edges
}

// String is the token as text: without white space, with a checksum.
func (t Token) String() string {
	b := []byte{tokenVersion}
	text := func(s string) {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	text(t.Cluster)
	text(t.Region)
	var roles byte
	for i, r := range allRoles {
		if slices.Contains(t.Roles, r) {
			roles |= 1 << i
		}
	}
	b = append(b, roles)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Expires.Unix()))
	b = append(b, t.Pin...)
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		text(a)
	}
	// A secret of Vault is base64 itself: its bytes are a quarter less.
	secret := strings.TrimPrefix(t.Secret, vaultPrefix)
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(secret); err == nil && len(secret) < len(t.Secret) {
		b = append(b, 1)
		b = append(b, raw...)
	} else {
		b = append(b, 0)
		b = append(b, t.Secret...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads a token. White space in it, as terminals add, is ignored.
func ParseToken(text string) (Token, error) {
	var t Token
	if len(text) > 2*maxTokenBytes {
		return t, ErrToken
	}
	text = strings.Join(strings.Fields(text), "")
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return t, ErrToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(b) < 5 || len(b) > maxTokenBytes || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return t, ErrToken
	}
	if b[0] != tokenVersion {
		return t, fmt.Errorf("a join token of version %d: this plenum knows version %d, use the cluster's", b[0], tokenVersion)
	}
	r := reader{b: b[1 : len(b)-4]}
	t.Cluster, t.Region = r.text(), r.text()
	roles := r.take(1)
	expires := r.take(4)
	t.Pin = slices.Clone(r.take(sha256.Size))
	for range r.take(1)[0] {
		t.Addresses = append(t.Addresses, r.text())
	}
	packed := r.take(1)[0]
	secret := r.take(len(r.b))
	if r.short {
		return Token{}, ErrToken
	}
	t.Expires = time.Unix(int64(binary.BigEndian.Uint32(expires)), 0)
	for i, name := range allRoles {
		if roles[0]&(1<<i) != 0 {
			t.Roles = append(t.Roles, name)
		}
	}
	if t.Secret = string(secret); packed == 1 {
		t.Secret = vaultPrefix + base64.RawURLEncoding.EncodeToString(secret)
	}
	return t, t.validate()
}

func (t *Token) validate() error {
	switch {
	case !validName(t.Cluster) || !validName(t.Region) || len(t.Roles) == 0 || t.Secret == "" || len(t.Addresses) == 0:
		return ErrToken
	}
	for _, a := range t.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return ErrToken
		}
	}
	return nil
}

// A reader takes bytes from the front; short says that there were too few.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string { return string(r.take(int(r.take(1)[0]))) }

// digest is how a secret is kept.
func digest(secret string) string {
	sum := sha256.Sum256([]byte("plenum token 1\n" + secret))
	return hex.EncodeToString(sum[:])
}

// validName reports whether s is a DNS label of at most 40 bytes.
func validName(s string) bool {
	if s == "" || len(s) > 40 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
