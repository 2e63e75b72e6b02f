package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/overlay/netlab"
)

// TestFewPorts (E3) has HAProxy on a host with 64 ports for connections of its own take 200 short requests of 200 clients:
// none fails, for connections to a shard are used again, and its metric of failures stays 0. Sockets hold a port each: when
// there are no more, the metric tells, newcomers are refused, and those that are open go on.
//
//	client ─── edge ─── shard
func TestFewPorts(t *testing.T) {
	lab := netlab.New(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	client, edge, shard := lab.Host("client"), lab.Host("edge"), lab.Host("shard")
	wan, overlay := lab.Switch("wan", netip.MustParsePrefix("5.9.0.0/24")), lab.Switch("overlay", netip.MustParsePrefix("10.86.0.0/16"))
	lab.Link(client, wan, netlab.LinkConfig{})
	lab.Link(edge, wan, netlab.LinkConfig{})
	lab.Link(edge, overlay, netlab.LinkConfig{})
	lab.Link(shard, overlay, netlab.LinkConfig{})
	edge.Sysctl("net.ipv4.ip_local_port_range", "20000 20063")

	l, err := shard.Listen("tcp", net.JoinHostPort(shard.Addr().String(), "8000"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(w, r.URL.RawQuery)
			return
		}
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		_, _ = io.Copy(conn, buf)
	})}
	ended := make(chan error)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() { server.Close(); <-ended })

	public := edge.Addr().String()
	p := Proxy{Dir: t.TempDir(), Region: "muc", HTTP: net.JoinHostPort(public, "80"), Metrics: net.JoinHostPort(public, "9719"), Offload: "127.0.0.1:9", Answer: "127.0.0.1:9", Sockets: 100_000}
	files, err := p.Files(View{Shards: []Shard{{Name: "muc-1", Region: "muc", Addr: l.Addr().String()}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(p.Path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	process := edge.Start("haproxy", "-db", "-f", p.Path(fileConfig))
	web := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return client.Dial(ctx, network, addr)
		}}}
	ask := func(path string) (int, string) {
		res, err := web.Get("http://" + public + path)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	until(t, "the shard serves", func() bool { code, _ := ask("/xmpp-websocket?room=a"); return code == 200 })
	failed := 0
	for i := range 200 {
		if code, text := ask(fmt.Sprint("/xmpp-websocket?room=r", i)); code != 200 || text != fmt.Sprint("room=r", i) {
			if failed++; failed == 1 {
				t.Logf("request %d: %d %s", i, code, text)
			}
		}
	}
	errors := func() float64 {
		_, text := ask(":9719/metrics")
		return sumOf(text, `haproxy_backend_connection_errors_total{proxy="shards"}`)
	}
	if n := errors(); failed > 0 || n != 0 {
		t.Errorf("%d of 200 requests failed, HAProxy counts %v connections that did\n%s", failed, n, process.Output())
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	refused := 0
	for range 80 {
		c, err := client.Dial(t.Context(), "tcp", net.JoinHostPort(public, "80"))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(c, "GET /xmpp-websocket?room=a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode == http.StatusSwitchingProtocols {
			open = append(open, c)
			continue
		}
		c.Close()
		if refused++; res.StatusCode != http.StatusServiceUnavailable || refused == 2 {
			break // each takes as long as HAProxy tries
		}
	}
	t.Logf("%d sockets are open, %v connections failed", len(open), errors())
	if len(open) < 50 || len(open) > 64 || refused == 0 || errors() == 0 {
		t.Errorf("%d sockets are open, %d were refused, HAProxy counts %v connections that failed", len(open), refused, errors())
	}
	for i, c := range open {
		if err := hello(c); err != nil {
			t.Errorf("socket %d: %v", i, err)
		}
	}
}
