package edge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// A fixed catalogue is a channel of views.
type fixed chan View

func (f fixed) Watch(ctx context.Context, tell func(View)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case v := <-f:
			tell(v)
		}
	}
}

// A stand is a HAProxy with an edge beside it.
type stand struct {
	url     string
	https   string // host:port, or empty
	views   fixed
	edge    *Edge
	stop    func()
	again   func() // kills HAProxy and starts it
	haproxy *exec.Cmd
	out     bytes.Buffer
}

// leaks has a test fail that leaves goroutines behind. The rate limiter of certmagic is the whole process's.
func leaks(t *testing.T) {
	t.Cleanup(func() {
		goleak.VerifyNone(t, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"))
	})
}

func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t testing.TB, cfg Config) *stand {
	t.Helper()
	return startFew(t, cfg, 4096)
}

// startFew starts a HAProxy that may open so many files.
func startFew(t testing.TB, cfg Config, files int) *stand {
	t.Helper()
	if cfg.Proxy.HTTP == "" {
		cfg.Proxy.HTTP, cfg.Proxy.Answer = freeAddr(t), "127.0.0.1:1"
	}
	s := &stand{url: "http://" + cfg.Proxy.HTTP, https: cfg.Proxy.HTTPS, views: make(fixed, 8)}
	cfg.Proxy.Dir, cfg.Proxy.Region, cfg.Proxy.Offload = t.TempDir(), "muc", freeAddr(t)
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg.Catalog, cfg.Domain, cfg.Ramp = s.views, "meet.example", -1
	var err error
	if s.edge, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.edge.Run(ctx) }()
	s.stop = func() {
		if cancel != nil {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			cancel = nil
		}
	}
	t.Cleanup(s.stop)
	run := func() {
		s.haproxy = exec.Command("sh", "-c", fmt.Sprintf("ulimit -n %d; exec haproxy -db -f %s", files, cfg.Proxy.Path(fileConfig)))
		s.haproxy.Stdout, s.haproxy.Stderr = &s.out, &s.out
		if err := s.haproxy.Start(); err != nil {
			t.Fatal(err)
		}
	}
	s.again = func() {
		_ = s.haproxy.Process.Kill()
		_ = s.haproxy.Wait()
		run()
		until(t, "HAProxy is back", func() bool {
			_, err := s.edge.haproxy.do(t.Context(), "show version")
			return err == nil
		})
	}
	run()
	t.Cleanup(func() {
		_ = s.haproxy.Process.Kill()
		_ = s.haproxy.Wait()
		if t.Failed() {
			t.Logf("HAProxy: %s", s.out.Bytes())
		}
	})
	until(t, "HAProxy is there", func() bool {
		_, err := s.edge.haproxy.do(t.Context(), "show version")
		return err == nil
	})
	return s
}

// shardAt is a shard that names itself, and is asked nothing about rooms.
func shardAt(t *testing.T, name string) (Shard, *atomic.Int64) {
	var asked atomic.Int64
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/about/health" {
			return
		}
		asked.Add(1)
		fmt.Fprint(w, name, " ", r.Header.Get("X-Proxy-Region"), " ", r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(h.Close)
	return Shard{Name: name, Region: "muc", Addr: strings.TrimPrefix(h.URL, "http://")}, &asked
}

var direct = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	res, err := direct.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

// until asks until the answer is as wanted.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

const at = "@conference.meet.example"

// TestPlaces has three shards behind a real HAProxy: every spelling of a room goes to the shard whose it is by name,
// a shard that goes takes its own rooms only, and an edge that ends leaves HAProxy serving.
func TestPlaces(t *testing.T) {
	leaks(t)
	s := start(t, Config{})
	var v View
	for _, name := range []string{"muc-1", "muc-2", "muc-3"} {
		x, _ := shardAt(t, name)
		v.Shards = append(v.Shards, x)
	}
	s.views <- v
	all := func(list []Shard) []weighted {
		var w []weighted
		for _, x := range list {
			w = append(w, weighted{x, 1, 1})
		}
		return w
	}
	room := func(name string) (int, string) {
		return get(t, s.url+"/xmpp-websocket?room="+url.QueryEscape(name))
	}
	check := func(list []Shard) {
		t.Helper()
		for i := range 40 {
			name := fmt.Sprintf("Room-%d", i)
			want := home(all(list), "muc", strings.ToLower(name)+at)
			if code, got := room(name); code != 200 || got != want+" muc 127.0.0.1" {
				t.Fatalf("%s: %d %q, want %s muc 127.0.0.1", name, code, got, want)
			}
		}
	}
	until(t, "all three serve", func() bool {
		seen := map[string]bool{}
		for i := range 30 {
			_, got := room(fmt.Sprint("r", i))
			seen[strings.Fields(got + " -")[0]] = true
		}
		return seen["muc-1"] && seen["muc-2"] && seen["muc-3"]
	})
	check(v.Shards)

	const want = "f%c3%bc%c3%9f%25c3" + at // as every client names it
	for _, path := range []string{"/Füß%25c3", "/xmpp-websocket?room=f%25c3%25bc%25c3%259f%2525c3", "/F%C3%9C%C3%9F%25c3",
		"/xmpp-websocket?room=f%25c3%25bc%25c3%259f%2525c3&room=other"} {
		_, got := get(t, s.url+path)
		if shard := home(all(v.Shards), "muc", want); !strings.HasPrefix(got, shard+" ") {
			t.Errorf("%s: %q, want %s", path, got, shard)
		}
	}
	if _, got := room("anything_muc-2"); !strings.HasPrefix(got, "muc-2 ") {
		t.Errorf("_muc-2: %q", got)
	}
	if code, got := get(t, s.url+"/xmpp-websocket?room="+strings.Repeat("x", 1000)); code != 200 || !strings.HasPrefix(got, home(all(v.Shards), "muc", strings.Repeat("x", 1000)+at)) {
		t.Errorf("a long name: %d %q", code, got)
	}

	v.Shards = v.Shards[1:]
	s.views <- v
	until(t, "muc-1 is gone", func() bool {
		for i := range 30 {
			if _, got := room(fmt.Sprint("r", i)); strings.HasPrefix(got, "muc-1") {
				return false
			}
		}
		return true
	})
	check(v.Shards)

	s.stop()
	until(t, "HAProxy serves by itself", func() bool { code, _ := room("alone"); return code == 200 })
}

// TestMoves gives a shard another address, a bridge its sockets, and bans an address and lets it in again.
func TestMoves(t *testing.T) {
	leaks(t)
	s := start(t, Config{})
	old, _ := shardAt(t, "muc-1")
	bridge, asked := shardAt(t, "h2")
	v := View{Shards: []Shard{old}, Bridges: []Bridge{{"h2", bridge.Addr}}}
	s.views <- v
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	until(t, "the bridge's socket gets there", func() bool {
		_, got := get(t, s.url+"/colibri-ws/h2/conference/endpoint?pwd=x")
		return strings.HasPrefix(got, "h2 ")
	})
	if asked.Load() != 1 {
		t.Errorf("the bridge was asked %d times", asked.Load())
	}
	moved, count := shardAt(t, "muc-1")
	v.Shards = []Shard{moved}
	s.views <- v
	until(t, "the shard has moved", func() bool { get(t, s.url+"/a"); return count.Load() > 0 })

	v.Bans = []Ban{{netip.MustParsePrefix("127.0.0.0/8"), time.Now().Add(3 * time.Second)}}
	s.views <- v
	until(t, "banned", func() bool { code, _ := get(t, s.url+"/a"); return code != 200 })
	until(t, "let in again", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
}

func TestRoom(t *testing.T) {
	const school = "quiet@conference.school.meet.example"
	p := newPlacer("meet.example", "muc", time.Now)
	for _, c := range []struct{ path, query, room string }{
		{"/Quiet", "", "quiet" + at}, {"/quiet/", "", "quiet" + at}, {"/school/Quiet", "", school},
		{"/xmpp-websocket", "room=quiet", "quiet" + at}, {"/school/xmpp-websocket", "room=quiet", school},
		{"/xmpp-websocket", "room=quiet&prefix=School", school}, {"/static/x.js", "", ""}, {"/", "", ""},
		{"/xmpp-websocket", "", ""}, {"/xmpp-websocket", "room=%zz", ""}, {"/about/health", "", ""}, {"/config.js", "", ""},
	} {
		if got := p.room(c.path, c.query); got != c.room {
			t.Errorf("%s?%s: %q, want %q", c.path, c.query, got, c.room)
		}
	}
}

// TestHome: order means nothing, a shard more takes its share and moves nothing else, weights are shares.
func TestHome(t *testing.T) {
	four := []weighted{{Shard{Name: "a", Region: "muc"}, 1, 1}, {Shard{Name: "b", Region: "muc"}, 1, 1}, {Shard{Name: "c", Region: "muc"}, 1, 1}, {Shard{Name: "d", Region: "muc"}, 1, 1}}
	five := append([]weighted{{Shard{Name: "e", Region: "muc"}, 0.5, 1}}, four...)
	const rooms = 20_000
	moved, share := 0, map[string]int{}
	for i := range rooms {
		room := fmt.Sprint("room", i)
		before, after := home(four, "muc", room), home(five, "muc", room)
		if reverse := home([]weighted{four[2], four[0], four[3], four[1]}, "muc", room); reverse != before {
			t.Fatalf("%s: %s, in another order %s", room, before, reverse)
		}
		if before != after {
			if after != "e" {
				t.Fatalf("%s moved from %s to %s", room, before, after)
			}
			moved++
		}
		share[after]++
	}
	if want := rooms * 0.5 / 4.5; float64(moved) < want*0.9 || float64(moved) > want*1.1 {
		t.Errorf("%d moved, want about %.0f", moved, want)
	}
	far := []weighted{{Shard{Name: "z", Region: "ber"}, 1, 1}, {Shard{Name: "a", Region: "muc", Ill: true}, 1, 1}}
	if got := home(far, "muc", "x"); got != "z" {
		t.Errorf("with the region's own shard ill: %q, want z", got)
	}
}

func TestWeight(t *testing.T) {
	last := 2.0
	for n := range 12_000 {
		w := weight(n, 10_000)
		if w > last || w < 0 {
			t.Fatalf("%d participants: %v after %v", n, w, last)
		}
		if last = w; n == 5000 && w > 0.6 {
			t.Errorf("half full: %v", w)
		}
	}
	if young := grown(time.Second, time.Minute); young > 0.05 {
		t.Errorf("after a second: %v", young)
	}
}
