package signaling

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestKnock: an address opens a school's worth at once and then so many a second; a /64 is one, another is another.
func TestKnock(t *testing.T) {
	d := newDoor(slog.New(slog.DiscardHandler), func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.1") })
	now := time.Unix(1_700_000_000, 0)
	many := func(addr string, n int) (in int) {
		for range n {
			if d.knock(netip.MustParseAddr(addr), now) {
				in++
			}
		}
		return in
	}
	if n := many("192.0.2.7", 10_000); n != knockBurst {
		t.Errorf("%d at once", n)
	}
	now = now.Add(time.Second)
	if n := many("192.0.2.7", 10_000); n != knocksPerSec {
		t.Errorf("%d in the next second", n)
	}
	if !d.knock(netip.MustParseAddr("192.0.2.8"), now) {
		t.Error("a neighbour pays")
	}
	if n := many("2001:db8::1", 2000) + many("2001:db8::2:3", 2000); n != knockBurst {
		t.Errorf("%d of one network", n)
	}
	if n := many("192.0.2.1", 10_000); n != 10_000 {
		t.Errorf("%d by way of an edge", n)
	}
	for i := range maxKnockers + 10 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if !d.knock(a, now) {
			t.Fatalf("number %d is the first of its address", i)
		}
	}
	if len(d.by) > maxKnockers {
		t.Errorf("%d addresses are remembered", len(d.by))
	}
}

// TestDoor fills a door: those who come then are told, then nobody is let in, and when one leaves the next comes in.
func TestDoor(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := newDoor(slog.New(slog.DiscardHandler), func(netip.Addr) bool { return false })
	d.files(time.Now())
	d.limit, d.told, d.kept = int(d.others)+9, 2, 2
	d.counted = time.Now().Add(time.Hour) // what else is open here does not matter
	s := &http.Server{ConnContext: mark, Handler: d.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "in") }))}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(d.listener(l)) }()
	defer func() { s.Close(); <-done }()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	ask := func(c net.Conn) *http.Response {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		b := make([]byte, 1024)
		n, _ := c.Read(b)
		switch {
		case n > 12 && string(b[9:12]) == "200":
			return &http.Response{StatusCode: 200}
		case n > 12 && string(b[9:12]) == "503":
			return &http.Response{StatusCode: 503}
		}
		return &http.Response{Status: string(b[:n])}
	}
	var in []net.Conn
	for range 5 { // 9 less 2 less 2
		c := dial()
		defer c.Close()
		if r := ask(c); r.StatusCode != 200 {
			t.Fatalf("number %d: %+v", len(in), r)
		}
		in = append(in, c)
	}
	c := dial()
	if r := ask(c); r.StatusCode != 503 {
		t.Errorf("one too many: %+v", r)
	}
	c.Close()
	first, second := dial(), dial() // say nothing, and have two seconds for it
	defer first.Close()
	defer second.Close()
	eventually(t, "both are in", func() bool { return d.inside.Load() == 7 })
	late := dial()
	defer late.Close()
	began := time.Now()
	if r := ask(late); r.StatusCode != 503 || time.Since(began) > 8*time.Second {
		t.Errorf("behind two who say nothing: %+v after %v", r, time.Since(began))
	}
	in[0].Close()
	eventually(t, "one has left", func() bool { return d.inside.Load() <= 4 })
	c = dial()
	defer c.Close()
	if r := ask(c); r.StatusCode != 200 {
		t.Errorf("in the place of another: %+v", r)
	}
	if d.refused.Load() < 2 {
		t.Errorf("%d were told", d.refused.Load())
	}
	if got := mark(context.Background(), in[1]); got.Value(refusedKey{}) != nil {
		t.Error("a connection of somebody else's")
	}
}
