// Package thin is a media engine for load: many participants over their own UDP sockets, for a few microseconds
// a packet. It counts what arrives by the sequence numbers of the clear headers, opens one packet in N to check
// that it is whole and to read the sender's clock, and answers with receiver reports and transport-wide
// feedback. It never decodes, repairs or asks again, so what it counts as lost was lost.
//
//	publishing thread ── every due frame ──► seal ──► socket of the participant
//	receiving thread ─── every 5 ms: all sockets ──► STUN, DTLS pipe, counting; every 1 ms: feedback that is due
//	one goroutine each ─ DTLS handshake, at the start only
//
// The receiving thread never sleeps in a socket: what arrives wakes nobody, as on a network, and costs the
// sender under test no wake-up. Times of arrival are the kernel's, so the 5 ms do not show in delays.
//
// Package client is the participant that behaves like a browser; this one only weighs like one. A Bridge drives
// it against a bridge's private colibri2 HTTP; peers with given keys serve programs without signaling.
package thin

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// Numbers of what is negotiated; they are those of Chromium under Jitsi Meet.
const (
	opusPT = 111
	vp8PT  = 100
	rtxPT  = 96

	levelExt, absTimeExt, tccExt, descriptorExt = 1, 3, 5, 11
)

const (
	keyBytes  = 16
	saltBytes = 12
	tagBytes  = 16
)

// A Key is a session key of AEAD_AES_128_GCM.
type Key struct{ Key, Salt []byte }

// derive makes one session key from a master key (RFC 3711 §4.3.1, RFC 7714 §11); label is 0 for RTP, 3 for RTCP.
func derive(key, salt []byte, label byte) (Key, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return Key{}, err
	}
	one := func(label byte) []byte {
		var x [aes.BlockSize]byte
		copy(x[:saltBytes], salt)
		x[7] ^= label
		out := make([]byte, aes.BlockSize)
		block.Encrypt(out, x[:])
		return out
	}
	return Key{one(label)[:keyBytes], one(label + 2)[:saltBytes]}, nil
}

// A crypt opens or seals with one session key. One goroutine uses it.
type crypt struct {
	aead  cipher.AEAD
	salt  [saltBytes]byte
	nonce [saltBytes]byte
	aad   [12]byte
	index uint32 // of SRTCP sent
}

func newCrypt(k Key) (*crypt, error) {
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(k.Salt) != saltBytes {
		return nil, errors.New("a salt has 12 bytes")
	}
	return &crypt{aead: aead, salt: [saltBytes]byte(k.Salt)}, nil
}

// number is the nonce of a packet (RFC 7714 §8.1).
func (c *crypt) number(ssrc uint32, index uint64) []byte {
	n := &c.nonce
	*n = c.salt
	binary.BigEndian.PutUint32(n[2:], binary.BigEndian.Uint32(n[2:])^ssrc)
	binary.BigEndian.PutUint32(n[6:], binary.BigEndian.Uint32(n[6:])^uint32(index>>16))
	binary.BigEndian.PutUint16(n[10:], binary.BigEndian.Uint16(n[10:])^uint16(index))
	return n[:]
}

// sealRTP seals b, whose first header bytes stay clear, in place; b needs room for the tag.
func (c *crypt) sealRTP(b []byte, header int, index uint64) []byte {
	ssrc := binary.BigEndian.Uint32(b[8:])
	return c.aead.Seal(b[:header], c.number(ssrc, index), b[header:], b[:header])
}

// openRTP returns the payload of a packet, which is overwritten.
func (c *crypt) openRTP(b []byte, header int, index uint64) ([]byte, error) {
	ssrc := binary.BigEndian.Uint32(b[8:])
	return c.aead.Open(b[header:header], c.number(ssrc, index), b[header:], b[:header])
}

// sealRTCP appends the SRTCP packet of a compound to dst.
func (c *crypt) sealRTCP(dst, compound []byte) []byte {
	c.index++
	ssrc := binary.BigEndian.Uint32(compound[4:])
	copy(c.aad[:8], compound)
	binary.BigEndian.PutUint32(c.aad[8:], 1<<31|c.index)
	dst = append(dst, compound[:8]...)
	dst = c.aead.Seal(dst, c.number(ssrc, uint64(c.index)), compound[8:], c.aad[:])
	return append(dst, c.aad[8:]...)
}

// openRTCP returns the compound in b, which is overwritten; nil when it does not authenticate.
func (c *crypt) openRTCP(b []byte) []byte {
	if len(b) < 8+tagBytes+4 {
		return nil
	}
	at := len(b) - 4
	copy(c.aad[:8], b)
	copy(c.aad[8:], b[at:])
	index := binary.BigEndian.Uint32(b[at:]) & 0x7fffffff
	if _, err := c.aead.Open(b[8:8], c.number(binary.BigEndian.Uint32(b[4:]), uint64(index)), b[8:at], c.aad[:]); err != nil {
		return nil
	}
	return b[:at-tagBytes]
}

// headerBytes is the length of an RTP header with its extension; 0 when b is none.
func headerBytes(b []byte) int {
	if len(b) < 12 || b[0]>>6 != 2 {
		return 0
	}
	n := 12 + 4*int(b[0]&15)
	if b[0]&0x10 != 0 {
		if len(b) < n+4 {
			return 0
		}
		n += 4 + 4*int(binary.BigEndian.Uint16(b[n+2:]))
	}
	if len(b) < n {
		return 0
	}
	return n
}

// transportSeq reads the transport-wide sequence number of a packet whose header has n bytes.
func transportSeq(b []byte, n int) (seq uint16, ok bool) {
	if b[0]&0x10 == 0 {
		return 0, false
	}
	at := 12 + 4*int(b[0]&15)
	profile := binary.BigEndian.Uint16(b[at:])
	for x := b[at+4 : n]; len(x) > 1; {
		id, size, head := x[0]>>4, int(x[0]&15)+1, 1
		if profile != 0xbede {
			id, size, head = x[0], int(x[1]), 2
		}
		if x[0] == 0 {
			x = x[1:]
			continue
		}
		if len(x) < head+size {
			return 0, false
		}
		if id == tccExt && size == 2 {
			return binary.BigEndian.Uint16(x[head:]), true
		}
		x = x[head+size:]
	}
	return 0, false
}
