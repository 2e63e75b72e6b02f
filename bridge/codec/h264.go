package codec

import "encoding/binary"

// H264's units (RFC 6184 §5.2).
const (
	nalIDR  = 5
	nalSPS  = 7
	nalSTAP = 24
	nalFU   = 28
)

// keyH264 reports whether a key frame begins in a packet: there is a parameter set in it, or the first piece of
// an IDR picture at the beginning of a frame, from an encoder that sent its sets before.
func keyH264(p []byte, start bool) bool {
	if len(p) < 2 {
		return false
	}
	kind := p[0] & 0x1f
	switch kind {
	case nalFU:
		kind = p[1] & 0x1f
		if p[1]&0x80 == 0 { // not its first piece
			return false
		}
	case nalSTAP:
		for p = p[1:]; len(p) > 2; {
			n := int(binary.BigEndian.Uint16(p))
			if n == 0 || len(p) < 2+n {
				return false
			}
			if k := p[2] & 0x1f; k == nalSPS || k == nalIDR && start {
				return true
			}
			p = p[2+n:]
		}
		return false
	}
	return kind == nalSPS || kind == nalIDR && start
}

// keyAV1 reports whether a coded video sequence begins in a packet: the N bit of its aggregation header, while it
// does not go on with a unit of the last packet (AV1 RTP payload specification, 4.4).
func keyAV1(p []byte) bool { return len(p) > 1 && p[0]&0x88 == 0x08 }
