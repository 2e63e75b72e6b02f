package peer

// maxVideoPayload is the most of a VP8 frame that goes into one packet: 1200 bytes of UDP payload less
// header, extensions and SRTP's tag, as browsers cut them.
const maxVideoPayload = 1100

// A vp8Descriptor is VP8's payload descriptor (RFC 7741 section 4.2). Browsers of today send the bare
// first byte and put the layers into the dependency descriptor; older ones send picture ids.
type vp8Descriptor struct {
	start     bool // S: first packet of the frame
	discard   bool // N: no other frame depends on it
	extended  bool // picture id, TL0PICIDX and TID follow
	pictureID uint16
	tl0       uint8
	temporal  uint8
	sync      bool // Y: depends on the base layer only
}

func (d vp8Descriptor) append(dst []byte) []byte {
	var first byte
	if d.start {
		first |= 0x10
	}
	if d.discard {
		first |= 0x20
	}
	if !d.extended {
		return append(dst, first)
	}
	layer := d.temporal << 6
	if d.sync {
		layer |= 0x20
	}
	return append(dst, first|0x80, 0xe0, // X; I, L, T
		0x80|byte(d.pictureID>>8), byte(d.pictureID), d.tl0, layer)
}

// parseVP8 returns what a receiver wants to know of a VP8 packet: whether it starts a frame, and the
// bytes of the frame in it. ok is false when the descriptor is cut short.
func parseVP8(p []byte) (frame []byte, start, ok bool) {
	if len(p) == 0 {
		return nil, false, false
	}
	first, n := p[0], 1
	if first&0x80 != 0 {
		if len(p) < 2 {
			return nil, false, false
		}
		ext := p[1]
		n++
		if ext&0x80 != 0 {
			if len(p) > n && p[n]&0x80 != 0 {
				n++
			}
			n++
		}
		if ext&0x40 != 0 {
			n++
		}
		if ext&0x30 != 0 {
			n++
		}
	}
	if len(p) < n {
		return nil, false, false
	}
	return p[n:], first&0x10 != 0 && first&0x07 == 0, true
}

// vp8Size returns the dimensions in a key frame's header (RFC 6386 section 9.1).
func vp8Size(frame []byte) (width, height int, key bool) {
	if len(frame) < 10 || frame[0]&1 != 0 || frame[3] != 0x9d || frame[4] != 0x01 || frame[5] != 0x2a {
		return 0, 0, false
	}
	return int(frame[6]) | int(frame[7]&0x3f)<<8, int(frame[8]) | int(frame[9]&0x3f)<<8, true
}
