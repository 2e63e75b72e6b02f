package peer

// The dependency descriptor (AV1 RTP specification, appendix A) as Chromium writes it for VP8 with three
// temporal layers: seven templates, no chains. Bytes as recorded; the resolution is patched in.
var chromiumStructure = [...]byte{
	0x80, 0x02, 0x04, 0x4e, 0xaa, 0xaf, 0x28, 0x60, 0x41, 0x4d,
	0x34, 0x53, 0x8a, 0x09, 0x40, 0x40, 0x4f, 0xc0, 0x2c, 0xc0,
}

// Where the resolution stands in chromiumStructure, in bits.
const (
	widthBit  = 122
	heightBit = widthBit + 16
)

// Templates of chromiumStructure that our pattern of layers (0 2 1 2) uses.
const (
	templateKey     = 0 // T0, depends on nothing
	templateBase    = 1 // T0, on the frame 4 before
	templateMiddle  = 3 // T1, on the frame 2 before
	templateTop     = 5 // T2, on the frame before
	templateTopLast = 6 // T2, on the frames 1 and 3 before
)

// template returns the template of the frame at this position of a clip.
func template(position int) uint8 {
	if position == 0 {
		return templateKey
	}
	return [4]uint8{templateBase, templateTop, templateMiddle, templateTopLast}[position%4]
}

// A descriptor is one dependency descriptor; Width is set on the first packet of a key frame, which
// carries the structure.
type descriptor struct {
	start, end    bool
	template      uint8
	frame         uint16
	width, height int
}

func (d descriptor) append(dst []byte) []byte {
	first := d.template
	if d.start {
		first |= 0x80
	}
	if d.end {
		first |= 0x40
	}
	dst = append(dst, first, byte(d.frame>>8), byte(d.frame))
	if d.width == 0 {
		return dst
	}
	n := len(dst)
	dst = append(dst, chromiumStructure[:]...)
	putBits(dst[n:], widthBit, uint16(d.width-1))
	putBits(dst[n:], heightBit, uint16(d.height-1))
	return dst
}

// putBits overwrites 16 bits at bit offset at.
func putBits(b []byte, at int, v uint16) {
	for i := range 16 {
		bit := byte(v>>(15-i)) & 1
		shift := 7 - (at+i)%8
		b[(at+i)/8] = b[(at+i)/8]&^(1<<shift) | bit<<shift
	}
}
