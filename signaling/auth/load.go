package auth

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
)

// Limits of Load.
const (
	maxAccounts   = 100_000
	maxIterations = 100_000 // what a login may make a client compute
	maxSaltBytes  = 64
)

// Load replaces the accounts of the last Load by those of a text, and leaves those that a was made with. A line is a
// NAME and its verifiers by SHA-1 and by SHA-256, in any order, as RFC 5803 writes them:
//
//	h2 SCRAM-SHA-1$4096:SALT$STORED:SERVER SCRAM-SHA-256$4096:SALT$STORED:SERVER
//
// Empty lines and a NAME of - are none. Errors name the line, never what is in it; nothing has changed then. Logins that
// have begun go on with what they began with.
func (a *Accounts) Load(text []byte) error {
	all := map[string]account{}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] == "-" {
			continue
		}
		if len(f) != 3 || !plain(f[0]) {
			return fmt.Errorf("line %d of the accounts: want NAME and two verifiers", n)
		}
		name := a.bare(f[0])
		if _, twice := all[name]; twice || len(all) == maxAccounts {
			return fmt.Errorf("line %d of the accounts: a name that was there, or the %dth", n, maxAccounts+1)
		}
		var acc account
		for _, text := range f[1:] {
			if !acc.set(text) {
				return fmt.Errorf("line %d of the accounts: want MECHANISM$ITERATIONS:SALT$STORED:SERVER", n)
			}
		}
		if acc.sha1.StoredKey == nil || acc.sha256.StoredKey == nil {
			return fmt.Errorf("line %d of the accounts: want one verifier by SHA-1 and one by SHA-256", n)
		}
		all[name] = acc
	}
	a.loaded.Store(&all)
	return nil
}

// set reads one verifier (RFC 5803, section 2).
func (a *account) set(text string) bool {
	scheme, rest, ok := strings.Cut(text, "$")
	to, size := &a.sha1, sha1.Size
	switch {
	case !ok:
		return false
	case scheme == "SCRAM-SHA-256":
		to, size = &a.sha256, sha256.Size
	case scheme != "SCRAM-SHA-1":
		return false
	}
	info, keys, _ := strings.Cut(rest, "$")
	count, salt, _ := strings.Cut(info, ":")
	stored, server, _ := strings.Cut(keys, ":")
	v := Verifier{}
	var errs [4]error
	v.Iterations, errs[0] = strconv.Atoi(count)
	v.Salt, errs[1] = base64.StdEncoding.DecodeString(salt)
	v.StoredKey, errs[2] = base64.StdEncoding.DecodeString(stored)
	v.ServerKey, errs[3] = base64.StdEncoding.DecodeString(server)
	if errs != [4]error{} || v.Iterations < iterations || v.Iterations > maxIterations || len(v.Salt) == 0 || len(v.Salt) > maxSaltBytes ||
		len(v.StoredKey) != size || len(v.ServerKey) != size || to.StoredKey != nil {
		return false
	}
	*to = v
	return true
}
