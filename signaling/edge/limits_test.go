package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"plenum/overlay/netlab/stack"
)

// value reads one of HAProxy's own metrics, as Prometheus does.
func value(t *testing.T, addr, name string) (sum float64) {
	t.Helper()
	code, text := get(t, "http://"+addr+"/metrics")
	if code != 200 {
		t.Fatalf("HAProxy's metrics: %d %s", code, text)
	}
	if sum = sumOf(text, name); sum < 0 {
		t.Fatalf("HAProxy has no metric %s", name)
	}
	return sum
}

// sumOf adds up a metric in the text of all; -1: it is not there.
func sumOf(text, name string) float64 {
	sum, found := 0.0, false
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err == nil {
				sum, found = sum+v, true
			}
		}
	}
	if !found {
		return -1
	}
	return sum
}

// TestFewFiles (E1): a HAProxy that may open 240 files, with less than which it does not start, tells how near it is to its
// limit before it refuses anybody, refuses who is too many and goes on.
func TestFewFiles(t *testing.T) {
	leaks(t)
	metrics := freeAddr(t)
	s := startFew(t, Config{Proxy: Proxy{Sockets: 100_000, Metrics: metrics}}, 240)
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
	refused, warned := 0, false
	for range 200 {
		c, why := s.socket(t)
		if c == nil {
			refused++
			if why != "503 true" {
				t.Fatalf("the %dth socket: %s", len(open)+refused, why)
			}
			continue
		}
		open = append(open, c)
		if refused == 0 && len(open) > 2 {
			warned = value(t, metrics, "haproxy_process_current_connections")/value(t, metrics, "haproxy_process_max_connections") >= 0.8
		}
	}
	t.Logf("%d sockets are open, %d were refused", len(open), refused)
	if len(open) < 5 || refused < 100 || !warned {
		t.Errorf("%d sockets are open, %d were refused; warned before: %v", len(open), refused, warned)
	}
	for i, c := range open {
		if err := hello(c); err != nil {
			t.Errorf("socket %d: %v", i, err)
		}
	}
}

// TestRate (E38): an address that asks for rooms without end is told to come later, and is let in again when it has stopped
// for a while; another notices nothing.
func TestRate(t *testing.T) {
	leaks(t)
	metrics := freeAddr(t)
	s := start(t, Config{Proxy: Proxy{Sockets: 200, Metrics: metrics}})
	shard, _ := wild(t, "muc-1")
	s.views <- View{Shards: []Shard{shard}}
	client := func(from string) func(room string) (int, string) {
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}}
		return func(room string) (int, string) {
			res, err := c.Get(s.url + "/xmpp-websocket?room=" + room)
			if err != nil {
				return 0, err.Error()
			}
			res.Body.Close()
			return res.StatusCode, res.Header.Get("Retry-After")
		}
	}
	evil, good := client("127.0.0.66"), client("127.0.0.7")
	until(t, "the shard serves", func() bool { code, _ := good("a"); return code == 200 })
	var blocked, served int
	var all sync.WaitGroup
	all.Go(func() {
		for i := range 1000 {
			switch code, later := evil(fmt.Sprint("made-up-", i)); {
			case code == 429 && later != "":
				blocked++
			case code == 200:
				served++
			default:
				t.Errorf("the flood is answered %d, %q", code, later)
			}
		}
	})
	var times []time.Duration
	for i := range 100 {
		began := time.Now()
		if code, _ := good(fmt.Sprint("room", i)); code != 200 {
			t.Errorf("somebody else is told %d", code)
		}
		times = append(times, time.Since(began))
	}
	all.Wait()
	slices.Sort(times)
	t.Logf("%d were served, %d blocked; another's p95 is %v", served, blocked, times[95])
	if served < 200 || served > 600 || blocked < 400 {
		t.Errorf("%d were served, %d blocked", served, blocked)
	}
	if denied := value(t, metrics, "haproxy_frontend_requests_denied_total"); denied < float64(blocked) {
		t.Errorf("HAProxy counts %v refused", denied)
	}
	until(t, "the address is let in again", func() bool { time.Sleep(time.Second); code, _ := evil("quiet"); return code == 200 })
}

// TestSocketsInOne opens WebSockets inside one connection of HTTP/2 (RFC 8441), as browsers do once they have one.
func TestSocketsInOne(t *testing.T) {
	leaks(t)
	s := start(t, Config{Proxy: Proxy{HTTP: freeAddr(t), HTTPS: freeAddr(t), Names: []string{name}, Answer: "127.0.0.1:1"}})
	s.views <- View{Shards: []Shard{echo(t, "muc-1")}}
	until(t, "the shard serves", func() bool {
		all, err := s.edge.haproxy.servers(t.Context(), "shards")
		return err == nil && all["muc-1"].ready
	})
	conn, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for _, stream := range []uint32{1, 3, 5} {
		var block strings.Builder
		e := hpack.NewEncoder(&block)
		for _, h := range []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":protocol", Value: "websocket"}, {Name: ":scheme", Value: "https"},
			{Name: ":path", Value: "/xmpp-websocket?room=a"}, {Name: ":authority", Value: name}, {Name: "sec-websocket-version", Value: "13"}} {
			if err := e.WriteField(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	allowed, echoed := false, map[uint32]string{}
	for len(echoed) < 3 {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if v, ok := frame.Value(http2.SettingEnableConnectProtocol); ok && v == 1 {
				allowed = true
			}
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			if got := frame.PseudoValue("status"); got != "200" {
				t.Fatalf("stream %d: %s", frame.StreamID, got)
			}
			if err := f.WriteData(frame.StreamID, false, fmt.Append(nil, "hello", frame.StreamID)); err != nil {
				t.Fatal(err)
			}
		case *http2.DataFrame:
			echoed[frame.StreamID] = string(frame.Data())
		case *http2.RSTStreamFrame:
			t.Fatalf("stream %d is reset: %v", frame.StreamID, frame.ErrCode)
		}
	}
	for stream, text := range echoed {
		if text != fmt.Sprint("hello", stream) {
			t.Errorf("stream %d: %q", stream, text)
		}
	}
	if !allowed {
		t.Error("browsers are not told that they may")
	}
}

// TestKept: an edge that starts without its catalogue has HAProxy serve what it knew last, shards, bridges and bans.
func TestKept(t *testing.T) {
	leaks(t)
	state := t.TempDir() + "/state"
	shard, _ := wild(t, "muc-1")
	bridge, _ := wild(t, "h1")
	last := View{Shards: []Shard{shard}, Bridges: []Bridge{{"h1", bridge.Addr}}, Bans: []Ban{{netip.MustParsePrefix("127.0.0.5/32"), time.Now().Add(time.Hour)}}}
	if err := last.save(state); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{State: state}) // whose catalogue never says a word
	until(t, "the shard serves", func() bool { code, _ := get(t, s.url+"/a"); return code == 200 })
	if code, text := get(t, s.url+"/colibri-ws/h1/c/e"); code != 200 {
		t.Errorf("the bridge: %d %s", code, text)
	}
	banned := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 5)}}).DialContext}}
	if res, err := banned.Get(s.url + "/a"); err == nil {
		res.Body.Close()
		if res.StatusCode == 200 {
			t.Error("who was banned is let in")
		}
	}
}

// lines are what was logged.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestAuthorityRefuses: an authority that says that it was asked too often is left alone for a while, and the log has its
// words once.
func TestAuthorityRefuses(t *testing.T) {
	leaks(t)
	var orders atomic.Int64
	var base string
	h := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Replay-Nonce", "bm9uY2U")
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/dir":
			fmt.Fprintf(w, `{"newNonce": "%[1]s/nonce", "newAccount": "%[1]s/account", "newOrder": "%[1]s/order", "revokeCert": "%[1]s/x", "keyChange": "%[1]s/x"}`, base)
		case "/account":
			w.Header().Set("Location", base+"/account/1")
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"status": "valid"}`)
		case "/order":
			orders.Add(1)
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"type": "urn:ietf:params:acme:error:rateLimited", "status": 429, "detail": "too many certificates already issued for this name"}`)
		}
	}))
	t.Cleanup(h.Close)
	base = h.URL
	server := stack.Consul(t)
	client, err := api.NewClient(&api.Config{Address: server.Address, Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(h.Certificate())
	log := &lines{}
	c, err := newCustodian(Proxy{Dir: t.TempDir(), Names: []string{name}, Answer: freeAddr(t)},
		Authority{Directory: base + "/dir", Roots: roots, Secret: "a secret of all edges", Consul: client}, newMetrics(nil, nil).until, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.cache.Stop()
	defer c.answer.Close()
	if err := c.config.ManageAsync(t.Context(), c.names); err != nil {
		t.Fatal(err)
	}
	until(t, "the log says why", func() bool { return strings.Contains(log.String(), "too many certificates already issued") })
	asked := orders.Load()
	time.Sleep(3 * time.Second) // in which nobody asks again
	if n := orders.Load(); n != asked || n > 3 {
		t.Errorf("the authority was asked %d times, then %d", asked, n)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, name) {
		t.Errorf("the log:\n%s", text)
	}
}

// TestComplaints: what an operator has to mend is named in the log, once, with how.
func TestComplaints(t *testing.T) {
	leaks(t)
	log := &lines{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	blind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // as Consul answers who has no token
		w.Header().Set("X-Consul-Index", "7")
		w.Header().Set("X-Consul-LastContact", "0")
		w.Header().Set("X-Consul-KnownLeader", "true")
		w.Header().Set("X-Consul-Results-Filtered-By-Acls", "true")
		if r.FormValue("index") == "7" {
			<-r.Context().Done()
			return
		}
		fmt.Fprint(w, "[]")
	}))
	t.Cleanup(blind.Close)
	client, err := api.NewClient(&api.Config{Address: strings.TrimPrefix(blind.URL, "http://"), Transport: &http.Transport{DisableKeepAlives: true}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Proxy: Proxy{Dir: t.TempDir(), Region: "muc", HTTP: taken.Addr().String(), Offload: freeAddr(t), Answer: "127.0.0.1:1"},
		Catalog: &Consul{Client: client, Log: logger}, Domain: "meet.example", Log: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for _, want := range []string{"CONSUL_HTTP_TOKEN", "it does not run; start haproxy -f " + e.cfg.Proxy.Path(fileConfig) + ": another program has " + taken.Addr().String()} {
		for end := time.Now().Add(20 * time.Second); !strings.Contains(log.String(), want); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the log has no %q:\n%s", want, log)
			}
		}
	}
	rounds := e.metrics.errors
	until(t, "it goes on", func() bool { return counted(t, rounds) >= 3 })
	if n := strings.Count(log.String(), "it does not run"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}

// counted is the value of a counter.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
