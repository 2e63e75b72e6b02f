package bridge

import "time"

const (
	// reportsEvery is how long RTCP may wait while it is left aside.
	reportsEvery = 5 * time.Millisecond
	asideWindow  = 100 * time.Millisecond
	// asideFrom and asideUntil are per window: wake-ups for RTCP alone from which it is left aside, and datagrams
	// of RTCP below which it is not any more.
	asideFrom  = 20
	asideUntil = 10
)

// An aside decides whether RTCP wakes its core. With few receivers it does, and is answered at once. A hundred send
// a thousand reports a second, each at a time of its own, and to be woken costs far more than to read one: then
// they are read when media comes, or after 5 ms. Media never waits.
type aside struct {
	on      bool
	since   time.Time
	wakes   int
	reports uint64
}

// change counts one wake-up with so many reports, alone being true when there was nothing else, and says whether on
// has changed.
func (a *aside) change(now time.Time, reports uint64, alone bool) bool {
	a.reports += reports
	if alone {
		a.wakes++
	}
	if now.Sub(a.since) < asideWindow {
		return false
	}
	was := a.on
	if a.on {
		a.on = a.reports >= asideUntil
	} else {
		a.on = a.wakes >= asideFrom && now.Sub(a.since) < 2*asideWindow
	}
	a.since, a.wakes, a.reports = now, 0, 0
	return a.on != was
}
