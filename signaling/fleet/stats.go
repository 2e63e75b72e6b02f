package fleet

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"plenum/wire/colibri"
)

// observe takes what a presence says; what it does not say stays as it is. A bridge that never said
// whether it drains is taken as draining, as Jicofo does.
func (e *entry) observe(stats colibri.Stats) {
	if v, ok := number(stats.Value("stress_level")); ok {
		e.reported = v
	}
	if v, ok := number(stats.Value("average_participant_stress")); ok {
		e.perParticipant = v
	}
	for key, field := range map[string]*string{"region": &e.Region, "relay_id": &e.RelayID, "version": &e.Version} {
		if v := stats.Value(key); v != "" {
			*field = v
		}
	}
	if v := stats.Value("address_families"); v != "" {
		e.said = strings.Split(v, ",")
	}
	e.Draining = flag(stats, "drain", true)
	e.ShuttingDown = flag(stats, "shutting_down", false)
	e.Graceful = flag(stats, "graceful_shutdown", false) || flag(stats, "shutdown_in_progress", false)
	if flag(stats, "healthy", true) {
		e.ill = 0
	} else {
		e.ill++
	}
	if !e.Graceful {
		e.gracefulSaid = false
	}
}

func flag(stats colibri.Stats, key string, absent bool) bool {
	if v := stats.Value(key); v != "" {
		return v == "true"
	}
	return absent
}

// number reads a finite, non-negative number.
func number(s string) (float64, bool) {
	v, err := strconv.ParseFloat(s, 64)
	return v, err == nil && v >= 0 && !math.IsInf(v, 0)
}

// at is the bridge as the selection sees it at now.
func (e *entry) at(now time.Time) Bridge {
	fresh, _ := slices.BinarySearchFunc(e.placed, now.Add(-rampUp), func(t, u time.Time) int { return t.Compare(u) })
	e.placed = e.placed[fresh:]
	each := e.perParticipant
	if each == 0 {
		each = defaultStress
	}
	b := e.Bridge
	if b.Families = e.said; len(b.Families) == 0 {
		b.Families = e.families()
	}
	b.Stress = e.reported + each*float64(len(e.placed))
	b.Draining = b.Draining || e.ill > 0
	b.Failed = e.ill >= illForGood || now.Before(e.failedUntil) || !e.away.IsZero()
	b.Graceful = b.Graceful || e.gracefulSaid
	return b
}

func (e *entry) usable(now time.Time) bool {
	b := e.at(now)
	return !b.Failed && !b.ShuttingDown && !b.Graceful
}

// leave reports whether conferences should move away if they can.
func (e *entry) leave() bool { return e.ShuttingDown || e.ill >= illForGood }
