//go:build linux

package guard

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
	"go.uber.org/goleak"

	"plenum/overlay/netlab"
)

// TestRelay runs the real coturn, told to relay to anybody, on a host that is on an overlay:
//
//	client ─── wan ─── turn ─── overlay ─── consul
//	bridge ────┘
//
// Without the guard a client gets into the overlay and to the host's own services through it; with it, to bridges only.
func TestRelay(t *testing.T) {
	if _, err := user.Lookup("turnserver"); err != nil {
		t.Skip("coturn is not installed:", err)
	}
	lab := netlab.New(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	wan := lab.Switch("wan", netip.MustParsePrefix("5.9.0.0/24"))
	prefix := netip.MustParsePrefix("10.86.0.0/16")
	overlay := lab.Switch("overlay", prefix)
	client, server, bridge, consul := lab.Host("client"), lab.Host("turn"), lab.Host("bridge"), lab.Host("consul")
	for _, h := range []*netlab.Host{client, server, bridge} {
		lab.Link(h, wan, netlab.LinkConfig{})
	}
	lab.Link(server, overlay, netlab.LinkConfig{}) // eth1
	lab.Link(consul, overlay, netlab.LinkConfig{})

	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil { // of another user
		t.Fatal(err)
	}
	public := server.Addrs()[0].String()
	address := net.JoinHostPort(public, "3478")
	const secret = "0123456789abcdef"
	file := filepath.Join(dir, "turnserver.conf")
	text := strings.Join([]string{"use-auth-secret", "static-auth-secret=" + secret, "realm=meet.example", "listening-ip=" + public, "relay-ip=" + public,
		"allow-loopback-peers", "no-tls", "no-dtls", "no-cli", "log-file=stdout", "pidfile=" + dir + "/pid", "userdb=" + dir + "/turndb", ""}, "\n")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	process := server.StartCmd(exec.Command("setpriv", "--reuid=turnserver", "--regid=turnserver", "--clear-groups", "turnserver", "-c", file))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if c, err := client.Dial(ctx, "tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}

	user, password, err := turn.GenerateLongTermTURNRESTCredentials(secret, "alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// relayed tells whether what a client sends to h at addr comes there.
	relayed := func(h *netlab.Host, addr string) bool {
		t.Helper()
		peer, err := h.ListenPacket("udp4", net.JoinHostPort(addr, "8500"))
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		conn, err := client.ListenPacket("udp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c, err := turn.NewClient(&turn.ClientConfig{TURNServerAddr: address, Conn: conn, Username: user, Password: password,
			LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Listen(); err != nil {
			t.Fatal(err)
		}
		relay, err := c.Allocate()
		if err != nil {
			t.Fatalf("%v\n%s", err, process.Output())
		}
		defer relay.Close()
		b := make([]byte, 100)
		for range 5 {
			if _, err := relay.WriteTo([]byte("hello"), peer.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			_ = peer.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if n, _, err := peer.ReadFrom(b); err == nil && string(b[:n]) == "hello" {
				return true
			}
		}
		return false
	}
	check := func(when string, open bool) {
		t.Helper()
		for _, c := range []struct {
			name string
			host *netlab.Host
			addr string
			want bool
		}{
			{"a bridge", bridge, bridge.Addr().String(), true},
			{"the overlay", consul, consul.Addr().String(), open},
			{"the host's overlay address", server, server.Addrs()[1].String(), open},
			{"the host itself", server, "127.0.0.1", open},
		} {
			if got := relayed(c.host, c.addr); got != c.want {
				t.Errorf("%s, %s is reached: %v, want %v", when, c.name, got, c.want)
			}
		}
	}
	check("without the guard", true)
	planes := []Plane{{Prefix: prefix, Device: "eth1"}}
	if err := server.Do(func() error { return Apply(planes) }); err != nil {
		t.Fatal(err)
	}
	check("with the guard", false)
	if err := server.Do(func() error {
		mended, err := Repair(planes)
		if mended {
			t.Error("the guard does not know its own rules")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if conn, err := server.Dial(ctx, "udp", net.JoinHostPort(consul.Addr().String(), "8500")); err != nil {
		t.Errorf("others of the host: %v", err)
	} else {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Errorf("others of the host: %v", err)
		}
		conn.Close()
	}
	// Who comes from the host's own edge is answered.
	if c, err := server.Dial(ctx, "tcp", address); err != nil {
		t.Errorf("the host's own edge: %v", err)
	} else {
		c.Close()
	}
}
