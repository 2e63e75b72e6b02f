//go:build linux

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"plenum/agent/join"
	"plenum/overlay"
	"plenum/overlay/netlab/stack"
)

// TestServers is the life of a cluster of three servers: one is lost during a join, all lose power, hosts are away while
// the gossip key changes, and servers leave until one is left. It takes minutes: PLENUM_CHAOS=1.
func TestServers(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("three servers take minutes: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	srv, s2, s3 := c.box("srv"), c.box("s2"), c.box("s3")
	b, d, e, f := c.box("b"), c.box("d"), c.box("e"), c.box("f")
	c.found(srv)
	if nodes := c.nodes(); nodes["srv"] != "ready" {
		t.Errorf("init ended and nodes are %v", nodes)
	}
	s2.join(c.token("ber", "server"))
	s3.join(c.token("muc", "server"))

	// Two hosts join at the same instant.
	var wg sync.WaitGroup
	for _, x := range []*box{b, d} {
		token := c.token("muc", "bridge")
		wg.Go(func() {
			if out, err := x.try(nil, "join", token, "--host", x.Name(), "--binaries", c.bin); err != nil {
				t.Errorf("%s: %v\n%s", x.Name(), err, out)
			}
		})
	}
	wg.Wait()
	c.whole(2*time.Minute, srv, s2, s3, b, d)
	r := srv.report()
	if r.host("b").Control == r.host("d").Control {
		t.Errorf("b and d have one address: %s", r.host("b").Control)
	}
	c.peers(srv, 3)

	// The server that made the cluster, and most likely leads, is lost while a host joins. What was begun goes on at another.
	c.first = s2
	token := c.token("ber", "bridge")
	joining := e.StartCmd(e.command("join", token, "--host", "e", "--binaries", c.bin))
	c.eventually(time.Minute, func() error {
		if !strings.Contains(joining.Output(), "asking") {
			return errors.New("it has not begun")
		}
		return nil
	})
	srv.KillAll()
	err := joining.Wait()
	t.Logf("the join of e while a server was lost: %v", err)
	if err != nil {
		c.eventually(2*time.Minute, func() error {
			out, err := e.try(nil, "join", token, "--host", "e", "--binaries", c.bin)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	c.whole(2*time.Minute, s2, s3, b, d, e)
	srv.reboot()
	t.Logf("whole %s after the server is back", c.whole(3*time.Minute, srv, s2, s3, b, d, e).Round(time.Second))
	c.first = srv

	// All servers lose power at once; Vault opens by its file.
	for _, x := range []*box{srv, s2, s3} {
		x.KillAll()
	}
	for _, x := range []*box{srv, s2, s3} {
		x.reboot()
	}
	t.Logf("whole %s after all servers lost power", c.whole(3*time.Minute, srv, s2, s3, b, d, e).Round(time.Second))
	c.eventually(time.Minute, func() error {
		out, err := srv.try(nil, "token", "create", "--region", "muc", "--roles", "bridge")
		if err != nil {
			return errors.New(out) // Vault is not open yet
		}
		return nil
	})
	f.join(c.token("muc", "bridge"))

	// A host that is off while the gossip key changes comes back.
	d.KillAll()
	gone := c.eventually(2*time.Minute, func() error { // (E42)
		if now := c.nodes()["d"]; now != "down" {
			return fmt.Errorf("node d is %q", now)
		}
		s, err := overlay.Read(t.Context(), b.root)
		for _, p := range s.Paths {
			if p.Host == "d" && p.Up {
				return errors.New("b still reaches d by " + string(p.Plane))
			}
		}
		return err
	})
	t.Logf("d without power is a node that is down after %s", gone.Round(time.Second))
	start := time.Now()
	srv.plenum("ca", "rotate", "gossip")
	t.Logf("the gossip key was changed in %s", time.Since(start).Round(100*time.Millisecond))
	for name, status := range c.nodes() {
		if name != "d" && status != "ready" {
			t.Errorf("node %s is %s after the gossip key changed", name, status)
		}
	}
	d.reboot()
	t.Logf("d is back %s after its boot with the old gossip key", c.whole(3*time.Minute, srv, s2, s3, b, d, e, f).Round(time.Second))

	// A stolen key is nothing once its host is revoked.
	stolen := c.box("thief")
	check(t, os.CopyFS(filepath.Join(stolen.root, keyDir), os.DirFS(filepath.Join(e.root, keyDir))))
	srv.plenum("host", "revoke", "e")
	if out, err := stolen.try(nil, "join", c.token("muc", "bridge"), "--host", "e", "--binaries", c.bin); err == nil || !strings.Contains(out, join.ReasonRevoked) {
		t.Errorf("a stolen key joins: %v\n%s", err, out)
	}
	e.KillAll()

	// Servers leave until one is left, which stays.
	s3.plenum("leave")
	c.peers(srv, 2)
	c.whole(time.Minute, srv, s2, b, d, f)
	s2.plenum("leave")
	c.peers(srv, 1)
	c.whole(2*time.Minute, srv, b, d, f)
	if out, err := srv.try(nil, "leave"); err == nil || !strings.Contains(out, "last server") {
		t.Errorf("the last server leaves: %v\n%s", err, out)
	}
	g := c.box("g")
	g.join(c.token("muc", "bridge")) // Vault has a majority too
	c.whole(time.Minute, srv, b, d, f, g)
}

// peers waits until Consul and Nomad have this many servers that vote; Vault goes by the same clock.
func (c *cluster) peers(on *box, want int) {
	c.t.Helper()
	w, err := newWork(on.root)
	check(c.t, err)
	tokens, err := w.management()
	check(c.t, err)
	for name, env := range map[string][]string{"consul": {"CONSUL_HTTP_TOKEN=" + tokens.Consul},
		"nomad": {"NOMAD_ADDR=https://" + nomadAddress, "NOMAD_CACERT=" + filepath.Join(on.root, tlsDir, "ca.pem"), "NOMAD_TLS_SERVER_NAME=localhost", "NOMAD_TOKEN=" + tokens.Nomad}} {
		c.eventually(time.Minute, func() error {
			cmd := on.command()
			cmd.Path, cmd.Args = filepath.Join(c.bin, name), []string{name, "operator", "raft", "list-peers"}
			cmd.Env = append(stack.Environment(on.root), env...)
			p := on.StartCmd(cmd)
			_ = p.Wait()
			n := 0
			for line := range strings.Lines(p.Output()) { // a new server votes when it has been well for ten seconds
				if strings.Contains(line, ":8300 ") || strings.Contains(line, ":4647 ") {
					n += strings.Count(line, " true ")
				}
			}
			if n != want {
				return fmt.Errorf("%s has %d voters, not %d:\n%s", name, n, want, p.Output())
			}
			return nil
		})
	}
}
