package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plenum/signaling/client/count"
)

// flood is a program of the tests: flood URL opens sockets that say nothing, sockets that speak before they log in, and
// rooms, from another address than everybody else's, as fast as it can until its input ends.
func flood() {
	ctx, stop := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	cfg := count.Config{URL: strings.Replace(os.Args[1], "http", "ws", 1) + "/xmpp-websocket", Room: "room", Nick: 1, Crowd: 1, From: attacker}
	var open, refused, early, rooms, denied atomic.Int64
	var all sync.WaitGroup
	repeat := func(f func()) {
		all.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	held := make(chan *count.Client, 1100) // more than are let in
	repeat(func() {
		c, err := count.Open(ctx, cfg)
		if err != nil {
			refused.Add(1)
			return
		}
		open.Add(1)
		select {
		case held <- c:
		default:
			c.Close()
		}
	})
	repeat(func() {
		c, err := count.Open(ctx, cfg)
		if err != nil {
			refused.Add(1)
			return
		}
		c.Say(`<presence to="call@conference.localhost/x" xmlns="jabber:client"/>`)
		c.Close()
		early.Add(1)
	})
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: attacker}).DialContext}}
	repeat(func() {
		body := fmt.Sprintf(`{"room":"spam%d@conference.localhost"}`, rooms.Load()+denied.Load())
		r, err := client.Post(os.Args[1]+"/conference-request/v1", "application/json", strings.NewReader(body))
		if err != nil {
			denied.Add(1)
			return
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			rooms.Add(1)
		} else {
			denied.Add(1)
		}
	})
	all.Wait()
	fmt.Printf("%d sockets half open, %d refused, %d that spoke early, %d rooms, %d denied", open.Load(), refused.Load(), early.Load(), rooms.Load(), denied.Load())
}

// startFlood runs flood on the last processor until the function that it returns, which tells what it did.
func startFlood(t *testing.T, url string) (stop func() string) {
	t.Helper()
	var out bytes.Buffer
	c := exec.Command("flood", url)
	c.Stdout, c.Stderr = &out, os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with what it was set to
		var set unix.CPUSet
		set.Set(runtime.NumCPU() - 1)
		unix.SchedSetaffinity(0, &set)
		started <- c.Start()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	end := func() string {
		once.Do(func() {
			in.Close()
			c.Wait()
		})
		return out.String()
	}
	t.Cleanup(func() { end() })
	return end
}

// absorber is what the flood is sent to for comparison: it closes what comes.
func absorber(t *testing.T) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// TestFloodRatio is what a flood from elsewhere costs everybody else: the time to join a room under it, over that time
// while the same program floods a listener that closes everything, so that what the flooder itself takes of this
// machine is not held against the server. The two alternate; the last figure is the ratio.
func TestFloodRatio(t *testing.T) {
	const free = "127.0.0.1:0"
	p := startProgram(t, 0, "dev", "--http", free, "--xmpp", free, "--metrics", free, "--media", free, "--bridge-http", free)
	a := &arena{T: t, http: p.ready.HTTP, from: &net.TCPAddr{IP: net.IPv4(127, 0, 1, 1).To4()}}
	joins, rounds := 40, 1
	if fullLength() {
		joins, rounds = 90, 7
	}
	elsewhere := absorber(t)
	var ratios []float64
	measure := func(url string) (p50, p95 time.Duration, cpu time.Duration, did string) {
		stop := startFlood(t, url)
		if dropped := "plenum_shard_connections_dropped_total"; url == p.ready.HTTP { // until it has used up what an address may do at once
			for was, end := p.metric(dropped), time.Now().Add(mediaLimit); p.metric(dropped) == was && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
		} else {
			time.Sleep(time.Second)
		}
		a.from.IP[3]++ // nobody opens that many rooms in a row
		used := p.cpu()
		began := time.Now()
		all := a.joins(joins)
		took := time.Since(began)
		cpu = (p.cpu() - used) * time.Second / took
		did = stop()
		slices.Sort(all)
		return all[len(all)/2], all[len(all)*95/100], cpu, did
	}
	measure(elsewhere) // warms up
	for range rounds {
		q50, q95, calm, _ := measure(elsewhere)
		f50, f95, busy, did := measure(p.ready.HTTP)
		ratios = append(ratios, float64(f95)/float64(q95))
		t.Logf("join p50 %v, p95 %v, server %v a second; flooded p50 %v, p95 %v, server %v a second; ratio of p95 %.2f (%s)",
			q50.Round(time.Microsecond), q95.Round(time.Microsecond), calm.Round(time.Millisecond),
			f50.Round(time.Microsecond), f95.Round(time.Microsecond), busy.Round(time.Millisecond), f95.Seconds()/q95.Seconds(), did)
	}
	slices.Sort(ratios)
	t.Logf("join p95 under flood over p95 under the same load elsewhere: %.2f (%.2f to %.2f)", ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
	if ratios[len(ratios)/2] > 5 {
		t.Error("a flood slows everybody")
	}
	if n := p.metric("plenum_shard_connections_dropped_total"); n == 0 {
		t.Error("nothing was dropped at the door")
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
}
