//go:build linux

package thin

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// A Publish says what a participant sends.
type Publish struct {
	// Audio is 50 packets a second of 80 to 160 bytes; of a voice that never pauses.
	Audio bool
	// AudioBytes makes all audio packets that long; 0 varies them.
	AudioBytes int
	// Video is the bit rate of one VP8 encoding; 0 is none.
	Video int
	// Width and Height go into key frames; 0 is 1280 × 720.
	Width, Height int
	// FPS defaults to 30.
	FPS int
	// Bare leaves header extensions out, for peers that do not negotiate them.
	Bare bool
	// Seed makes sizes and phases; the same seed gives the same packets.
	Seed uint64
}

const (
	// Chromium cuts a frame into equal parts that leave room for headers under 1200 bytes.
	maxPayload = 1150
	// stampBytes at the end of each payload are the publisher's clock, in nanoseconds.
	stampBytes = 8
	// keyFactor is how much larger key frames are than others.
	keyFactor = 4
)

// A track is one SSRC as it is published. The publishing thread owns what is not atomic.
type track struct {
	p              *Participant
	video          bool
	bare           bool
	ssrc           uint32
	pt             byte
	clock          uint32
	bytes, fixed   int // mean of a frame
	every          time.Duration
	begin, due     time.Time
	tcc            *uint16 // of the participant
	seq            uint64
	frame          uint16
	position       int // in the pattern of temporal layers
	width, height  int
	rand           *rand.Rand
	key            atomic.Bool   // somebody asks for a key frame
	packets, sent  atomic.Uint64 // ever, and their payload bytes
	counted        uint64        // packets as of the last Reset
	timestampStart uint32
}

// timestamp is the RTP time of t.
func (t *track) timestamp(at time.Time) uint32 {
	return t.timestampStart + uint32(int64(at.Sub(t.begin))/1000*int64(t.clock)/1e6)
}

// size draws the size of the next frame. Those of higher temporal layers are smaller, and all vary by a tenth or so,
// as those of an encoder at constant bit rate do.
func (t *track) size(key bool) int {
	if t.fixed > 0 {
		return t.fixed
	}
	n := float64(t.bytes) * math.Exp(0.12*t.rand.NormFloat64())
	switch {
	case key:
		n *= keyFactor
	case t.video:
		n *= [4]float64{1.5, 0.7, 1.1, 0.7}[t.position]
	}
	return max(40, int(n))
}

// produce makes the packets of one frame, seals them and sends them.
func (t *track) produce(now time.Time, scratch []byte) {
	key := t.video && t.key.Swap(false)
	if key {
		t.position = 0
	}
	size := t.size(key)
	n := (size + maxPayload - 1) / maxPayload
	for i := range n {
		// Equal parts; the larger ones come last, as in Chromium.
		part := size / n
		if i >= n-size%n {
			part++
		}
		b := scratch[:0]
		head := byte(0x90)
		if t.bare {
			head = 0x80
		}
		marker := byte(0)
		if t.video && i == n-1 {
			marker = 0x80
		}
		t.seq++
		b = append(b, head, marker|t.pt)
		b = binary.BigEndian.AppendUint16(b, uint16(t.seq))
		b = binary.BigEndian.AppendUint32(b, t.timestamp(t.due))
		b = binary.BigEndian.AppendUint32(b, t.ssrc)
		if !t.bare {
			b = t.extensions(b, now, key, i == 0, i == n-1)
		}
		header := len(b)
		b = b[:header+part]
		body := b[header:]
		if t.video {
			t.describe(body, key, i == 0)
		}
		binary.BigEndian.PutUint64(body[part-stampBytes:], uint64(time.Now().UnixNano()))
		b = t.p.out.sealRTP(b, header, t.seq&(1<<48-1))
		t.p.socket.send(b)
		t.packets.Add(1)
		t.sent.Add(uint64(part))
	}
	t.frame++
	t.position = (t.position + 1) % 4
}

// extensions appends the header extension of a packet.
func (t *track) extensions(b []byte, now time.Time, key, first, last bool) []byte {
	*t.tcc++
	at := len(b)
	if !t.video {
		b = append(b, 0xbe, 0xde, 0, 0, levelExt<<4, 0x80|13, tccExt<<4|1, byte(*t.tcc>>8), byte(*t.tcc), 0, 0, 0)
		binary.BigEndian.PutUint16(b[at+2:], 2)
		return b
	}
	abs := uint32(now.UnixMicro() << 12 / 15625) // seconds, 6.18 fixed point
	template := [4]byte{templateBase, templateTop, templateMiddle, templateTopLast}[t.position]
	if key {
		template = templateKey
	}
	if first {
		template |= 0x80
	}
	if last {
		template |= 0x40
	}
	if key && first {
		b = append(b, 0x10, 0, 0, 0, absTimeExt, 3, byte(abs>>16), byte(abs>>8), byte(abs), tccExt, 2, byte(*t.tcc>>8), byte(*t.tcc),
			descriptorExt, byte(3+len(structure)), template, byte(t.frame>>8), byte(t.frame))
		n := len(b)
		b = append(b, structure[:]...)
		putBits(b[n:], widthBit, uint16(t.width-1))
		putBits(b[n:], widthBit+16, uint16(t.height-1))
	} else {
		b = append(b, 0xbe, 0xde, 0, 0, absTimeExt<<4|2, byte(abs>>16), byte(abs>>8), byte(abs), tccExt<<4|1, byte(*t.tcc>>8), byte(*t.tcc),
			descriptorExt<<4|2, template, byte(t.frame>>8), byte(t.frame))
	}
	for (len(b)-at)%4 != 0 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[at+2:], uint16((len(b)-at)/4-1))
	return b
}

// describe writes VP8's payload descriptor, and the beginning of a frame behind it (RFC 7741 §4.2, RFC 6386 §9.1).
func (t *track) describe(body []byte, key, first bool) {
	body[0] = 0
	if !first {
		return
	}
	body[0] = 0x10
	body[1] = 1 // an inter frame
	if key {
		copy(body[1:], []byte{0, 0, 0, 0x9d, 0x01, 0x2a, byte(t.width), byte(t.width >> 8), byte(t.height), byte(t.height >> 8)})
	}
}

// The dependency descriptor's structure as Chromium writes it for VP8 with three temporal layers, as recorded; the
// resolution is patched in.
var structure = [...]byte{
	0x80, 0x02, 0x04, 0x4e, 0xaa, 0xaf, 0x28, 0x60, 0x41, 0x4d,
	0x34, 0x53, 0x8a, 0x09, 0x40, 0x40, 0x4f, 0xc0, 0x2c, 0xc0,
}

const (
	widthBit = 122 // where the width stands in structure; 16 bits later the height

	templateKey     = 0
	templateBase    = 1
	templateMiddle  = 3
	templateTop     = 5
	templateTopLast = 6
)

// putBits overwrites 16 bits at bit offset at.
func putBits(b []byte, at int, v uint16) {
	for i := range 16 {
		bit := byte(v>>(15-i)) & 1
		shift := 7 - (at+i)%8
		b[(at+i)/8] = b[(at+i)/8]&^(1<<shift) | bit<<shift
	}
}

// report appends a sender report (RFC 3550 §6.4.1).
func (t *track) report(dst []byte, now time.Time) []byte {
	const toNTP = 2208988800 // seconds from 1900 to 1970
	dst = append(dst, 0x80, 200, 0, 6)
	dst = binary.BigEndian.AppendUint32(dst, t.ssrc)
	dst = binary.BigEndian.AppendUint32(dst, uint32(now.Unix()+toNTP))
	dst = binary.BigEndian.AppendUint32(dst, uint32(uint64(now.Nanosecond())<<32/1e9))
	dst = binary.BigEndian.AppendUint32(dst, t.timestamp(now))
	dst = binary.BigEndian.AppendUint32(dst, uint32(t.packets.Load()))
	return binary.BigEndian.AppendUint32(dst, uint32(t.sent.Load()))
}
