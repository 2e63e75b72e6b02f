//go:build !linux

package rooms

import "time"

var started = time.Now()

// bootNow is the monotonic clock, which may stand still while the machine sleeps: a shard of a cluster runs on
// Linux.
func bootNow() boottime { return time.Since(started) + 1 }
