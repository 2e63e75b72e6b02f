package codec

import (
	"encoding/binary"
	"errors"
)

// ErrDescriptor is returned for bytes that are no dependency descriptor.
var ErrDescriptor = errors.New("codec: malformed dependency descriptor")

// ErrNoStructure is returned for a descriptor whose template structure has not been seen; the fields of its
// first three bytes are valid nevertheless, and it can be rewritten.
var ErrNoStructure = errors.New("codec: dependency descriptor without a structure")

const (
	maxTemplates = 64
	maxTargets   = 32
	maxTID       = 7
)

// A Descriptor is what a dependency descriptor (AV1 RTP payload specification, appendix A) says about the
// frame of its packet.
type Descriptor struct {
	Start, End bool
	Frame      uint16
	Template   uint8 // id as on the wire
	TID, SID   uint8
	FDiffs     uint8 // how many frames it depends on directly

	// Present and Switch are about the temporal layer that a receiver gets: bit t of Present says that the frame
	// belongs to the stream of layers 0 to t, bit t of Switch that a receiver of fewer layers can go up to t here.
	Present, Switch uint8

	// HasStructure: this packet brought a template structure, with Templates ids from TemplateOffset on.
	HasStructure   bool
	TemplateOffset uint8
	Templates      uint8
	Height         uint16 // smaller dimension of the highest spatial layer, 0 unknown; only with HasStructure
}

// A DescriptorReader reads the descriptors of one encoding in order; it remembers their template structure.
// The zero value is ready to use.
type DescriptorReader struct {
	s     structure
	valid bool
}

type structure struct {
	offset    uint8
	templates int
	targets   int
	chains    int
	height    uint16
	layer     [maxTemplates]template
	target    [maxTargets]layerID // highest layer in each decode target
	byTID     [maxTID + 1]uint8   // the decode target that carries the layers up to a TID
}

type template struct {
	layerID
	fdiffs         uint8
	present, canGo uint32 // by decode target: not "not present"; "switch"
	presentT, goT  uint8  // the same by TID
}

type layerID struct{ tid, sid uint8 }

// Read parses b into d. After ErrNoStructure d holds the fields that every descriptor has; after ErrDescriptor
// nothing of d is to be used.
func (r *DescriptorReader) Read(b []byte, d *Descriptor) error {
	*d = Descriptor{}
	if len(b) < 3 {
		return ErrDescriptor
	}
	d.Start, d.End, d.Template = b[0]&0x80 != 0, b[0]&0x40 != 0, b[0]&0x3f
	d.Frame = binary.BigEndian.Uint16(b[1:])
	bits := bitReader{b: b, at: 24}
	var customDTIs, customFDiffs bool
	if len(b) > 3 {
		hasStructure, hasActive := bits.flag(), bits.flag()
		customDTIs, customFDiffs = bits.flag(), bits.flag()
		bits.flag() // custom chains come last and tell us nothing
		if hasStructure {
			var s structure
			if !s.read(&bits) {
				return ErrDescriptor
			}
			r.s, r.valid = s, true
			d.HasStructure, d.TemplateOffset, d.Templates, d.Height = true, s.offset, uint8(s.templates), s.height
		}
		if hasActive && r.valid {
			bits.read(r.s.targets)
		}
	}
	if !r.valid {
		return ErrNoStructure
	}
	index := int((d.Template - r.s.offset) & 63)
	if index >= r.s.templates {
		return ErrNoStructure // of a structure that we have missed
	}
	t := &r.s.layer[index]
	d.TID, d.SID, d.FDiffs = t.tid, t.sid, t.fdiffs
	d.Present, d.Switch = t.presentT, t.goT
	if customDTIs {
		var present, canGo uint32
		for i := range r.s.targets {
			dti := bits.read(2)
			if dti != dtiNotPresent {
				present |= 1 << i
			}
			if dti == dtiSwitch {
				canGo |= 1 << i
			}
		}
		d.Present, d.Switch = r.s.fold(present), r.s.fold(canGo)
	}
	if customFDiffs {
		d.FDiffs = 0
		for {
			size := bits.read(2)
			if size == 0 || bits.bad {
				break
			}
			bits.read(4 * int(size))
			d.FDiffs++
		}
	}
	if bits.bad {
		return ErrDescriptor
	}
	return nil
}

const (
	dtiNotPresent = 0
	dtiSwitch     = 2
)

// read parses template_dependency_structure().
func (s *structure) read(bits *bitReader) bool {
	s.offset = uint8(bits.read(6))
	s.targets = int(bits.read(5)) + 1
	var l layerID
	for {
		if s.templates == maxTemplates || bits.bad {
			return false
		}
		s.layer[s.templates].layerID = l
		s.templates++
		next := bits.read(2)
		if next == 3 {
			break
		}
		switch next {
		case 1:
			l.tid++
		case 2:
			l.tid = 0
			l.sid++
		}
		if l.tid > maxTID || l.sid > 3 {
			return false
		}
	}
	for i := range s.templates {
		t := &s.layer[i]
		for dt := range s.targets {
			dti := bits.read(2)
			if dti == dtiNotPresent {
				continue
			}
			t.present |= 1 << dt
			if dti == dtiSwitch {
				t.canGo |= 1 << dt
			}
			at := &s.target[dt]
			at.tid, at.sid = max(at.tid, t.tid), max(at.sid, t.sid)
		}
	}
	for i := range s.templates {
		for bits.flag() {
			bits.read(4)
			s.layer[i].fdiffs++
			if bits.bad {
				return false
			}
		}
	}
	if s.chains = int(bits.nonSymmetric(uint32(s.targets) + 1)); s.chains > 0 {
		for range s.targets {
			bits.nonSymmetric(uint32(s.chains))
		}
		for range s.templates * s.chains {
			bits.read(4)
		}
	}
	if bits.flag() {
		for range l.sid + 1 {
			w, h := bits.read(16)+1, bits.read(16)+1
			s.height = uint16(min(w, h, 1<<16-1))
		}
	}
	if bits.bad {
		return false
	}
	for tid := range s.byTID {
		best, found := 0, false
		for dt := range s.targets {
			a, b := s.target[dt], s.target[best]
			if int(a.tid) > tid {
				continue
			}
			if !found || a.tid > b.tid || a.tid == b.tid && a.sid > b.sid {
				best, found = dt, true
			}
		}
		if !found { // no target is that low: the lowest there is
			for dt := range s.targets {
				if s.target[dt].tid < s.target[best].tid {
					best = dt
				}
			}
		}
		s.byTID[tid] = uint8(best)
	}
	for i := range s.templates {
		t := &s.layer[i]
		t.presentT, t.goT = s.fold(t.present), s.fold(t.canGo)
	}
	return true
}

// fold turns a mask by decode target into one by temporal layer.
func (s *structure) fold(targets uint32) (tids uint8) {
	for tid, dt := range s.byTID {
		if targets&(1<<dt) != 0 {
			tids |= 1 << tid
		}
	}
	return tids
}

// RewriteDescriptor shifts the frame number and the template ids of a descriptor, in place. b was accepted by
// Read, with or without a structure.
func RewriteDescriptor(b []byte, frame uint16, template uint8) {
	b[0] = b[0]&0xc0 | (b[0]+template)&0x3f
	binary.BigEndian.PutUint16(b[1:], binary.BigEndian.Uint16(b[1:])+frame)
	if len(b) > 4 && b[3]&0x80 != 0 { // template_id_offset is bits 29 to 34
		offset := (b[3]<<3&0x38 | b[4]>>5) + template
		b[3] = b[3]&0xf8 | offset>>3&0x07
		b[4] = b[4]&0x1f | offset<<5
	}
}

// A bitReader reads big-endian bit fields; past the end it returns zeros and turns bad.
type bitReader struct {
	b   []byte
	at  int
	bad bool
}

func (r *bitReader) read(n int) (v uint32) {
	if r.at+n > 8*len(r.b) {
		r.bad = true
		return 0
	}
	for range n {
		v = v<<1 | uint32(r.b[r.at>>3]>>(7-r.at&7)&1)
		r.at++
	}
	return v
}

func (r *bitReader) flag() bool { return r.read(1) == 1 }

// nonSymmetric reads ns(n) of the AV1 specification §4.10.7.
func (r *bitReader) nonSymmetric(n uint32) uint32 {
	w := 0
	for x := n; x != 0; x >>= 1 {
		w++
	}
	m := uint32(1)<<w - n
	v := r.read(w - 1)
	if v < m {
		return v
	}
	return v<<1 - m + r.read(1)
}
