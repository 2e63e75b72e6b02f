package edge

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
	"golang.org/x/net/http2"
)

// coturn starts the real TURN server as the job of a region has it, for the edge of the same host.
func coturn(t *testing.T, secret string) (addr string) {
	t.Helper()
	dir := t.TempDir()
	addr = freeAddr(t)
	_, plain, _ := net.SplitHostPort(freeAddr(t))
	file := filepath.Join(dir, "turnserver.conf")
	lines := []string{"use-auth-secret", "static-auth-secret=" + secret, "realm=meet.example", "listening-ip=127.0.0.1", "relay-ip=127.0.0.1", "listening-port=" + plain,
		"aux-server=" + addr, "no-tls", "no-dtls", "no-cli", "allow-loopback-peers", "log-file=stdout", "simple-log",
		"pidfile=" + dir + "/pid", "userdb=" + dir + "/turndb", ""}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("turnserver", "-c", file)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
		if text, _ := os.ReadFile(out.Name()); t.Failed() {
			t.Logf("coturn: %s", text)
		}
	})
	until(t, "coturn listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

// TestShared has one port serve browsers and TURN over TLS, apart by the name that a client asks for: a relay carries
// datagrams for who asks for TURN's, pages come by HTTP/1.1 and HTTP/2 and sockets open for the others. Both names have
// certificates; the TURN server needs none.
func TestShared(t *testing.T) {
	leaks(t)
	const secret, relay = "0123456789abcdef", "turn.plenum.test"
	s := start(t, Config{Proxy: Proxy{HTTP: freeAddr(t), HTTPS: freeAddr(t), Names: []string{name, relay}, Answer: "127.0.0.1:1", TURN: relay, Relay: coturn(t, secret)}})
	web, header := wild(t, "muc-2")
	s.views <- View{Shards: []Shard{echo(t, "muc-1"), web}}
	dial := func(sni string, protocols ...string) *tls.Conn {
		t.Helper()
		conn, err := tls.DialWithDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}, "tcp", s.https,
			&tls.Config{ServerName: sni, InsecureSkipVerify: true, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != sni && sni != "" {
			t.Errorf("%s has the certificate of %s", sni, got)
		}
		return conn
	}
	pages := func(when string) {
		t.Helper()
		for _, protocol := range []string{"http/1.1", "h2"} {
			conn := dial(name, protocol)
			request, err := http.NewRequest("GET", "https://"+name+"/room_muc-2", nil)
			if err != nil {
				t.Fatal(err)
			}
			var res *http.Response
			if protocol == "h2" {
				//lint:ignore SA1019 a connection that is there already: net/http makes its own
				c, err := (&http2.Transport{}).NewClientConn(conn)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				res, err = c.RoundTrip(request)
				if err != nil {
					t.Fatalf("%s: %s: %v", when, protocol, err)
				}
			} else {
				if err := request.Write(conn); err != nil {
					t.Fatal(err)
				}
				if res, err = http.ReadResponse(bufio.NewReader(conn), request); err != nil {
					t.Fatalf("%s: %s: %v", when, protocol, err)
				}
			}
			res.Body.Close()
			for h, want := range map[string]string{"X-Proxy-Region": "muc", "X-Forwarded-For": "127.0.0.9", "X-Forwarded-Proto": "https"} {
				if got := header(h); got != want {
					t.Errorf("%s: %s: the shard is told %s: %q, want %q", when, protocol, h, got, want)
				}
			}
			if res.StatusCode != 200 || res.Header.Get("Strict-Transport-Security") == "" {
				t.Errorf("%s: %s: %s", when, protocol, res.Status)
			}
		}
		c := dial(name)
		fmt.Fprintf(c, "GET /xmpp-websocket?room=a_muc-1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%s: a socket: %v, %v", when, res, err)
		}
		if err := hello(c); err != nil {
			t.Errorf("%s: a socket: %v", when, err)
		}
	}
	until(t, "the shards serve", func() bool {
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true}}}
		res, err := c.Get("https://" + s.https + "/a_muc-2")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == 200
	})
	pages("before")

	user, password, err := turn.GenerateLongTermTURNRESTCredentials(secret, "alice", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := turn.NewClient(&turn.ClientConfig{TURNServerAddr: s.https, Conn: turn.NewSTUNConn(dial(relay)), Username: user, Password: password,
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	allocated, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	defer allocated.Close()
	peer, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_ = peer.SetDeadline(time.Now().Add(20 * time.Second))
	_ = allocated.SetDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 100)
	for i := range 3 {
		if _, err := allocated.WriteTo(fmt.Append(nil, "ping", i), peer.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		n, from, err := peer.ReadFrom(b)
		if err != nil || string(b[:n]) != fmt.Sprint("ping", i) || from.String() != allocated.LocalAddr().String() {
			t.Fatalf("the peer has %q from %v, %v", b[:n], from, err)
		}
		if _, err := peer.WriteTo(fmt.Append(nil, "pong", i), from); err != nil {
			t.Fatal(err)
		}
		if n, _, err := allocated.ReadFrom(b); err != nil || string(b[:n]) != fmt.Sprint("pong", i) {
			t.Fatalf("the client has %q, %v", b[:n], err)
		}
	}
	pages("beside a relay")

	// Neither is to be had under the other's name.
	other := dial(relay)
	if _, err := io.WriteString(other, "GET /room HTTP/1.1\r\nHost: "+name+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if res, err := http.ReadResponse(bufio.NewReader(other), nil); err == nil {
		t.Errorf("a page under the name of TURN: %s", res.Status)
	}
}

// TestOldTLS: TLS 1.2 and 1.3 are spoken, nothing older.
func TestOldTLS(t *testing.T) {
	leaks(t)
	s := start(t, Config{Proxy: Proxy{HTTP: freeAddr(t), HTTPS: freeAddr(t), Names: []string{name}, Answer: "127.0.0.1:1"}})
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		if got := err == nil; got != want {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			conn.Close()
		}
	}
}
