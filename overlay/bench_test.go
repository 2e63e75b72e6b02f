//go:build linux

package overlay_test

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"plenum/overlay"
	"plenum/overlay/netlab"
)

// BenchmarkOverlay measures each backend on each plane against the bare cable below them, in one run: TCP, packets of
// media at 1 % of loss, what a packet costs the two processes at its ends together, and the delay that is added.
func BenchmarkOverlay(b *testing.B) {
	var bare [2]time.Duration // the round trip of the cable, p50 and p99
	for _, backends := range []map[overlay.Plane]string{
		{overlay.Control: "nebula", overlay.Media: "wireguard"},
		{overlay.Control: "wireguard", overlay.Media: "nebula"},
	} {
		c := newCluster(b, backends)
		sw := c.lab.Switch("net")
		a, z := c.add("server", sw, "server"), c.add("ber-1", sw, "bridge")
		c.start()
		c.up(30 * time.Second)
		if backends[overlay.Control] == "nebula" {
			b.Run("veth", func(b *testing.B) { bare = measure(b, a, z, a.link.Addr(a.Host), z.link.Addr(z.Host), 1300, bare) })
		}
		for _, p := range overlay.Planes {
			from, to := a.record.Control, z.record.Control
			mtu := 1300
			if p == overlay.Media {
				from, to, mtu = a.record.Media, z.record.Media, 1380
			}
			b.Run(backends[p]+"/"+string(p), func(b *testing.B) { measure(b, a, z, from, to, mtu, bare) })
		}
	}
}

// measure reports everything about one way between two hosts; of the round trip also what it adds to that of the cable.
func measure(b *testing.B, a, z *node, from, to netip.Addr, mtu int, bare [2]time.Duration) (rtt [2]time.Duration) {
	for b.Loop() {
		b.ReportMetric(stream(b, a, z, from, to)/1e6, "TCP-Mbit/s")
		large := min(1200, mtu-100)
		for _, size := range []int{large, 180} {
			n, cost := packets(b, a, z, from, to, size, 1)
			b.ReportMetric(n, fmt.Sprintf("pkt/s-%d", size))
			b.ReportMetric(float64(cost.Nanoseconds())/1000, fmt.Sprintf("µs/pkt-%d", size))
		}
		n, cost := packets(b, a, z, from, to, large, 16)
		b.ReportMetric(n, fmt.Sprintf("pkt/s-%d-gso", large))
		b.ReportMetric(float64(cost.Nanoseconds())/1000, fmt.Sprintf("µs/pkt-%d-gso", large))
		rtt[0], rtt[1] = delay(b, a, z, from, to)
		for i, name := range []string{"p50", "p99"} {
			b.ReportMetric(float64(rtt[i].Nanoseconds())/1000, "µs-rtt-"+name)
			if bare[i] > 0 {
				b.ReportMetric(float64((rtt[i]-bare[i]).Nanoseconds())/1000, "µs-added-"+name)
			}
		}
		b.ReportMetric(0, "ns/op")
	}
	return rtt
}

// stream is the rate of one TCP connection, bit/s.
func stream(b *testing.B, a, z *node, from, to netip.Addr) float64 {
	l, err := z.Listen("tcp", netip.AddrPortFrom(to, 0).String())
	check(b, err)
	defer l.Close()
	conn, err := a.Dial(b.Context(), "tcp", l.Addr().String())
	check(b, err)
	defer conn.Close()
	sink, err := l.Accept()
	check(b, err)
	defer sink.Close()
	go func() {
		for chunk := make([]byte, 1<<17); ; {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	}()
	const warm, window = 300 * time.Millisecond, 1500 * time.Millisecond
	read := func(d time.Duration) (n int64) {
		check(b, sink.SetReadDeadline(time.Now().Add(d)))
		n, _ = io.Copy(io.Discard, sink)
		return n
	}
	read(warm)
	return float64(read(window)) * 8 / window.Seconds()
}

// packets is how many packets of a size arrive each second when 1 % of them do not, and what each costs both processes.
// With gso above 1 so many are handed to the kernel at once.
func packets(b *testing.B, a, z *node, from, to netip.Addr, size, gso int) (float64, time.Duration) {
	best, cost := 0.0, time.Duration(0)
	try := func(rate float64) bool {
		const window = 400 * time.Millisecond
		before, _ := usage(b, a)
		alsoBefore, _ := usage(b, z)
		sent, got := blast(b, a, z, from, to, size, gso, rate, window)
		after, _ := usage(b, a)
		alsoAfter, _ := usage(b, z)
		if got == 0 || float64(sent-got) > 0.01*float64(sent) || float64(sent) < 0.95*rate*window.Seconds() {
			return false
		}
		if now := float64(got) / window.Seconds(); now > best {
			best, cost = now, (after-before+alsoAfter-alsoBefore)/time.Duration(got)
		}
		return true
	}
	good, bad := 1000.0, 4e6
	for bad/good > 1.1 {
		rate := min(good*2, (good+bad)/2)
		if bad < 4e6 {
			rate = (good + bad) / 2
		}
		carried := try(rate)
		if !carried { // once may have been somebody else's
			carried = try(rate)
		}
		if carried {
			good = rate
		} else {
			bad = rate
		}
	}
	return best, cost
}

// blast sends at a rate for a while and counts what arrives.
func blast(b *testing.B, a, z *node, from, to netip.Addr, size, gso int, rate float64, window time.Duration) (sent, got int) {
	sink, err := z.ListenPacket("udp4", netip.AddrPortFrom(to, 0).String())
	check(b, err)
	source, err := a.ListenPacket("udp4", netip.AddrPortFrom(from, 0).String())
	check(b, err)
	defer source.Close()
	control(b, sink, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	control(b, source, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20)
	if gso > 1 {
		control(b, source, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}
	var arrived atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := ipv4.NewPacketConn(sink)
		batch := make([]ipv4.Message, 64)
		for i := range batch {
			batch[i].Buffers = [][]byte{make([]byte, 2048)}
		}
		for {
			n, err := in.ReadBatch(batch, 0)
			if err != nil {
				return
			}
			arrived.Add(int64(n))
		}
	}()
	out := ipv4.NewPacketConn(source)
	batch := make([]ipv4.Message, 64)
	for i := range batch {
		batch[i] = ipv4.Message{Buffers: [][]byte{make([]byte, size*gso)}, Addr: sink.LocalAddr()}
	}
	start := time.Now()
	for elapsed := time.Duration(0); elapsed < window; elapsed = time.Since(start) {
		due := (int(rate*elapsed.Seconds()) - sent) / gso
		if due <= 0 {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		n, err := out.WriteBatch(batch[:min(due, len(batch))], 0)
		if err != nil && n <= 0 {
			continue
		}
		sent += n * gso
	}
	for last, still := int64(-1), 0; still < 3; time.Sleep(20 * time.Millisecond) {
		if now := arrived.Load(); now == last {
			still++
		} else {
			last, still = now, 0
		}
	}
	sink.Close()
	<-done
	return sent, int(arrived.Load())
}

func control(t netlab.TB, c net.PacketConn, level, option, value int) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { check(t, unix.SetsockoptInt(int(fd), level, option, value)) }))
}

// delay is the round trip of small packets, one each ms.
func delay(b *testing.B, a, z *node, from, to netip.Addr) (p50, p99 time.Duration) {
	echo, err := z.ListenPacket("udp4", netip.AddrPortFrom(to, 0).String())
	check(b, err)
	ask, err := a.ListenPacket("udp4", netip.AddrPortFrom(from, 0).String())
	check(b, err)
	defer ask.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := make([]byte, 200)
		for {
			n, from, err := echo.ReadFrom(p)
			if err != nil {
				return
			}
			echo.WriteTo(p[:n], from)
		}
	}()
	defer func() { echo.Close(); <-done }()
	var all []time.Duration
	p := make([]byte, 180)
	for range 1000 {
		start := time.Now()
		ask.WriteTo(p, echo.LocalAddr())
		check(b, ask.SetReadDeadline(start.Add(time.Second)))
		if _, _, err := ask.ReadFrom(p); err == nil {
			all = append(all, time.Since(start))
		}
		time.Sleep(max(0, time.Millisecond-time.Since(start)))
	}
	slices.SortFunc(all, cmp.Compare[time.Duration])
	if len(all) < 900 {
		b.Errorf("%d of 1000 echoes", len(all))
		return
	}
	return all[len(all)/2], all[len(all)*99/100]
}
