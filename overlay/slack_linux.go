package overlay

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A slack lets the kernel wake this process later than asked for while it has little to do. Go's runtime looks every 20 µs
// after threads that wait in system calls, as Nebula's readers do, for 10 ms after each packet: with a hundred peers at
// rest these looks were more than a third of what the process cost. Packets wake threads at once, as ever.
type slack struct {
	since time.Time
	used  time.Duration // of the processor by then
	wide  bool
}

const (
	narrowSlack = 50 * time.Microsecond // what Linux gives every thread
	wideSlack   = 10 * time.Millisecond
	// calm is the share of a processor below which there is little to do.
	calm = 0.03
)

// adjust is to be called now and then.
func (s *slack) adjust(now time.Time) {
	if now.Sub(s.since) < time.Second {
		return
	}
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return
	}
	used := time.Duration(u.Utime.Nano() + u.Stime.Nano())
	wide := !s.since.IsZero() && float64(used-s.used) < calm*float64(now.Sub(s.since))
	s.since, s.used = now, used
	if wide != s.wide {
		s.wide = wide
		d := narrowSlack
		if wide {
			d = wideSlack
		}
		slacken(d)
	}
}

// slacken gives slack to the threads there are, and thereby to those that they will make. Where that is not allowed
// everything works as well.
func slacken(d time.Duration) {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range threads {
		_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", strconv.AppendInt(nil, d.Nanoseconds(), 10), 0)
	}
}
