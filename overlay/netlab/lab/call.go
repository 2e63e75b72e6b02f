//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"plenum/overlay/netlab"
)

// domain is the lab's XMPP domain.
const domain = "meet.lab"

// mediaPort is where bridges take media.
const mediaPort = 10000

// talk runs edges, bridges and shards on the hosts as an operator would, has two participants talk by way of both
// regions, and opens a door for a browser on this machine.
func (c *cluster) talk() error {
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.t.Cleanup(func() { door.Close() })
	first := c.members[0]
	var jobs [][]string
	regions := map[string]*member{} // an edge host of each
	for _, m := range c.members {
		if strings.Contains(m.roles, "edge") {
			regions[m.region] = m
			jobs = append(jobs, []string{"edge", "add", m.region, "--https", "0"})
		}
		if strings.Contains(m.roles, "shard") {
			jobs = append(jobs, []string{"shard", "add", m.region + "-shard", "--region", m.region})
		}
		if strings.Contains(m.roles, "bridge") {
			local, err := c.forwardMedia(m)
			if err != nil {
				return err
			}
			jobs = append(jobs, []string{"bridge", "add", m.name, "--advertise", local.String()})
		}
	}
	begin := time.Now()
	var all sync.WaitGroup
	errs := make([]error, len(jobs))
	for i, job := range jobs {
		all.Go(func() { errs[i] = c.plenum(first, append(job, "--domain", domain)...) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.say("%d jobs serve after %.1f s", len(jobs), time.Since(begin).Seconds())

	ways := []string{"--domain", domain, "--timeout", "20s"}
	for _, m := range regions {
		ways = append(ways, "--shard", "http://"+m.Addr().String())
	}
	if err := c.probe(ways); err != nil {
		return err
	}
	call := time.Since(begin)
	for _, kind := range []string{"shard", "bridge", "edge"} {
		if err := c.plenum(first, kind, "list"); err != nil {
			return err
		}
	}
	go c.forward(door, first.Host, net.JoinHostPort(first.Addr().String(), "80"))
	if os.Getenv("LAB_ONCE") != "" {
		fmt.Printf("lab: %d hosts, %d regions, %d jobs, a call by way of every region %.1f s after the first of them, %.0f s in all\n",
			len(c.members), len(regions), len(jobs), call.Seconds(), time.Since(c.start).Seconds())
		return nil
	}
	for _, m := range c.members {
		c.say("a shell on %s: nsenter -t %d -a; there: %s --root %s", m.name, m.PID(), filepath.Join(c.binaries, "plenum")+" shard list", m.root)
	}
	c.say("Ctrl-C takes everything down")
	fmt.Printf("http://localhost:%d/hello\n", door.Addr().(*net.TCPAddr).Port)
	<-c.ctx.Done()
	return nil
}

// probe has two participants talk, until they do: the first of a shard's bridges may just be coming.
func (c *cluster) probe(ways []string) error {
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	for {
		out, err := c.output(c.members[len(c.members)-1], nil, filepath.Join(c.binaries, "plenum"), append([]string{"probe"}, ways...)...)
		if err == nil {
			c.say("%s", strings.TrimSpace(out))
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// forward takes connections of this machine to an address that a host reaches.
func (c *cluster) forward(l net.Listener, h *netlab.Host, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := h.Dial(c.ctx, "tcp", to)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				_ = out.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

// forwardMedia takes a browser's packets to the bridge of a host, and its to the browser, and returns where.
func (c *cluster) forwardMedia(m *member) (netip.AddrPort, error) {
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, err
	}
	c.t.Cleanup(func() { l.Close() })
	go func() {
		clients := map[netip.AddrPort]net.Conn{}
		b := make([]byte, 2048)
		for {
			n, from, err := l.ReadFromUDPAddrPort(b)
			if err != nil {
				for _, out := range clients {
					out.Close()
				}
				return
			}
			out := clients[from]
			if out == nil {
				if out, err = m.Dial(c.ctx, "udp", netip.AddrPortFrom(m.Addr(), mediaPort).String()); err != nil {
					continue
				}
				clients[from] = out
				go func() {
					b := make([]byte, 2048)
					for {
						n, err := out.Read(b)
						if err != nil {
							return
						}
						_, _ = l.WriteToUDPAddrPort(b[:n], from)
					}
				}()
			}
			_, _ = out.Write(b[:n])
		}
	}()
	return l.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}
