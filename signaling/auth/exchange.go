package auth

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"hash"
	"strconv"
	"strings"
)

// Mechanisms are the mechanisms for accounts, in the order in which they are offered.
var Mechanisms = []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"}

// An Exchange is one login of an account: the server's side of PLAIN (RFC 4616) or of SCRAM
// (RFC 5802, RFC 7677) without channel binding.
type Exchange struct {
	accounts *Accounts
	domain   string
	hash     func() hash.Hash // nil: PLAIN
	step     int
	name     string // bare address, set by the client's first message
	verifier Verifier
	known    bool
	nonce    string // the server's half, then both halves
	gs2      string // header of the client's first message, which its final one repeats
	auth     string // AuthMessage up to the client's final message
}

// NewExchange begins a login to domain by the mechanism named.
func (a *Accounts) NewExchange(mechanism, domain string) (*Exchange, error) {
	x := &Exchange{accounts: a, domain: domain, nonce: Token()}
	switch mechanism {
	case "SCRAM-SHA-256":
		x.hash = sha256.New
	case "SCRAM-SHA-1":
		x.hash = sha1.New
	case "PLAIN":
	default:
		return nil, ErrMechanism
	}
	return x, nil
}

// Name returns the bare address of the account; it is meaningful once Step has reported done.
func (x *Exchange) Name() string { return x.name }

// Step takes the client's next message and returns the server's. After done the client is logged in
// and out belongs into the success element; after an error the exchange is over.
func (x *Exchange) Step(in []byte) (out []byte, done bool, err error) {
	x.step++
	switch {
	case x.hash == nil && x.step == 1:
		return nil, true, x.plain(in)
	case x.hash != nil && x.step == 1:
		out, err = x.first(string(in))
		return out, false, err
	case x.hash != nil && x.step == 2:
		out, err = x.final(string(in))
		return out, err == nil, err
	}
	return nil, false, ErrMalformed
}

// plain checks [authzid] NUL authcid NUL passwd. An authzid other than the account itself is refused.
func (x *Exchange) plain(in []byte) error {
	part := bytes.Split(in, []byte{0})
	if len(part) != 3 || len(part[2]) == 0 || len(part[2]) > maxPasswordBytes {
		return ErrMalformed
	}
	if err := x.setName(string(part[1]), string(part[0])); err != nil {
		return err
	}
	if !x.accounts.check(x.name, string(part[2])) {
		return ErrDenied
	}
	return nil
}

// first takes the client-first-message: gs2-cbind-flag "," [authzid] "," "n=" name ",r=" nonce.
func (x *Exchange) first(in string) ([]byte, error) {
	flag, rest, _ := strings.Cut(in, ",")
	authzid, bare, ok := strings.Cut(rest, ",")
	if !ok || flag != "n" && flag != "y" { // p= asks for channel binding, which is not offered
		return nil, ErrMalformed
	}
	x.gs2 = in[:len(in)-len(bare)]
	attr := strings.Split(bare, ",")
	if len(attr) < 2 || !strings.HasPrefix(attr[0], "n=") || !strings.HasPrefix(attr[1], "r=") || len(attr[1]) == 2 {
		return nil, ErrMalformed
	}
	name, ok := unescape(attr[0][2:])
	if !ok {
		return nil, ErrMalformed
	}
	if authzid != "" {
		if authzid, ok = strings.CutPrefix(authzid, "a="); !ok {
			return nil, ErrMalformed
		}
		if authzid, ok = unescape(authzid); !ok {
			return nil, ErrMalformed
		}
	}
	if err := x.setName(name, authzid); err != nil {
		return nil, err
	}
	x.verifier, x.known = x.accounts.verifier(x.name, x.hash)
	x.nonce = attr[1][2:] + x.nonce
	out := "r=" + x.nonce + ",s=" + base64.StdEncoding.EncodeToString(x.verifier.Salt) +
		",i=" + strconv.Itoa(x.verifier.Iterations)
	x.auth = bare + "," + out + ","
	return []byte(out), nil
}

// final takes the client-final-message: "c=" channel ",r=" nonce [extensions] ",p=" proof.
func (x *Exchange) final(in string) ([]byte, error) {
	i := strings.LastIndex(in, ",p=")
	if i < 0 {
		return nil, ErrMalformed
	}
	proof, err := base64.StdEncoding.DecodeString(in[i+3:])
	attr := strings.Split(in[:i], ",")
	if err != nil || len(proof) != len(x.verifier.StoredKey) || len(attr) < 2 {
		return nil, ErrMalformed
	}
	if attr[0] != "c="+base64.StdEncoding.EncodeToString([]byte(x.gs2)) || attr[1] != "r="+x.nonce {
		return nil, ErrDenied
	}
	msg := []byte(x.auth + in[:i])
	key := make([]byte, len(proof))
	subtle.XORBytes(key, proof, mac(x.hash, x.verifier.StoredKey, msg))
	stored := x.hash()
	stored.Write(key)
	if subtle.ConstantTimeCompare(stored.Sum(nil), x.verifier.StoredKey) != 1 || !x.known {
		return nil, ErrDenied
	}
	sig := mac(x.hash, x.verifier.ServerKey, msg)
	return []byte("v=" + base64.StdEncoding.EncodeToString(sig)), nil
}

// setName fixes the account that the client names. Clients send the local part or the bare address.
func (x *Exchange) setName(name, authzid string) error {
	bare, ok := x.bare(name)
	if !ok {
		return ErrMalformed
	}
	if authzid != "" {
		if other, ok := x.bare(authzid); !ok || other != bare {
			return ErrDenied
		}
	}
	x.name = bare
	return nil
}

func (x *Exchange) bare(name string) (string, bool) {
	name = strings.ToLower(name)
	local, domain, full := strings.Cut(name, "@")
	if local == "" || len(name) > 1023 || full && domain != x.domain {
		return "", false
	}
	return local + "@" + x.domain, true
}

// unescape undoes the encoding of "," and "=" in a SCRAM name (RFC 5802, section 5.1).
func unescape(s string) (string, bool) {
	if !strings.Contains(s, "=") {
		return s, s != ""
	}
	if strings.Count(s, "=") != strings.Count(s, "=2C")+strings.Count(s, "=3D") {
		return "", false
	}
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(s), true
}
