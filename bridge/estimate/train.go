package estimate

import "slices"

const (
	trainBytes  = 900 // behind the first packet
	trainMemory = 8
	minTrains   = 3   // that are believed
	clockTick   = 250 // µs, in which receivers tell of arrivals
)

// trains finds out how fast packets that left together arrive, which is what the narrowest hop carries. A probe only shows
// that it carries as much as was sent, and nobody sends more than is wanted; a picture that leaves at once shows more for
// nothing.
type trains struct {
	next        int64  // the number after the last of the train that is being seen
	at          uint32 // when that left
	first, last micros // arrivals
	bytes       int    // behind the first

	rates [trainMemory]float64 // bits per second
	count int

	// rate is what the last trains have shown, in bits per second; 0 while there were too few. It is that of one of the
	// slowest, for what waits for a busy receiver comes to it at once; and when the last two are slower, the path has changed.
	rate float64
}

// add takes a packet that has arrived.
func (t *trains) add(n int64, r *record, arrival micros) {
	if n != t.next || r.at != t.at {
		t.judge()
		*t = trains{at: r.at, first: arrival, last: arrival, rates: t.rates, count: t.count, rate: t.rate}
	} else {
		t.last = max(t.last, arrival)
		t.bytes += int(r.size)
	}
	t.next = n + 1
}

func (t *trains) judge() {
	if t.bytes < trainBytes {
		return
	}
	t.rates[t.count%trainMemory] = float64(t.bytes) * 8e6 / float64(t.last-t.first+clockTick)
	if t.count++; t.count < minTrains {
		return
	}
	all, n := t.rates, min(t.count, trainMemory)
	slices.Sort(all[:n])
	t.rate = min(all[n/5], max(t.rates[(t.count-1)%trainMemory], t.rates[(t.count-2)%trainMemory]))
}
