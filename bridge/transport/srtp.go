package transport

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Errors of unprotecting. They are values, because they are met per packet.
var (
	// ErrAuth is returned for a packet that does not authenticate.
	ErrAuth = errors.New("srtp: authentication failed")
	// ErrReplay is returned for a packet that came before, or is too old to know.
	ErrReplay = errors.New("srtp: replayed")
	// ErrShort is returned for what is no RTP or RTCP packet.
	ErrShort = errors.New("srtp: malformed packet")
)

// A Profile is an SRTP protection profile as DTLS numbers it (RFC 5764 §4.1.2, RFC 7714 §14.2).
type Profile uint16

const (
	AES128CMSHA1_80 Profile = 0x0001
	AES128GCM       Profile = 0x0007
)

func (p Profile) String() string {
	switch p {
	case AES128CMSHA1_80:
		return "AES_CM_128_HMAC_SHA1_80"
	case AES128GCM:
		return "AEAD_AES_128_GCM"
	}
	return fmt.Sprintf("profile %#04x", uint16(p))
}

const keyBytes = 16

func (p Profile) saltBytes() int {
	if p == AES128GCM {
		return 12
	}
	return 14
}

const (
	gcmTagBytes  = 16
	hmacTagBytes = 10
	indexBytes   = 4 // SRTCP's E flag and index
)

// maxReceived bounds the SSRCs that are remembered of one sender, maxSent those sealed towards one receiver with all that
// is known of their numbers, and maxPast those of which only the highest number is known: in a room where people come
// and go all day a receiver without SSRC rewriting is sent a few for each of them. They take up to 10 MB.
const (
	maxReceived = 1024
	maxSent     = 2048
	maxPast     = 1 << 18
)

// Labels of the key derivation (RFC 3711 §4.3.2); SRTCP's are 3 higher.
const (
	labelKey  = 0
	labelAuth = 1
	labelSalt = 2
	labelRTCP = 3
)

// derive makes n bytes of session key from the master key and salt (RFC 3711 §4.3.1, with a derivation rate
// of 0; RFC 7714 §11 uses the same function).
func derive(block cipher.Block, salt []byte, label byte, n int) []byte {
	var x [aes.BlockSize]byte
	copy(x[:14], salt)
	x[7] ^= label
	out := make([]byte, (n+aes.BlockSize-1)/aes.BlockSize*aes.BlockSize)
	for i := 0; i < len(out); i += aes.BlockSize {
		binary.BigEndian.PutUint16(x[14:], uint16(i/aes.BlockSize))
		block.Encrypt(out[i:], x[:])
	}
	return out[:n]
}

// keys are the session keys of one direction for RTP or for RTCP, with the scratch of the goroutine that
// uses them. Exactly one of aead and block is set.
type keys struct {
	salt  [14]byte
	aead  cipher.AEAD
	block cipher.Block
	mac   hash.Hash

	nonce   [12]byte
	aad     [12]byte
	counter [aes.BlockSize]byte
	stream  [aes.BlockSize]byte
	roc     [4]byte
	tag     [sha1.Size]byte
}

func newKeys(p Profile, master cipher.Block, salt []byte, label byte) (*keys, error) {
	k := new(keys)
	copy(k.salt[:], derive(master, salt, label+labelSalt, p.saltBytes()))
	block, err := aes.NewCipher(derive(master, salt, label+labelKey, keyBytes))
	if err != nil {
		return nil, err
	}
	switch p {
	case AES128GCM:
		k.aead, err = cipher.NewGCM(block)
	case AES128CMSHA1_80:
		k.block = block
		k.mac = hmac.New(sha1.New, derive(master, salt, label+labelAuth, sha1.Size))
	default:
		err = fmt.Errorf("srtp: %v is not supported", p)
	}
	return k, err
}

func newBoth(p Profile, key, salt []byte) (rtp, rtcp *keys, err error) {
	if len(key) != keyBytes || len(salt) != p.saltBytes() {
		return nil, nil, fmt.Errorf("srtp: key of %d and salt of %d bytes for %v", len(key), len(salt), p)
	}
	master, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	if rtp, err = newKeys(p, master, salt, 0); err != nil {
		return nil, nil, err
	}
	rtcp, err = newKeys(p, master, salt, labelRTCP)
	return rtp, rtcp, err
}

// setNonce prepares GCM's nonce (RFC 7714 §8.1): index is ROC and sequence number, or the SRTCP index.
func (k *keys) setNonce(ssrc uint32, index uint64) []byte {
	n := &k.nonce
	copy(n[:], k.salt[:12])
	binary.BigEndian.PutUint32(n[2:], binary.BigEndian.Uint32(n[2:])^ssrc)
	binary.BigEndian.PutUint32(n[6:], binary.BigEndian.Uint32(n[6:])^uint32(index>>16))
	binary.BigEndian.PutUint16(n[10:], binary.BigEndian.Uint16(n[10:])^uint16(index))
	return n[:]
}

// xor applies AES-CM's key stream (RFC 3711 §4.1.1) in place. A cipher.Stream would be faster on long
// packets, but costs an allocation each; this profile is the fallback.
func (k *keys) xor(b []byte, ssrc uint32, index uint64) {
	c := &k.counter
	copy(c[:14], k.salt[:])
	c[14], c[15] = 0, 0
	binary.BigEndian.PutUint32(c[4:], binary.BigEndian.Uint32(c[4:])^ssrc)
	binary.BigEndian.PutUint32(c[8:], binary.BigEndian.Uint32(c[8:])^uint32(index>>16))
	binary.BigEndian.PutUint16(c[12:], binary.BigEndian.Uint16(c[12:])^uint16(index))
	for i := uint16(0); len(b) > 0; i++ {
		binary.BigEndian.PutUint16(c[14:], i)
		k.block.Encrypt(k.stream[:], c[:])
		n := subtle.XORBytes(b, b, k.stream[:])
		b = b[n:]
	}
}

// sum is the HMAC of b and, where given, four more bytes; valid until the next call.
func (k *keys) sum(b, more []byte) []byte {
	k.mac.Reset()
	k.mac.Write(b)
	k.mac.Write(more)
	return k.mac.Sum(k.tag[:0])[:hmacTagBytes]
}

// headerBytes is the length of the RTP header with CSRCs and extension (RFC 3550 §5.1, §5.3.1); 0 if b is
// too short for it or of another version.
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

// A Sealer protects what goes to one receiver. One goroutine owns it. No (SSRC, index) is ever sealed
// twice: with GCM, two packets under one nonce would give the key stream and the authentication key away.
type Sealer struct {
	rtp, rtcp *keys
	ssrcs     streams
	index     uint32 // of SRTCP

	// Reused counts packets that were refused because their number had been sealed or was too old.
	Reused uint64
}

// NewSealer derives the session keys from a master key and salt (RFC 3711 §4.3).
func NewSealer(p Profile, key, salt []byte) (*Sealer, error) {
	rtp, rtcp, err := newBoth(p, key, salt)
	if err != nil {
		return nil, err
	}
	return &Sealer{rtp: rtp, rtcp: rtcp, ssrcs: newStreams(maxSent, maxPast)}, nil
}

// RTP appends header and payload to dst as one SRTP packet. dst needs room for packet.MaxOverhead more
// bytes than those, if it is not to be reallocated, and overlaps neither. It does not allocate, but for the first packet of an SSRC.
func (s *Sealer) RTP(dst, header, payload []byte) ([]byte, error) {
	if len(header) < 12 {
		return dst, ErrShort
	}
	ssrc := binary.BigEndian.Uint32(header[8:])
	seq := binary.BigEndian.Uint16(header[2:])
	st := s.ssrcs.get(ssrc)
	if st == nil {
		if st = s.ssrcs.add(ssrc); st == nil {
			s.Reused++
			return dst, ErrReplay
		}
	}
	index := st.guess(seq)
	if !st.fresh(index) {
		s.Reused++
		return dst, ErrReplay
	}
	st.take(index)
	k := s.rtp
	at := len(dst)
	dst = append(dst, header...)
	if k.aead != nil {
		return k.aead.Seal(dst, k.setNonce(ssrc, index), payload, dst[at:]), nil
	}
	body := len(dst)
	dst = append(dst, payload...)
	k.xor(dst[body:], ssrc, index)
	binary.BigEndian.PutUint32(k.roc[:], uint32(index>>16))
	return append(dst, k.sum(dst[at:], k.roc[:])...), nil
}

// RTCP appends a compound packet to dst as SRTCP. It does not allocate.
func (s *Sealer) RTCP(dst, compound []byte) ([]byte, error) {
	if len(compound) < 8 {
		return dst, ErrShort
	}
	s.index = (s.index + 1) & 0x7fffffff
	if s.index == 0 { // 2^31 packets: rekeying is not a thing in WebRTC
		return dst, ErrReplay
	}
	ssrc := binary.BigEndian.Uint32(compound[4:])
	at := len(dst)
	dst = append(dst, compound[:8]...)
	k := s.rtcp
	if k.aead != nil {
		copy(k.aad[:8], compound)
		binary.BigEndian.PutUint32(k.aad[8:], 1<<31|s.index)
		dst = k.aead.Seal(dst, k.setNonce(ssrc, uint64(s.index)), compound[8:], k.aad[:])
		return append(dst, k.aad[8:]...), nil
	}
	dst = append(dst, compound[8:]...)
	k.xor(dst[at+8:], ssrc, uint64(s.index))
	dst = binary.BigEndian.AppendUint32(dst, 1<<31|s.index)
	return append(dst, k.sum(dst[at:], nil)...), nil
}

// An Opener unprotects what comes from one sender. One goroutine owns it.
type Opener struct {
	rtp, rtcp *keys
	ssrcs     streams // RTP
	reports   streams // RTCP, whose index is its own
	tagBytes  int
}

// NewOpener derives the session keys from a master key and salt (RFC 3711 §4.3).
func NewOpener(p Profile, key, salt []byte) (*Opener, error) {
	rtp, rtcp, err := newBoth(p, key, salt)
	if err != nil {
		return nil, err
	}
	o := &Opener{rtp: rtp, rtcp: rtcp, ssrcs: newStreams(maxReceived, 0), reports: newStreams(maxReceived, 0), tagBytes: hmacTagBytes}
	if p == AES128GCM {
		o.tagBytes = gcmTagBytes
	}
	return o, nil
}

// RTP unprotects b in place and returns the clear packet, a prefix of b. An SSRC is remembered only once a
// packet of it has authenticated, so that nobody but the peer can fill the table. After an error b's payload is undefined.
// It does not allocate, but for the first packet of an SSRC.
func (o *Opener) RTP(b []byte) ([]byte, error) {
	n := headerBytes(b)
	if n == 0 || len(b) < n+o.tagBytes {
		return nil, ErrShort
	}
	ssrc := binary.BigEndian.Uint32(b[8:])
	seq := binary.BigEndian.Uint16(b[2:])
	st := o.ssrcs.get(ssrc)
	index := uint64(seq)
	if st != nil {
		index = st.guess(seq)
		if !st.fresh(index) {
			return nil, ErrReplay
		}
	}
	k := o.rtp
	end := len(b) - o.tagBytes
	if k.aead != nil {
		if _, err := k.aead.Open(b[n:n], k.setNonce(ssrc, index), b[n:], b[:n]); err != nil {
			return nil, ErrAuth
		}
	} else {
		binary.BigEndian.PutUint32(k.roc[:], uint32(index>>16))
		if subtle.ConstantTimeCompare(k.sum(b[:end], k.roc[:]), b[end:]) != 1 {
			return nil, ErrAuth
		}
		k.xor(b[n:end], ssrc, index)
	}
	if st == nil {
		st = o.ssrcs.add(ssrc)
	}
	st.take(index)
	return b[:end], nil
}

// RTCP unprotects b in place and returns the clear compound packet, a prefix of b.
func (o *Opener) RTCP(b []byte) ([]byte, error) {
	if len(b) < 8+o.tagBytes+indexBytes || b[0]>>6 != 2 {
		return nil, ErrShort
	}
	ssrc := binary.BigEndian.Uint32(b[4:])
	k := o.rtcp
	at := len(b) - indexBytes // of the index: behind the tag with GCM, before it with HMAC
	if k.aead == nil {
		at -= o.tagBytes
	}
	word := binary.BigEndian.Uint32(b[at:])
	if word>>31 == 0 {
		return nil, ErrAuth // not encrypted: never negotiated
	}
	index := uint64(word & 0x7fffffff)
	st := o.reports.get(ssrc)
	if st != nil && !st.fresh(index) {
		return nil, ErrReplay
	}
	if k.aead != nil {
		copy(k.aad[:8], b)
		copy(k.aad[8:], b[at:])
		if _, err := k.aead.Open(b[8:8], k.setNonce(ssrc, index), b[8:at], k.aad[:]); err != nil {
			return nil, ErrAuth
		}
		at -= gcmTagBytes
	} else {
		if subtle.ConstantTimeCompare(k.sum(b[:at+indexBytes], nil), b[at+indexBytes:]) != 1 {
			return nil, ErrAuth
		}
		k.xor(b[8:at], ssrc, index)
	}
	if st == nil {
		st = o.reports.add(ssrc)
	}
	st.take(index)
	return b[:at], nil
}
