package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
)

const (
	handshakeTimeout = 30 * time.Second
	// flightInterval is when the first lost flight is repeated; it doubles from there.
	flightInterval = 300 * time.Millisecond
	exporterLabel  = "EXTRACTOR-dtls_srtp" // RFC 5764 §4.2
)

// ErrProfile is why a handshake fails when the peer offers no SRTP profile that we have.
var ErrProfile = errors.New("dtls: no common srtp profile")

// quiet keeps the libraries from writing to standard error; what matters comes as an error.
var quiet = &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}

// suites are ours in order. The bridge's certificate is ECDSA; those with RSA are for peers that are DTLS servers.
var suites = []dtls.CipherSuiteID{
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
}

// A secret is what a handshake gives SRTP.
type secret struct {
	profile               Profile
	localKey, localSalt   []byte
	remoteKey, remoteSalt []byte
}

// handshake runs DTLS 1.2 over p until it is done or ctx ends. The peer's certificate must match one of want.
func handshake(ctx context.Context, p *pipe, id *Identity, client bool, want []Fingerprint) (*dtls.Conn, secret, error) {
	check := func(raw [][]byte, _ [][]*x509.Certificate) error {
		if len(raw) == 0 {
			return ErrFingerprint
		}
		return verify(want, raw[0])
	}
	common := []dtls.Option{
		dtls.WithCertificates(id.certificate),
		dtls.WithCipherSuites(suites...),
		dtls.WithSRTPProtectionProfiles(dtls.SRTPProtectionProfile(AES128GCM), dtls.SRTPProtectionProfile(AES128CMSHA1_80)),
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithFlightInterval(flightInterval),
		dtls.WithInsecureSkipVerify(true), // self-signed: the fingerprint is the proof
		dtls.WithVerifyPeerCertificate(check),
		dtls.WithLoggerFactory(quiet),
	}
	var conn *dtls.Conn
	var err error
	if client {
		var o []dtls.ClientOption
		for _, c := range common {
			o = append(o, c)
		}
		conn, err = dtls.ClientWithOptions(p, nowhere, o...)
	} else {
		o := []dtls.ServerOption{
			dtls.WithClientAuth(dtls.RequireAnyClientCert),
			// ICE has verified the address: no need for a cookie and its round trip.
			dtls.WithInsecureSkipVerifyHello(true),
		}
		for _, c := range common {
			o = append(o, c)
		}
		conn, err = dtls.ServerWithOptions(p, nowhere, o...)
	}
	if err != nil {
		return nil, secret{}, fmt.Errorf("dtls: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, secret{}, fmt.Errorf("dtls handshake: %w", err)
	}
	s, err := export(conn, client)
	if err != nil {
		conn.Close()
		return nil, secret{}, err
	}
	return conn, s, nil
}

// export makes the SRTP master keys and salts (RFC 5764 §4.2).
func export(conn *dtls.Conn, client bool) (secret, error) {
	chosen, ok := conn.SelectedSRTPProtectionProfile()
	if !ok {
		return secret{}, ErrProfile
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return secret{}, errors.New("dtls: no state after the handshake")
	}
	s := secret{profile: Profile(chosen)}
	salt := s.profile.saltBytes()
	m, err := state.ExportKeyingMaterial(exporterLabel, nil, 2*(keyBytes+salt))
	if err != nil {
		return secret{}, fmt.Errorf("dtls: %w", err)
	}
	next := func(n int) []byte { b := m[:n:n]; m = m[n:]; return b }
	s.localKey, s.remoteKey = next(keyBytes), next(keyBytes) // the client's comes first
	s.localSalt, s.remoteSalt = next(salt), next(salt)
	if !client {
		s.localKey, s.remoteKey = s.remoteKey, s.localKey
		s.localSalt, s.remoteSalt = s.remoteSalt, s.localSalt
	}
	return s, nil
}
