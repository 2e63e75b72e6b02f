package codec

// A Picture is the numbering part of a payload descriptor of VP8 (RFC 7741 §4.2) or VP9 (RFC 9628 §4.2). The
// offsets say where in the payload it stands; 0 is not there.
type Picture struct {
	ID       uint16
	Wide     bool // 15-bit picture id
	TL0      uint8
	TID, SID uint8
	Sync     bool // VP8's Y: depends on the base layer only
	IDAt     uint8
	TL0At    uint8
}

// readID reads a picture id, which stands at p[at:], and returns what follows it; 0 if p is too short.
func (i *Picture) readID(p []byte, at int) int {
	if len(p) < at+1 {
		return 0
	}
	i.IDAt, i.ID = uint8(at), uint16(p[at]&0x7f)
	if p[at]&0x80 == 0 { // M
		return at + 1
	}
	if len(p) < at+2 {
		return 0
	}
	i.Wide, i.ID = true, i.ID<<8|uint16(p[at+1])
	return at + 2
}

// ParseVP8 reads the payload descriptor of a VP8 packet, and of a key frame its size.
func ParseVP8(p []byte, f *Frame) bool {
	*f = Frame{Codec: VP8}
	if len(p) < 1 {
		return false
	}
	head, at := p[0], 1
	f.Start = head&0x10 != 0 && head&0x07 == 0 // S, partition 0
	if head&0x80 != 0 {                        // X
		if len(p) < 2 {
			return false
		}
		x := p[1]
		at = 2
		if x&0x80 != 0 { // I
			if at = f.Picture.readID(p, at); at == 0 {
				return false
			}
		}
		if x&0x40 != 0 { // L
			if len(p) < at+1 {
				return false
			}
			f.Picture.TL0, f.Picture.TL0At = p[at], uint8(at)
			at++
		}
		if x&0x30 != 0 { // T, K
			if len(p) < at+1 {
				return false
			}
			if x&0x20 != 0 {
				f.Picture.TID, f.Picture.Sync = p[at]>>6, p[at]&0x20 != 0
			}
			at++
		}
	}
	if f.Picture.IDAt != 0 {
		f.Numbering = ByPicture
	}
	v := p[at:]
	if f.Start && len(v) >= 10 && v[0]&0x01 == 0 && v[3] == 0x9d && v[4] == 0x01 && v[5] == 0x2a { // RFC 6386 §9.1
		f.Key = true
		w, h := int(v[6])|int(v[7]&0x3f)<<8, int(v[8])|int(v[9]&0x3f)<<8
		f.Spatial, f.Heights[0] = 1, uint16(min(w, h))
	}
	return true
}

// RewritePicture writes picture id and TL0PICIDX into a payload that was parsed as p.
func RewritePicture(payload []byte, p *Picture, id uint16, tl0 uint8) {
	if p.IDAt != 0 {
		if p.Wide {
			payload[p.IDAt], payload[p.IDAt+1] = 0x80|byte(id>>8)&0x7f, byte(id)
		} else {
			payload[p.IDAt] = byte(id) & 0x7f
		}
	}
	if p.TL0At != 0 {
		payload[p.TL0At] = tl0
	}
}
