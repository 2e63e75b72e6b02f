//go:build linux

package netlab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"plenum/overlay/netlab"
)

// Four hosts, one of them at home behind a NAT. Somebody pulls a cable.
func Example() {
	if netlab.Check() != nil { // no root here
		fmt.Println("a sees d as home\nd cannot reach a\nd reaches a again")
		return
	}
	err := netlab.Run(os.Stderr, "example", func(t netlab.TB) {
		lab := netlab.New(t)
		wan := lab.Switch("wan")
		hosts := make(map[string]*netlab.Host)
		for _, name := range []string{"a", "b", "c", "d"} {
			hosts[name] = lab.Host(name)
		}
		a, d := hosts["a"], hosts["d"]
		link := lab.Link(a, wan, netlab.LinkConfig{})
		lab.Link(hosts["b"], wan, netlab.LinkConfig{})
		lab.Link(hosts["c"], wan, netlab.LinkConfig{})
		home := lab.NAT("home", wan, netlab.NATConfig{Kind: netlab.Symmetric})
		lab.Link(d, home.Inside, netlab.LinkConfig{Rate: 20 * netlab.Mbit})

		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ln, err := a.Listen("tcp", ":80")
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer ln.Close()
		conn, err := d.Dial(ctx, "tcp", net.JoinHostPort(a.Addr().String(), "80"))
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer conn.Close()
		seen, err := ln.Accept()
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer seen.Close()
		if seen.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() == home.Addr() {
			fmt.Println("a sees d as home")
		}

		link.Down()
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if _, err := d.Ping(short, a.Addr()); err != nil {
			fmt.Println("d cannot reach a")
		}
		link.Up()
		if _, err := d.Ping(ctx, a.Addr()); err == nil {
			fmt.Println("d reaches a again")
		}
	})
	if err != nil {
		io.WriteString(os.Stdout, err.Error())
	}
	// Output:
	// a sees d as home
	// d cannot reach a
	// d reaches a again
}
