package receive

import "time"

const (
	rateBuckets = 6 // one of them is being filled, the others are a second
	bucketSpan  = 200 * time.Millisecond
)

// A Rate measures bits per second over the last second. The zero value is ready to use.
type Rate struct {
	bytes [rateBuckets]int64
	at    int64 // number of the newest bucket
	since int64 // number of the first, when there was nothing before
}

// Add counts n bytes at now, which does not go back.
func (r *Rate) Add(n int, now time.Time) {
	r.advance(now)
	r.bytes[r.at%rateBuckets] += int64(n)
}

// BPS is the rate at now, in bits per second. In the first second it is that since the beginning.
func (r *Rate) BPS(now time.Time) (bps int64) {
	r.advance(now)
	for _, b := range r.bytes {
		bps += 8 * b
	}
	n := min(r.at-r.since, rateBuckets-1)
	if n > 0 {
		bps -= 8 * r.bytes[r.at%rateBuckets]
	}
	return bps * int64(time.Second/bucketSpan) / max(n, 1)
}

func (r *Rate) advance(now time.Time) {
	at := now.UnixNano() / int64(bucketSpan)
	if at-r.at >= rateBuckets {
		r.bytes = [rateBuckets]int64{}
		r.at, r.since = at, at
	}
	for r.at < at {
		r.at++
		r.bytes[r.at%rateBuckets] = 0
	}
}
