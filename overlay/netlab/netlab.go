//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TB is what a lab needs of its test; every testing.TB is one. A program that is no test has Run.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Cleanup(func())
	Failed() bool
}

// ErrPrivilege says that this process may not make namespaces or devices.
var ErrPrivilege = errors.New("netlab needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) to make namespaces and devices")

// ErrTools says that a program is missing.
var ErrTools = errors.New("netlab needs nft, mount, sh and env (Debian: nftables, mount, dash, coreutils)")

// Check reports what keeps this process from having a lab, and nil when nothing does.
func Check() error { return check() }

var check = sync.OnceValue(func() error {
	err := discard(func() error { return unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS) })
	if err != nil {
		return fmt.Errorf("%w: unshare: %w", ErrPrivilege, err)
	}
	for _, tool := range []string{"nft", "mount", "sh", "env"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %w", ErrTools, err)
		}
	}
	return nil
})

// Require ends the test unless it may have a lab: it fails when the environment has CI or PLENUM_NETLAB set, so that
// these tests cannot vanish where they are meant to run, and skips with the reason otherwise.
func Require(t TB) {
	t.Helper()
	err := Check()
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" || os.Getenv("PLENUM_NETLAB") != "" {
		t.Fatalf("%v", err)
	}
	t.Skipf("%v", err)
}

// A Lab is a set of hosts, switches and links that live as long as one test. Its methods end the test when the kernel
// refuses something, so they are for the goroutine of the test; Host.Do, Host.Dial and what is read from a Process, a
// Link or a Capture may be used from any.
type Lab struct {
	t    TB
	wire netns.NsHandle  // the namespace of cables and switches; unnamed, so it ends with this process
	nl   *netlink.Handle // in wire
	cuts *cuts

	hosts    []*Host
	switches []*Switch
	links    []*Link
	devices  int // names of devices are numbers, so that no name of a host is too long
	subnets  int

	mu       sync.Mutex
	stop     []func() // what runs in the background: captures, impairments; ended in reverse order
	finished bool
}

// New makes an empty lab and takes it down, with all that runs in it, at the end of the test. It ends the test through
// Require where there can be none.
func New(t TB) *Lab {
	t.Helper()
	Require(t)
	sweepOnce()
	l := &Lab{t: t}
	err := discard(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if l.wire, err = netns.Get(); err != nil {
			return err
		}
		return errors.Join(
			sysctl("net.ipv6.conf.all.disable_ipv6", "1"), // switches and cables have no addresses of their own
			sysctl("net.ipv6.conf.default.disable_ipv6", "1"))
	})
	if err == nil {
		l.nl, err = netlink.NewHandleAt(l.wire)
	}
	if err != nil {
		t.Fatalf("netlab: %v", err)
	}
	l.cuts = &cuts{lab: l}
	t.Cleanup(l.close)
	return l
}

// close ends the lab: first what looks on, then the hosts with every process in them, then the cables.
func (l *Lab) close() {
	if l.t.Failed() {
		for _, h := range l.hosts {
			h.logProcesses()
		}
	}
	l.mu.Lock()
	stop := l.stop
	l.stop, l.finished = nil, true
	l.mu.Unlock()
	for _, f := range slices.Backward(stop) {
		f()
	}
	var wg sync.WaitGroup
	for _, h := range l.hosts {
		wg.Go(h.close) // a process that ignores signals costs nothing: the namespace goes, it goes
	}
	wg.Wait()
	l.nl.Close()
	l.wire.Close()
}

// background registers what must end before the hosts do.
func (l *Lab) background(stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = append(l.stop, stop)
}

func (l *Lab) must(err error, format string, args ...any) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("netlab: %s: %v", fmt.Sprintf(format, args...), err)
	}
}

func (l *Lab) device(prefix string, n int) string { return fmt.Sprintf("%s%d", prefix, n) }

// Public prefixes are of the ranges for benchmarks and for documentation, so nothing that treats private addresses
// otherwise is led astray; what is behind a NAT gets private ones.
func (l *Lab) publicPrefixes() []netip.Prefix {
	l.subnets++
	n := byte(l.subnets)
	six := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, n}
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, n, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16(six), 64),
	}
}

func (l *Lab) privatePrefix() netip.Prefix {
	l.subnets++
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(l.subnets), 0}), 24)
}

// discard runs f on a thread of its own that ends with it, for what f does to a thread cannot be undone. It is never the
// first thread, which stands for the whole process in /proc/self.
func discard(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- discard(f) // on another, as this one waits
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// within runs f on this goroutine with its thread in the network namespace ns. Goroutines that f starts are not in it.
func within(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	if err := netns.Set(ns); err != nil {
		home.Close()
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		err := netns.Set(home)
		home.Close()
		if err != nil {
			panic(fmt.Sprintf("netlab: a thread cannot leave the namespace of a test host: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	return f()
}
