package bridge

import (
	"runtime"
	"sync"
)

// A core waits inside the kernel, and to the runtime a goroutine that does so holds its P until somebody takes it
// away. With as many Ps as processors the runtime's monitor does that each time, tens of microseconds after the
// core has gone to wait, and the core has to find a P again, behind whatever else runs, when a packet comes. So
// each core gets a P beside those of everything else: it keeps that, is never behind anybody but in the kernel's
// eyes, and the monitor sleeps (measured: a fifth of the cost of a forwarded packet).
var reserved struct {
	sync.Mutex
	n int
}

// processors is how many the runtime would use without cores.
func processors() int {
	reserved.Lock()
	defer reserved.Unlock()
	return runtime.GOMAXPROCS(0) - reserved.n
}

// reserve adds n Ps until release is called.
func reserve(n int) (release func()) {
	add := func(n int) {
		reserved.Lock()
		defer reserved.Unlock()
		reserved.n += n
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	}
	add(n)
	return func() { add(-n) }
}
