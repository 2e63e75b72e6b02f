//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"plenum/overlay/netlab"
	"plenum/signaling/client"
)

// A person is one participant as its own process tells of it.
type person struct {
	Number   int // of the crowd, from 0 on
	Room, ID string
	In       time.Time // when it got into the room that it is in: joined, or resumed there
	Heard    time.Time // when it last heard somebody; zero: not since it got in
	Members  int       // of the room, itself included
	Sessions int       // offers, since it joined
	Returns  int       // how often it lost the room's shard and got in again by resuming
	Reloads  int       // and by joining anew
	Err      string    // why it is not in
}

// news is what a crowd says, ten times a second.
type news struct {
	At     time.Time
	People []person
}

// crowd is a program of the tests: people at one place, who come by the first edge that answers, as a browser does that
// has the addresses of all. Its input tells it who joins and leaves: "join ROOM PEOPLE", "leave ROOM".
func crowd() {
	ctx, stop := context.WithCancel(context.Background())
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go openDoor(ctx, door, os.Args[1:])
	var mu sync.Mutex
	var all []*guest
	go func() {
		out := json.NewEncoder(os.Stdout)
		for ctx.Err() == nil {
			n := news{At: time.Now()}
			mu.Lock()
			for _, g := range all {
				n.People = append(n.People, g.tell())
			}
			mu.Unlock()
			_ = out.Encode(n)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	var here sync.WaitGroup
	number := 0
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		f := strings.Fields(orders.Text())
		mu.Lock()
		switch f[0] {
		case "join":
			n, _ := strconv.Atoi(f[2])
			for range n {
				g := &guest{number: number, url: "http://" + door.Addr().String(), room: f[1]}
				number++
				g.ctx, g.leave = context.WithCancel(ctx)
				all = append(all, g)
				here.Go(g.stay)
			}
		case "leave":
			for _, g := range all {
				if g.room == f[1] {
					g.leave()
				}
			}
			all = slices.DeleteFunc(all, func(g *guest) bool { return g.room == f[1] })
		}
		mu.Unlock()
	}
	stop()
	here.Wait()
}

// openDoor takes connections to the first of the edges that answers.
func openDoor(ctx context.Context, door net.Listener, edges []string) {
	for {
		in, err := door.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			for _, edge := range edges {
				out, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", edge)
				if err != nil {
					continue
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(in, out)
				return
			}
		}()
	}
}

// A guest stays in a room until told to leave, and comes again whenever it is out.
type guest struct {
	number    int
	url, room string
	ctx       context.Context
	leave     context.CancelFunc

	mu      sync.Mutex
	p       *client.Participant
	in      time.Time
	returns int
	reloads int
	err     error
}

func (g *guest) event(e client.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch e.Kind {
	case client.Joined:
		g.in = e.At
	case client.Resumed:
		g.in = e.At
		g.returns++
	}
}

func (g *guest) stay() {
	for first := true; g.ctx.Err() == nil; first = false {
		ctx, cancel := context.WithTimeout(g.ctx, 20*time.Second)
		p, err := client.Join(ctx, client.Config{URL: g.url, Domain: domain, Room: g.room, Name: "somebody", Rewriting: true,
			Send: client.Media{Audio: true}, OnEvent: g.event})
		cancel()
		g.mu.Lock()
		g.p, g.err = p, err
		if err == nil && !first {
			g.reloads++
		}
		g.mu.Unlock()
		if err != nil {
			first = true
			select {
			case <-g.ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
			continue
		}
		select {
		case <-g.ctx.Done():
			bye, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_ = p.Leave(bye)
			cancel()
		case <-p.Done():
			p.Close()
			g.mu.Lock()
			g.err = p.Err()
			g.mu.Unlock()
		}
	}
}

func (g *guest) tell() person {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := person{Number: g.number, Room: g.room, In: g.in, Returns: g.returns, Reloads: g.reloads}
	if g.err != nil {
		o.Err = g.err.Error()
	}
	if g.p == nil {
		return o
	}
	s := g.p.Stats()
	o.ID, o.Sessions = s.ID, s.Sessions
	for id := range s.Members {
		if id != "focus" {
			o.Members++
		}
	}
	for _, r := range s.Received {
		if r.Source.Kind == client.Audio && r.Source.Owner != "jvb" && r.LastPacket.After(o.Heard) {
			o.Heard = r.LastPacket
		}
	}
	return o
}

// A place is a host with a crowd on it.
type place struct {
	t      *testing.T
	edges  []string
	orders io.Writer

	mu     sync.Mutex
	last   news
	silent map[int]time.Duration // by person: the longest that it heard nobody, since calm
	more   chan struct{}         // closed at the next news
}

// newPlace has people at a host who come by edges, the first of those that answer.
func newPlace(t *testing.T, h *netlab.Host, edges ...*member) *place {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t: t, silent: map[int]time.Duration{}, more: make(chan struct{})}
	args := []string{"crowd"} // which it is when it is called so: see TestMain
	for _, m := range edges {
		p.edges = append(p.edges, net.JoinHostPort(m.Addr().String(), "80"))
	}
	in, orders, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, words, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.orders = orders
	process := h.StartCmd(&exec.Cmd{Path: self, Args: append(args, p.edges...), Stdin: in, Stdout: words})
	in.Close()
	words.Close()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		p.hear(out)
	}()
	t.Cleanup(func() {
		orders.Close() // everybody leaves
		select {
		case <-process.Done():
		case <-time.After(15 * time.Second):
			process.Kill()
		}
		<-heard
		out.Close()
	})
	return p
}

func (p *place) hear(r io.Reader) {
	for d := json.NewDecoder(r); ; {
		var n news
		if d.Decode(&n) != nil {
			return
		}
		p.mu.Lock()
		p.last = n
		for _, o := range n.People {
			if !o.Heard.IsZero() {
				p.silent[o.Number] = max(p.silent[o.Number], n.At.Sub(o.Heard))
			}
		}
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *place) order(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.orders, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
}

// join has people come to a room; talk waits until they are in.
func (p *place) join(room string, people int) { p.t.Helper(); p.order("join %s %d", room, people) }
func (p *place) leave(room string)            { p.t.Helper(); p.order("leave %s", room) }

// now is what the crowd said last.
func (p *place) now() news {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// calm begins to measure silences anew.
func (p *place) calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.silent)
}

// silence is the longest that anybody of the rooms that begin so heard nobody since calm.
func (p *place) silence(rooms string) (worst time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.last.in(rooms) {
		worst = max(worst, p.silent[o.Number])
	}
	return worst
}

// in are those of the rooms that begin so, or with any of several words.
func (n news) in(rooms string) (some []person) {
	for _, o := range n.People {
		if slices.ContainsFunc(strings.Fields(rooms), func(word string) bool { return strings.HasPrefix(o.Room, word) }) {
			some = append(some, o)
		}
	}
	return some
}

// until waits until the crowd's news are as wanted.
func (p *place) until(within time.Duration, what string, ok func(news) bool) {
	p.t.Helper()
	limit := time.After(within)
	for {
		p.mu.Lock()
		n, more := p.last, p.more
		p.mu.Unlock()
		if ok(n) {
			return
		}
		select {
		case <-more:
		case <-limit:
			p.t.Fatalf("not within %v: %s; the crowd: %+v", within, what, n.People)
		}
	}
}

// talk waits until so many people are in the rooms that begin so, and each hears somebody.
func (p *place) talk(rooms string, people int) {
	p.t.Helper()
	since := time.Now()
	p.until(time.Minute, "everybody is heard in "+rooms, func(n news) bool {
		some := n.in(rooms)
		return len(some) == people && !slices.ContainsFunc(some, func(o person) bool { return !o.Heard.After(since) })
	})
}

// back waits until all of the rooms that begin so got in again after since, in full rooms, and hear each other there; it
// returns how long that took them, in order.
func (p *place) back(rooms string, size int, since time.Time, within time.Duration) []time.Duration {
	p.t.Helper()
	took := map[int]time.Duration{}
	p.until(within, "everybody is back in "+rooms, func(n news) bool {
		some := n.in(rooms)
		for _, o := range some {
			if _, ok := took[o.Number]; !ok && o.In.After(since) && o.Heard.After(o.In) && n.At.Sub(o.Heard) < time.Second && o.Members == size {
				took[o.Number] = n.At.Sub(since)
			}
		}
		return len(took) == len(some)
	})
	var all []time.Duration
	for _, d := range took {
		all = append(all, d.Round(10*time.Millisecond))
	}
	slices.Sort(all)
	return all
}

// p95 is the one that 95 of 100 do not exceed.
func p95(sorted []time.Duration) time.Duration { return sorted[(len(sorted)*95+99)/100-1] }

func median(sorted []time.Duration) time.Duration { return sorted[len(sorted)/2] }
