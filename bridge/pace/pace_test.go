package pace

import (
	"bytes"
	"testing"
	"time"
)

var start = time.Unix(1_700_000_000, 0)

func TestNoLimit(t *testing.T) {
	var p Pacer
	for range 10_000 {
		if !p.Pass(1200, false, start) {
			t.Fatal("held without a limit")
		}
	}
}

// A burst goes out at the rate, in order and whole, and sound does not wait behind it.
func TestBurst(t *testing.T) {
	p := Pacer{Spare: new(Spare)}
	p.Limit(1_200_000)
	now := start
	direct, queued := 0, 0
	for i := range 60 { // 60 kB at once
		payload := bytes.Repeat([]byte{byte(i)}, 988)
		header := bytes.Repeat([]byte{byte(i)}, 12)
		if p.Pass(1000, false, now) {
			direct++
			continue
		}
		p.Put(header, payload, uint32(i))
		queued++
	}
	if direct != minBurst/1000 && direct != minBurst/1000+1 {
		t.Errorf("%d went at once", direct)
	}
	if !p.Pass(100, true, now) {
		t.Error("sound waits")
	}
	n, _ := p.Waiting()
	if n != queued || p.Delay() < 280*time.Millisecond || p.Delay() > 500*time.Millisecond {
		t.Errorf("%d wait for %v", n, p.Delay())
	}
	next := direct
	for n, _ := p.Waiting(); n > 0; n, _ = p.Waiting() {
		now = now.Add(5 * time.Millisecond)
		sent := 0
		for it, ok := p.Next(now); ok; it, ok = p.Next(now) {
			if it.Tag != uint32(next) || len(it.Header) != 12 || len(it.Payload) != 988 || it.Header[0] != byte(next) || it.Payload[987] != byte(next) {
				t.Fatalf("packet %d is %d", next, it.Tag)
			}
			next++
			sent++
		}
		if sent > 2 {
			t.Fatalf("%d packets in 5 ms", sent)
		}
		if now.Sub(start) > time.Second {
			t.Fatal("it does not end")
		}
	}
	if next != 60 {
		t.Errorf("%d of 60 went out", next)
	}
	if len(*p.Spare) != 1 {
		t.Error("its buffer is not given back")
	}
	if d := now.Sub(start); d < 250*time.Millisecond {
		t.Errorf("48 kB went out in %v", d)
	}
}

// Without bounds memory would go to whoever has the slowest path.
func TestOverflow(t *testing.T) {
	var p Pacer
	p.Limit(100_000)
	next := uint32(0)
	for i := range uint32(5000) {
		if p.Pass(1000, false, start) {
			next++
			continue
		}
		p.Put(make([]byte, 12), make([]byte, 988), i)
		for it, ok := p.Next(start); ok; it, ok = p.Next(start) {
			if it.Tag != next {
				t.Fatalf("packet %d goes before %d", it.Tag, next)
			}
			next++
		}
	}
	if _, n := p.Waiting(); n > 8_000 || cap(p.queue) > 64_000 || p.Overflowed == 0 {
		t.Errorf("%d bytes wait, %d packets overflowed", n, p.Overflowed)
	}
}

// When the limit falls away, everything goes.
func TestLimitEnds(t *testing.T) {
	var p Pacer
	p.Limit(100_000)
	for range 15 {
		if !p.Pass(1000, false, start) {
			p.Put(make([]byte, 12), make([]byte, 988), 0)
		}
	}
	p.Limit(0)
	for n, _ := p.Waiting(); n > 0; n, _ = p.Waiting() {
		if _, ok := p.Next(start); !ok {
			t.Fatal("it still waits")
		}
	}
}

func TestPassDoesNotAllocate(t *testing.T) {
	var p Pacer
	p.Limit(1_000_000_000)
	now := start
	if n := testing.AllocsPerRun(1000, func() {
		now = now.Add(time.Millisecond)
		p.Pass(1000, false, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPass(b *testing.B) {
	var p Pacer
	p.Limit(1_000_000_000_000)
	now := start
	for b.Loop() {
		p.Pass(1000, false, now)
	}
}
