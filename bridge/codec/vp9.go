package codec

// ParseVP9 reads the payload descriptor of a VP9 packet (RFC 9628 §4.2).
func ParseVP9(p []byte, f *Frame) bool {
	*f = Frame{Codec: VP9}
	if len(p) < 1 {
		return false
	}
	head, at := p[0], 1
	inter := head&0x40 != 0 // P: depends on other pictures
	f.End = head&0x04 != 0  // E
	last := head&0x01 != 0  // Z: no reference for higher spatial layers
	if head&0x80 != 0 {     // I
		if at = f.Picture.readID(p, at); at == 0 {
			return false
		}
	}
	up := false
	if head&0x20 != 0 { // L
		if len(p) < at+1 {
			return false
		}
		f.Picture.TID, f.Picture.SID = p[at]>>5, p[at]>>1&7
		up = p[at]&0x10 != 0 // U
		if f.Picture.SID >= MaxSpatial {
			return false
		}
		at++
		if head&0x10 == 0 { // not F: TL0PICIDX follows
			if len(p) < at+1 {
				return false
			}
			f.Picture.TL0, f.Picture.TL0At = p[at], uint8(at)
			at++
		}
	}
	if head&0x50 == 0x50 { // F and P: up to three reference indices
		for more := true; more; at++ {
			if len(p) < at+1 || at > 10 {
				return false
			}
			more = p[at]&0x01 != 0
		}
	}
	if head&0x02 != 0 && !f.readStructure(p[at:]) { // V
		return false
	}
	f.Start = head&0x08 != 0 // B
	f.Key = f.Start && !inter && f.Picture.SID == 0
	if f.Picture.IDAt != 0 {
		f.Numbering = ByLayers
	}
	tid, sid := f.Picture.TID, f.Picture.SID
	for s := sid; s < MaxSpatial && (s == sid || !last); s++ {
		f.Present |= Layers(0xff<<tid&0xff) << (8 * s)
	}
	f.Switch = 1 << (8*sid + tid)
	if up {
		f.Switch |= Layers(0xff<<tid&0xff) << (8 * sid)
	}
	return true
}

// readStructure reads the sizes of a scalability structure (RFC 9628 §4.2.1); the pictures' pattern, which
// follows them, is the decoder's business.
func (f *Frame) readStructure(p []byte) bool {
	if len(p) < 1 {
		return false
	}
	n := p[0]>>5 + 1
	if n > MaxSpatial {
		return false
	}
	f.Spatial = n
	if p[0]&0x10 == 0 { // Y
		return true
	}
	p = p[1:]
	if len(p) < 4*int(n) {
		return false
	}
	for i := range n {
		w, h := uint16(p[4*i])<<8|uint16(p[4*i+1]), uint16(p[4*i+2])<<8|uint16(p[4*i+3])
		f.Heights[i] = min(w, h)
	}
	return true
}
