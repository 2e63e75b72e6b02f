package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"plenum/overlay/netlab/stack"
	"plenum/signaling/client"
)

// A member is one process of a test's cluster: the real binary.
type member struct {
	t     *testing.T
	args  []string
	log   *os.File
	cmd   *exec.Cmd
	ready readyFile
	ended chan struct{}
}

// startMember runs plenum with arguments until the test ends, and waits until it listens.
func startMember(t *testing.T, name string, args ...string) *member {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, args: args, log: log}
	m.start()
	t.Cleanup(func() {
		m.kill(syscall.SIGTERM)
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", name, text)
		}
		log.Close()
	})
	return m
}

func (m *member) start() {
	m.t.Helper()
	self, err := os.Executable() // which is plenum when it is called so: see TestMain
	if err != nil {
		m.t.Fatal(err)
	}
	ready := filepath.Join(m.t.TempDir(), "ready.json")
	m.cmd = &exec.Cmd{Path: self, Args: append(append([]string{"plenum"}, m.args...), "--ready-file", ready), Stdout: m.log, Stderr: m.log}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.ended = make(chan struct{})
	go func() { m.cmd.Wait(); close(m.ended) }()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(ready); err == nil {
			m.ready = readyFile{}
			if err := json.Unmarshal(text, &m.ready); err != nil {
				m.t.Fatal(err)
			}
			return
		}
		select {
		case <-m.ended:
			text, _ := os.ReadFile(m.log.Name())
			m.t.Fatalf("plenum %v ended:\n%s", m.args, text)
		default:
		}
		if time.Now().After(end) {
			m.t.Fatalf("plenum %v is not ready after a minute", m.args)
		}
	}
}

func (m *member) signal(s os.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Fatal(err)
	}
}

// kill ends the process and waits for that.
func (m *member) kill(s os.Signal) {
	m.cmd.Process.Signal(s)
	<-m.ended
}

// metric reads one value of the process's metrics.
func (m *member) metric(name string) float64 {
	m.t.Helper()
	res, err := (&http.Client{Timeout: 10 * time.Second}).Get(m.ready.Metrics + "/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return v
		}
	}
	return -1
}

func (m *member) awaitMetric(name string, want float64) {
	m.t.Helper()
	end := time.Now().Add(time.Minute)
	for m.metric(name) != want {
		if time.Now().After(end) {
			m.t.Fatalf("%s is %v, want %v", name, m.metric(name), want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A town is a cluster on loopback: Consul, shards, bridges, and the list of shards that Nomad would render.
type town struct {
	t       *testing.T
	dir     string
	list    string
	consul  string // URL; empty: each shard is alone
	shards  []*member
	names   []string
	bridges []*member
}

const loopback = "127.0.0.1:0"

func newTown(t *testing.T, consul string) *town {
	t.Helper()
	dir := t.TempDir()
	w := &town{t: t, dir: dir, list: filepath.Join(dir, "shards"), consul: consul}
	w.render()
	return w
}

// render writes the list of shards and tells everybody.
func (w *town) render() {
	w.t.Helper()
	var text strings.Builder
	for i, s := range w.shards {
		fmt.Fprintf(&text, "%s muc %s %s\n", w.names[i], strings.TrimPrefix(s.ready.HTTP, "http://"), s.ready.XMPP)
	}
	if err := os.WriteFile(w.list, []byte(text.String()), 0o644); err != nil {
		w.t.Fatal(err)
	}
	for _, m := range slices.Concat(w.shards, w.bridges) {
		m.signal(syscall.SIGHUP)
	}
}

// shard adds one, by way of a Consul of its own if that is not empty.
func (w *town) shard(name, consul string) *member {
	w.t.Helper()
	args := []string{"run", "signaling", "--shard", name, "--region", "muc", "--http", freePort(w.t), "--xmpp", freePort(w.t),
		"--metrics", loopback, "--account", "bridges:secret", "--shards-file", w.list, "--resume-key", "the same", "--edge", "127.0.0.0/8", "--log-level", "info"}
	if consul != "" {
		args = append(args, "--consul", consul, "--room-key", "the same", "--state", filepath.Join(w.dir, name+".state"))
	}
	m := startMember(w.t, name, args...)
	w.shards, w.names = append(w.shards, m), append(w.names, name)
	w.render()
	return m
}

func (w *town) bridge(id, region string) *member {
	w.t.Helper()
	m := startMember(w.t, id, "run", "bridge", "--relay-id", id, "--region", region, "--media", loopback, "--bridge-http", loopback,
		"--metrics", loopback, "--account", "bridges:secret", "--shards-file", w.list, "--log-level", "info")
	w.bridges = append(w.bridges, m)
	return m
}

// bridged waits until each shard sees each bridge.
func (w *town) bridged() {
	w.t.Helper()
	for _, s := range w.shards {
		s.awaitMetric("jitsi_jicofo_bridge_selector_bridge_count_operational", float64(len(w.bridges)))
	}
}

// A testEdge is what stands before shards: it takes a room's sockets to the first of its shards that answers.
type testEdge struct {
	*httptest.Server
	region string
	mu     sync.Mutex
	shards []string // HOST:PORT, in the order of its liking
}

func newEdge(t *testing.T, region string, shards ...string) *testEdge {
	e := &testEdge{region: region, shards: shards}
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, ResponseHeaderTimeout: 5 * time.Second}
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "shard"})
			r.SetXForwarded()
			r.Out.Header.Set("X-Forwarded-For", somewhere(r.In.RemoteAddr))
			r.Out.Header.Set("X-Proxy-Region", region)
		},
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			var body []byte
			if r.Body != nil {
				body, _ = io.ReadAll(r.Body)
			}
			var last error
			for _, to := range e.list() {
				again := r.Clone(r.Context())
				again.URL.Host, again.Body = to, io.NopCloser(bytes.NewReader(body))
				res, err := transport.RoundTrip(again)
				if err == nil {
					return res, nil
				}
				last = err
			}
			return nil, last
		}),
		ErrorLog: nil, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
		FlushInterval: -1,
	}
	e.Server = httptest.NewServer(p)
	t.Cleanup(func() { e.CloseClientConnections(); transport.CloseIdleConnections() })
	return e
}

// somewhere makes an address of a port, so that everybody has one: shards bound what comes from one address.
func somewhere(from string) string {
	at, _ := netip.ParseAddrPort(from)
	return fmt.Sprintf("198.18.%d.%d", at.Port()>>8, at.Port()&255)
}

func (e *testEdge) list() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.shards)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (m *member) addr() string { return strings.TrimPrefix(m.ready.HTTP, "http://") }

// TestBridgesServeShards has two bridges serve two shards that know nothing of each other; a third that comes and
// one that goes are noticed by nobody.
func TestBridgesServeShards(t *testing.T) {
	w := newTown(t, "")
	w.shard("one", "")
	w.shard("two", "")
	w.bridge("b1", "muc")
	w.bridge("b2", "ber")
	w.bridged()
	call := func(s *member) []*client.Participant {
		all := joinRoom(t, s.ready.HTTP, "call", 2, 0)
		for _, p := range all {
			await(t, p, mediaLimit, "hears the other", func(s client.Stats) bool { return s.Playing(client.Audio) == 1 })
		}
		return all
	}
	calls := slices.Concat(call(w.shards[0]), call(w.shards[1]))
	call(w.shard("three", ""))
	w.bridged()
	gone := w.shards[1]
	w.shards, w.names = slices.Delete(w.shards, 1, 2), slices.Delete(w.names, 1, 2)
	w.render()
	gone.awaitMetric("jitsi_jicofo_bridge_selector_bridge_count", 0)
	since := time.Now()
	for _, p := range calls[:2] {
		await(t, p, mediaLimit, "still hears the other", func(s client.Stats) bool { return heardSince(s, since) == 1 })
		if n := p.Stats().Sessions; n != 1 {
			t.Errorf("invited %d times", n)
		}
	}
}

// TestHandover has people come to the wrong shard by every way there is, and end in one room.
func TestHandover(t *testing.T) {
	consul := stack.Consul(t).URL()
	w := newTown(t, consul)
	a, b := w.shard("muc-1", consul), w.shard("muc-2", consul)
	w.bridge("b1", "muc")
	w.bridged()
	first, second := newEdge(t, "muc", a.addr(), b.addr()), newEdge(t, "ber", b.addr(), a.addr())
	all := joinRoom(t, first.URL, "Füßball", 1, 0)
	all = append(all, joinRoom(t, second.URL, "FÜßBALL", 1, 0)...)
	all = append(all, joinVia(t, second.URL, "füßball"))
	for _, p := range all {
		await(t, p, mediaLimit, "hears the others", func(s client.Stats) bool { return s.Playing(client.Audio) == 2 && len(s.Members) == 4 })
	}
	for _, e := range []*testEdge{first, second} {
		res, err := http.Get(e.URL + "/xmpp-websocket?room=f%C3%BC%C3%9Fball")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("X-Jitsi-Shard"); got != "muc-1" {
			t.Errorf("the edge of %s says that the room is on %q", e.region, got)
		}
	}
	if n := b.metric(`plenum_shard_handovers_total{kind="socket"}`); n != 2 { // and the rest came to the owner
		t.Errorf("%v sockets handed over", n)
	}
	open := func(m *member) time.Duration {
		times := make([]time.Duration, 31)
		for i := range times {
			began := time.Now()
			c, _, err := (&websocket.Dialer{Subprotocols: []string{"xmpp"}}).Dial(strings.Replace(m.ready.HTTP, "http", "ws", 1)+"/xmpp-websocket?room=f%C3%BC%C3%9Fball", nil)
			if err != nil {
				t.Fatal(err)
			}
			times[i] = time.Since(began)
			c.Close()
		}
		slices.Sort(times)
		return times[len(times)/2]
	}
	t.Logf("opening a socket at the owner takes %v, elsewhere %v", open(a), open(b))
	// A request that was handed over is not handed on, and one for nobody's room takes none.
	r, _ := http.NewRequest("GET", b.ready.HTTP+"/xmpp-websocket?room=f%C3%BC%C3%9Fball", nil)
	for k, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
		"Sec-WebSocket-Protocol": "xmpp", "X-Plenum-Handover": "muc-1"} {
		r.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("handed over twice: %s", res.Status)
	}
	// Regions come along: the edge's, through the shard that handed over.
	res, err = http.Get(a.ready.Metrics + "/debug/rooms/f%C3%BC%C3%9Fball")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if got := strings.Count(string(text), `"ber"`); got < 2 {
		t.Errorf("region ber is there %d times: %s", got, text)
	}
}

// joinVia joins with a conference request over HTTP.
func joinVia(t *testing.T, url, room string) *client.Participant {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := client.Join(ctx, client.Config{URL: url, Room: room, HTTPRequest: true, Rewriting: true, Send: client.Media{Audio: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// crowd fills rooms with two people each, by way of an edge, and waits until all hear each other.
func crowd(t *testing.T, url string, n int) []*client.Participant {
	t.Helper()
	all := make([]*client.Participant, 2*n)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var joining sync.WaitGroup
	places := make(chan struct{}, 10)
	for i := range all {
		joining.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			p, err := client.Join(ctx, client.Config{URL: url, Room: fmt.Sprint("room", i/2), Rewriting: true, Send: client.Media{Audio: true}})
			if err != nil {
				t.Errorf("participant %d: %v", i, err)
				return
			}
			all[i] = p
		})
	}
	joining.Wait()
	t.Cleanup(func() {
		for _, p := range all {
			if p != nil {
				p.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	for _, p := range all {
		await(t, p, time.Minute, "hears the other", func(s client.Stats) bool { return s.Playing(client.Audio) == 1 })
	}
	return all
}

// back waits until everybody hears the other by a session that began after since, and returns how long that took.
func back(t *testing.T, all []*client.Participant, since time.Time) (p50, p95, last time.Duration) {
	t.Helper()
	times := make([]time.Duration, len(all))
	var waiting sync.WaitGroup
	for i, p := range all {
		waiting.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			err := p.Wait(ctx, func(s client.Stats) bool {
				return s.Resumptions > 0 && s.Marks.Connected.After(since) && heardSince(s, s.Marks.Connected) == 1
			})
			if err != nil {
				t.Errorf("%s is not back: %v, ended: %v", p.ID(), err, p.Err())
			}
			times[i] = time.Since(since)
		})
	}
	waiting.Wait()
	slices.Sort(times)
	n := len(times)
	return times[n/2].Round(time.Millisecond), times[n*95/100].Round(time.Millisecond), times[n-1].Round(time.Millisecond)
}

func roomCount(def int) int {
	if fullLength() {
		return envInt("PLENUM_CHAOS_ROOMS", 50)
	}
	return def
}

// TestShardKilled kills a shard with everything it has, and starts it again after a second as Nomad does: everybody
// is back in the room with media.
func TestShardKilled(t *testing.T) {
	consul := stack.Consul(t).URL()
	w := newTown(t, consul)
	a, b := w.shard("muc-1", consul), w.shard("muc-2", consul)
	w.bridge("b1", "muc")
	w.bridged()
	e := newEdge(t, "muc", a.addr(), b.addr())
	all := crowd(t, e.URL, roomCount(5))
	began := time.Now()
	a.kill(syscall.SIGKILL)
	time.Sleep(time.Second)
	a.start()
	p50, p95, last := back(t, all, began)
	t.Logf("%d people of %d rooms back with media: p50 %v, p95 %v, last %v", len(all), len(all)/2, p50, p95, last)
	if p95 > 10*time.Second {
		t.Errorf("p95 is %v, want less than 10 s", p95)
	}
	if n := a.metric("jitsi_jicofo_conferences"); n != float64(len(all)/2) {
		t.Errorf("%v rooms are where they were", n)
	}
}

// TestHostLost loses a shard for good: its rooms open on the other one when its session has expired.
func TestHostLost(t *testing.T) {
	consul := stack.Consul(t).URL()
	w := newTown(t, consul)
	a, b := w.shard("muc-1", consul), w.shard("muc-2", consul)
	w.bridge("b1", "muc")
	w.bridged()
	e := newEdge(t, "muc", a.addr(), b.addr())
	all := crowd(t, e.URL, roomCount(3))
	began := time.Now()
	a.kill(syscall.SIGKILL)
	p50, p95, last := back(t, all, began)
	t.Logf("%d people of %d rooms back with media: p50 %v, p95 %v, last %v", len(all), len(all)/2, p50, p95, last)
	if p95 > 20*time.Second {
		t.Errorf("p95 is %v, want less than 20 s", p95)
	}
}

// TestShardDrained has a shard give its rooms to another one, and stop half-way when told so.
func TestShardDrained(t *testing.T) {
	consul := stack.Consul(t).URL()
	w := newTown(t, consul)
	a, b := w.shard("muc-1", consul), w.shard("muc-2", consul)
	w.bridge("b1", "muc")
	w.bridged()
	e := newEdge(t, "muc", a.addr(), b.addr()) // and goes on liking the first
	all := crowd(t, e.URL, roomCount(5))
	rooms := float64(len(all) / 2)
	a.awaitMetric("jitsi_jicofo_conferences", rooms)
	began := time.Now()
	a.signal(syscall.SIGUSR1)
	a.awaitMetric("plenum_drain_stage", drained)
	t.Logf("%v rooms given up after %v", rooms, time.Since(began).Round(time.Millisecond))
	p50, p95, last := back(t, all, began)
	t.Logf("%d people back with media: p50 %v, p95 %v, last %v", len(all), p50, p95, last)
	if n := b.metric("jitsi_jicofo_conferences"); n != rooms {
		t.Errorf("%v rooms are on the other shard", n)
	}
	if n := a.metric("plenum_shard_rooms_owned"); n != 0 {
		t.Errorf("%v rooms are still here", n)
	}
	a.signal(syscall.SIGUSR2)
	a.awaitMetric("plenum_drain_stage", drainNone)
	joinRoom(t, e.URL, "new", 1, 0)
	if n := a.metric("jitsi_jicofo_conferences"); n != 1 {
		t.Errorf("after the drain was taken back: %v rooms", n)
	}
}

// TestStopAtLeisure has a bridge told to end while people talk, and a shard without other shards: both go on until
// the last has left, and end then by themselves. Taken back, the bridge stays.
func TestStopAtLeisure(t *testing.T) {
	w := newTown(t, "")
	s := w.shard("one", "")
	b := w.bridge("b1", "muc")
	w.bridged()
	people := joinRoom(t, s.ready.HTTP, "call", 2, 0)
	for _, p := range people {
		await(t, p, mediaLimit, "hears the other", func(s client.Stats) bool { return s.Playing(client.Audio) == 1 })
	}
	b.signal(syscall.SIGQUIT)
	b.awaitMetric("plenum_drain_stage", draining)
	b.signal(syscall.SIGUSR2)
	b.awaitMetric("plenum_drain_stage", drainNone)
	for _, m := range []*member{b, s} {
		m.signal(syscall.SIGQUIT)
		m.awaitMetric("plenum_drain_stage", draining)
	}
	since := time.Now()
	for _, p := range people {
		await(t, p, mediaLimit, "still hears the other", func(s client.Stats) bool { return heardSince(s, since) == 1 })
	}
	for _, p := range people {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if err := p.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	for _, m := range []*member{b, s} {
		select {
		case <-m.ended:
			if code := m.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("%v ended with %d", m.args[:2], code)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%v goes on though nobody is left", m.args[:2])
		}
	}
}

// TestAccountsFile has bridges log in with accounts that a shard reads from a file, again when it has changed.
func TestAccountsFile(t *testing.T) {
	w := newTown(t, "")
	accounts := filepath.Join(w.dir, "accounts")
	write := func(line string) {
		if err := os.WriteFile(accounts, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(scramLine(t, "b1", "one"))
	s := startMember(t, "one", "run", "signaling", "--shard", "one", "--http", freePort(t), "--xmpp", freePort(t), "--metrics", loopback,
		"--accounts-file", accounts, "--shards-file", w.list, "--log-level", "info")
	w.shards, w.names = append(w.shards, s), append(w.names, "one")
	w.render()
	for _, id := range []string{"b1", "b2"} {
		startMember(t, id, "run", "bridge", "--relay-id", id, "--media", loopback, "--bridge-http", loopback, "--metrics", loopback,
			"--account", id+":one", "--shards-file", w.list)
	}
	s.awaitMetric("jitsi_jicofo_bridge_selector_bridge_count", 1)
	write(scramLine(t, "b1", "one") + scramLine(t, "b2", "one"))
	s.awaitMetric("jitsi_jicofo_bridge_selector_bridge_count", 2) // without a signal: it looks from time to time
}

// scramLine is an account as the join service writes it, after RFC 5802 and RFC 5803.
func scramLine(t *testing.T, name, password string) string {
	line := name
	for scheme, h := range map[string]func() hash.Hash{"SCRAM-SHA-1": sha1.New, "SCRAM-SHA-256": sha256.New} {
		salted, err := pbkdf2.Key(h, password, []byte("salt"), 4096, h().Size())
		if err != nil {
			t.Fatal(err)
		}
		mac := func(text string) []byte {
			m := hmac.New(h, salted)
			m.Write([]byte(text))
			return m.Sum(nil)
		}
		stored := h()
		stored.Write(mac("Client Key"))
		b64 := base64.StdEncoding.EncodeToString
		line += fmt.Sprintf(" %s$4096:%s$%s:%s", scheme, b64([]byte("salt")), b64(stored.Sum(nil)), b64(mac("Server Key")))
	}
	return line + "\n"
}
