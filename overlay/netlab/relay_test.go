//go:build linux

package netlab_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plenum/overlay/netlab"
)

func loopback(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := c.SyscallConn()
	raw.Control(func(fd uintptr) { // as large as it may be, and larger as root: what the kernel drops is not the relay's loss
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func relay(t testing.TB, cfg netlab.RelayConfig) *netlab.Relay {
	t.Helper()
	r, err := netlab.NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func portOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// TestRelay: two clients reach one target and get their own answers, each way with its own delay.
func TestRelay(t *testing.T) {
	target := loopback(t)
	const up, down = 30 * time.Millisecond, 10 * time.Millisecond
	r := relay(t, netlab.RelayConfig{Target: portOf(target), Up: netlab.Impairment{Delay: up}, Down: netlab.Impairment{Delay: down}})
	clients := []*net.UDPConn{loopback(t), loopback(t)}
	sent := time.Now()
	for i, c := range clients {
		c.WriteToUDPAddrPort([]byte{byte(i)}, r.Addr())
	}
	buf := make([]byte, 10)
	seen := make(map[netip.AddrPort]bool)
	for range clients {
		target.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := target.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(sent); took < up {
			t.Errorf("up in %v, want %v at least", took, up)
		}
		seen[from] = true
		target.WriteToUDPAddrPort(append(buf[:n], 'a'), from)
	}
	if len(seen) != 2 {
		t.Errorf("the target sees %v, want two ports", seen)
	}
	for i, c := range clients {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || n != 2 || buf[0] != byte(i) || from != r.Addr() {
			t.Errorf("client %d gets %v from %v, %v", i, buf[:n], from, err)
		}
	}
	if took := time.Since(sent); took < up+down {
		t.Errorf("there and back in %v, want %v at least", took, up+down)
	}
	if err := r.Impair(netlab.Impairment{Loss: 2}, netlab.Impairment{}); err == nil {
		t.Error("a loss of 200 % is taken")
	}
	if err := r.Impair(netlab.Impairment{Loss: 1}, netlab.Impairment{}); err != nil {
		t.Error(err)
	}
	clients[0].WriteToUDPAddrPort([]byte{9}, r.Addr())
	target.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, _, err := target.ReadFromUDPAddrPort(buf); err == nil {
		t.Error("a packet gets through a loss of 100 %")
	}
	if s, _ := r.Stats(); s.In != 3 || s.Out != 2 || s.Lost != 1 {
		t.Errorf("up: %+v", s)
	}
}

// TestRelayRepeats sends the same stream twice and wants the same packets lost.
func TestRelayRepeats(t *testing.T) {
	const count = 2000
	through := func() (all [count]bool) {
		target, client := loopback(t), loopback(t)
		r := relay(t, netlab.RelayConfig{Target: portOf(target), Up: netlab.Impairment{Loss: 0.1, Delay: 5 * time.Millisecond, Seed: 11}})
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 100)
			for range count {
				target.SetReadDeadline(time.Now().Add(time.Second))
				if _, _, err := target.ReadFromUDPAddrPort(buf); err != nil {
					return
				}
				n := binary.BigEndian.Uint32(buf)
				all[n] = true
				if n == count-1 {
					return
				}
			}
		})
		for i := range uint32(count) {
			client.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, i), r.Addr())
			if i%50 == 49 { // no faster than the sockets' buffers are read
				for s, _ := r.Stats(); s.In <= uint64(i); s, _ = r.Stats() {
					time.Sleep(100 * time.Microsecond)
				}
			}
		}
		wg.Wait()
		return all
	}
	first, second := through(), through()
	lost := 0
	for i := range first {
		if first[i] != second[i] {
			t.Fatalf("packet %d: %v, then %v", i, first[i], second[i])
		}
		if !first[i] {
			lost++
		}
	}
	if lost < count/20 || lost > count*3/20 {
		t.Errorf("%d of %d lost, want a tenth", lost, count)
	}
}

// BenchmarkRelay carries media-like packets as fast as one relay can, the sender and the receiver included.
func BenchmarkRelay(b *testing.B) {
	for name, size := range map[string]int{"180B": 180, "1200B": 1200} {
		b.Run(name, func(b *testing.B) {
			target, client := loopback(b), loopback(b)
			r := relay(b, netlab.RelayConfig{Target: portOf(target), Up: netlab.Impairment{Loss: 0.001, Delay: 10 * time.Millisecond}})
			var wg sync.WaitGroup
			wg.Go(func() {
				buf := make([]byte, 2000)
				for {
					if _, _, err := target.ReadFromUDPAddrPort(buf); err != nil {
						return
					}
				}
			})
			data := make([]byte, size)
			b.SetBytes(int64(size))
			n := uint64(0)
			defer cpu(b)()
			for b.Loop() {
				client.WriteToUDPAddrPort(data, r.Addr())
				if n++; n%64 == 0 {
					for s, _ := r.Stats(); s.In < n-512 && n > 512; s, _ = r.Stats() {
						time.Sleep(50 * time.Microsecond)
					}
				}
			}
			target.Close()
			wg.Wait()
		})
	}
}
