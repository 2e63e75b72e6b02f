package speaker

import "time"

const (
	rankHold   = 500 * time.Millisecond // a place is kept so long without a packet
	rankMargin = 6                      // by how many dB one must be louder to take a place
)

// A Ranking says whose sound is among the loudest few, so that a large room hears those who speak and not everybody's
// background. Make it with NewRanking. It belongs to one conference, like a Detector.
type Ranking[ID comparable] struct{ places []place[ID] }

type place[ID comparable] struct {
	id    ID
	taken bool
	score uint8
	at    time.Time
}

// A Score is how loud one source has been, smoothed over its last packets. The zero value is silence.
type Score struct {
	value uint8
	at    time.Time
}

// NewRanking makes a ranking of n places.
func NewRanking[ID comparable](n int) *Ranking[ID] { return &Ranking[ID]{make([]place[ID], n)} }

// Loud notes one level of id, in -dBov as in the header extension (RFC 6464), and reports whether id is among the
// loudest. s is id's own. It does not allocate.
func (r *Ranking[ID]) Loud(id ID, s *Score, level uint8, now time.Time) bool {
	if now.Sub(s.at) > rankHold {
		s.value = 0
	}
	s.value, s.at = uint8((int(s.value)+int(maxLevel-min(level, maxLevel))+1)/2), now
	var least *place[ID]
	for i := range r.places {
		p := &r.places[i]
		switch {
		case p.taken && p.id == id:
			p.score, p.at = s.value, now
			return true
		case !p.taken || now.Sub(p.at) > rankHold:
			*p = place[ID]{}
		}
		if least == nil || p.score < least.score || !p.taken && least.taken {
			least = p
		}
	}
	if least == nil || least.taken && int(s.value) < int(least.score)+rankMargin {
		return false
	}
	*least = place[ID]{id, true, s.value, now}
	return true
}

// Forget frees the place of an id that is gone.
func (r *Ranking[ID]) Forget(id ID) {
	for i := range r.places {
		if r.places[i].taken && r.places[i].id == id {
			r.places[i] = place[ID]{}
		}
	}
}
