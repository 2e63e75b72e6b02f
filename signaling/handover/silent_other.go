//go:build !linux

package handover

import (
	"syscall"
	"time"
)

func silent(time.Duration) func(network, address string, c syscall.RawConn) error { return nil }
