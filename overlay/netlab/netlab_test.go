//go:build linux

package netlab_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/overlay/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon is the limit for what should take milliseconds, on a machine that does much else.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// shortly is how long nothing has to arrive to be believed.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func reaches(t *testing.T, a, b *netlab.Host) {
	t.Helper()
	for _, addr := range b.Addrs() {
		if _, err := a.Ping(soon(t), addr); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func unreachable(t *testing.T, a, b *netlab.Host) {
	t.Helper()
	for _, addr := range b.Addrs() {
		if rtt, err := a.Ping(shortly(t), addr); err == nil {
			t.Errorf("%s reaches %s (%v) in %v", a.Name(), b.Name(), addr, rtt)
		}
	}
}

func TestHosts(t *testing.T) {
	lab := netlab.New(t)
	a, b, c := lab.Host("a"), lab.Host("b"), lab.Host("c")
	lan := lab.Switch("lan")
	la := lab.Link(a, lan, netlab.LinkConfig{})
	lab.Link(b, lan, netlab.LinkConfig{})
	bc := lab.Link(c, b, netlab.LinkConfig{})
	for _, p := range la.Addrs(a) {
		if _, err := b.Ping(soon(t), p.Addr()); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Ping(soon(t), bc.Addr(c)); err != nil {
		t.Error(err)
	}
	la.Down()
	unreachable(t, b, a)
	la.Up()
	reaches(t, b, a)
	lab.Partition(a, b)
	unreachable(t, b, a)
	lab.Heal(a, b)
	reaches(t, b, a)
	la.Impair(netlab.Impairment{Delay: 20 * time.Millisecond})
	rtt, err := a.Ping(soon(t), b.Addr())
	t.Log(rtt, err)
	la.Impair(netlab.Impairment{})
	rtt, err = a.Ping(soon(t), b.Addr())
	t.Log(rtt, err)
	la.SetRate(10 * netlab.Mbit)
	rtt, err = a.Ping(soon(t), b.Addr())
	t.Log(rtt, err)
	out, err := a.Run("sh", "-c", "hostname; echo $$; ps ax; ls -l /run; ls /sys/fs/cgroup | head -3; cat /proc/net/dev; pwd")
	t.Log(out, err)
}
