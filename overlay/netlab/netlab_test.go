//go:build linux

package netlab_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"plenum/overlay/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon is the limit for what should take milliseconds, on a machine that does much else.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// shortly is how long nothing has to arrive to be believed.
func shortly(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func reaches(t testing.TB, a, b *netlab.Host) {
	t.Helper()
	for _, addr := range b.Addrs() {
		if _, err := a.Ping(soon(t), addr); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func unreachable(t testing.TB, a, b *netlab.Host) {
	t.Helper()
	ctx := shortly(t)
	for _, addr := range b.Addrs() {
		if rtt, err := a.Ping(ctx, addr); err == nil {
			t.Errorf("%s reaches %s (%v) in %v", a.Name(), b.Name(), addr, rtt)
		}
	}
}

// lan returns n hosts on one switch, and their links.
func lan(t testing.TB, n int, cfg netlab.LinkConfig) (lab *netlab.Lab, hosts []*netlab.Host, links []*netlab.Link) {
	t.Helper()
	lab = netlab.New(t)
	sw := lab.Switch("lan")
	for i := range n {
		h := lab.Host(string(rune('a' + i)))
		hosts = append(hosts, h)
		links = append(links, lab.Link(h, sw, cfg))
	}
	return lab, hosts, links
}

func TestHosts(t *testing.T) {
	lab, hosts, links := lan(t, 2, netlab.LinkConfig{})
	a, b := hosts[0], hosts[1]
	reaches(t, a, b)
	c := lab.Host("c")
	cable := lab.Link(c, b, netlab.LinkConfig{Addrs: []netip.Addr{netip.MustParseAddr("198.18.2.77")}})
	if cable.Addr(c) != netip.MustParseAddr("198.18.2.77") || cable.Interface(b) != "eth1" || links[1].Interface(b) != "eth0" {
		t.Errorf("the cable ends at %v and %v", cable.Addrs(c), cable.Interface(b))
	}
	if _, err := c.Ping(soon(t), cable.Addr(b)); err != nil {
		t.Error(err)
	}
	out, err := a.Run("sh", "-c", "cat /proc/sys/kernel/hostname; ls -d /proc/[0-9]* | wc -l; ls /run | wc -l; pwd")
	dir, _ := os.Getwd()
	lines := strings.Fields(out)
	if err != nil || len(lines) != 4 || lines[0] != "a" || lines[2] != "0" || lines[3] != dir {
		t.Errorf("on a: %q, %v", lines, err)
	} else if n, _ := strconv.Atoi(lines[1]); n > 5 {
		t.Errorf("%d processes on a, want init, the shell and what it runs", n)
	}
	if _, err := a.Run("sh", "-c", "echo one >/run/file; exit 3"); err == nil || err.Error() != "exit status 3" {
		t.Errorf("exit status 3 is %v", err)
	}
	if got, err := os.ReadFile(a.Path("run", "file")); err != nil || string(got) != "one\n" {
		t.Errorf("/run/file: %q, %v", got, err)
	}
	if _, err := os.Stat(b.Path("/run/file")); err == nil {
		t.Error("b sees a's /run")
	}
	mnt := t.TempDir()
	a.Mount(mnt)
	if _, err := a.Run("touch", filepath.Join(mnt, "x")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(mnt, "x")); err == nil {
		t.Error("what a has in a directory of its own is on the machine")
	}
	if _, err := a.Run("no-such-program"); err == nil {
		t.Error("a program that is not there runs")
	}
}

// TestSockets opens sockets in the host's namespace, by goroutines in parallel, and one in its file system.
func TestSockets(t *testing.T) {
	_, hosts, _ := lan(t, 3, netlab.LinkConfig{})
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, h := range hosts {
		ln, err := h.Listen("tcp4", ":7000") // one port on every host
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, h.Name())
				c.Close()
			}
		})
		defer ln.Close()
	}
	var dials sync.WaitGroup
	for range 5 {
		for _, from := range hosts {
			for _, to := range hosts {
				dials.Go(func() {
					c, err := from.Dial(soon(t), "tcp", net.JoinHostPort(to.Addr().String(), "7000"))
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					if got, _ := io.ReadAll(c); string(got) != to.Name() {
						t.Errorf("%s answers as %q", to.Name(), got)
					}
					if local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local != from.Addr() {
						t.Errorf("%s dials from %v", from.Name(), local)
					}
				})
			}
		}
	}
	dials.Wait()
	ln, err := net.Listen("unix", hosts[0].Path("/run/sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := hosts[0].Dial(soon(t), "unix", "/run/sock")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := hosts[1].Dial(soon(t), "unix", "/run/sock"); err == nil {
		t.Error("b reaches a's socket")
	}
}

func TestProcesses(t *testing.T) {
	_, hosts, _ := lan(t, 1, netlab.LinkConfig{})
	a := hosts[0]
	p := a.Start("sh", "-c", `trap 'echo again' HUP; echo "pid $$ ready"; while :; do sleep 0.01; done`)
	m, err := p.Await(soon(t), `pid (\d+) ready`)
	if err != nil {
		t.Fatal(err)
	}
	if m[1] == strconv.Itoa(p.PID()) {
		t.Error("the host numbers processes as the machine does")
	}
	p.Signal(syscall.SIGHUP)
	if _, err := p.Await(soon(t), "again"); err != nil {
		t.Error(err)
	}
	if _, err := p.Await(shortly(t), "never said"); err == nil {
		t.Error("Await finds what was never said")
	}
	if err := p.Stop(10 * time.Second); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("stopped: %v", err)
	}
	p = a.Start("sh", "-c", "trap '' TERM; echo deaf; sleep 1000")
	if _, err := p.Await(soon(t), "deaf"); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(10 * time.Millisecond); err == nil || err.Error() != "signal: killed" {
		t.Errorf("a deaf one stopped: %v", err)
	}
	p = a.Start("sh", "-c", "echo last words; exit 1")
	if _, err := p.Await(soon(t), "never said"); err == nil || !strings.Contains(err.Error(), "last words") {
		t.Errorf("Await of a process that ends: %v", err)
	}
	// What leaves its group and its parent is still the host's.
	daemon := a.Start("sh", "-c", "setsid sh -c 'sleep 1000 & echo daemon'")
	if _, err := daemon.Await(soon(t), "daemon"); err != nil {
		t.Fatal(err)
	}
	a.Start("sleep", "1000")
	a.KillAll()
	if out, _ := a.Run("sh", "-c", "cat /proc/[0-9]*/comm"); strings.Contains(out, "sleep") {
		t.Errorf("left after KillAll: %q", out)
	}
}

func TestCables(t *testing.T) {
	lab, hosts, links := lan(t, 3, netlab.LinkConfig{})
	a, b, c := hosts[0], hosts[1], hosts[2]
	reaches(t, a, b)
	carrier := func() bool {
		eth, err := a.Netlink().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		return eth.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
	}
	links[0].Down()
	if carrier() {
		t.Error("a has a carrier without a cable")
	}
	unreachable(t, b, a)
	links[0].Up()
	reaches(t, b, a)
	if !carrier() {
		t.Error("a has no carrier")
	}

	// An address that the lab does not know of is cut as well.
	for i, h := range []*netlab.Host{a, b} {
		if out, err := h.Run("ip", "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "eth0"); err != nil {
			t.Fatal(out, err)
		}
	}
	strange := netip.MustParseAddr("10.99.0.2")
	if _, err := a.Ping(soon(t), strange); err != nil {
		t.Error(err)
	}
	lab.Partition(a, b)
	lab.Partition(a, b) // twice is once
	unreachable(t, a, b)
	if _, err := a.Ping(shortly(t), strange); err == nil {
		t.Error("a reaches another address of b")
	}
	reaches(t, a, c)
	reaches(t, c, b)
	links[0].Impair(netlab.Impairment{Delay: time.Microsecond}) // a cut holds on whatever devices the cable is made of
	unreachable(t, b, a)
	links[0].Impair(netlab.Impairment{})
	unreachable(t, b, a)
	lab.Heal(a, b)
	reaches(t, a, b)

	lab.Cut(a, b)
	s, far := open(t, a, ":9"), open(t, b, ":9")
	far.send(netip.AddrPortFrom(a.Addr(), 9))
	if !s.from(5 * time.Second).IsValid() {
		t.Error("b's packets do not arrive at a, though only the other way is cut")
	}
	s.send(netip.AddrPortFrom(b.Addr(), 9))
	if far.from(200 * time.Millisecond).IsValid() {
		t.Error("a's packets arrive though they are cut")
	}
	lab.Heal(a, b)

	old := a.Addrs()
	links[0].Renumber(a)
	if slicesMeet(old, a.Addrs()) {
		t.Errorf("had %v, has %v", old, a.Addrs())
	}
	reaches(t, b, a)
	for _, addr := range old {
		if _, err := b.Ping(shortly(t), addr); err == nil {
			t.Errorf("the old address %v answers", addr)
		}
	}
}

func slicesMeet(a, b []netip.Addr) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

// TestMTU: a host is told the MTU of its own cable, and nobody tells it of a path that swallows.
func TestMTU(t *testing.T) {
	_, hosts, links := lan(t, 2, netlab.LinkConfig{MTU: 1400})
	a, b := hosts[0], hosts[1]
	c, err := a.ListenPacket("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, _ := c.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	far := open(t, b, ":9")
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.Addr(), 9))
	size := func(ip int) []byte { return make([]byte, ip-28) }
	if _, err := c.WriteTo(size(1401), to); err == nil {
		t.Error("more than the MTU is sent")
	}
	c.WriteTo(size(1400), to)
	if !far.from(5 * time.Second).IsValid() {
		t.Error("a packet of the MTU does not arrive")
	}
	links[0].Impair(netlab.Impairment{MTU: 1280})
	for _, ip := range []int{1281, 1280} {
		if _, err := c.WriteTo(size(ip), to); err != nil {
			t.Errorf("%d bytes: %v", ip, err)
		}
		patience := 5 * time.Second
		if ip > 1280 {
			patience = 200 * time.Millisecond
		}
		if got := far.from(patience).IsValid(); got != (ip <= 1280) {
			t.Errorf("%d bytes arrive: %v", ip, got)
		}
	}
	if sent, _ := links[0].Stats(); sent.TooLarge != 1 {
		t.Errorf("%+v, want one too large", sent)
	}
}

// TestImpair: delay, loss, order and copies of a real link, each way by itself, and back to none.
func TestImpair(t *testing.T) {
	_, hosts, links := lan(t, 2, netlab.LinkConfig{})
	a, b := hosts[0], hosts[1]
	ping := func() time.Duration {
		t.Helper()
		rtt, err := a.Ping(soon(t), b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		return rtt
	}
	ping() // who has this address
	links[0].Impair(netlab.Impairment{Delay: 20 * time.Millisecond})
	if rtt := ping(); rtt < 40*time.Millisecond {
		t.Errorf("20 ms each way, there and back in %v", rtt)
	}
	links[0].Impair(netlab.Impairment{Delay: 60 * time.Millisecond})
	for range 3 { // Ping asks faster than this path answers: what comes late is not for the next Ping
		if rtt := ping(); rtt < 120*time.Millisecond || rtt > 10*time.Second {
			t.Errorf("60 ms each way, there and back in %v", rtt)
		}
	}
	links[0].Impair(netlab.Impairment{Delay: 20 * time.Millisecond})
	links[0].ImpairTo(a, netlab.Impairment{})
	if rtt := ping(); rtt < 20*time.Millisecond {
		t.Errorf("20 ms one way, there and back in %v", rtt)
	}
	links[0].Impair(netlab.Impairment{})
	before, _ := links[0].Stats()
	best := time.Hour
	for range 10 {
		best = min(best, ping())
	}
	if best > 20*time.Millisecond {
		t.Errorf("no delay, there and back in %v", best)
	}
	if after, _ := links[0].Stats(); before.In == 0 || after != before {
		t.Errorf("healed, and the engine still sees packets: %+v, then %+v", before, after)
	}

	links[0].Impair(netlab.Impairment{Delay: time.Millisecond})
	links[0].Down()
	unreachable(t, a, b)
	links[0].Impair(netlab.Impairment{Delay: 2 * time.Millisecond})
	links[0].Up()
	reaches(t, a, b)

	const count = 3000
	links[0].Impair(netlab.Impairment{})
	links[0].ImpairFrom(a, netlab.Impairment{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, ReorderBy: 5 * time.Millisecond, Seed: 3})
	got := stream(t, a, b, count, 100, 0)
	sent, back := links[0].Stats()
	if lost := count - got.distinct; lost < count*7/100 || lost > count*13/100 {
		t.Errorf("%d of %d lost, want a tenth", lost, count)
	}
	if copies := got.all - got.distinct; copies < count*6/100 || copies > count*12/100 {
		t.Errorf("%d of %d came twice, want a tenth of those not lost", copies, count)
	}
	if got.late == 0 {
		t.Error("all came in order")
	}
	if int(sent.Lost) != count-got.distinct || back.Lost != 0 {
		t.Errorf("counted %+v and %+v", sent, back)
	}
	// The same seed loses the same packets, here and in an engine without any link.
	links[0].Impair(netlab.Impairment{}) // a new link counts from zero
	links[0].ImpairFrom(a, netlab.Impairment{Loss: 0.1, Seed: 3})
	if out, err := a.Run("ip", "neigh", "flush", "dev", "eth0"); err != nil { // so that the first packet has to ask its way
		t.Fatal(out, err)
	}
	got = stream(t, a, b, count, 100, 0)
	e := netlab.NewEngine(netlab.Impairment{Loss: 0.1, Seed: 3}, 0, time.Now())
	for n := range uint32(count) {
		e.Push(time.Now(), nil, 0)
		if _, _, passed := e.Pop(time.Now()); passed != got.seen[n] {
			t.Fatalf("packet %d arrives: %v; without a link: %v", n, got.seen[n], passed)
		}
	}
}

type received struct {
	all, distinct, late int
	seen                map[uint32]bool
	took                time.Duration // to send them
}

// stream sends count packets from a to b, numbered, a given time apart, and says what came.
func stream(t *testing.T, a, b *netlab.Host, count, size int, every time.Duration) (r received) {
	t.Helper()
	src, err := a.Dial(soon(t), "udp", netip.AddrPortFrom(b.Addr(), 5000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := b.ListenPacket("udp4", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	raw, _ := dst.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	var wg sync.WaitGroup
	sent := make(chan struct{})
	wg.Go(func() {
		seen := make(map[uint32]bool)
		buf := make([]byte, 2000)
		top := uint32(0)
		for {
			dst.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
			if _, _, err := dst.ReadFrom(buf); err != nil {
				select {
				case <-sent:
				default:
					continue
				}
				r.distinct, r.seen = len(seen), seen
				return
			}
			n := binary.BigEndian.Uint32(buf)
			if n < top && !seen[n] {
				r.late++
			}
			r.all, top, seen[n] = r.all+1, max(top, n), true
		}
	})
	data := make([]byte, size)
	begin := time.Now()
	for i := range uint32(count) {
		binary.BigEndian.PutUint32(data, i)
		src.Write(data)
		if every == 0 {
			every = 100 * time.Microsecond
		}
		time.Sleep(time.Until(begin.Add(time.Duration(i) * every)))
	}
	took := time.Since(begin)
	close(sent)
	wg.Wait()
	r.took = took
	return r
}

// TestRate sends at four times the rate of the link, to both ways of limiting it.
func TestRate(t *testing.T) {
	const rate, size, count = 20 * netlab.Mbit, 1222, 2500 // 1,250 bytes of IP: 2 packets a millisecond pass
	for name, limit := range map[string]func(*netlab.Link){
		"tbf":    func(k *netlab.Link) { k.SetRate(rate) },
		"engine": func(k *netlab.Link) { k.Impair(netlab.Impairment{Rate: rate}) },
		"both":   func(k *netlab.Link) { k.SetRate(rate); k.Impair(netlab.Impairment{Delay: time.Millisecond}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, hosts, links := lan(t, 2, netlab.LinkConfig{})
			reaches(t, hosts[0], hosts[1])
			limit(links[1]) // the far end's cable: its other direction counts
			got := stream(t, hosts[0], hosts[1], count, size, 125*time.Microsecond)
			// What waits in the queue when the last is sent still comes: 100 ms, and a burst of the token bucket.
			most := int(1.1 * float64(rate) / 8 / 1250 * (got.took + 110*time.Millisecond).Seconds())
			if got.all > most || got.all < count/6 {
				t.Errorf("%d of %d, sent in %v, pass; want at most %d", got.all, count, got.took, most)
			}
			links[1].SetRate(0)
			links[1].Impair(netlab.Impairment{})
			if got := stream(t, hosts[0], hosts[1], 200, size, 0); got.all != 200 {
				t.Errorf("%d of 200 without a limit", got.all)
			}
		})
	}
}

// TestBulk moves a file by TCP over a link that is impaired, limited and perfect in turn: what the kernel would leave to
// the devices, checksums and segmentation, is done.
func TestBulk(t *testing.T) {
	_, hosts, links := lan(t, 2, netlab.LinkConfig{})
	a, b := hosts[0], hosts[1]
	file := bytes.Repeat([]byte("plenum"), 1<<18)
	for _, set := range []func(){
		func() {},
		func() { links[0].Impair(netlab.Impairment{Delay: time.Millisecond, Loss: 0.001, Seed: 2}) },
		func() { links[0].Impair(netlab.Impairment{}); links[0].SetRate(200 * netlab.Mbit) },
		func() { links[1].Impair(netlab.Impairment{Delay: time.Millisecond}) },
		func() { links[0].SetRate(0); links[1].Impair(netlab.Impairment{}) },
	} {
		set()
		for _, way := range [][2]*netlab.Host{{a, b}, {b, a}} {
			ln, err := way[1].Listen("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				c, err := way[0].Dial(soon(t), "tcp", net.JoinHostPort(way[1].Addr().String(), "80"))
				if err != nil {
					t.Error(err)
					ln.Close()
					return
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := c.Write(file); err != nil {
					t.Error(err)
				}
				c.Close()
			})
			c, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			n, err := io.Copy(h, c)
			if err != nil || [32]byte(h.Sum(nil)) != sha256.Sum256(file) {
				t.Errorf("%d bytes of %d arrive, %v", n, len(file), err)
			}
			c.Close()
			ln.Close()
			wg.Wait()
		}
	}
}

func TestCapture(t *testing.T) {
	lab, hosts, links := lan(t, 3, netlab.LinkConfig{})
	a, b := hosts[0], hosts[1]
	secret := []byte("the known payload")
	file := filepath.Join(t.TempDir(), "all.pcap")
	has := func(frame []byte) bool { return bytes.Contains(frame, secret) }
	all := lab.Capture(netlab.CaptureConfig{Match: has, File: file})
	one := links[2].Capture(netlab.CaptureConfig{Match: has})
	far := open(t, b, ":9")
	c, err := a.Dial(soon(t), "udp", netip.AddrPortFrom(b.Addr(), 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 100 {
		c.Write(secret)
		c.Write([]byte("something else"))
	}
	for range 200 {
		if !far.from(5 * time.Second).IsValid() {
			t.Fatal("a packet is lost on a perfect link")
		}
	}
	if err := one.Stop(); err != nil {
		t.Error(err)
	}
	if err := all.Stop(); err != nil {
		t.Error(err)
	}
	eth := b.Capture("eth0", netlab.CaptureConfig{})
	reaches(t, a, b)
	if err := eth.Stop(); err != nil {
		t.Error(err)
	}
	if seen, _ := eth.Seen(); seen < 4 {
		t.Errorf("%d frames on b's own device, want two questions and two answers", seen)
	}
	if seen, n := all.Seen(); n != 200 || seen < 400 {
		t.Errorf("%d of %d frames match, want 200: one out of a and one into b, a hundred times", n, seen)
	}
	if _, n := one.Seen(); n != 0 {
		t.Errorf("c's cable carries %d packets from a to b", n)
	}
	if frames := all.Frames(); len(frames) != 16 || !has(frames[0]) {
		t.Errorf("%d frames kept", len(frames))
	}
	for range 8 { // what was sent before Stop is seen
		last := links[0].Capture(netlab.CaptureConfig{Match: has})
		c.Write(secret)
		if err := last.Stop(); err != nil {
			t.Error(err)
		}
		if _, n := last.Seen(); n != 1 {
			t.Errorf("sent one, stopped, saw %d", n)
		}
	}
	pcap, err := os.ReadFile(file)
	if err != nil || len(pcap) != 24+200*(16+14+28+len(secret)) {
		t.Errorf("the file has %d bytes, %v", len(pcap), err)
	}
}

// TestLeavesNothing: neither descriptors nor threads' namespaces nor devices outlive a lab.
func TestLeavesNothing(t *testing.T) {
	count := func() (fds int, devices int) {
		files, _ := os.ReadDir("/proc/self/fd")
		links, _ := net.Interfaces()
		return len(files), len(links)
	}
	build := func() {
		err := netlab.Run(io.Discard, "lab", func(tb netlab.TB) {
			lab := netlab.New(tb)
			sw := lab.Switch("s")
			a, b := lab.Host("a"), lab.Host("b")
			k := lab.Link(a, sw, netlab.LinkConfig{})
			lab.Link(b, lab.NAT("n", sw, netlab.NATConfig{Kind: netlab.FullCone}).Inside, netlab.LinkConfig{Rate: netlab.Mbit})
			k.Impair(netlab.Impairment{Delay: time.Millisecond})
			lab.Capture(netlab.CaptureConfig{})
			a.Start("sleep", "1000")
			a.Ping(soon(t), a.Addr())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	build() // what is opened once for all
	fds, devices := count()
	for range 3 {
		build()
	}
	if f, d := count(); f > fds || d != devices {
		t.Errorf("%d descriptors and %d devices, before %d and %d", f, d, fds, devices)
	}
}

// TestCrash kills a process with a lab, and wants nothing of its hosts left.
func TestCrash(t *testing.T) {
	if os.Getenv("NETLAB_CRASH") != "" {
		lab := netlab.New(t)
		a := lab.Host("a")
		a.Start("setsid", "sleep", "1000")
		fmt.Println("holder", a.PID())
		select {}
	}
	netlab.Require(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCrash$", "-test.v")
	cmd.Env = append(os.Environ(), "NETLAB_CRASH=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	for s := bufio.NewScanner(out); pid == 0 && s.Scan(); {
		if _, after, ok := strings.Cut(s.Text(), "holder "); ok {
			pid, _ = strconv.Atoi(after)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if pid == 0 {
		t.Fatal("no lab was made")
	}
	gone(t, pid)
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for ctx := soon(t); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") { // gone, or waits for a parent to look
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("process %d lives on", pid)
		}
	}
}

// TestSweep makes what a crash would leave if a pipe were not enough: a holder whose owner has ended.
func TestSweep(t *testing.T) {
	_, hosts, _ := lan(t, 2, netlab.LinkConfig{})
	short := exec.Command("true")
	if err := short.Run(); err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command("sleep", "1000")
	orphan.Env = []string{fmt.Sprintf("PLENUM_NETLAB_HOLDER=%d:1:x", short.Process.Pid)}
	orphan.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	if n := netlab.Sweep(); n < 1 {
		t.Errorf("swept %d, want the orphan", n)
	}
	if err := orphan.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the orphan ended with %v", err)
	}
	reaches(t, hosts[0], hosts[1]) // our own are not swept
}

// TestNoPrivilege runs a test with a lab as nobody.
func TestNoPrivilege(t *testing.T) {
	if os.Getenv("NETLAB_NOBODY") != "" {
		netlab.New(t)
		return
	}
	netlab.Require(t)
	for ci, want := range map[string]string{"": "SKIP", "true": "FAIL"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestNoPrivilege$", "-test.v")
		cmd.Env = []string{"NETLAB_NOBODY=1", "PATH=" + os.Getenv("PATH"), "CI=" + ci}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		if !bytes.Contains(out, []byte("--- "+want)) || !bytes.Contains(out, []byte("netlab needs root")) {
			t.Errorf("CI=%q, as nobody: %s", ci, out)
		}
	}
}

// BenchmarkLink carries media-like packets over a link as fast as it goes with both hosts on this machine: a plain one,
// and one with an engine, of which at most 512 packets are ahead.
func BenchmarkLink(b *testing.B) {
	for name, imp := range map[string]netlab.Impairment{"plain": {}, "impaired": {Loss: 0.001, Delay: 5 * time.Millisecond}} {
		for _, size := range []int{180, 1200} {
			b.Run(fmt.Sprintf("%s/%dB", name, size), func(b *testing.B) {
				_, hosts, links := lan(b, 2, netlab.LinkConfig{})
				if _, err := hosts[0].Ping(soon(b), hosts[1].Addr()); err != nil {
					b.Fatal(err)
				}
				links[0].Impair(imp)
				dst, err := hosts[1].ListenPacket("udp4", ":5000")
				if err != nil {
					b.Fatal(err)
				}
				src, err := hosts[0].Dial(soon(b), "udp", netip.AddrPortFrom(hosts[1].Addr(), 5000).String())
				if err != nil {
					b.Fatal(err)
				}
				defer src.Close()
				var wg sync.WaitGroup
				defer wg.Wait()
				defer dst.Close()
				wg.Go(func() {
					buf := make([]byte, 2000)
					for {
						if _, _, err := dst.ReadFrom(buf); err != nil {
							return
						}
					}
				})
				data := make([]byte, size)
				b.SetBytes(int64(size))
				n := uint64(0)
				defer cpu(b)()
				for b.Loop() {
					src.Write(data)
					if n++; n%64 == 0 && imp.Delay > 0 {
						for s, _ := links[0].Stats(); s.In+512 < n; s, _ = links[0].Stats() {
							time.Sleep(50 * time.Microsecond)
						}
					}
				}
			})
		}
	}
}

// cpu reports, when what it returns is called, the processor time per operation of this process, both ends included, which
// a busy machine does not change.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var u unix.Rusage
		unix.Getrusage(unix.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
