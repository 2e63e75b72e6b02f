package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/bridge/packet"
)

var loopbacks = []string{"127.0.0.1:0", "[::1]:0"}

func listen(t testing.TB, addr string, n int) []*Socket {
	t.Helper()
	sockets, err := Listen(netip.MustParseAddrPort(addr), n)
	if err != nil {
		t.Skip(err) // no such family here
	}
	t.Cleanup(func() {
		for _, s := range sockets {
			s.Close()
		}
	})
	return sockets
}

// A second bridge on the port is an error; our own sockets share it and all get datagrams.
func TestExclusiveThenShared(t *testing.T) {
	for _, addr := range loopbacks {
		sockets := listen(t, addr, 1)
		if _, err := Listen(sockets[0].Local(), 1); !errors.Is(err, ErrInUse) {
			t.Errorf("%s: second bind: %v", addr, err)
		}
		if runtime.GOOS != "linux" {
			continue
		}
		sockets = listen(t, addr, 3)
		local := sockets[0].Local()
		if _, err := Listen(local, 3); !errors.Is(err, ErrInUse) {
			t.Errorf("%s: second bind of a shared port: %v", addr, err)
		}
		for _, s := range sockets {
			if s.Local() != local {
				t.Errorf("bound to %v, not %v", s.Local(), local)
			}
		}
		const senders = 60
		for range senders {
			c, err := net.Dial("udp", local.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		total := 0
		for i, s := range sockets {
			batch := new(packet.Batch)
			n, err := NewReader(batch).Read(s, 0)
			if err != nil || n == 0 {
				t.Errorf("%s: socket %d got %d datagrams, %v", addr, i, n, err)
			}
			total += n
		}
		if total != senders {
			t.Errorf("%s: %d of %d arrived", addr, total, senders)
		}
	}
}

// exchange sends what make builds from one socket to another and returns what arrives, in order.
func exchange(t *testing.T, addr string, build func(to netip.AddrPort, out *packet.Outbox)) ([][]byte, *Sender) {
	t.Helper()
	from, to := listen(t, addr, 1), listen(t, addr, 1)
	var out packet.Outbox
	build(to[0].Local(), &out)
	want := out.Len()
	s := NewSender()
	s.Flush(&out, from)
	if out.Len() != 0 {
		t.Error("the outbox is not empty")
	}
	batch := new(packet.Batch)
	r := NewReader(batch)
	var got [][]byte
	for len(got) < want {
		n, err := r.Read(to[0], 3)
		if err != nil || n == 0 {
			t.Fatalf("%d of %d arrived, %v", len(got), want, err)
		}
		for i := range n {
			b := &batch.Bufs[i]
			if b.Path != (packet.Path{Socket: 3, Remote: from[0].Local()}) {
				t.Fatalf("path %v, want from %v", b.Path, from[0].Local())
			}
			got = append(got, bytes.Clone(b.Data))
		}
	}
	return got, s
}

func put(out *packet.Outbox, p packet.Path, size int, mark int) {
	b := out.Reserve(size)[:size]
	for i := range b {
		b[i] = byte(mark)
	}
	b[0] = byte(mark >> 8)
	out.Commit(p, b)
}

// Runs of equal size become one send; what arrives is what was queued, in order.
func TestFlush(t *testing.T) {
	for _, addr := range loopbacks {
		for _, sizes := range [][]int{
			{1}, {1200}, {1200, 1200, 1200, 400}, {100, 1200, 1200, 300, 1200, 100, 100, 100},
			repeat(1100, 500), append(repeat(1400, 70), repeat(60, 130)...),
		} {
			got, s := exchange(t, addr, func(to netip.AddrPort, out *packet.Outbox) {
				for i, n := range sizes {
					put(out, packet.Path{Remote: to}, n, i)
				}
			})
			for i, n := range sizes {
				if len(got[i]) != n || n > 1 && (got[i][n-1] != byte(i) || got[i][0] != byte(i>>8)) {
					t.Fatalf("%s %v: datagram %d has %d bytes", addr, sizes[:min(8, len(sizes))], i, len(got[i]))
				}
			}
			if s.Datagrams != uint64(len(sizes)) || s.Failed+s.Full != 0 {
				t.Errorf("%+v", s.Counters)
			}
			t.Logf("%s: %d datagrams in %d sends, %d refused", addr, s.Datagrams, s.Messages, s.Refused)
		}
	}
}

func repeat(n, times int) []int {
	s := make([]int, times)
	for i := range s {
		s[i] = n
	}
	return s
}

// One destination that cannot be reached costs only its own datagrams.
func TestUnreachable(t *testing.T) {
	got, s := exchange(t, loopbacks[0], func(to netip.AddrPort, out *packet.Outbox) {
		put(out, packet.Path{Remote: to}, 100, 1)
	})
	if len(got) != 1 {
		t.Fatal("nothing arrived")
	}
	from, to := listen(t, loopbacks[0], 1), listen(t, loopbacks[0], 1)
	var out packet.Outbox
	broadcast := netip.MustParseAddrPort("255.255.255.255:9") // refused: not allowed on this socket
	put(&out, packet.Path{Remote: to[0].Local()}, 100, 1)
	put(&out, packet.Path{Remote: broadcast}, 100, 2)
	put(&out, packet.Path{Remote: broadcast}, 100, 3)
	put(&out, packet.Path{Remote: to[0].Local()}, 100, 4)
	s.Counters = Counters{}
	s.Flush(&out, from)
	if s.Datagrams != 2 || s.Failed != 2 {
		t.Errorf("%+v", s.Counters)
	}
	batch := new(packet.Batch)
	if n, err := NewReader(batch).Read(to[0], 0); n != 2 || err != nil {
		t.Errorf("%d arrived, %v", n, err)
	}
}

func TestOversizedAndEmpty(t *testing.T) {
	to := listen(t, loopbacks[0], 1)
	c, err := net.Dial("udp", to[0].Local().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, n := range []int{packet.MaxBytes + 1, 0, packet.MaxBytes} {
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	batch := new(packet.Batch)
	n, err := NewReader(batch).Read(to[0], 0)
	if err != nil || n != 3 {
		t.Fatalf("%d, %v", n, err)
	}
	for i, want := range []int{0, 0, packet.MaxBytes} {
		if got := len(batch.Bufs[i].Data); got != want {
			t.Errorf("datagram %d: %d bytes, want %d", i, got, want)
		}
	}
	if n, err := NewReader(batch).Read(to[0], 0); n != 0 || err != nil {
		t.Errorf("empty socket: %d, %v", n, err)
	}
}

func TestPoller(t *testing.T) {
	defer goleak.VerifyNone(t)
	sockets := append(listen(t, loopbacks[0], 1), listen(t, loopbacks[0], 1)...)
	p, err := NewPoller(sockets)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wait := func(d time.Duration) string {
		t.Helper()
		ready, err := p.Wait(d)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(ready)
	}
	if got := wait(0); got != "[]" {
		t.Errorf("ready at first: %s", got)
	}
	began := time.Now()
	if wait(20 * time.Millisecond); time.Since(began) < 20*time.Millisecond {
		t.Error("came back early")
	}
	var wakers sync.WaitGroup
	for range 4 {
		wakers.Go(p.Wake)
	}
	if got := wait(10 * time.Second); got != "[]" {
		t.Errorf("woken: %s", got)
	}
	wakers.Wait()
	wait(0)
	if time.Since(began) > 5*time.Second {
		t.Error("a wake-up was lost")
	}
	if err := sockets[0].SendTo([]byte("x"), sockets[1].Local()); err != nil {
		t.Fatal(err)
	}
	if got := wait(10 * time.Second); got != "[1]" {
		t.Errorf("ready: %s", got)
	}
	if got := wait(0); got != "[1]" {
		t.Errorf("still unread, but ready: %s", got)
	}
}

func TestClosed(t *testing.T) {
	s := listen(t, loopbacks[0], 1)[0]
	s.Close()
	if err := s.SendTo([]byte("x"), s.Local()); !errors.Is(err, ErrClosed) {
		t.Errorf("send: %v", err)
	}
	if s.Drops() != 0 || s.Close() != nil {
		t.Error("a closed socket has opinions")
	}
}

// The kernel's count of what it dropped for want of room arrives.
func TestDrops(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not counted here")
	}
	s := listen(t, loopbacks[0], 2)
	if n := s[0].ReceiveBuffer(); n < 100<<10 {
		t.Errorf("receive buffer of %d bytes", n)
	}
	b := make([]byte, 60000) // a buffer of 10 MB holds less than 200 of them
	for range 2000 {
		if err := s[0].SendTo(b, s[0].Local()); err != nil {
			t.Fatal(err)
		}
		if s[0].Drops()+s[1].Drops() > 0 {
			return
		}
	}
	t.Error("no drop was counted")
}

func TestAllocations(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the plain implementation allocates")
	}
	from, to := listen(t, loopbacks[0], 1), listen(t, loopbacks[0], 1)
	var out packet.Outbox
	s, batch := NewSender(), new(packet.Batch)
	r := NewReader(batch)
	n := testing.AllocsPerRun(200, func() {
		for i := range 20 {
			put(&out, packet.Path{Remote: to[0].Local()}, 1000-i/10, i)
		}
		s.Flush(&out, from)
		if n, err := r.Read(to[0], 0); err != nil || n != 20 {
			t.Fatalf("%d arrived, %v", n, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

func BenchmarkFlush(b *testing.B) {
	for _, k := range []int{1, 6} {
		b.Run(fmt.Sprintf("run=%d", k), func(b *testing.B) {
			from, to := listen(b, loopbacks[0], 1), listen(b, loopbacks[0], 1)
			to2 := listen(b, loopbacks[0], 1)
			var out packet.Outbox
			s := NewSender()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				dst := to[0].Local()
				if i/k%2 == 1 {
					dst = to2[0].Local()
				}
				put(&out, packet.Path{Remote: dst}, 1100, i)
				if out.Len() == 60 {
					s.Flush(&out, from)
				}
			}
		})
	}
}
