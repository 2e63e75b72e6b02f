package codec

// A small writer of dependency descriptors, to test the reader with; straight from the AV1 RTP payload
// specification, appendix A.8.

type Head struct {
	Start, End bool
	Template   uint8
	Frame      uint16
}

type Written struct {
	Offset    uint8
	Targets   int
	Templates []WrittenTemplate
	Chains    int
	Protected []int // by target: its chain
	Sizes     [][2]int
}

type WrittenTemplate struct {
	SID, TID int
	DTIs     string // one of "-DSR" for each target
	FDiffs   []int
}

type bitWriter struct {
	b []byte
	n int
}

func (w *bitWriter) put(v, n int) {
	for i := n - 1; i >= 0; i-- {
		if w.n&7 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[len(w.b)-1] |= byte(v>>i&1) << (7 - w.n&7)
		w.n++
	}
}

func (w *bitWriter) flag(v bool) {
	if v {
		w.put(1, 1)
	} else {
		w.put(0, 1)
	}
}

func (w *bitWriter) ns(v, n int) {
	bits := 0
	for x := n; x != 0; x >>= 1 {
		bits++
	}
	if m := 1<<bits - n; v < m {
		w.put(v, bits-1)
	} else {
		w.put(v+m, bits)
	}
}

func (w *bitWriter) head(h Head) {
	w.flag(h.Start)
	w.flag(h.End)
	w.put(int(h.Template), 6)
	w.put(int(h.Frame), 16)
}

var dtis = map[rune]int{'-': 0, 'D': 1, 'S': 2, 'R': 3}

func (s Written) Append(dst []byte, h Head) []byte {
	var w bitWriter
	w.head(h)
	w.put(0b10000, 5)
	w.put(int(s.Offset), 6)
	w.put(s.Targets-1, 5)
	for i := range s.Templates {
		if i == len(s.Templates)-1 {
			w.put(3, 2)
			break
		}
		a, b := s.Templates[i], s.Templates[i+1]
		switch {
		case b.SID > a.SID:
			w.put(2, 2)
		case b.TID > a.TID:
			w.put(1, 2)
		default:
			w.put(0, 2)
		}
	}
	for _, t := range s.Templates {
		for _, c := range t.DTIs {
			w.put(dtis[c], 2)
		}
	}
	for _, t := range s.Templates {
		for _, d := range t.FDiffs {
			w.put(1, 1)
			w.put(d-1, 4)
		}
		w.put(0, 1)
	}
	w.ns(s.Chains, s.Targets+1)
	if s.Chains > 0 {
		for _, p := range s.Protected {
			w.ns(p, s.Chains)
		}
		for range s.Templates {
			for range s.Chains {
				w.put(1, 4)
			}
		}
	}
	w.flag(s.Sizes != nil)
	for _, size := range s.Sizes {
		w.put(size[0]-1, 16)
		w.put(size[1]-1, 16)
	}
	return append(dst, w.b...)
}

func AppendCustom(dst []byte, h Head, dti string, fdiffs []int) []byte {
	var w bitWriter
	w.head(h)
	w.put(0b00110, 5)
	for _, c := range dti {
		w.put(dtis[c], 2)
	}
	for _, d := range fdiffs {
		size := 1
		for d > 1<<(4*size) {
			size++
		}
		w.put(size, 2)
		w.put(d-1, 4*size)
	}
	w.put(0, 2)
	return append(dst, w.b...)
}
