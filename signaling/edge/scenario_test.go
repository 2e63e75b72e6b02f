package edge

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func equal(names ...string) []weighted {
	var all []weighted
	for _, n := range names {
		all = append(all, weighted{Shard{Name: n, Region: "muc"}, 1, 1})
	}
	return all
}

// TestSpellings (E8): all ways to write a room are one room; names as long as may be are rooms of their own.
func TestSpellings(t *testing.T) {
	p := newPlacer("meet.example", "muc", time.Now)
	const want = "f%c3%bc%c3%9f%25c3" + at
	for _, c := range []struct{ path, query string }{
		{"/F%C3%BC%C3%9F%25c3", ""}, {"/f%c3%bc%c3%9f%25c3", ""}, {"/F%C3%9C%C3%9F%25C3/", ""}, {"//F%C3%BC%C3%9F%25c3", ""},
		{"/xmpp-websocket", "room=f%25c3%25bc%25c3%259f%2525c3"}, {"/xmpp-websocket", "room=F%25C3%25BC%25C3%259F%2525C3"},
		{"/xmpp-websocket", "room=f%25c3%25bc%25c3%259f%2525c3&room=other"}, {"/xmpp-websocket", "x=%zz&room=f%25c3%25bc%25c3%259f%2525c3"},
		{"/xmpp-websocket/", "previd=1&room=f%25c3%25bc%25c3%259f%2525c3"}, {"/conference-request/v1", "room=f%25c3%25bc%25c3%259f%2525c3"},
	} {
		if got := p.room(c.path, c.query); got != want {
			t.Errorf("%s?%s: %q, want %q", c.path, c.query, got, want)
		}
	}
	for _, c := range []struct{ path, query string }{
		{"/School/Quiet", ""}, {"/school/xmpp-websocket", "room=QUIET"}, {"/xmpp-websocket", "room=quiet&prefix=school"}, {"/school/conference-request/v1", "room=quiet"},
	} {
		if got := p.room(c.path, c.query); got != "quiet@conference.school.meet.example" {
			t.Errorf("%s?%s: %q", c.path, c.query, got)
		}
	}
	seen := map[string]bool{}
	for _, end := range []string{"", "a", "b"} {
		long := strings.Repeat("x", 1000) + end
		room := p.room("/xmpp-websocket", "room="+long)
		if room != long+at || seen[room] {
			t.Errorf("a name of %d bytes is %d long", len(long), len(room))
		}
		seen[room] = true
	}
	for _, n := range []int{1100, 70_000, 1 << 20} { // what is no room for shards is none here
		if room := p.room("/xmpp-websocket", "room="+strings.Repeat("y", n)); room != "" {
			t.Errorf("a name of %d bytes is a room of %d", n, len(room))
		}
	}
}

// TestOrder (E9): whatever order the catalogue lists shards in, rooms are where they were.
func TestOrder(t *testing.T) {
	shards := equal("a", "b", "c", "d", "e")
	var rooms, homes [50]string
	for i := range rooms {
		rooms[i] = fmt.Sprint("room", i, at)
		homes[i] = home(shards, "muc", rooms[i])
	}
	for range 1000 {
		rand.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
		for i, room := range rooms {
			if got := home(shards, "muc", room); got != homes[i] {
				t.Fatalf("%s is on %s and was on %s", room, got, homes[i])
			}
		}
	}
}

// TestGrowAndShrink (E10): four shards, five, four, with 10,000 rooms that are open: none of them moves but those of a
// shard that goes; of new rooms, the new shard's share moves.
func TestGrowAndShrink(t *testing.T) {
	const rooms = 10_000
	now := time.Now()
	p := newPlacer("meet.example", "muc", func() time.Time { return now })
	four, five := equal("a", "b", "c", "d"), equal("a", "b", "c", "d", "e")
	place := func(kind string, i int) string { return p.place("/xmpp-websocket", fmt.Sprint("room=", kind, i)) }
	p.set(four)
	owners, before := map[int]string{}, map[int]string{}
	for i := range rooms {
		owners[i], before[i] = place("live", i), place("new", i)
		p.learn("/xmpp-websocket", fmt.Sprint("room=live", i), owners[i])
	}
	moved := func() (live, fresh int) {
		for i := range rooms {
			if got := place("live", i); got != owners[i] {
				live++
			}
			if got := place("new", i); got != before[i] {
				fresh++
			}
		}
		return live, fresh
	}
	now = now.Add(time.Minute)
	p.set(five)
	if live, fresh := moved(); live != 0 || fresh > rooms/5+rooms/50 || fresh < rooms/5-rooms/50 {
		t.Errorf("a shard more: %d open rooms moved, %d new ones", live, fresh)
	}
	p.set(four)
	if live, fresh := moved(); live != 0 || fresh != 0 {
		t.Errorf("a shard less: %d open rooms moved, %d new ones", live, fresh)
	}
	p.set(equal("b", "c", "d"))
	for i := range rooms {
		if got := place("live", i); owners[i] != "a" && got != owners[i] {
			t.Fatalf("live%d moved from %s to %s when a went", i, owners[i], got)
		}
	}
	if p.learn("/x", "room=unheard", "nobody"); len(p.known) != rooms {
		t.Errorf("%d rooms are known", len(p.known))
	}
}

// TestFlap (E21): a shard whose checks toggle every four seconds moves its rooms once, and has them again when it was
// well for long enough. HAProxy's own checks count as well.
func TestFlap(t *testing.T) {
	for _, by := range []string{"catalogue", "HAProxy"} {
		e := &Edge{cfg: Config{Catalog: fixed(nil), Domain: "meet.example", Ramp: -1}, metrics: newMetrics(nil, nil), seen: map[string]*sighting{}}
		if err := e.cfg.validate(); err != nil {
			t.Fatal(err)
		}
		shards := []Shard{{Name: "a", Region: "muc"}, {Name: "b", Region: "muc"}}
		now := time.Now()
		for _, s := range shards {
			e.seen[s.Name] = &sighting{since: now}
		}
		room := ""
		for i := 0; room == "" || home(e.weigh(shards, now), "muc", room) != "a"; i++ {
			room = fmt.Sprint("room", i, at)
		}
		last, changes := "a", []int{}
		for second := range 300 {
			ill := second < 200 && second/4%2 == 1
			shards[0].Ill = ill && by == "catalogue"
			e.seen["a"].down = ill && by == "HAProxy"
			now = now.Add(time.Second)
			if got := home(e.weigh(shards, now), "muc", room); got != last {
				last, changes = got, append(changes, second)
			}
		}
		if len(changes) != 2 || changes[0] != 4 || changes[1] < 229 || last != "a" {
			t.Errorf("by the %s: the room moved after %v seconds, and is on %s", by, changes, last)
		}
	}
}

// TestReturn (E23): a shard that was away gets new rooms bit by bit, also where it is the only one of its region, and what
// is open stays where it is. One that has never been there serves as soon as it is well.
func TestReturn(t *testing.T) {
	e := &Edge{cfg: Config{Catalog: fixed(nil), Domain: "meet.example"}, metrics: newMetrics(nil, nil), seen: map[string]*sighting{}}
	if err := e.cfg.validate(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, name := range []string{"a", "b", "c", "d"} {
		e.seen[name] = new(sighting)
	}
	shards := []Shard{{Name: "a", Region: "muc"}, {Name: "b", Region: "muc"}, {Name: "c", Region: "ham"}, {Name: "d", Region: "ber", Ill: true}}
	share := func(region, shard string) (percent int) {
		for i := range 1000 {
			if home(e.weigh(shards, now), region, fmt.Sprint("room", i, at)) == shard {
				percent++
			}
		}
		return percent / 10
	}
	now = now.Add(time.Second)
	if got := share("ham", "c"); got != 100 {
		t.Errorf("all are new, and %d %% of ham's rooms stay there", got)
	}
	shards[3].Ill = false
	if got := share("muc", "d"); got != 0 {
		t.Errorf("%d %% of muc's rooms are elsewhere", got)
	}
	if w := e.weigh(shards, now); w[3].Ill {
		t.Error("one that comes up is held back")
	}
	// An edge that comes back with its region goes by what shards say of their age.
	for _, s := range shards {
		e.seen[s.Name].started = now.Add(-time.Hour)
	}
	e.seen["c"].started = now
	if got := share("ham", "c"); got > 5 {
		t.Errorf("c was started just now and gets %d %% of ham's rooms", got)
	}
	for _, c := range []struct{ region, shard string }{{"muc", "b"}, {"ham", "c"}} {
		now = now.Add(time.Hour)
		full := share(c.region, c.shard)
		ill := slices.IndexFunc(shards, func(s Shard) bool { return s.Name == c.shard })
		shards[ill].Ill = true
		if got := share(c.region, c.shard); got != 0 {
			t.Errorf("%s is away and has %d %%", c.shard, got)
		}
		shards[ill].Ill = false
		now = now.Add(e.cfg.Hold)
		var shares []int
		for range 5 {
			shares = append(shares, share(c.region, c.shard))
			now = now.Add(e.cfg.Ramp / 4)
		}
		if !slices.IsSorted(shares) || shares[0] > 5 || shares[1] > full*2/3 || shares[4] != full {
			t.Errorf("%s is back and gets %v %% of %s's new rooms, all of it is %d", c.shard, shares, c.region, full)
		}
	}
}

// wild is a shard that answers what it was asked.
func wild(t testing.TB, name string) (Shard, func(header string) string) {
	var last atomic.Pointer[http.Request]
	h := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/about/health" {
			last.Store(r)
		}
	}))
	t.Cleanup(h.Close)
	return Shard{Name: name, Region: "muc", Addr: strings.TrimPrefix(h.URL, "http://")}, func(header string) string {
		r := last.Load()
		if r == nil {
			return "(not asked)"
		}
		return strings.Join(r.Header.Values(header), "|")
	}
}

// TestSmuggling: what edges say to shards cannot be said from outside, and neither paths nor sizes do harm.
func TestSmuggling(t *testing.T) {
	leaks(t)
	s := start(t, Config{Proxy: Proxy{Overlay: []string{"127.0.0.2/32"}}})
	shard, header := wild(t, "muc-1")
	bridge, channel := wild(t, "h1")
	s.views <- View{Shards: []Shard{shard}, Bridges: []Bridge{{"h1", bridge.Addr}}}
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	ask := func(from string, path string, headers ...string) int {
		t.Helper()
		r, err := http.NewRequest("GET", s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = path
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header.Add(headers[i], headers[i+1])
		}
		c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}}
		res, err := c.Do(r)
		switch {
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET): // refused before all was said
			return 400
		case err != nil:
			t.Fatalf("%.300v", err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	forged := []string{"X-Proxy-Region", "evil", "x-proxy-region", "worse", "X-Forwarded-For", "1.2.3.4", "X-Plenum-Handover", "muc-9", "X-Forwarded-Proto", "https"}
	for from, want := range map[string][]string{"127.0.0.3": {"muc", "127.0.0.3", "", ""}, "127.0.0.2": {"evil|worse", "1.2.3.4", "", ""}} {
		ask(from, "/xmpp-websocket?room=a", forged...)
		for i, h := range []string{"X-Proxy-Region", "X-Forwarded-For", "X-Plenum-Handover", "X-Forwarded-Proto"} {
			if got := header(h); got != want[i] {
				t.Errorf("from %s: %s is %q, want %q", from, h, got, want[i])
			}
		}
	}
	for path, want := range map[string]int{
		"/.//a": 200, "/a//b": 200, "/%2e%2e/%2e%2e/etc": 200, "/a/../../b": 200, "/a%00b": 200, "/?room=%zz": 200, "/?" + strings.Repeat("room=a&", 1000): 200,
		"/xmpp-websocket?room=" + strings.Repeat("x", 14_000): 200, "/xmpp-websocket?room=" + strings.Repeat("%25", 4_800): 200,
		"/xmpp-websocket?room=" + strings.Repeat("x", 16_400): 400,
		"/colibri-ws/h1/c/e": 200, "/colibri-ws/h9/c/e": 503, "/colibri-ws//c/e": 503, "/colibri-ws/../h1": 503, "/colibri-ws/muc-1/c/e": 503,
	} {
		if got := ask("127.0.0.3", path); got != want {
			t.Errorf("%.60s: %d, want %d", path, got, want)
		}
	}
	if got := channel("X-Forwarded-For"); got != "127.0.0.3" {
		t.Errorf("the bridge was told %q", got)
	}
	if got := ask("127.0.0.3", "/a", "Cookie", strings.Repeat("c", 20_000)); got < 400 || got >= 500 {
		t.Errorf("a header of 20 kB: %d", got)
	}
}

// TestGone: with the process gone, or frozen, requests go on at once.
func TestGone(t *testing.T) {
	leaks(t)
	cfg := Config{Proxy: Proxy{Sockets: 100_000}}
	s := start(t, cfg)
	shard, _ := wild(t, "muc-1")
	s.views <- View{Shards: []Shard{shard}}
	took := func(n int) (worst time.Duration) {
		for i := range n {
			began := time.Now()
			if code, text := get(t, s.url+fmt.Sprint("/xmpp-websocket?room=r", i)); code != 200 {
				t.Errorf("%d %s", code, text)
			}
			worst = max(worst, time.Since(began))
		}
		return worst
	}
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	there := took(20)
	addr := s.edge.offload.Addr().String()
	s.stop()
	gone := took(20)
	// Somebody listens there and says nothing, as a frozen process does.
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var held sync.WaitGroup
	held.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	})
	frozen := took(20)
	l.Close()
	held.Wait()
	t.Logf("slowest of 20: %v; process gone: %v; frozen: %v", there, gone, frozen)
	if limit := 2 * time.Second; gone > limit || frozen > limit { // 100 ms and what the machine takes
		t.Errorf("requests wait for it: %v gone, %v frozen", gone, frozen)
	}
}

// TestPorts (E3): in a network with 64 ports, 200 requests of 200 clients need few of them.
func TestPorts(t *testing.T) {
	leaks(t)
	s := start(t, Config{Proxy: Proxy{Sockets: 100_000}})
	var opened atomic.Int64
	h := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {}))
	h.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	h.Start()
	t.Cleanup(h.Close)
	s.views <- View{Shards: []Shard{{Name: "muc-1", Region: "muc", Addr: h.Listener.Addr().String()}}}
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	for _, when := range []string{"server added", "server of the configuration"} {
		before := opened.Load()
		for i := range 200 {
			if code, text := get(t, s.url+fmt.Sprint("/xmpp-websocket?room=r", i)); code != 200 {
				t.Errorf("request %d: %d %s", i, code, text)
			}
		}
		if n := opened.Load() - before; n > 32 { // and those of checks
			t.Errorf("%s: 200 requests took %d connections", when, n)
		}
		s.again()
	}
}

// echo is a shard that says what sockets say.
func echo(t testing.TB, name string) Shard {
	return echoUntil(t, name, new(atomic.Bool))
}

// echoUntil is one that answers no checks once it is ill.
func echoUntil(t testing.TB, name string, ill *atomic.Bool) Shard {
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			if ill.Load() {
				w.WriteHeader(http.StatusInternalServerError)
			}
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		proof := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(proof[:]))
		_, _ = io.Copy(conn, buf)
	}))
	t.Cleanup(h.Close)
	return Shard{Name: name, Region: "muc", Addr: strings.TrimPrefix(h.URL, "http://")}
}

// socket opens a WebSocket by way of HAProxy; without one, why it was refused.
func (s *stand) socket(t testing.TB) (c net.Conn, why string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /xmpp-websocket?room=a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		c.Close()
		return nil, err.Error()
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		c.Close()
		return nil, fmt.Sprint(res.StatusCode, " ", res.Header.Get("Retry-After") != "")
	}
	return c, ""
}

// hello says something and hears it again.
func hello(c net.Conn) error {
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// TestLinger takes a shard away that somebody is on: the socket goes on, nobody new gets there, and HAProxy forgets the
// shard with its last socket. One of its name that comes back before is let in again.
func TestLinger(t *testing.T) {
	leaks(t)
	s := start(t, Config{})
	old, other := echo(t, "muc-1"), echo(t, "muc-2")
	has := func(name string) (server, bool) {
		all, err := s.edge.haproxy.servers(t.Context(), "shards")
		if err != nil {
			t.Fatal(err)
		}
		x, ok := all[name]
		return x, ok
	}
	s.views <- View{Shards: []Shard{old}}
	until(t, "the shard serves", func() bool { x, ok := has("muc-1"); return ok && x.ready })
	first, why := s.socket(t)
	if why != "" {
		t.Fatal(why)
	}
	defer first.Close()
	s.views <- View{Shards: []Shard{other}}
	until(t, "the shard is out", func() bool { x, ok := has("muc-1"); return ok && !x.ready })
	if err := hello(first); err != nil {
		t.Errorf("a socket of a shard that goes: %v", err)
	}
	renewed := echo(t, "muc-1")
	s.views <- View{Shards: []Shard{renewed}}
	until(t, "one of its name is in", func() bool { x, ok := has("muc-1"); return ok && x.ready && x.addr == renewed.Addr })
	second, why := s.socket(t)
	if why != "" {
		t.Fatal(why)
	}
	defer second.Close()
	for _, c := range []net.Conn{first, second} {
		if err := hello(c); err != nil {
			t.Errorf("a socket: %v", err)
		}
	}
	s.views <- View{Shards: []Shard{other}}
	until(t, "it is out", func() bool { x, ok := has("muc-1"); return ok && !x.ready })
	first.Close()
	second.Close()
	until(t, "it is forgotten", func() bool { _, ok := has("muc-1"); return !ok })
}

// TestLost (E42) has a shard fall silent with its sockets open. They are closed as soon as both HAProxy and the catalogue have
// lost it, and not while only one of them says so.
func TestLost(t *testing.T) {
	leaks(t)
	s := start(t, Config{})
	var ill atomic.Bool
	shard := echoUntil(t, "muc-1", &ill)
	down := func(want bool) func() bool {
		return func() bool {
			all, err := s.edge.haproxy.servers(t.Context(), "shards")
			return err == nil && all["muc-1"].ready && all["muc-1"].down == want
		}
	}
	s.views <- View{Shards: []Shard{shard}}
	until(t, "the shard serves", down(false))
	c, why := s.socket(t)
	if why != "" {
		t.Fatal(why)
	}
	defer c.Close()
	shard.Ill = true
	s.views <- View{Shards: []Shard{shard}}
	until(t, "the edge knows", func() bool { return len(s.views) == 0 })
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; time.Sleep(50 * time.Millisecond) { // two looks
		if err := hello(c); err != nil {
			t.Fatalf("the catalogue alone ends sockets: %v", err)
		}
	}
	shard.Ill = false
	s.views <- View{Shards: []Shard{shard}}
	ill.Store(true)
	until(t, "HAProxy has lost it", down(true))
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; time.Sleep(50 * time.Millisecond) {
		if err := hello(c); err != nil {
			t.Fatalf("HAProxy alone ends sockets: %v", err)
		}
	}
	shard.Ill = true
	s.views <- View{Shards: []Shard{shard}}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	until(t, "the socket is closed", func() bool { return hello(c) != nil })
}

// TestFull (E1): a HAProxy with few files refuses who is too many, and goes on with who is there.
func TestFull(t *testing.T) {
	leaks(t)
	s := startFew(t, Config{Proxy: Proxy{Sockets: 100_000}}, 256)
	s.views <- View{Shards: []Shard{echo(t, "muc-1")}}
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	until(t, "HAProxy knows its limit", func() bool {
		text, err := s.edge.haproxy.do(t.Context(), "show map "+s.edge.cfg.Proxy.Path(fileFull))
		return err == nil && !strings.Contains(text, "1000000000")
	})
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	refused := 0
	for range 200 {
		if c, why := s.socket(t); c != nil {
			open = append(open, c)
		} else if refused++; why != "503 true" {
			t.Fatalf("the %dth socket: %s", len(open)+refused, why)
		}
	}
	if len(open) < 50 || refused < 50 {
		t.Errorf("%d sockets are open, %d were refused", len(open), refused)
	}
	before := ticks(t, s.haproxy.Process.Pid)
	began := time.Now()
	for round := 0; time.Since(began) < time.Second; round++ {
		for i, c := range open[:50] {
			if err := hello(c); err != nil {
				t.Fatalf("socket %d: %v", i, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if used := ticks(t, s.haproxy.Process.Pid) - before; used > 50 {
		t.Errorf("HAProxy used %d ms of a second", used*10)
	}
	for _, c := range open[:30] {
		c.Close()
	}
	open = open[30:]
	until(t, "there is room again", func() bool {
		c, _ := s.socket(t)
		if c != nil {
			open = append(open, c)
		}
		return c != nil
	})
}

// ticks is the processor time of a process, in hundredths of a second.
func ticks(t testing.TB, pid int) (n int64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var user, system int64
	fmt.Sscan(f[11], &user)
	fmt.Sscan(f[12], &system)
	return user + system
}

// TestEmpty: a catalogue that lists nobody any more is not believed, and bans that overlap last as long as the longest.
func TestEmpty(t *testing.T) {
	leaks(t)
	s := start(t, Config{})
	shard, _ := wild(t, "muc-1")
	s.views <- View{Shards: []Shard{shard}}
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	now := time.Now()
	other := netip.MustParsePrefix("192.0.2.7/24")
	s.views <- View{Bans: []Ban{{other, now.Add(time.Hour)}, {other.Masked(), now.Add(-time.Hour)}}}
	banned := func() bool {
		text, err := s.edge.haproxy.do(t.Context(), "show acl "+s.edge.cfg.Proxy.Path(fileBans))
		return err == nil && strings.Contains(text, "192.0.2.0/24")
	}
	until(t, "the view is there", banned)
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // two rounds
		if !banned() {
			t.Fatal("a ban was taken back by one that is over")
		}
	}
	if code, _ := get(t, s.url+"/a"); code != 200 {
		t.Errorf("an empty catalogue: %d", code)
	}
	config, err := os.ReadFile(s.edge.cfg.Proxy.Path(fileConfig))
	if err != nil || !bytes.Contains(config, []byte("server muc-1 "+shard.Addr)) {
		t.Errorf("HAProxy would start without the shard: %v", err)
	}
}

// BenchmarkPlaces compares requests for which HAProxy asks this process with requests for which it does not.
func BenchmarkPlaces(b *testing.B) {
	s := start(b, Config{Proxy: Proxy{Sockets: 1 << 30}})
	shard, _ := wild(b, "muc-1")
	s.views <- View{Shards: []Shard{shard}}
	until(b, "the shard serves", func() bool { code, _ := get(b, s.url+"/a"); return code == 200 })
	// A second HAProxy with the same configuration that asks nobody.
	text, err := os.ReadFile(s.edge.cfg.Proxy.Path(fileConfig))
	if err != nil {
		b.Fatal(err)
	}
	plain := freeAddr(b)
	config := strings.NewReplacer(strings.TrimPrefix(s.url, "http://"), plain, fileAdmin, "other.sock").Replace(string(text))
	config = regexp.MustCompile(`(?m)^.*(spoe|set-var\(txn.path\)|set-var\(txn.query\)).*$`).ReplaceAllString(config, "")
	file := s.edge.cfg.Proxy.Path("plain.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	other := exec.Command("haproxy", "-db", "-f", file)
	if err := other.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	until(b, "the other serves", func() bool { code, _ := get(b, "http://"+plain+"/a"); return code == 200 })

	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	round := func(url string, parallel, n int) (median time.Duration, rate float64) {
		var all sync.WaitGroup
		times := make([]time.Duration, parallel*n)
		began := time.Now()
		for w := range parallel {
			all.Go(func() {
				for i := range n {
					began := time.Now()
					res, err := client.Get(fmt.Sprint(url, "/xmpp-websocket?room=r", i))
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					times[w*n+i] = time.Since(began)
				}
			})
		}
		all.Wait()
		took := time.Since(began)
		slices.Sort(times)
		return times[len(times)/2], float64(len(times)) / took.Seconds()
	}
	var added, ratio []float64
	for b.Loop() {
		with, _ := round(s.url, 1, 300)
		without, _ := round("http://"+plain, 1, 300)
		_, busy := round(s.url, 16, 100)
		_, free := round("http://"+plain, 16, 100)
		added, ratio = append(added, float64(with-without)/1000), append(ratio, busy/free)
	}
	slices.Sort(added)
	slices.Sort(ratio)
	b.ReportMetric(added[len(added)/2], "µs-added")
	b.ReportMetric(ratio[len(ratio)/2], "rate-ratio")
	_, rate := round(s.url, 16, 100)
	b.ReportMetric(rate, "requests/s")
}
