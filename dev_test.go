package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// startDev runs plenum dev in this process on free ports of the loopback and stops it at the end of the test.
func startDev(t testing.TB, change ...func(*devOptions)) readyFile {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready.json")
	const free = "127.0.0.1:0"
	o := devOptions{bridges: 1}
	o.http, o.xmpp, o.metrics, o.media, o.bridgeHTTP = free, free, free, free, free
	o.domain, o.readyFile, o.logLevel, o.logFormat = "localhost", ready, "warn", "text"
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- runDev(ctx, o, io.Discard) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("plenum dev: %v", err)
		}
	})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(ready)
		if err != nil {
			continue
		}
		var r readyFile
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatalf("ready file: %v\n%s", err, text)
		}
		return r
	}
	t.Fatal("plenum dev is not ready after 10 s")
	return readyFile{}
}

// A gate is a TCP proxy that can be shut: its connections break, and new ones are refused.
type gate struct {
	listener net.Listener
	mu       sync.Mutex
	shut     bool
	open     map[net.Conn]bool
}

// newGate lets connections through to the address until the test ends.
func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: l, open: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { g.pass(c, to) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.set(true)
		all.Wait()
	})
	return g
}

func (g *gate) pass(in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	if !g.add(in, out) {
		return
	}
	defer g.remove(in, out)
	var both sync.WaitGroup
	both.Go(func() { io.Copy(out, in); out.Close(); in.Close() })
	both.Go(func() { io.Copy(in, out); out.Close(); in.Close() })
	both.Wait()
}

func (g *gate) add(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return false
	}
	for _, c := range conns {
		g.open[c] = true
	}
	return true
}

func (g *gate) remove(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		delete(g.open, c)
	}
}

// set shuts or opens the gate; shutting resets what is open.
func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	for c := range g.open {
		if t, ok := c.(*net.TCPConn); ok && shut {
			t.SetLinger(0)
			t.Close()
		}
	}
}
