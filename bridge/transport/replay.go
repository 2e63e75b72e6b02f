package transport

// windowBits is how far behind the newest a packet may be and still be told from a replay (RFC 3711 §3.3.2
// asks for 64 at least).
const windowBits = 1024

// A stream is the packet index of one SSRC: the highest one, and which of those below it were seen.
type stream struct {
	started bool
	highest uint64 // ROC<<16 | sequence number, or the SRTCP index
	seen    [windowBits / 64]uint64
	used    uint64 // when, on the table's clock
}

// guess is the index that seq most likely means (RFC 3711 §3.3.1, appendix A). A number from before the
// first round is never fresh: the two sides could not agree on its index.
func (s *stream) guess(seq uint16) uint64 {
	if !s.started {
		return uint64(seq)
	}
	index := s.highest&^0xffff | uint64(seq)
	switch d := int32(seq) - int32(uint16(s.highest)); {
	case d > 1<<15 && index < 1<<16:
		return ^uint64(0)
	case d > 1<<15:
		index -= 1 << 16
	case d < -(1 << 15):
		index += 1 << 16
	}
	return index
}

// fresh reports whether index is neither seen nor too old.
func (s *stream) fresh(index uint64) bool {
	if !s.started || index > s.highest {
		return index < 1<<48
	}
	if s.highest/64-index/64 >= uint64(len(s.seen)) {
		return false
	}
	return s.seen[index/64%uint64(len(s.seen))]>>(index%64)&1 == 0
}

// take marks a fresh index as seen.
func (s *stream) take(index uint64) {
	switch {
	case !s.started:
		s.started, s.highest = true, index
	case index > s.highest:
		// The words between the old and the new one begin again; their bits are of the round before.
		from, to := s.highest/64+1, index/64
		if to-from >= uint64(len(s.seen)) && to >= from {
			clear(s.seen[:])
		} else {
			for w := from; w <= to; w++ {
				s.seen[w%uint64(len(s.seen))] = 0
			}
		}
		s.highest = index
	}
	s.seen[index/64%uint64(len(s.seen))] |= 1 << (index % 64)
}

// streams are the streams of one direction by SSRC, at most limit; the one that was not used for longest
// gives way.
type streams struct {
	limit int
	m     map[uint32]*stream
	ssrc  uint32 // of last
	last  *stream
	clock uint64
}

func newStreams(limit int) streams { return streams{limit: limit, m: make(map[uint32]*stream)} }

// get returns the stream of ssrc, or nil.
func (t *streams) get(ssrc uint32) *stream {
	t.clock++
	if t.last == nil || t.ssrc != ssrc {
		s := t.m[ssrc]
		if s == nil {
			return nil
		}
		t.ssrc, t.last = ssrc, s
	}
	t.last.used = t.clock
	return t.last
}

func (t *streams) full() bool { return len(t.m) >= t.limit }

// add makes the stream of an ssrc that get does not know.
func (t *streams) add(ssrc uint32) *stream {
	if t.full() {
		var oldest uint32
		used := ^uint64(0)
		for k, s := range t.m {
			if s.used < used {
				oldest, used = k, s.used
			}
		}
		if t.last == t.m[oldest] {
			t.last = nil
		}
		delete(t.m, oldest)
	}
	s := &stream{used: t.clock}
	t.m[ssrc] = s
	t.ssrc, t.last = ssrc, s
	return s
}
