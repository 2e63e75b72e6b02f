package codec

// Primary finds the newest block in a packet of redundant audio (RFC 2198): its payload type and bytes. ok is false for
// what is not well formed.
func Primary(p []byte) (pt uint8, primary []byte, ok bool) {
	older, blocks := 0, 0
	for {
		if len(p) == 0 {
			return 0, nil, false
		}
		if p[0]&0x80 == 0 {
			break
		}
		if blocks++; len(p) < 4 || blocks > 8 {
			return 0, nil, false
		}
		older += int(p[2]&3)<<8 | int(p[3])
		p = p[4:]
	}
	pt, p = p[0], p[1:]
	if len(p) < older {
		return 0, nil, false
	}
	return pt, p[older:], true
}

// RedundancyOf reports whether p looks like redundant audio of a payload type and nothing else: all its blocks are of that
// type, and older than the newest by a multiple of 2.5 ms at 48 kHz. What is encrypted end to end does not, for long.
func RedundancyOf(p []byte, pt uint8) bool {
	for len(p) >= 4 && p[0]&0x80 != 0 {
		offset := int(p[1])<<6 | int(p[2])>>2
		if p[0]&0x7f != pt || offset == 0 || offset%120 != 0 {
			return false
		}
		p = p[4:]
	}
	return len(p) > 0 && p[0] == pt
}
