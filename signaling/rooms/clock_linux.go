package rooms

import "golang.org/x/sys/unix"

// bootNow reads CLOCK_BOOTTIME.
func bootNow() boottime {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("rooms: CLOCK_BOOTTIME: " + err.Error())
	}
	return boottime(t.Nano())
}
