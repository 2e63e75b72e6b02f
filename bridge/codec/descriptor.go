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
)

// A Descriptor is what a dependency descriptor (AV1 RTP payload specification, appendix A) says about the
// frame of its packet.
type Descriptor struct {
	Start, End bool
	Frame      uint16
	Template   uint8 // id as on the wire
	TID, SID   uint8
	FDiffs     uint8 // how many frames it depends on directly

	// HasStructure: this packet brought a template structure, with Templates ids from TemplateOffset on.
	HasStructure   bool
	TemplateOffset uint8
	Templates      uint8
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
	spatial   uint8
	heights   [MaxSpatial]uint16
	layer     [maxTemplates]template
	target    [maxTargets]layerID              // highest layer in each decode target
	byLayer   [MaxSpatial * (MaxTID + 1)]uint8 // the decode target for sid<<3|tid
}

type template struct {
	layerID
	fdiffs            uint8
	present, canGo    uint32 // by decode target: not "not present"; "switch"
	presentL, switchL Layers
}

type layerID struct{ tid, sid uint8 }

// Read parses b into the Descriptor, layers and sizes of f. After ErrNoStructure the descriptor holds the fields
// that every one has; after ErrDescriptor nothing of it is to be used.
func (r *DescriptorReader) Read(b []byte, f *Frame) error {
	d := &f.Descriptor
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
			d.HasStructure, d.TemplateOffset, d.Templates = true, s.offset, uint8(s.templates)
			f.Spatial, f.Heights = s.spatial, s.heights
		}
		if hasActive && r.valid {
			if active := bits.read(r.s.targets); active != 0 {
				f.Spatial, f.Heights = r.s.active(active), r.s.heights
			}
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
	f.Present, f.Switch = t.presentL, t.switchL
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
		f.Present, f.Switch = r.s.fold(present), r.s.fold(canGo)
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
		if l.tid > MaxTID || l.sid >= MaxSpatial {
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
	s.spatial = l.sid + 1
	if bits.flag() {
		for i := range s.spatial {
			w, h := bits.read(16)+1, bits.read(16)+1
			s.heights[i] = uint16(min(w, h, 1<<16-1))
		}
	}
	if bits.bad {
		return false
	}
	for i := range s.byLayer {
		s.byLayer[i] = uint8(s.best(layerID{tid: uint8(i & 7), sid: uint8(i >> 3)}))
	}
	for i := range s.templates {
		t := &s.layer[i]
		t.presentL, t.switchL = s.fold(t.present), s.fold(t.canGo)
	}
	return true
}

// best returns the decode target for a layer: the highest that does not go beyond it, spatial layers first, or
// the lowest there is.
func (s *structure) best(want layerID) int {
	best, lowest := -1, 0
	for dt := range s.targets {
		l := s.target[dt]
		if l.tid <= want.tid && l.sid <= want.sid && (best < 0 || s.target[best].below(l)) {
			best = dt
		}
		if l.below(s.target[lowest]) {
			lowest = dt
		}
	}
	if best < 0 {
		return lowest
	}
	return best
}

func (l layerID) below(m layerID) bool { return l.sid < m.sid || l.sid == m.sid && l.tid < m.tid }

// active returns how many spatial layers a mask of decode targets leaves.
func (s *structure) active(targets uint32) (spatial uint8) {
	for dt := range s.targets {
		if targets>>dt&1 != 0 {
			spatial = max(spatial, s.target[dt].sid+1)
		}
	}
	return spatial
}

// fold turns a mask by decode target into a set of layers.
func (s *structure) fold(targets uint32) (l Layers) {
	for i, dt := range s.byLayer {
		if targets&(1<<dt) != 0 {
			l |= 1 << i
		}
	}
	return l
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

// MaxDescriptor is the length that AppendMasked needs at most.
const MaxDescriptor = 260

// AppendMasked appends b, a descriptor with a structure, with its mask of active decode targets reduced to those
// of a layer (sid<<3|tid), so that the receiver does not wait for what it will not get. Anything else, and one
// that has no spatial layers, is appended as it is.
func AppendMasked(dst, b []byte, layer int) []byte {
	var s structure
	bits := bitReader{b: b, at: 24}
	if len(b) <= 3 || len(b) > MaxDescriptor-8 || b[3]&0x80 == 0 {
		return append(dst, b...)
	}
	bits.flag()
	hasActive := bits.flag()
	bits.read(3)
	if !s.read(&bits) || s.spatial < 2 {
		return append(dst, b...)
	}
	end := bits.at
	active := uint32(1)<<s.targets - 1
	if hasActive {
		active &= bits.read(s.targets)
	}
	for dt := range s.targets {
		if l := s.target[dt]; int(l.sid) > layer>>3 || int(l.tid) > layer&7 {
			active &^= 1 << dt
		}
	}
	if bits.bad || active == 0 {
		return append(dst, b...)
	}
	var out [MaxDescriptor]byte
	w := bitCopier{to: out[:]}
	w.copy(b, 0, end)
	out[3] |= 0x40 // active_decode_targets_present_flag
	w.put(active, s.targets)
	w.copy(b, bits.at, 8*len(b)) // with the padding of the last byte, which means nothing
	return append(dst, out[:(w.at+7)/8]...)
}

// A bitCopier writes big-endian bit fields into zeroed memory that is large enough.
type bitCopier struct {
	to []byte
	at int
}

func (w *bitCopier) put(v uint32, n int) {
	for i := n - 1; i >= 0; i-- {
		w.to[w.at>>3] |= byte(v>>i&1) << (7 - w.at&7)
		w.at++
	}
}

func (w *bitCopier) copy(b []byte, from, to int) {
	for ; from < to; from++ {
		w.put(uint32(b[from>>3]>>(7-from&7)&1), 1)
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
