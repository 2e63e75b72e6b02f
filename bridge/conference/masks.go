package conference

import "plenum/bridge/codec"

// masks are the descriptors of one fan-out's key frames as the receivers of each layer get them. To make one for each
// receiver would cost a large room several times what the rest of the frame costs.
type masks struct {
	n   int
	all [8]struct {
		from  *byte // of the descriptor as it came
		layer uint8
		n     int
		b     [codec.MaxDescriptor]byte
	}
}

// reset forgets all of them: the memory of packets is used again.
func (m *masks) reset() { m.n = 0 }

// of returns a descriptor with a structure as receivers of a layer (sid<<3|tid) get it, valid until the next call.
func (m *masks) of(descriptor []byte, layer uint8) []byte {
	from := &descriptor[0]
	for i := range m.all[:m.n] {
		if x := &m.all[i]; x.from == from && x.layer == layer {
			return x.b[:x.n]
		}
	}
	m.n = min(m.n+1, len(m.all)) // more than that share the last
	x := &m.all[m.n-1]
	x.from, x.layer = from, layer
	x.n = copy(x.b[:], codec.AppendMasked(x.b[:0], descriptor, int(layer)))
	return x.b[:x.n]
}
