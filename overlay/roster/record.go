// Package roster says who the hosts of a cluster are: records that the join service signed with one Ed25519
// key. Where a record comes from (a file, Consul, another host) does not matter; without the signature, or
// older than what is known already, it is refused and counted. It does not sign anything but in tests.
package roster

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// A Record is one host as the join service saw it last.
type Record struct {
	Host      string     `json:"host"`
	Epoch     uint64     `json:"epoch"` // grows with every change; a host's highest one counts
	HostKey   []byte     `json:"host_key"`
	Nebula    []byte     `json:"nebula,omitempty"`
	WireGuard []byte     `json:"wireguard"`
	Control   netip.Addr `json:"control"`
	Media     netip.Addr `json:"media"`
	Roles     []string   `json:"roles,omitempty"`
	Region    string     `json:"region,omitempty"`

	// Next is the WireGuard key that the host will change to. It must be known everywhere before it does.
	Next []byte `json:"wireguard_next,omitempty"`

	// Revoked hosts are nobody's peer any more; Fingerprints are their certificates that have not expired.
	Revoked      bool     `json:"revoked,omitempty"`
	Fingerprints []string `json:"fingerprints,omitempty"`
}

// Is reports whether the host has the role.
func (r *Record) Is(role string) bool { return slices.Contains(r.Roles, role) }

// An Envelope is a record as it travels: {"json": {…}, "sig": "base64"}. The signature covers signedAs and
// the canonical form of json, so stores may change white space and the order of fields.
type Envelope struct {
	JSON json.RawMessage `json:"json"`
	Sig  []byte          `json:"sig"`
}

const (
	signedAs         = "plenum roster 1\n" // keeps the key's other signatures from being taken for records
	maxEnvelopeBytes = 16 << 10
	maxDepth         = 4
)

var (
	// ErrForged is a record whose signature is not the join service's.
	ErrForged = errors.New("the signature is not the join service's")
	// ErrMalformed is something that is no record at all.
	ErrMalformed = errors.New("not a record")
)

// Sign makes the envelope of r.
func Sign(key ed25519.PrivateKey, r Record) ([]byte, error) {
	return SignWith(func(b []byte) ([]byte, error) { return ed25519.Sign(key, b), nil }, r)
}

// SignWith makes the envelope of r where the key is somewhere else: sign returns the Ed25519 signature of its argument.
func SignWith(sign func([]byte) ([]byte, error), r Record) ([]byte, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	body, err := canonical(raw)
	if err != nil {
		return nil, err
	}
	sig, err := sign(append([]byte(signedAs), body...))
	if err != nil {
		return nil, err
	}
	return json.Marshal(Envelope{JSON: body, Sig: sig})
}

// Verify returns the record in an envelope. Unknown fields are signed as well, and ignored.
func Verify(key ed25519.PublicKey, envelope []byte) (Record, error) {
	var r Record
	if len(envelope) > maxEnvelopeBytes {
		return r, fmt.Errorf("%w: larger than %d bytes", ErrMalformed, maxEnvelopeBytes)
	}
	var e Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return r, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	body, err := canonical(e.JSON)
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(signedAs), body...), e.Sig) {
		return r, ErrForged
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := r.validate(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return r, nil
}

func (r *Record) validate() error {
	switch {
	case r.Host == "" || len(r.Host) > 63:
		return fmt.Errorf("host %q", r.Host)
	case r.Epoch == 0:
		return errors.New("no epoch")
	case len(r.HostKey) != ed25519.PublicKeySize:
		return fmt.Errorf("host key of %d bytes", len(r.HostKey))
	case len(r.WireGuard) != 32 || len(r.Next) != 0 && len(r.Next) != 32 || len(r.Nebula) != 0 && len(r.Nebula) != 32:
		return errors.New("a key has not 32 bytes")
	case !r.Control.IsValid() || !r.Media.IsValid() || r.Control.Zone() != "" || r.Media.Zone() != "":
		return errors.New("an address is missing")
	case len(r.Roles) > 32 || len(r.Fingerprints) > 64:
		return errors.New("too many roles or fingerprints")
	}
	return nil
}

// canonical is the one form of a JSON object that is signed: keys sorted, no white space, numbers as they were
// written, no HTML escapes.
func canonical(raw []byte) ([]byte, error) {
	if err := shallow(raw); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// shallow refuses objects that are nested deeper than any record.
func shallow(raw []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return errors.New("nested too deep")
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}
