package allocate

import "math"

// Unlimited is the MaxHeight of a source whose height is not limited, and the LastN of a receiver that takes all.
const Unlimited = -1

// MaxForwarded is the most video sources that one receiver gets, whatever its lastN.
const MaxForwarded = 50

// defaultHeight is wanted of every source after a first request that says nothing about the default.
const defaultHeight = 180

// A Constraint bounds what a receiver wants of one source.
type Constraint struct {
	MaxHeight    int     // of the smaller dimension in pixels: Unlimited, or 0 for nothing
	MaxFrameRate float64 // per second; 0 or less is no limit
}

// A Request is one ReceiverVideoConstraints message. What is absent (nil) leaves the setting as it was.
// AssumedBandwidth is accepted and, as by the Java bridge unless configured otherwise, not used.
type Request struct {
	LastN                           *int
	SelectedSources, OnStageSources *[]string
	Default                         *Constraint
	Constraints                     map[string]Constraint // replaces the whole map
	AssumedBandwidth                *int64                // bits per second
}

// Settings are what one receiver wants, as the sum of its requests. The zero value wants nothing.
type Settings struct {
	started  bool // a Request came
	hasLastN bool
	lastN    int

	selected, onStage []string
	fallback          Constraint // for sources without one of their own
	constraints       map[string]Constraint
}

// Apply changes what r names. It keeps r's slices and map.
func (s *Settings) Apply(r Request) {
	if !s.started {
		s.started = true
		s.fallback = Constraint{MaxHeight: defaultHeight}
	}
	if r.LastN != nil {
		s.SetLastN(*r.LastN)
	}
	if r.SelectedSources != nil {
		s.selected = *r.SelectedSources
	}
	if r.OnStageSources != nil {
		s.onStage = *r.OnStageSources
	}
	if r.Default != nil {
		s.fallback = *r.Default
	}
	if r.Constraints != nil {
		s.constraints = r.Constraints
	}
}

// SetLastN limits how many sources are wanted, without counting as a request: it is what LastNChangedEvent
// and initial-last-n carry. A negative n is Unlimited.
func (s *Settings) SetLastN(n int) { s.lastN, s.hasLastN = n, true }

// Started reports whether a request came; initial-last-n no longer applies then.
func (s *Settings) Started() bool { return s.started }

// limit is the number of sources that may be forwarded.
func (s *Settings) limit() int {
	if !s.started {
		return 0
	}
	if !s.hasLastN || s.lastN < 0 {
		return MaxForwarded
	}
	return min(s.lastN, MaxForwarded)
}

// of returns the constraint of a source.
func (s *Settings) of(name string) Constraint {
	if c, ok := s.constraints[name]; ok {
		return c
	}
	return s.fallback
}

func (c Constraint) limited() bool { return c.MaxHeight >= 0 }

// height is MaxHeight as a number to compare with.
func (c Constraint) height() int {
	if !c.limited() {
		return math.MaxInt
	}
	return c.MaxHeight
}

// rate is MaxFrameRate as a number to compare with.
func (c Constraint) rate() float64 {
	if c.MaxFrameRate <= 0 {
		return math.MaxFloat64
	}
	return c.MaxFrameRate
}
