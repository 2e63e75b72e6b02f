package transport

import "slices"

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

// streams are the streams of one direction by SSRC, at most limit; those that were not used for longest give way, a
// quarter at a time. With remember their numbers stay: nothing that was used is fresh when they come back.
type streams struct {
	limit    int
	remember int // how many of those that gave way
	m        map[uint32]*stream
	past     map[uint32]uint64 // the highest index of those that gave way
	ssrc     uint32            // of last
	last     *stream
	clock    uint64
}

func newStreams(limit, remember int) streams {
	return streams{limit: limit, remember: remember, m: make(map[uint32]*stream)}
}

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

// add makes the stream of an ssrc that get does not know. It returns nil when it may not forget any other.
func (t *streams) add(ssrc uint32) *stream {
	if len(t.m) >= t.limit && !t.makeRoom() {
		return nil
	}
	s := &stream{used: t.clock}
	if highest, ok := t.past[ssrc]; ok {
		s.started, s.highest = true, highest
		for i := range s.seen {
			s.seen[i] = ^uint64(0)
		}
		delete(t.past, ssrc)
	}
	t.m[ssrc] = s
	t.ssrc, t.last = ssrc, s
	return s
}

// makeRoom takes away what was not used for longest.
func (t *streams) makeRoom() bool {
	n := max(1, t.limit/4)
	if t.remember > 0 && len(t.past)+n > t.remember {
		return false
	}
	used := make([]uint64, 0, len(t.m))
	for _, s := range t.m {
		used = append(used, s.used)
	}
	slices.Sort(used)
	for ssrc, s := range t.m {
		if s.used > used[n-1] {
			continue
		}
		delete(t.m, ssrc)
		if t.remember > 0 {
			if t.past == nil {
				t.past = make(map[uint32]uint64)
			}
			t.past[ssrc] = s.highest
		}
	}
	t.last = nil
	return true
}
