package edge

import (
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
// none fails, for connections to a shard are used again, and its metric of failures stays 0.
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
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.RawQuery) })}
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
	_, text := ask(":9719/metrics")
	errors := sumOf(text, `haproxy_backend_connection_errors_total{proxy="shards"}`)
	if failed > 0 || errors != 0 {
		t.Errorf("%d of 200 requests failed, HAProxy counts %v connections that did\n%s", failed, errors, process.Output())
	}
}
