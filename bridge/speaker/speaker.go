// Package speaker decides who is speaking from audio levels alone, after Volfin and Cohen ("Dominant speaker
// identification for multipoint videoconferencing"), with the constants of the Java bridge.
// It has no clock and no goroutine; each Detector belongs to one conference.
package speaker

import (
	"math"
	"time"
)

const (
	// Interval is the time between two decisions.
	Interval = 300 * time.Millisecond
	// MaxRecent is how many former speakers are remembered.
	MaxRecent = 10

	idle   = 40 * time.Millisecond // without a level for this long counts as silence
	forget = time.Hour             // without a level for this long the speaker is dropped

	maxLevel  = 127
	subunit   = 10 // levels per unit of immediate activity
	n1        = 13 // units in a level
	n2        = 5  // levels in a medium interval: 100 ms
	n3        = 10 // medium intervals in the long one: 1 s
	history   = n2 * n3
	minWindow = 750 // levels, about 15 s, after which the noise floor may rise

	mediumThreshold = 7 // units above which a level counts in its medium interval
	longThreshold   = 4 // counted levels above which a medium interval counts in the long one

	floorScore = 1e-10
)

// The thresholds c1, c2, c3 that a challenger's three log ratios must exceed.
const (
	immediateRatio = 3
	mediumRatio    = 2
	longRatio      = 0
)

// A Detector ranks endpoints by recent speech. The zero value is ready to use. It is not safe for concurrent use.
//
//	levels (20 ms) ──► units 0..12 ──► medium: loud levels of 5 ──► long: full mediums of 10
//	                        │                   │                          │
//	                    score[0]            score[1]                   score[2]    compared every 300 ms
type Detector[ID comparable] struct {
	speakers map[ID]*levels
	dominant ID
	known    bool // dominant is set
	recent   []ID // former speakers, the last one first
	decided  time.Time
}

// levels is what is known of one speaker. Levels count up from silence, unlike the header extension.
type levels struct {
	last  time.Time
	order uint64 // of first appearance; breaks ties

	ring  [history]uint8
	head  int // index of the newest level
	loud  int // how many of ring are not zero
	floor uint8

	next       uint8 // lowest level seen since floor was set, 0: none yet
	nextWindow int
}

// Observe records one level of id, in -dBov as in the header extension (RFC 6464): 0 is loudest, 127 silent.
// It allocates only when id is new.
func (d *Detector[ID]) Observe(id ID, level uint8, now time.Time) {
	s := d.speakers[id]
	if s == nil {
		if d.speakers == nil {
			d.speakers = make(map[ID]*levels)
		}
		s = &levels{order: uint64(len(d.speakers))}
		for _, other := range d.speakers {
			s.order = max(s.order, other.order+1)
		}
		d.speakers[id] = s
	}
	if now.Before(s.last) {
		return
	}
	s.last = now
	s.push(maxLevel - min(level, maxLevel))
}

// Tick decides, at most once per Interval, and reports whether the dominant speaker changed. Silence changes nothing.
func (d *Detector[ID]) Tick(now time.Time) (changed bool) {
	if now.Sub(d.decided) < Interval {
		return false
	}
	d.decided = now
	for id, s := range d.speakers {
		if now.Sub(s.last) > forget {
			d.Remove(id)
			continue
		}
		s.silence(now)
	}

	// Without a speaker a challenger has to beat silence, so that a cough does not make one.
	current := [3]float64{floorScore, floorScore, floorScore}
	if s := d.speakers[d.dominant]; d.known && s != nil {
		current = s.scores()
	}
	var winner ID
	var best float64
	var order uint64
	for id, s := range d.speakers {
		if d.known && id == d.dominant || s.loud == 0 {
			continue
		}
		score := s.scores()
		medium := math.Log(score[1] / current[1])
		if math.Log(score[0]/current[0]) <= immediateRatio || medium <= mediumRatio || math.Log(score[2]/current[2]) <= longRatio {
			continue
		}
		if !changed || medium > best || medium == best && s.order < order {
			winner, best, order, changed = id, medium, s.order, true
		}
	}
	if changed {
		d.elect(winner)
	}
	return changed
}

func (d *Detector[ID]) elect(id ID) {
	d.drop(id)
	if d.known {
		if len(d.recent) < MaxRecent {
			d.recent = append(d.recent, d.dominant)
		}
		copy(d.recent[1:], d.recent)
		d.recent[0] = d.dominant
	}
	d.dominant, d.known = id, true
}

// Dominant returns who speaks, or spoke last; false if nobody has yet.
func (d *Detector[ID]) Dominant() (ID, bool) { return d.dominant, d.known }

// Recent appends the former speakers to dst, the last one first: at most MaxRecent, without the dominant one.
func (d *Detector[ID]) Recent(dst []ID) []ID { return append(dst, d.recent...) }

// Remove forgets id. If it was dominant, nobody is until the next change.
func (d *Detector[ID]) Remove(id ID) {
	delete(d.speakers, id)
	d.drop(id)
	if d.known && d.dominant == id {
		var none ID
		d.dominant, d.known = none, false
	}
}

func (d *Detector[ID]) drop(id ID) {
	for i, r := range d.recent {
		if r == id {
			d.recent = append(d.recent[:i], d.recent[i+1:]...)
			return
		}
	}
}

// push records one level, 0 silent to 127.
func (s *levels) push(level uint8) {
	s.head = (s.head + 1) % history
	if s.ring[s.head] != 0 {
		s.loud--
	}
	s.ring[s.head] = level
	if level == 0 {
		return
	}
	s.loud++

	// The floor falls at once and rises slowly, to the geometric mean with the lowest level of a window.
	switch {
	case s.floor == 0 || level < s.floor:
		s.floor, s.next, s.nextWindow = level, 0, 0
	case s.next == 0:
		s.next, s.nextWindow = level, 1
	default:
		s.next = min(s.next, level)
		if s.nextWindow++; s.nextWindow >= minWindow {
			s.floor = uint8(math.Sqrt(float64(s.floor) * float64(s.next)))
			s.next, s.nextWindow = 0, 0
		}
	}
}

// silence fills the time since the last level with silent ones.
func (s *levels) silence(now time.Time) {
	for s.loud > 0 && now.Sub(s.last) >= idle { // ends after history rounds
		s.last = s.last.Add(idle)
		s.push(0)
	}
}

// scores returns the immediate, medium and long activity.
func (s *levels) scores() [3]float64 {
	var immediate, medium, long int
	for i := range n3 {
		loud := 0
		for j := range n2 {
			unit := s.unit(i*n2 + j)
			if i == 0 && j == 0 {
				immediate = unit
			}
			if unit > mediumThreshold {
				loud++
			}
		}
		if i == 0 {
			medium = loud
		}
		if loud > longThreshold {
			long++
		}
	}
	return [3]float64{
		immediateTable[immediate],
		mediumTable[medium],
		longTable[long],
	}
}

// unit is the activity of the level that came age levels ago: 0 if it is not above the noise floor.
func (s *levels) unit(age int) int {
	i := s.head - age
	if i < 0 {
		i += history
	}
	level := int(s.ring[i])
	if level < int(s.floor)+subunit {
		return 0
	}
	return level / subunit
}

// The three distributions with their parameters lambda.
var (
	immediateTable = table(n1, 0.78)
	mediumTable    = table(n2, 24)
	longTable      = table(n3, 47)
)

// table is the score of v active of n for every v: the log likelihood of speech against silence.
func table(n int, lambda float64) []float64 {
	t := make([]float64, n+1)
	choose := 1.0
	for v := range t {
		score := math.Log(choose) + float64(n)*math.Log(0.5) - math.Log(lambda) + lambda*float64(v)
		t[v] = max(score, floorScore)
		choose = choose * float64(n-v) / float64(v+1)
	}
	return t
}
