package agent

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/slackhq/nebula/cert"

	"plenum/agent/host"
	"plenum/agent/join"
)

// An identity is the private keys of a host. They are made on it and never leave it.
type identity struct {
	host      ed25519.PrivateKey
	nebula    *ecdh.PrivateKey
	wireguard *ecdh.PrivateKey
	tls       *ecdsa.PrivateKey
}

// keyFiles in the order in which they are made.
const (
	hostKey      = keyDir + "/host.key"
	nebulaKey    = keyDir + "/nebula.key"
	wireguardKey = keyDir + "/wireguard.key"
	tlsKey       = keyDir + "/tls.key"
)

// loadIdentity reads the host's keys and makes those that are not there.
func loadIdentity(h *host.Host) (id identity, err error) {
	if err := h.Mkdir(keyDir, 0o700); err != nil {
		return id, err
	}
	x25519 := func(text []byte) (k *ecdh.PrivateKey, err error) { return ecdh.X25519().NewPrivateKey(text) }
	for _, k := range []struct {
		path string
		make func() ([]byte, error)
		read func([]byte) error
	}{
		{hostKey, func() ([]byte, error) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return pkcs8(key, err)
		}, func(b []byte) error {
			key, err := parsePKCS8(b)
			host, ok := key.(ed25519.PrivateKey)
			id.host = host
			return orNot(err, ok)
		}},
		{nebulaKey, func() ([]byte, error) {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, err
			}
			return cert.MarshalPrivateKeyToPEM(cert.Curve_CURVE25519, key.Bytes()), nil
		}, func(b []byte) error {
			raw, _, _, err := cert.UnmarshalPrivateKeyFromPEM(b)
			if err == nil {
				id.nebula, err = x25519(raw)
			}
			return err
		}},
		{wireguardKey, func() ([]byte, error) {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, err
			}
			return []byte(base64.StdEncoding.EncodeToString(key.Bytes()) + "\n"), nil
		}, func(b []byte) error {
			raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b)))
			if err == nil {
				id.wireguard, err = x25519(raw)
			}
			return err
		}},
		{tlsKey, func() ([]byte, error) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			return pkcs8(key, err)
		}, func(b []byte) error {
			key, err := parsePKCS8(b)
			tls, ok := key.(*ecdsa.PrivateKey)
			id.tls = tls
			return orNot(err, ok)
		}},
	} {
		text, err := h.Read(k.path)
		if errors.Is(err, fs.ErrNotExist) {
			if text, err = k.make(); err == nil {
				err = h.Write(k.path, text, 0o600)
			}
		}
		if err == nil {
			err = k.read(text)
		}
		if err != nil {
			return id, fmt.Errorf("key %s: %w; without it the host has to leave (plenum leave --force) and join again", h.Path(k.path), err)
		}
	}
	return id, nil
}

func pkcs8(key any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parsePKCS8(text []byte) (any, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	return x509.ParsePKCS8PrivateKey(block.Bytes)
}

func orNot(err error, ok bool) error {
	if err == nil && !ok {
		return errors.New("a key of another kind")
	}
	return err
}

// public are the halves that the join service gets.
func (id identity) public() (join.Keys, error) {
	tls, err := x509.MarshalPKIXPublicKey(id.tls.Public())
	return join.Keys{Host: id.host.Public().(ed25519.PublicKey), Nebula: id.nebula.PublicKey().Bytes(),
		WireGuard: id.wireguard.PublicKey().Bytes(), TLS: tls}, err
}
