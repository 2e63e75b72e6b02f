package main

import (
	"net"
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
