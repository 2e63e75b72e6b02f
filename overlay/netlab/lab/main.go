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
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"plenum/overlay/netlab"
)

func main() {
	binary := flag.String("plenum", "./plenum", "the binary to run")
	call := flag.Bool("call", false, "run shards, edges and bridges too, and have a call")
	detail := flag.Bool("v", false, "print what every command says")
	measure := flag.Bool("measure", false, "with -call: say how fast a new shard and a new host are of use")
	flag.Parse()
	name, run, sites := "lab-hosts", hosts, hostSites(os.Getenv("SERVERS") == "3")
	if *call {
		name, run, sites = "lab", func(c *cluster) error { return session(c, *measure) }, threeHosts
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := netlab.Run(os.Stderr, name, func(t netlab.TB) {
		c, err := newCluster(ctx, t, options{binary: *binary, sites: sites, https: *call, out: os.Stdout, detail: *detail})
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
	return c.rest(summary)
}

// rest says how to go on, and the last line, and does what is typed until Ctrl-C.
func (c *cluster) rest(last string, more ...string) error {
	if os.Getenv("LAB_ONCE") != "" {
		fmt.Println(last)
		return nil
	}
	on, err := c.helper()
	if err != nil {
		return err
	}
	c.write("\nOn a host, from another terminal (plenum, nomad and consul are the operator's; without a command: a shell):\n")
	for _, line := range append([]string{"plenum status"}, more...) {
		c.write("  %s %s %s\n", on, c.first().name, line)
	}
	c.write("Here: pull HOST, plug HOST (its cable); off HOST, boot HOST (its power); Ctrl-C takes everything down.\n%s\n", last)
	typed := make(chan string)
	go func() { // stands in a read until the program ends
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			typed <- in.Text()
		}
	}()
	for {
		select {
		case <-c.ctx.Done():
			return nil
		case line := <-typed:
			if err := c.order(strings.Fields(line)); err != nil {
				c.say("%v", err)
			}
		}
	}
}

// order does what was typed.
func (c *cluster) order(words []string) error {
	what := errors.New("want pull, plug, off or boot, and a host")
	if len(words) != 2 {
		return what
	}
	i := slices.IndexFunc(c.members, func(m *member) bool { return m.name == words[1] })
	if i < 0 {
		return fmt.Errorf("there is no host %s", words[1])
	}
	m, began := c.members[i], time.Now()
	switch words[0] {
	case "pull":
		m.cable.Down()
	case "plug":
		m.cable.Up()
	case "off":
		m.powerOff()
	case "boot":
		if err := m.boot(); err != nil {
			return err
		}
	default:
		return what
	}
	c.say("%s %s: done, in %.1f s", words[0], m.name, time.Since(began).Seconds())
	return nil
}

// helper writes a program for other terminals, and returns where it is: on HOST [COMMAND…].
func (c *cluster) helper() (string, error) {
	tokens, err := c.tokens()
	if err != nil {
		return "", err
	}
	on := filepath.Join(c.dir, "on")
	text := fmt.Appendf(nil, "#!/bin/sh\n# on HOST [COMMAND…]: a command, or a shell, on a host of the lab\ncase $1 in\n")
	for _, m := range c.members {
		text = fmt.Appendf(text, "%s) pid=%d ;;\n", m.name, m.PID())
	}
	text = fmt.Appendf(text, `*) echo "want on HOST [COMMAND…]" >&2; exit 2 ;;
esac
host=$1; shift
[ $# -gt 0 ] || set -- bash
case "$1 $2 $3" in
"plenum probe "*|"plenum room list"|"plenum room pin"|"plenum run "*|"plenum  ") ;;
"plenum "*) set -- "$@" --root %[1]s/$host ;;
esac
exec nsenter -t $pid -a --wdns="$PWD" env HOME=%[1]s/$host PATH=%[2]s:$PATH NOMAD_ADDR=https://127.0.0.1:4646 NOMAD_TLS_SERVER_NAME=localhost \
	NOMAD_CACERT=%[1]s/$host/var/lib/plenum/tls/ca.pem NOMAD_TOKEN=%[3]s CONSUL_HTTP_TOKEN=%[4]s "$@"
`, c.dir, c.binaries, tokens.Nomad, tokens.Consul)
	return on, os.WriteFile(on, text, 0o700)
}
