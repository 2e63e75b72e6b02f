package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is how much garbage may lie beside what is in use. Nothing allocates per packet, so that collections come with
	// joins and are paid by them: half of Go's usual allowance costs a host a few milliseconds of processor per hundred joins.
	gcPercent = 50
	// restEvery is how long it must have been quiet before memory is given back.
	restEvery = 10 * time.Second
)

// frugal keeps a process that serves small until ctx ends: what only its start or a wave of joins has needed (garbage, grown
// stacks, pages of the program) goes back to the system when nothing is being collected any more, and at once when it begins.
// GOGC, where somebody has set it, wins over gcPercent.
func frugal(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	rest := func() uint64 {
		debug.FreeOSMemory()
		releaseImage()
		return collections()
	}
	rested := rest()
	seen := rested
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n := collections()
		if n == seen && n != rested {
			n = rest()
			rested = n
		}
		seen = n
	}
}

// collections counts those of garbage.
func collections() uint64 {
	s := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
