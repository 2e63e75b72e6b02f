//go:build linux

// Command lab makes a cluster out of nothing on one machine: test hosts in two regions, with the real Consul, Nomad and
// Vault and both encrypted networks. It runs the built binary as an operator would, and nothing of it by other means.
// It needs root. make lab-hosts starts it: a server and three hosts, one of them behind a NAT. With -call, which make lab
// gives, there are three hosts, which go on to shards, edges and bridges in both regions, and to room links for browsers
// on this machine.
//
//	LAB_ONCE=1   set up, prove, take down, exit 0
//	SERVERS=3    three server hosts instead of one (make lab-hosts)
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"plenum/overlay/netlab"
)

func main() {
	binary := flag.String("plenum", "./plenum", "the binary to run")
	call := flag.Bool("call", false, "run shards, edges and bridges too, and have a call")
	flag.Parse()
	name, run, sites := "lab-hosts", hosts, hostSites(os.Getenv("SERVERS") == "3")
	if *call {
		name, run, sites = "lab", session, threeHosts
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := netlab.Run(os.Stderr, name, func(t netlab.TB) {
		c, err := newCluster(ctx, t, options{binary: *binary, sites: sites, out: os.Stdout})
		if err == nil {
			err = run(c)
		}
		if err != nil && ctx.Err() == nil {
			t.Fatalf("%v", err)
		}
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// hostSites are those of make lab-hosts.
//
//	ber: srv, ber-1 ── wan ── muc-1 :muc
//	                    └──── NAT ── muc-2
func hostSites(three bool) []site {
	all := []site{{name: "srv", region: "ber", roles: "server"}}
	if three {
		all = append(all, site{name: "srv-2", region: "ber", roles: "server"}, site{name: "srv-3", region: "muc", roles: "server"})
	}
	return append(all, site{name: "ber-1", region: "ber", roles: "edge,shard"}, site{name: "muc-1", region: "muc", roles: "shard,bridge"},
		site{name: "muc-2", region: "muc", roles: "bridge", nat: true})
}

// hosts is make lab-hosts.
func hosts(c *cluster) error {
	if err := c.found(); err != nil {
		return err
	}
	if err := c.eventually(time.Minute, c.whole); err != nil {
		c.confess()
		return err
	}
	text, err := c.first().output("plenum", "status")
	if err != nil {
		return err
	}
	c.write("\n%s\n", text)
	servers := len(c.with("server"))
	summary := fmt.Sprintf("lab-hosts: %d servers and %d hosts in 2 regions, one behind NAT: nodes ready, members alive, both networks whole, in %.0f s",
		servers, len(c.members)-servers, time.Since(c.start).Seconds())
	return c.rest(summary, "status")
}

// rest says how to go on, and the last line, and stands still until Ctrl-C.
func (c *cluster) rest(last, command string) error {
	if os.Getenv("LAB_ONCE") != "" {
		fmt.Println(last)
		return nil
	}
	for _, m := range c.members {
		c.say("a shell on %s: nsenter -t %d -a; there: %s/plenum %s --root %s", m.name, m.PID(), c.binaries, command, m.root)
	}
	c.say("Ctrl-C takes everything down")
	fmt.Println(last)
	<-c.ctx.Done()
	return nil
}

// session is make lab.
func session(c *cluster) error {
	if err := c.found(); err != nil {
		return err
	}
	began := time.Now()
	if err := c.serve(); err != nil {
		return err
	}
	var edges []*member // one of each region
	for _, region := range c.regions() {
		for _, m := range c.with("edge") {
			if m.region == region {
				edges = append(edges, m)
				break
			}
		}
	}
	if err := c.called(c.members[len(c.members)-1], edges...); err != nil {
		c.confess()
		return err
	}
	call := time.Since(began)
	for _, kind := range []string{"shard", "bridge", "edge"} {
		if err := c.first().plenum(kind, "list"); err != nil {
			return err
		}
	}
	if os.Getenv("LAB_ONCE") != "" {
		return c.rest(fmt.Sprintf("lab: %d hosts, %d regions, a call by way of every region %.1f s after the first job, %.0f s in all",
			len(c.members), len(edges), call.Seconds(), time.Since(c.start).Seconds()), "")
	}
	var links []string
	for _, m := range edges {
		door, err := m.door(80)
		if err != nil {
			return err
		}
		links = append(links, fmt.Sprintf("http://localhost:%d/hello", door.Port()))
	}
	return c.rest(strings.Join(links, "\n"), "shard list")
}
