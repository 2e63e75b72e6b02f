package estimate

import "slices"

const (
	trainPackets = 3     // behind the first
	trainBytes   = 3_000 // likewise
	trainMemory  = 8
	clockTick    = 250 // µs, in which receivers tell of arrivals
)

// trains finds out how fast packets that left together arrive, which is what the narrowest hop carries. A probe only shows
// that it carries as much as was sent, and nobody sends more than is wanted; a picture that leaves at once shows more for
// nothing.
type trains struct {
	next        int64  // the number after the last of the train that is being seen
	at          uint32 // when that left
	first, last micros // arrivals
	packets     int    // behind the first
	bytes       int    // likewise

	rates [trainMemory]float64 // bits per second
	count int
}

// add takes a packet that has arrived.
func (t *trains) add(n int64, r *record, arrival micros) {
	if n != t.next || r.at != t.at {
		t.judge()
		*t = trains{at: r.at, first: arrival, last: arrival, rates: t.rates, count: t.count}
	} else {
		t.last = max(t.last, arrival)
		t.packets++
		t.bytes += int(r.size)
	}
	t.next = n + 1
}

func (t *trains) judge() {
	if t.packets < trainPackets || t.bytes < trainBytes {
		return
	}
	t.rates[t.count%trainMemory] = float64(t.bytes) * 8e6 / float64(t.last-t.first+clockTick)
	t.count++
}

// rate is what the last trains have shown, in bits per second; 0 while there were too few. Of them it is one of the slowest:
// what waits for a busy receiver comes to it at once.
func (t *trains) rate() float64 {
	if t.count < trainMemory {
		return 0
	}
	all := t.rates
	slices.Sort(all[:])
	return all[1]
}
