package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/hashicorp/consul/api"

	"plenum/overlay/netlab/stack"
	"plenum/signaling/client"
	"plenum/signaling/client/count"
)

// A portal is an edge of a town: plenum run edge, and the HAProxy that it feeds.
type portal struct {
	t        *testing.T
	url, tls string // http://…, https://…
	dir      string
	log      *os.File
	edge     *member
	haproxy  *exec.Cmd
}

// portal starts an edge of a region that goes by the town's Consul.
func (w *town) portal(region string, args ...string) *portal {
	w.t.Helper()
	dir := w.t.TempDir()
	g := &portal{t: w.t, dir: dir}
	plain, secure := freePort(w.t), freePort(w.t)
	g.url, g.tls = "http://"+plain, "https://localhost:"+secure[strings.LastIndex(secure, ":")+1:]
	g.edge = startMember(w.t, "edge-"+region, append([]string{"run", "edge", "--region", region, "--dir", dir, "--http", plain, "--https", secure,
		"--name", "localhost", "--acme", "", "--offload", freePort(w.t), "--answer", freePort(w.t), "--metrics", loopback, "--consul", w.consul,
		"--state", filepath.Join(w.t.TempDir(), "state"), "--haproxy-metrics", freePort(w.t), "--sockets", "1000000", "--log-level", "info"}, args...)...)
	var err error
	if g.log, err = os.Create(filepath.Join(w.t.TempDir(), "haproxy.log")); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		g.kill()
		if text, _ := os.ReadFile(g.log.Name()); w.t.Failed() {
			w.t.Logf("HAProxy of %s:\n%s", region, text)
		}
		g.log.Close()
	})
	g.start()
	return g
}

// start runs HAProxy and waits until it listens.
func (g *portal) start() {
	g.t.Helper()
	g.haproxy = exec.Command("haproxy", "-db", "-f", filepath.Join(g.dir, "haproxy.cfg"))
	g.haproxy.Stdout, g.haproxy.Stderr = g.log, g.log
	if err := g.haproxy.Start(); err != nil {
		g.t.Fatal(err)
	}
	awaitThat(g.t, "HAProxy listens", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (g *portal) kill() {
	g.haproxy.Process.Kill()
	g.haproxy.Wait()
}

var insecure = &tls.Config{InsecureSkipVerify: true}

// owner asks, as clients do to keep their socket's place, where a room is.
func (g *portal) owner(room string) (code int, shard string) {
	g.t.Helper()
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	res, err := c.Get(g.tls + "/xmpp-websocket?room=" + url.QueryEscape(room))
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header.Get("X-Jitsi-Shard")
}

// request asks for a conference by way of the edge, and so opens a room.
func (g *portal) request(room string) error {
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: insecure.Clone(), ForceAttemptHTTP2: true, DisableKeepAlives: true}}
	body := fmt.Sprintf(`{"room": %q}`, room+"@conference.localhost")
	res, err := c.Post(g.tls+"/conference-request/v1?room="+url.QueryEscape(room), "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", room, res.Status, text)
	}
	return nil
}

// join has somebody join with TLS and the colibri WebSocket, all by way of the edge.
func (g *portal) join(room string, http bool) *client.Participant {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	p, err := client.Join(ctx, client.Config{URL: g.tls, TLS: insecure, Room: room, HTTPRequest: http, Rewriting: true, WebSocketChannel: true,
		Send: client.Media{Audio: true}})
	if err != nil {
		g.t.Fatalf("%s by %s: %v", room, g.tls, err)
	}
	g.t.Cleanup(p.Close)
	return p
}

// register tells the town's Consul runs, as its job does.
func (w *town) register(service, id string, m *member, addr string, meta map[string]string) {
	w.t.Helper()
	c, err := api.NewClient(&api.Config{Address: w.consul})
	if err != nil {
		w.t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		w.t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	if u, err := url.Parse(m.ready.Metrics); err == nil {
		meta["metrics_port"] = u.Port()
	}
	if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: service, Address: host, Port: n, Meta: meta}); err != nil {
		w.t.Fatal(err)
	}
}

// listed starts a shard that edges find.
func (w *town) listed(name string) *member {
	w.t.Helper()
	m := w.shard(name, w.consul)
	w.register("plenum-shard", name, m, m.addr(), map[string]string{"shard": name, "region": "muc"})
	return m
}

// channelled starts a bridge whose colibri WebSocket clients reach by way of an edge.
func (w *town) channelled(id, region, base string) *member {
	w.t.Helper()
	ws := freePort(w.t)
	m := startMember(w.t, id, "run", "bridge", "--relay-id", id, "--region", region, "--media", loopback, "--bridge-http", loopback,
		"--bridge-ws", ws, "--bridge-ws-url", base, "--metrics", loopback, "--account", "bridges:secret", "--shards-file", w.list, "--log-level", "info")
	w.bridges = append(w.bridges, m)
	w.register("plenum-bridge", id, m, ws, map[string]string{"relay_id": id, "ws_port": ws[strings.LastIndex(ws, ":")+1:], "region": region})
	return m
}

// awaitThat waits until something is so.
func awaitThat(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestEdge has people come by a real HAProxy of each of two regions, with TLS and HTTP/2: their rooms are on one shard
// however they are spelled, their region decides their bridge, their channels get to it. Then a shard comes and takes
// rooms, and one is drained and loses them, while nobody tells an edge anything.
func TestEdge(t *testing.T) {
	w := newTown(t, stack.Consul(t).URL())
	a, b := w.listed("muc-1"), w.listed("muc-2")
	muc, ber := w.portal("muc", "--ramp", "1ms"), w.portal("ber", "--ramp", "1ms")
	near, far := w.channelled("b-muc", "muc", strings.Replace(muc.tls, "https", "wss", 1)), w.channelled("b-ber", "ber", strings.Replace(ber.tls, "https", "wss", 1))
	w.bridged()
	for _, g := range []*portal{muc, ber} {
		awaitThat(t, "both shards are there", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 2 })
		awaitThat(t, "both bridges are there", func() bool { return g.edge.metric(`plenum_edge_servers{backend="bridges"}`) == 2 })
	}

	before := []string{muc.incarnation(), ber.incarnation()}
	for i := range 3 { // by what bridges carry alone, one of these rooms would be on the other one
		ber.join(fmt.Sprint("far", i), false)
		ber.join(fmt.Sprint("far", i), true)
	}
	first := muc.join("Füßball", false)
	third := muc.join("FÜßBALL", true)
	for _, p := range []*client.Participant{first, third} {
		await(t, p, mediaLimit, "hears the other, and has a channel", func(s client.Stats) bool { return s.Playing(client.Audio) == 1 && s.ChannelMessages > 0 })
	}
	near.awaitMetric("jitsi_jvb_local_endpoints", 2)
	far.awaitMetric("jitsi_jvb_local_endpoints", 6)
	_, shard := muc.owner("f%C3%BC%C3%9Fball")
	for _, spelling := range []string{"Füßball", "FÜßBALL", "f%c3%bc%c3%9fball", "F%C3%BC%C3%9FBALL"} {
		if code, got := ber.owner(spelling); code != 200 || got != shard {
			t.Errorf("the other edge says %d, %q about %s, want %q", code, got, spelling, shard)
		}
	}
	if shard != "muc-1" && shard != "muc-2" {
		t.Errorf("the room is on %q", shard)
	}
	handed := a.metric(`plenum_shard_handovers_total{kind="socket"}`) + b.metric(`plenum_shard_handovers_total{kind="socket"}`)
	if handed > 0 {
		t.Errorf("%v sockets were handed over", handed)
	}

	began := time.Now()
	c := w.listed("muc-3")
	n := 0
	awaitThat(t, "the new shard takes a room", func() bool {
		n++
		name := fmt.Sprint("new", n)
		if err := muc.request(name); err != nil {
			t.Log(err)
			return false
		}
		_, shard := muc.owner(name)
		return shard == "muc-3"
	})
	t.Logf("a new shard took a room after %v, the %dth", time.Since(began), n)
	if err := muc.request("this_muc-3"); err != nil {
		t.Error(err)
	} else if _, got := ber.owner("this_muc-3"); got != "muc-3" {
		t.Errorf("this_muc-3 is on %q", got)
	}

	for _, to := range []string{"muc-1", "muc-2", "muc-3"} {
		name := "pinned to " + to
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		pin := exec.Cmd{Path: self, Args: []string{"plenum", "room", "pin", name, to, "--consul", w.consul, "--room-key", "the same"}}
		if out, err := pin.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		name = url.PathEscape(name)
		if err := muc.request(name); err != nil {
			t.Error(err)
		} else if _, got := ber.owner(name); got != to {
			t.Errorf("a room that is pinned to %s is on %q", to, got)
		}
	}

	c.signal(syscall.SIGUSR1)
	awaitThat(t, "the drained shard loses its rooms", func() bool { _, got := muc.owner("this_muc-3"); return got != "muc-3" })
	awaitThat(t, "the drained shard has no weight", func() bool { return muc.edge.metric(`plenum_edge_weight{shard="muc-3"}`) == 0 })
	for i := range 20 {
		name := fmt.Sprint("after", i)
		if err := muc.request(name); err != nil {
			t.Error(err)
		} else if _, got := muc.owner(name); got == "muc-3" || got == "" {
			t.Errorf("%s is on %q", name, got)
		}
	}
	since := time.Now()
	for _, p := range []*client.Participant{first, third} {
		await(t, p, mediaLimit, "still hears the other", func(s client.Stats) bool { return heardSince(s, since) == 1 })
	}
	c.kill(syscall.SIGTERM)
	catalogue, err := api.NewClient(&api.Config{Address: w.consul})
	if err == nil {
		err = catalogue.Agent().ServiceDeregister("muc-3")
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range []*portal{muc, ber} {
		awaitThat(t, "the shard that went is forgotten", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 2 })
		if now := g.incarnation(); now != before[i] {
			t.Errorf("HAProxy was %s and is %s: it was reloaded", before[i], now)
		}
	}
}

// incarnation tells one start of HAProxy from another: the process that answers.
func (g *portal) incarnation() string {
	g.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(g.dir, "admin.sock"))
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "show info\n"); err != nil {
		g.t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		g.t.Fatal(err)
	}
	pid := 0
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "Pid: %d", &pid)
	}
	return fmt.Sprintf("process %d, started as %d", pid, g.haproxy.Process.Pid)
}

// TestEdgeRestarts restarts both parts of an edge while a hundred rooms are open: none moves. HAProxy starts with all
// shards while the other is gone.
func TestEdgeRestarts(t *testing.T) {
	w := newTown(t, stack.Consul(t).URL())
	for i := range 3 {
		w.listed(fmt.Sprint("muc-", i))
	}
	w.bridge("b1", "muc")
	w.bridged()
	g := w.portal("muc", "--ramp", "1ms")
	awaitThat(t, "all shards are there", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 3 })
	const rooms = 100
	owners := map[string]string{}
	open := map[string]int{}
	for i := range rooms {
		name := fmt.Sprint("room", i)
		if err := g.request(name); err != nil {
			t.Fatal(err)
		}
		_, owners[name] = g.owner(name)
		open[owners[name]]++
	}
	t.Logf("rooms: %v", open)
	same := func(when string) {
		t.Helper()
		moved := 0
		for name, was := range owners {
			if code, is := g.owner(name); code != 200 || is != was {
				moved++
				t.Logf("%s: %s was on %s and is on %q (%d)", when, name, was, is, code)
			}
			if err := g.request(name); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		if moved > 0 {
			t.Errorf("%s: %d of %d rooms moved", when, moved, rooms)
		}
	}
	handed := func() (n float64) {
		for _, s := range w.shards {
			n += max(0, s.metric(`plenum_shard_handovers_total{kind="request"}`))
		}
		return n
	}
	g.kill()
	g.start()
	same("HAProxy restarted")
	if n := handed(); n > 0 {
		t.Errorf("%v requests were handed over", n)
	}
	g.edge.kill(syscall.SIGKILL)
	began := time.Now()
	same("the process gone")
	t.Logf("without the process a request takes %v", time.Since(began)/(2*rooms))
	g.kill()
	g.start()
	same("HAProxy restarted without the process")
	g.edge.start()
	awaitThat(t, "the process is back", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 3 })
	awaitThat(t, "HAProxy asks the process", func() bool {
		g.owner("room0")
		return g.edge.metric("plenum_edge_places_total") > 0
	})
	before := handed()
	if before == 0 {
		t.Error("without the process no request went to another shard")
	}
	same("the process back")
	if n := handed() - before; n > 0 {
		t.Errorf("with the process back %v requests were handed over", n)
	}
}

// TestEdgeBrowser has two pages of the built-in client call each other by way of an edge.
func TestEdgeBrowser(t *testing.T) {
	w := newTown(t, stack.Consul(t).URL())
	w.listed("muc-1")
	w.listed("muc-2")
	g := w.portal("muc")
	w.channelled("b1", "muc", strings.Replace(g.tls, "https", "wss", 1))
	w.bridged()
	awaitThat(t, "everything is there", func() bool {
		return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 2 && g.edge.metric(`plenum_edge_servers{backend="bridges"}`) == 1
	})
	b := newBrowser(t, chromedp.IgnoreCertErrors)
	ann, bob := b.open(t, "ann", g.tls+"/quiet", css(red)), b.open(t, "bob", g.tls+"/QUIET", css(green))
	ann.until("plenum.id", joinLimit)
	bob.until("plenum.id", joinLimit)
	ann.sees(bob, green, mediaLimit)
	bob.sees(ann, red, mediaLimit)
	var protocol string
	if err := ann.eval("performance.getEntriesByType('navigation')[0].nextHopProtocol", &protocol); err != nil || protocol != "h2" {
		t.Errorf("the page came by %q, %v", protocol, err)
	}
}

// TestEdgeReturns (E44) has everybody's socket close at once, as HAProxy is killed and started again: they come back, each
// when it likes to within a second and a half as the stock client does, and nobody is turned away or waits.
func TestEdgeReturns(t *testing.T) {
	people := 300
	if fullLength() {
		people = 5000
	}
	w := newTown(t, stack.Consul(t).URL())
	w.listed("muc-1")
	w.listed("muc-2")
	g := w.portal("muc", "--https", "", "--ramp", "1ms")
	awaitThat(t, "both shards are there", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dial := func(i int) (*count.Client, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		return count.Dial(ctx, count.Config{URL: "ws" + strings.TrimPrefix(g.url, "http") + "/xmpp-websocket?room=" + fmt.Sprint("room", i/10), Room: fmt.Sprint("room", i/10),
			Nick: uint32(i%10 + 1), Crowd: 10, NoConference: true, From: &net.TCPAddr{IP: net.IPv4(127, 0, byte(i>>8), byte(i|1))}})
	}
	sockets := make([]*count.Client, people)
	var all sync.WaitGroup
	places := make(chan struct{}, 50)
	for i := range sockets {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			c, err := dial(i)
			if err != nil {
				t.Errorf("socket %d: %v", i, err)
				return
			}
			sockets[i] = c
		})
	}
	if all.Wait(); t.Failed() {
		return
	}
	times := make([]time.Duration, people)
	var lost, again atomic.Int64
	for i, c := range sockets {
		all.Go(func() {
			_ = c.Until(ctx, func(count.Counts) bool { return false }) // until it is closed
			c.Close()
			lost.Add(1)
			for {
				time.Sleep(1500*time.Millisecond + rand.N(1500*time.Millisecond)) // what the stock client does
				began := time.Now()
				c, err := dial(i)
				if err == nil {
					times[i], sockets[i] = time.Since(began), c
					return
				}
				if again.Add(1); ctx.Err() != nil {
					t.Errorf("socket %d: %v", i, err)
					return
				}
			}
		})
	}
	began := time.Now()
	g.kill()
	g.start()
	all.Wait()
	slices.Sort(times)
	t.Logf("%d sockets were back after %v, of which logging in took %v at the median, %v at p99; %d attempts failed", lost.Load(), time.Since(began), times[people/2], times[people*99/100], again.Load())
	if lost.Load() != int64(people) || again.Load() > 0 {
		t.Errorf("%d of %d sockets were lost, %d attempts to come back failed", lost.Load(), people, again.Load())
	}
	if p99 := times[people*99/100]; p99 > 10*time.Second {
		t.Errorf("p99 of logging in is %v", p99)
	}
	for _, c := range sockets {
		if c != nil {
			c.Close()
		}
	}
}

// TestEdgeMemory opens sockets with TLS by way of the edge, logs in on them, and lets them rest: HAProxy and the shard have
// 30 kB together for each that comes to many.
func TestEdgeMemory(t *testing.T) {
	if !fullLength() {
		t.Skip("set PLENUM_CHAOS=1: processes give back what they do not need when it has been quiet for a while")
	}
	const first, people = 1000, 6000
	w := newTown(t, stack.Consul(t).URL())
	shard := w.listed("muc-1")
	g := w.portal("muc")
	awaitThat(t, "the shard is there", func() bool { return g.edge.metric(`plenum_edge_servers{backend="shards"}`) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	sockets := make([]*count.Client, people)
	defer func() {
		for _, c := range sockets {
			if c != nil {
				c.Close()
			}
		}
	}()
	open := func(from, to int) (edge, shards float64) {
		var all sync.WaitGroup
		places := make(chan struct{}, 50)
		for i := from; i < to; i++ {
			all.Go(func() {
				places <- struct{}{}
				defer func() { <-places }()
				c, err := count.Dial(ctx, count.Config{URL: "wss" + strings.TrimPrefix(g.tls, "https") + "/xmpp-websocket", TLS: insecure, Room: fmt.Sprint("room", i/10),
					Nick: uint32(i%10 + 1), Crowd: 10, NoConference: true, From: &net.TCPAddr{IP: net.IPv4(127, 0, byte(i>>8), byte(i|1))}})
				if err != nil {
					t.Errorf("socket %d: %v", i, err)
					return
				}
				sockets[i] = c
			})
		}
		if all.Wait(); t.Failed() {
			t.FailNow()
		}
		time.Sleep(25 * time.Second) // twice what a process waits before it gives memory back
		return memoryOf(t, g.haproxy.Process.Pid), memoryOf(t, shard.cmd.Process.Pid)
	}
	edge0, shard0 := open(0, first)
	edge1, shard1 := open(first, people)
	edge, here := (edge1-edge0)/(people-first), (shard1-shard0)/(people-first)
	t.Logf("an idle socket with TLS takes %.1f kB of HAProxy and %.1f kB of its shard", edge, here)
	if edge+here > 30 {
		t.Errorf("an idle socket takes %.1f kB, want 30", edge+here)
	}
}

// memoryOf is the memory of a process in kB.
func memoryOf(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	return float64(statusField(text, "VmRSS:"))
}
