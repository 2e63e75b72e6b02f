package handover

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silent has the kernel end a connection to whose data nobody has said anything for that long.
func silent(limit time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
		}); cerr != nil {
			return cerr
		}
		return err
	}
}
