//go:build !linux

package probe

import (
	"context"
	"errors"
)

// Bridge needs the load engine, which is for Linux.
func Bridge(context.Context, string) error {
	return errors.New("probing a bridge alone works on Linux only: probe its shard")
}
