// Package jid holds XMPP addresses (RFC 7622) as comparable values in canonical form: equal addresses are ==,
// so a JID may be a map key. It resolves nothing and knows no server.
package jid

import (
	"errors"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// maxPart is the limit on each part in bytes (RFC 7622, 3.2 to 3.4).
const maxPart = 1023

// ErrInvalid is returned for text that is not an address.
var ErrInvalid = errors.New("invalid jid")

// A JID is an address: domain, local@domain, and either with /resource. Local part and domain are lower case.
// The zero value is no address.
type JID struct {
	s     string // canonical form
	local uint16 // bytes of the local part, 0 when there is none
	bare  uint16 // bytes of the bare address
}

// Parse reads an address and brings it into canonical form.
func Parse(s string) (JID, error) {
	if len(s) > 3*maxPart+2 {
		return JID{}, ErrInvalid
	}
	bare, resource, hasResource := strings.Cut(s, "/")
	local, domain, hasLocal := strings.Cut(bare, "@")
	if !hasLocal {
		local, domain = "", bare
	}
	if hasLocal && local == "" || hasResource && resource == "" {
		return JID{}, ErrInvalid
	}
	return build(local, domain, resource, s)
}

// MustParse is Parse for constants and tests; it panics on an invalid address.
func MustParse(s string) JID {
	j, err := Parse(s)
	if err != nil {
		panic("jid: " + s + ": " + err.Error())
	}
	return j
}

// New makes an address of its parts; local and resource may be empty.
func New(local, domain, resource string) (JID, error) { return build(local, domain, resource, "") }

// build joins canonical parts; when they already read like whole, its memory is used.
func build(local, domain, resource, whole string) (JID, error) {
	var err error
	if local, err = canonicalLocal(local); err != nil {
		return JID{}, err
	}
	if domain, err = canonicalDomain(domain); err != nil {
		return JID{}, err
	}
	if resource, err = canonicalResource(resource); err != nil {
		return JID{}, err
	}
	j := JID{local: uint16(len(local)), bare: uint16(len(domain))}
	if local != "" {
		j.bare += uint16(len(local)) + 1
	}
	if j.spells(whole, local, domain, resource) {
		j.s = whole
		return j, nil
	}
	var b strings.Builder
	b.Grow(int(j.bare) + 1 + len(resource))
	if local != "" {
		b.WriteString(local)
		b.WriteByte('@')
	}
	b.WriteString(domain)
	if resource != "" {
		b.WriteByte('/')
		b.WriteString(resource)
	}
	j.s = b.String()
	return j, nil
}

func (j JID) spells(whole, local, domain, resource string) bool {
	n := int(j.bare)
	if resource != "" {
		n += 1 + len(resource)
	}
	return len(whole) == n && whole[:len(local)] == local && whole[int(j.bare)-len(domain):j.bare] == domain && whole[n-len(resource):] == resource
}

// Local returns the part before the @, or the empty string.
func (j JID) Local() string { return j.s[:j.local] }

// Domain returns the domain.
func (j JID) Domain() string {
	if j.local == 0 {
		return j.s[:j.bare]
	}
	return j.s[j.local+1 : j.bare]
}

// Resource returns the part after the slash, or the empty string. In a room it is the nick.
func (j JID) Resource() string {
	if int(j.bare) == len(j.s) {
		return ""
	}
	return j.s[j.bare+1:]
}

// Bare returns j without resource.
func (j JID) Bare() JID { return JID{j.s[:j.bare], j.local, j.bare} }

// WithResource returns the bare address of j with this resource.
func (j JID) WithResource(r string) (JID, error) {
	r, err := canonicalResource(r)
	switch {
	case err != nil:
		return JID{}, err
	case j.IsZero():
		return JID{}, ErrInvalid
	case r == "":
		return j.Bare(), nil
	}
	return JID{j.s[:j.bare] + "/" + r, j.local, j.bare}, nil
}

// IsZero reports whether j is no address.
func (j JID) IsZero() bool { return j.s == "" }

// IsBare reports whether j is an address without resource.
func (j JID) IsBare() bool { return j.s != "" && int(j.bare) == len(j.s) }

// String returns the canonical form.
func (j JID) String() string { return j.s }

// MarshalText returns the canonical form; that of no address is empty.
func (j JID) MarshalText() ([]byte, error) { return []byte(j.s), nil }

// UnmarshalText is Parse; empty text is no address.
func (j *JID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*j = JID{}
		return nil
	}
	parsed, err := Parse(string(b))
	if err == nil {
		*j = parsed
	}
	return err
}

// canonicalLocal applies UsernameCaseMapped without the characters that RFC 7622, 3.3.1 forbids.
func canonicalLocal(s string) (string, error) {
	if len(s) > maxPart {
		return "", ErrInvalid
	}
	lower := true
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf:
			return mappedLocal(s)
		case c <= ' ' || c == 0x7f || strings.IndexByte(`"&'/:<>@`, c) >= 0:
			return "", ErrInvalid
		case 'A' <= c && c <= 'Z':
			lower = false
		}
	}
	if lower {
		return s, nil
	}
	return strings.ToLower(s), nil
}

func mappedLocal(s string) (string, error) {
	if !utf8.ValidString(s) || strings.ContainsAny(s, `"&'/:<>@`) {
		return "", ErrInvalid
	}
	t, err := precis.UsernameCaseMapped.String(s)
	if err != nil || len(t) > maxPart || strings.ContainsAny(t, `"&'/:<>@`) {
		return "", ErrInvalid
	}
	return t, nil
}

// canonicalDomain lower-cases a host name or address. Names beyond ASCII are kept in NFC and mapped like
// local parts, label by label; they are compared, never looked up.
func canonicalDomain(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > maxPart {
		return "", ErrInvalid
	}
	if s[0] == '[' { // IPv6 literal
		if len(s) < 4 || s[len(s)-1] != ']' || strings.Trim(s[1:len(s)-1], "0123456789abcdefABCDEF:.") != "" {
			return "", ErrInvalid
		}
		return strings.ToLower(s), nil
	}
	lower, ascii, label := true, true, 0
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf:
			ascii = false
			label++
		case c == '.':
			if label == 0 {
				return "", ErrInvalid
			}
			label = 0
		case 'A' <= c && c <= 'Z':
			lower = false
			label++
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return "", ErrInvalid
		}
	}
	switch {
	case label == 0:
		return "", ErrInvalid
	case !ascii:
		labels := strings.Split(norm.NFC.String(s), ".")
		for i, l := range labels {
			m, err := mappedLocal(l)
			if err != nil || strings.Contains(m, ".") {
				return "", ErrInvalid
			}
			labels[i] = m
		}
		s = strings.Join(labels, ".")
		if len(s) > maxPart {
			return "", ErrInvalid
		}
		return s, nil
	case lower:
		return s, nil
	}
	return strings.ToLower(s), nil
}

// canonicalResource applies OpaqueString (RFC 7622, 3.4).
func canonicalResource(s string) (string, error) {
	if len(s) > maxPart {
		return "", ErrInvalid
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= utf8.RuneSelf:
			if !utf8.ValidString(s) {
				return "", ErrInvalid
			}
			t, err := precis.OpaqueString.String(s)
			if err != nil || t == "" || len(t) > maxPart {
				return "", ErrInvalid
			}
			return t, nil
		case c < ' ' || c == 0x7f:
			return "", ErrInvalid
		}
	}
	return s, nil
}
