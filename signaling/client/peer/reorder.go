package peer

import "time"

const (
	window      = 512 // packets of a stream remembered
	maxMissing  = 256 // a larger hole is a restart, not loss
	giveUpAfter = time.Second
	nackAfter   = 10 * time.Millisecond
	nackEvery   = 100 * time.Millisecond
	nackTries   = 10
	pliEvery    = 500 * time.Millisecond
)

// A part is what one packet means for its frame.
type part struct {
	ts                 uint32
	start, marker, key bool
	empty              bool // padding
	width, height      int
	colour             string
}

// reorder puts one video stream in order and decides, as a decoder would, which frames can be shown:
// those that are complete, after a complete key frame, without anything given up in between.
// It is pure: feedback that it wants is picked up by lost and pictureLost.
type reorder struct {
	started bool
	next    int64 // sequence number, unwrapped, that is processed next
	highest int64
	parts   [window]part
	seqs    [window]int64
	missing []gap
	key     int64 // where the newest key frame begins

	inFrame   bool
	first     part // of the frame that is being put together
	waitKey   bool
	waitSince time.Time
	lastPLI   time.Time
}

type gap struct {
	seq         int64
	since, last time.Time
	tries       int
}

func newReorder() *reorder {
	r := &reorder{waitKey: true}
	for i := range r.seqs {
		r.seqs[i] = -1 << 62
	}
	return r
}

// add takes a packet of the stream itself.
func (r *reorder) add(rec *Received, seq16 uint16, pt part, now time.Time) {
	if !r.started {
		r.started, r.next, r.highest, r.waitSince = true, int64(seq16), int64(seq16)-1, now
	}
	seq := r.unwrap(seq16)
	if seq < r.next || r.seqs[at(seq)] == seq {
		rec.Late++
		return
	}
	if seq-r.highest > maxMissing {
		rec.Lost += uint64(seq - r.next)
		r.missing, r.next = r.missing[:0], seq
		r.lose(now)
	} else {
		for s := r.highest + 1; s < seq; s++ {
			r.missing = append(r.missing, gap{seq: s, since: now})
		}
	}
	r.highest = max(r.highest, seq)
	r.put(rec, seq, pt, now)
}

// unwrap extends a sequence number to the one nearest to the highest.
func (r *reorder) unwrap(seq uint16) int64 {
	return r.highest + int64(int16(seq-uint16(r.highest)))
}

// repair takes a packet that came by retransmission.
func (r *reorder) repair(rec *Received, seq16 uint16, pt part, now time.Time) {
	seq := r.unwrap(seq16)
	if !r.started || seq < r.next || r.seqs[at(seq)] == seq || seq > r.highest {
		rec.Late++
		return
	}
	rec.Recovered++
	r.put(rec, seq, pt, now)
}

func (r *reorder) put(rec *Received, seq int64, pt part, now time.Time) {
	r.parts[at(seq)], r.seqs[at(seq)] = pt, seq
	if pt.key && pt.start {
		r.key = max(r.key, seq)
	}
	for i := range r.missing {
		if r.missing[i].seq == seq {
			r.missing = append(r.missing[:i], r.missing[i+1:]...)
			break
		}
	}
	r.advance(rec, now)
}

// advance processes all that is in order, goes on with a whole key frame where something is missing before it, and gives up
// what is too old.
func (r *reorder) advance(rec *Received, now time.Time) {
	for r.started {
		if r.seqs[at(r.next)] == r.next {
			r.process(rec, &r.parts[at(r.next)], now)
			r.next++
			continue
		}
		if len(r.missing) == 0 || r.missing[0].seq != r.next {
			return // nothing newer has arrived
		}
		if r.key > r.next && r.whole(r.key) {
			for len(r.missing) > 0 && r.missing[0].seq < r.key {
				r.missing = append(r.missing[:0], r.missing[1:]...)
				rec.Lost++
			}
			r.next, r.inFrame = r.key, false
			continue
		}
		if now.Sub(r.missing[0].since) < giveUpAfter && len(r.missing) < maxMissing {
			return
		}
		r.missing = append(r.missing[:0], r.missing[1:]...)
		r.next++
		rec.Lost++
		r.lose(now)
	}
}

// whole reports whether all of the frame that begins with a packet has come.
func (r *reorder) whole(seq int64) bool {
	for ; r.seqs[at(seq)] == seq; seq++ {
		if r.parts[at(seq)].marker {
			return true
		}
	}
	return false
}

func (r *reorder) lose(now time.Time) {
	r.inFrame = false
	if !r.waitKey {
		r.waitKey, r.waitSince = true, now
	}
}

func (r *reorder) process(rec *Received, pt *part, now time.Time) {
	if pt.empty {
		return
	}
	if pt.start {
		r.inFrame, r.first = true, *pt
	}
	if !r.inFrame || pt.ts != r.first.ts || !pt.marker {
		return
	}
	r.inFrame = false
	if r.first.key {
		r.waitKey = false
		rec.KeyFrames++
		rec.Width, rec.Height, rec.Colour = r.first.width, r.first.height, r.first.colour
	}
	if r.waitKey {
		rec.Broken++
		return
	}
	rec.Frames++
	if rec.FirstFrame.IsZero() {
		rec.FirstFrame = now
	} else {
		gap := now.Sub(rec.LastFrame)
		rec.MaxGap = max(rec.MaxGap, gap)
		if gap > frozenAfter {
			rec.Freezes++
			rec.Frozen += gap
		}
	}
	rec.LastFrame = now
}

// lost returns the sequence numbers to ask for now.
func (r *reorder) lost(now time.Time) []uint16 {
	var out []uint16
	for i := range r.missing {
		g := &r.missing[i]
		if g.tries < nackTries && now.Sub(g.since) >= nackAfter && now.Sub(g.last) >= nackEvery {
			g.last = now
			g.tries++
			out = append(out, uint16(g.seq))
		}
	}
	return out
}

// pictureLost reports whether a key frame is to be asked for now.
func (r *reorder) pictureLost(now time.Time) bool {
	if !r.started || !r.waitKey || now.Sub(r.waitSince) < nackEvery || now.Sub(r.lastPLI) < pliEvery {
		return false
	}
	r.lastPLI = now
	return true
}

func at(seq int64) int { return int(uint64(seq) % window) }
