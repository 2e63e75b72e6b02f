package thin

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
)

var errProfile = errors.New("dtls: the other side does not take AEAD_AES_128_GCM")

// An identity is a certificate; one serves all participants of an engine.
type identity struct {
	certificate tls.Certificate
	fingerprint string // of SHA-256
}

func newIdentity(now time.Time) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	raw, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &identity{tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: crypto.PrivateKey(key)}, fingerprint(raw)}, nil
}

func fingerprint(raw []byte) string {
	sum := sha256.Sum256(raw)
	var b strings.Builder
	for i, x := range sum {
		if i > 0 {
			b.WriteByte(':')
		}
		fmt.Fprintf(&b, "%02X", x)
	}
	return b.String()
}

// handshake is the DTLS client over p; it returns the RTP and RTCP keys of both directions.
func handshake(ctx context.Context, p net.PacketConn, id *identity, want string) (conn *dtls.Conn, out, in [2]Key, err error) {
	conn, err = dtls.ClientWithOptions(p, p.LocalAddr(),
		dtls.WithCertificates(id.certificate),
		dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
		dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM),
		dtls.WithExtendedMasterSecret(dtls.RequestExtendedMasterSecret),
		dtls.WithFlightInterval(300*time.Millisecond),
		dtls.WithInsecureSkipVerify(true), // self-signed: the fingerprint is the proof
		dtls.WithVerifyPeerCertificate(func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 || want != "" && !strings.EqualFold(want, fingerprint(raw[0])) {
				return errors.New("certificate does not match the fingerprint")
			}
			return nil
		}),
		dtls.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
	)
	if err != nil {
		return nil, out, in, err
	}
	if err = conn.HandshakeContext(ctx); err == nil {
		out, in, err = export(conn)
	}
	if err != nil {
		conn.Close()
		return nil, out, in, fmt.Errorf("dtls: %w", err)
	}
	return conn, out, in, nil
}

func export(conn *dtls.Conn) (out, in [2]Key, err error) {
	if p, ok := conn.SelectedSRTPProtectionProfile(); !ok || p != dtls.SRTP_AEAD_AES_128_GCM {
		return out, in, errProfile
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return out, in, errProfile
	}
	m, err := state.ExportKeyingMaterial("EXTRACTOR-dtls_srtp", nil, 2*(keyBytes+saltBytes))
	if err != nil {
		return out, in, err
	}
	ours, theirs := m[:keyBytes], m[keyBytes:2*keyBytes]
	ourSalt, theirSalt := m[2*keyBytes:2*keyBytes+saltBytes], m[2*keyBytes+saltBytes:]
	for i, label := range [2]byte{0, 3} {
		if out[i], err = derive(ours, ourSalt, label); err != nil {
			return out, in, err
		}
		if in[i], err = derive(theirs, theirSalt, label); err != nil {
			return out, in, err
		}
	}
	return out, in, nil
}

// A pipe is the datagrams of DTLS between the receiving thread and a handshake.
type pipe struct {
	in     chan []byte
	once   sync.Once
	done   chan struct{}
	send   func([]byte)
	remote net.Addr
}

func newPipe(remote net.Addr, send func([]byte)) *pipe {
	return &pipe{in: make(chan []byte, 64), done: make(chan struct{}), send: send, remote: remote}
}

// put hands a datagram in; when nobody reads it is lost, as datagrams are.
func (p *pipe) put(b []byte) {
	select {
	case p.in <- append([]byte(nil), b...):
	default:
	}
}

func (p *pipe) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-p.in:
		return copy(b, d), p.remote, nil
	case <-p.done:
		return 0, nil, net.ErrClosed
	}
}

func (p *pipe) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.send(b)
	return len(b), nil
}

// Close ends reading.
func (p *pipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// SetReadDeadline is used to interrupt a read for good only.
func (p *pipe) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) {
		return p.Close()
	}
	return nil
}

func (p *pipe) LocalAddr() net.Addr              { return p.remote }
func (p *pipe) SetDeadline(t time.Time) error    { return p.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
