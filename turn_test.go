package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
)

// TestTURN relays a datagram for a client that came by UDP and one that came by TCP, with what clients are told.
func TestTURN(t *testing.T) {
	server, err := newTURNServer("127.0.0.1:0", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	services := server.services()
	if len(services) != 2 {
		t.Fatalf("services: %+v", services)
	}
	for _, s := range services {
		addr := net.JoinHostPort(s.Host, s.Port)
		if _, err := allocate(t, dialTURN(t, s.Transport, addr), addr, s.Username, "wrong"); err == nil {
			t.Errorf("%s: a wrong password was let in", s.Transport)
		}
		relayed, err := allocate(t, dialTURN(t, s.Transport, addr), addr, s.Username, s.Password)
		if err != nil {
			t.Errorf("%s: %v", s.Transport, err)
			continue
		}
		peer, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if _, err := relayed.WriteTo([]byte("hello"), peer.LocalAddr()); err != nil {
			t.Errorf("%s: %v", s.Transport, err)
			continue
		}
		b := make([]byte, 100)
		n, from, err := peer.ReadFrom(b)
		if err != nil || string(b[:n]) != "hello" || from.String() != relayed.LocalAddr().String() {
			t.Errorf("%s: %q from %v, %v; the relay is %v", s.Transport, b[:n], from, err, relayed.LocalAddr())
		}
	}
}

func dialTURN(t *testing.T, transport, addr string) net.PacketConn {
	t.Helper()
	if transport == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return turn.NewSTUNConn(c)
}

func allocate(t *testing.T, conn net.PacketConn, server, user, password string) (net.PacketConn, error) {
	t.Helper()
	c, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: server, STUNServerAddr: server, Conn: conn, Username: user, Password: password,
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	return c.Allocate()
}

// TestTURNFile reads TURN servers as the job of a shard writes them, beside those of flags.
func TestTURNFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "turn")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := clusterOptions{turnServers: []string{"[2001:db8::1]:3479"}, turnSecret: "flag", turnFile: file}
	write("\n  192.0.2.1 3478 one\n2001:db8::2 443 two\nturn.meet.example 443 two tls\nturn.meet.example 443 two tls\n\n")
	all, err := o.services()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, strings.Join([]string{s.Type, s.Host, s.Port, s.Transport, s.Secret}, " "))
	}
	want := []string{"turn 2001:db8::1 3479 udp flag", "turn 2001:db8::1 3479 tcp flag", "turn 192.0.2.1 3478 udp one", "turn 192.0.2.1 3478 tcp one",
		"turn 2001:db8::2 443 udp two", "turn 2001:db8::2 443 tcp two",
		"turns turn.meet.example 443 tcp two"}
	if !slices.Equal(got, want) {
		t.Errorf("services:\n%s", strings.Join(got, "\n"))
	}
	write("192.0.2.1:3478 one\n")
	if _, err := o.services(); err == nil || !strings.Contains(err.Error(), "line 1: want ADDR PORT SECRET") {
		t.Errorf("a line that is none: %v", err)
	}
	write("")
	if all, err := o.services(); err != nil || len(all) != 2 {
		t.Errorf("an empty file: %d, %v", len(all), err)
	}
}
