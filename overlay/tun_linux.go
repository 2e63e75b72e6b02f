package overlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Persist makes a TUN device that outlives the process which reads it. A packet sent to it while nobody reads
// is dropped by the kernel; sockets bound to it stay bound. Making one that exists already changes nothing.
func Persist(name string) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: load it with modprobe tun, or give this container the device", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: the overlay needs root, and in a container the device", err)
	case err != nil:
		return err
	}
	defer f.Close()
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	fd := int(f.Fd())
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("device %s: %w; is another overlay process running?", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	return nil
}
