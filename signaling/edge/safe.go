package edge

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/hashicorp/consul/api"
)

// safePrefix is where certificates, their keys and the accounts with authorities are in Consul.
const safePrefix = "plenum/certificates/"

// A safe keeps what edges share about certificates in Consul, encrypted with a key that only edges have: a snapshot
// of Consul shows names and sizes, nothing else. It is certmagic's Storage.
type safe struct {
	client *api.Client
	seal   cipher.AEAD

	mu    sync.Mutex
	locks map[string]*api.Lock
}

var _ certmagic.Storage = (*safe)(nil)

func newSafe(client *api.Client, secret string) (*safe, error) {
	if len(secret) < 16 {
		return nil, errors.New("the secret of the certificates has less than 16 bytes")
	}
	key := sha256.Sum256([]byte("plenum certificates\x00" + secret))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCM(block)
	return &safe{client: client, seal: seal, locks: map[string]*api.Lock{}}, err
}

func (s *safe) Store(ctx context.Context, key string, value []byte) error {
	nonce := make([]byte, s.seal.NonceSize(), s.seal.NonceSize()+len(value)+s.seal.Overhead())
	rand.Read(nonce)
	_, err := s.client.KV().Put(&api.KVPair{Key: safePrefix + key, Value: s.seal.Seal(nonce, nonce, value, []byte(key))},
		(&api.WriteOptions{}).WithContext(ctx))
	return err
}

func (s *safe) Load(ctx context.Context, key string) ([]byte, error) {
	kv, _, err := s.client.KV().Get(safePrefix+key, (&api.QueryOptions{}).WithContext(ctx))
	switch n := s.seal.NonceSize(); {
	case err != nil:
		return nil, err
	case kv == nil:
		return nil, fs.ErrNotExist
	case len(kv.Value) < n:
		return nil, fmt.Errorf("%s%s in Consul was not written by an edge", safePrefix, key)
	default:
		value, err := s.seal.Open(nil, kv.Value[:n], kv.Value[n:], []byte(key)) // the name is bound to what it names
		if err != nil {
			return nil, fmt.Errorf("%s%s in Consul was written with another secret, or moved there", safePrefix, key)
		}
		return value, nil
	}
}

func (s *safe) Delete(ctx context.Context, key string) error {
	q := (&api.WriteOptions{}).WithContext(ctx)
	if _, err := s.client.KV().Delete(safePrefix+key, q); err != nil {
		return err
	}
	_, err := s.client.KV().DeleteTree(safePrefix+key+"/", q)
	return err
}

func (s *safe) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

func (s *safe) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	prefix := safePrefix
	if dir = strings.Trim(dir, "/"); dir != "" {
		prefix += dir + "/"
	}
	separator := "/"
	if recursive {
		separator = ""
	}
	keys, _, err := s.client.KV().Keys(prefix, separator, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	for i, k := range keys {
		keys[i] = strings.TrimSuffix(strings.TrimPrefix(k, safePrefix), "/")
	}
	return keys, nil
}

func (s *safe) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	info := certmagic.KeyInfo{Key: key, IsTerminal: true}
	kv, _, err := s.client.KV().Get(safePrefix+key, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return info, err
	}
	if kv != nil {
		info.Size = int64(len(kv.Value) - s.seal.NonceSize() - s.seal.Overhead())
		return info, nil
	}
	below, err := s.List(ctx, key, true)
	if err == nil && len(below) == 0 {
		err = fs.ErrNotExist
	}
	info.IsTerminal = false
	return info, err
}

// Lock waits until no other edge works on name. The lock ends with this process.
func (s *safe) Lock(ctx context.Context, name string) error {
	l, err := s.client.LockOpts(&api.LockOptions{Key: safePrefix + path.Join("locks", name), SessionTTL: "15s", LockDelay: time.Second, LockWaitTime: time.Second})
	if err != nil {
		return err
	}
	if lost, err := l.Lock(ctx.Done()); err != nil {
		return err
	} else if lost == nil {
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks[name] = l
	return nil
}

func (s *safe) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	l := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("%s is not locked", name)
	}
	return l.Unlock()
}
