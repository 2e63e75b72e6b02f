package transport

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // hashes that peers may name
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// A Fingerprint is the hash of a certificate (RFC 8122 §5): "sha-256" and "AB:CD:…".
type Fingerprint struct{ Hash, Value string }

// ErrFingerprint is why a handshake fails when the peer's certificate is not the one that was signalled.
var ErrFingerprint = errors.New("dtls: peer's certificate does not match the signalled fingerprint")

// renewAfter is the age at which a certificate is replaced for new peers; it stays valid for those who have it.
const renewAfter = 24 * time.Hour

// An Identity is the certificate that all transports of a bridge show for a day.
type Identity struct {
	certificate tls.Certificate
	made        time.Time

	// Fingerprint is what the peer is to be told.
	Fingerprint Fingerprint
}

// NewIdentity makes a self-signed P-256 certificate, valid from a day before now to seven days after.
func NewIdentity(now time.Time) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("dtls identity: %w", err)
	}
	name := pkix.Name{CommonName: "plenum"}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixMilli()), Issuer: name, Subject: name,
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(7 * 24 * time.Hour),
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("dtls identity: %w", err)
	}
	return &Identity{
		certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		made:        now,
		Fingerprint: Fingerprint{"sha-256", fingerprint(crypto.SHA256, der)},
	}, nil
}

// Stale reports whether new transports should get a new identity.
func (i *Identity) Stale(now time.Time) bool { return now.Sub(i.made) >= renewAfter }

var hashes = map[string]crypto.Hash{
	"sha-1": crypto.SHA1, "sha-256": crypto.SHA256, "sha-384": crypto.SHA384, "sha-512": crypto.SHA512,
}

func fingerprint(h crypto.Hash, der []byte) string {
	f := h.New()
	f.Write(der)
	sum := strings.ToUpper(hex.EncodeToString(f.Sum(nil)))
	var b strings.Builder
	for i := 0; i < len(sum); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(sum[i : i+2])
	}
	return b.String()
}

// verify checks a peer's certificate against what was signalled; one match is enough.
func verify(want []Fingerprint, der []byte) error {
	for _, w := range want {
		h, ok := hashes[strings.ToLower(w.Hash)]
		if ok && subtle.ConstantTimeCompare([]byte(fingerprint(h, der)), []byte(strings.ToUpper(w.Value))) == 1 {
			return nil
		}
	}
	return ErrFingerprint
}
