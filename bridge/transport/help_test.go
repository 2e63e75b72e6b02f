package transport

import (
	"crypto/aes"
	"crypto/cipher"
	"testing"
)

func mustAES(t *testing.T, key []byte) cipher.Block {
	t.Helper()
	b, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustGCM(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	g, err := cipher.NewGCM(mustAES(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return g
}
