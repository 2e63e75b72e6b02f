package estimate

const (
	bucketSpan  = 25_000 // µs
	rateBuckets = 20
	restart     = 40 * 10 // buckets that the receiver's clock may not go back
)

// rate is what arrives, by the receiver's clock.
type rate struct {
	bytes   [rateBuckets]int
	newest  int64 // bucket
	started bool
	first   int64
	last    micros // newest arrival
}

func (r *rate) add(n int, arrival micros) {
	b := arrival / bucketSpan
	switch {
	case !r.started || b-r.newest >= rateBuckets || r.newest-b >= restart:
		*r = rate{started: true, newest: b, first: b, last: arrival}
	case r.newest-b >= rateBuckets:
		return // overtaken by so much that nobody asks any more
	case b < r.newest:
	default:
		for r.newest < b {
			r.newest++
			r.bytes[r.newest%rateBuckets] = 0
		}
	}
	r.last = max(r.last, arrival)
	r.bytes[b%rateBuckets] += n
}

// late adds bytes that arrived since the newest bucket began, at a time that we were not told.
func (r *rate) late(n int) {
	if r.started {
		r.bytes[r.newest%rateBuckets] += n
	}
}

// over is the rate of the last span, in bits per second; 0 when there is too little to tell.
func (r *rate) over(span micros) float64 {
	n := min(int64(span/bucketSpan), r.newest-r.first)
	if !r.started || n < 3 {
		return 0
	}
	sum := 0
	for i := r.newest - n; i < r.newest; i++ { // the newest is not complete
		sum += r.bytes[i%rateBuckets]
	}
	return float64(sum) * 8e6 / float64(n*bucketSpan)
}
