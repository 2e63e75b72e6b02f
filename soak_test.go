//go:build linux

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"plenum/signaling/client"
	"plenum/signaling/client/thin"
)

var (
	soakLength = flag.Duration("soak.length", time.Hour, "for how long TestSoak lasts")
	soakRate   = flag.Float64("soak.rate", 2, "how many participants join, and leave, each second")
)

// A footprint is what a process holds.
type footprint struct {
	rss, heap   uint64 // bytes
	goroutines  int
	descriptors int
}

func (f footprint) String() string {
	return fmt.Sprintf("%d MB resident, %d MB of heap, %d goroutines, %d descriptors", f.rss>>20, f.heap>>20, f.goroutines, f.descriptors)
}

// footprint collects garbage first, so that what is left is held.
func (p *process) footprint() (f footprint, err error) {
	if err := p.each("/debug/pprof/heap?gc=1&debug=1", func(line string) {
		if n, ok := strings.CutPrefix(line, "# HeapInuse = "); ok {
			f.heap, _ = strconv.ParseUint(n, 10, 64)
		}
	}); err != nil {
		return f, err
	}
	if err := p.each("/metrics", func(line string) {
		if n, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			f.goroutines, _ = strconv.Atoi(n)
		}
	}); err != nil {
		return f, err
	}
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return f, err
	}
	f.rss = 1024 * statusField(status, "VmRSS:")
	open, err := filepath.Glob(dir + "/fd/*")
	f.descriptors = len(open)
	return f, err
}

// each calls f with each line of what an operator's address of the process answers.
func (p *process) each(path string, f func(line string)) error {
	r, err := http.Get(p.debug + path)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, r.Status)
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f(lines.Text())
	}
	_, _ = io.Copy(io.Discard, r.Body)
	return lines.Err()
}

// engine runs a load until the test ends.
func engine(tb testing.TB, cfg thin.Config) *thin.Engine {
	tb.Helper()
	cfg.From = netip.MustParseAddr(*costAddr)
	e, err := thin.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.Run(ctx) })
	tb.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return e
}

// churn has participants join rooms on the bridge and leave them again, so many each second, until stop is called, which
// waits until all have left. Each stays for one to three seconds, and sends sound if they talk, of which the first is held
// back until its source is known; every tenth room is a new one.
func churn(ctx context.Context, e *thin.Engine, bridge string, rate float64, talk bool) (stop func() (joined int, err error)) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	var mu sync.Mutex
	var first error
	joined := 0
	all.Go(func() {
		ticker := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer ticker.Stop()
		var room *thin.Room
		for n := 0; ; n++ {
			if n%10 == 0 {
				room = e.NewRoom(bridge, fmt.Sprintf("churn-%d-%d", time.Now().UnixNano(), n))
			}
			room := room // the next one is not theirs
			all.Go(func() {
				id := fmt.Sprintf("%08x", 0xc0000000+n)
				limit, done := context.WithTimeout(context.Background(), 30*time.Second)
				defer done()
				what := thin.Publish{Audio: talk, Seed: uint64(n)}
				p, err := room.Join(limit, id, what, thin.View{})
				if err == nil {
					err = p.Publish(what)
					select {
					case <-time.After(time.Second + rand.N(2*time.Second)):
					case <-ctx.Done():
					}
					if e := room.Leave(limit, id); err == nil { // before a closed connection ends the conference
						err = e
					}
					p.Close()
				}
				mu.Lock()
				defer mu.Unlock()
				joined++
				if err != nil && first == nil {
					first = err
				}
			})
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (int, error) {
		cancel()
		all.Wait()
		mu.Lock()
		defer mu.Unlock()
		return joined, first
	}
}

// TestSoak runs rooms that stay, load participants that come and go, and headless ones that come, talk and leave or
// vanish, for an hour: memory, goroutines and sockets stay what they were.
func TestSoak(t *testing.T) {
	if os.Getenv("PLENUM_SOAK") == "" {
		t.Skip("set PLENUM_SOAK=1: it takes an hour (-soak.length says otherwise)")
	}
	ctx := t.Context()
	p, err := launch(ctx, buildServers(t).plenum, -1)
	if p != nil {
		t.Cleanup(p.stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t, thin.Config{CPU: -1})
	stay := costScenario{name: "stay", listeners: 10, publish: []thin.Publish{
		{Audio: true, Video: 500_000, Width: 640, Height: 360, Seed: 1}, {Audio: true, Seed: 2},
	}}
	for i := range 3 {
		if err := joinThin(ctx, e, p.bridge, fmt.Sprint("stay-", i), stay); err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 8
	var all []footprint
	start, settled := time.Now(), 0 // the first round after what was left behind at the beginning is forgotten
	for range rounds {
		e.Reset()
		began := time.Now()
		stop := churn(ctx, e, p.bridge, *soakRate, true)
		people := 0
		for time.Since(began) < *soakLength/rounds {
			if err := comeAndGo(ctx, p.shard, people); err != nil {
				t.Error(err)
			}
			people++
		}
		joined, err := stop()
		if err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Second) // sockets say goodbye
		f, err := p.footprint()
		if err != nil {
			t.Fatal(err)
		}
		if settled == 0 && time.Since(start) > 3*time.Minute {
			settled = len(all)
		}
		all = append(all, f)
		c := e.Count()
		t.Logf("%v: %d and %d came and went, %.1f kpps, %d lost: %v", time.Since(began).Round(time.Second), joined, people,
			float64(c.Packets)/time.Since(began).Seconds()/1000, c.Lost, f)
		if c.Bad > 0 {
			t.Errorf("%d of %d opened packets are bad", c.Bad, c.Opened)
		}
	}
	if settled == 0 || settled > rounds/2 {
		t.Log("too short to tell growth from what is kept for a minute")
		settled = rounds - 1
	}
	first, last := all[settled], all[rounds-1]
	if last.goroutines > first.goroutines+20 || last.descriptors > first.descriptors+20 {
		t.Errorf("it grows: %v, at the end %v", first, last)
	}
	if last.heap > first.heap*5/4+8<<20 || last.rss > first.rss*5/4+16<<20 {
		t.Errorf("it grows: %v, at the end %v", first, last)
	}
}

// comeAndGo has two people meet in a room for a moment; one leaves, the other vanishes or leaves.
func comeAndGo(ctx context.Context, url string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var both [2]*client.Participant
	for i := range both {
		p, err := client.Join(ctx, client.Config{
			URL: url, Room: fmt.Sprint("come-and-go-", n%20), Rewriting: true, WebSocketChannel: n%2 == 0,
			Send: client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: true},
		})
		if err != nil {
			return err
		}
		defer p.Close()
		both[i] = p
	}
	for _, p := range both {
		if err := p.Wait(ctx, func(s client.Stats) bool { return s.Playing(client.Video) > 0 && s.Playing(client.Audio) > 0 }); err != nil {
			return err
		}
	}
	err := both[0].Leave(ctx)
	if n%3 != 0 {
		if e := both[1].Leave(ctx); err == nil {
			err = e
		}
	}
	return err
}

// BenchmarkScale measures one bridge with a room of five hundred, with three hundred rooms of two, and with people coming
// and going, against the limit program with as much to forward: how late the latest packet was, and what is left in
// memory when all have gone.
func BenchmarkScale(b *testing.B) {
	voice := func(n int) (all []thin.Publish) {
		for i := range n {
			all = append(all, thin.Publish{Audio: true, Seed: uint64(i + 1)})
		}
		return all
	}
	small := thin.Publish{Video: 150_000, Width: 320, Height: 180, Seed: 10}
	crowd := costScenario{name: "crowd", listeners: 492, publish: append(voice(3), small, small, small, small, small)}
	pair := costScenario{name: "pairs", publish: []thin.Publish{{Audio: true, Video: 500_000, Width: 640, Height: 360, Seed: 1}, {Audio: true, Video: 500_000, Width: 640, Height: 360, Seed: 2}}}
	flow := costScenario{name: "churn", listeners: 130, publish: []thin.Publish{{Audio: true, AudioBytes: 200, Video: 1_500_000, Seed: 1}}}
	for _, s := range []struct {
		costScenario
		rooms int
		churn float64 // per second
	}{{crowd, 1, 0}, {pair, 300, 0}, {flow, 1, 20}} {
		b.Run(s.name, func(b *testing.B) {
			for range b.N {
				benchmarkScale(b, s.costScenario, s.rooms, s.churn)
			}
		})
	}
}

func benchmarkScale(b *testing.B, s costScenario, rooms int, rate float64) {
	defer prefer()()
	ctx := context.Background()
	bin := buildServers(b)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintf(w, "\n%s\tparticipants\tkpps\tbridge cores\tload cores\tlost\tvideo p50/p99/max ms\taudio p50/p99/max ms\tstress\tRSS MB\tload avg\t\n", s.name)
	row := func(name string, n int, c cost, stress string) {
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%.2f\t%.2f\t%d\t%s\t%s\t%s\t%d\t%s\n", name, n, c.kpps(), c.cpu.Seconds()/c.window.Seconds(), c.own.Seconds()/c.window.Seconds(),
			c.count.Lost, worst(c.count.Video), worst(c.count.Audio), stress, c.rss>>20, c.load)
	}
	if rooms == 1 {
		c, err := measure(bin, "limit-sendto", s)
		if err != nil {
			b.Fatal(err)
		}
		row("limit-sendto", s.participants(), c, "")
	}
	p, err := launch(ctx, bin.plenum, serverCPU)
	if p != nil {
		defer p.stop()
	}
	if err != nil {
		b.Fatal(err)
	}
	before, err := p.footprint()
	if err != nil {
		b.Fatal(err)
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	e, err := thin.New(thin.Config{From: netip.MustParseAddr(*costAddr), CPU: loadCPU, Nice: costNice, GRO: *costGRO})
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { e.Run(load) })
	joining := time.Now()
	for i := range rooms {
		limit, done := context.WithTimeout(ctx, 2*time.Minute)
		err := joinThin(limit, e, p.bridge, fmt.Sprint("scale-", i), s)
		done()
		if err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(joining)
	time.Sleep(2500 * time.Millisecond)
	name := "plenum"
	end := func() (int, error) { return 0, nil }
	if rate > 0 {
		end = churn(ctx, e, p.bridge, rate, false)
		name = fmt.Sprintf("plenum, %.0f come and go each second", rate)
	}
	c, err := p.window(e)
	if err != nil {
		b.Fatal(err)
	}
	joined, err := end()
	if err != nil {
		b.Error(err)
	}
	text, _ := p.stress()
	row(name, rooms*s.participants(), c, text)
	stop()
	running.Wait() // closes all, which have not left: the bridge finds out
	fmt.Fprintf(w, "joined in %.1f s; %d came and went; before: %v\n", took.Seconds(), joined, before)
	for _, wait := range []time.Duration{0, 75 * time.Second} {
		time.Sleep(wait)
		f, err := p.footprint()
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(w, "%v after all have gone: %v\n", wait, f)
	}
}

func worst(d thin.Delay) string {
	if d.Max == 0 {
		return "-"
	}
	return fmt.Sprintf("%s/%.1f", delays(d), float64(d.Max)/1e6)
}

// stress is what the bridge says of itself, and of that what it goes by.
func (p *process) stress() (text string, level float64) {
	var parts []string
	_ = p.each("/metrics", func(line string) {
		for _, name := range []string{"jitsi_jvb_stress", "plenum_bridge_stress_machine", "plenum_bridge_stress_core"} {
			if strings.HasPrefix(line, name) {
				if v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64); err == nil {
					parts = append(parts, fmt.Sprintf("%s %.2f", name[strings.LastIndexByte(name, '_')+1:], v))
					if len(parts) == 1 {
						level = v
					}
				}
			}
		}
	})
	return strings.Join(parts, ", "), level
}
