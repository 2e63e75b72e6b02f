//go:build linux

package overlay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/overlay"
	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
	"plenum/overlay/roster"
)

// An agent is a real Consul on a test host; a client of its HTTP API comes from that host itself.
type agent struct {
	t       netlab.TB
	node    *node
	process *netlab.Process
	client  *http.Client
}

// consul starts an agent on n with the flags given.
func (n *node) consul(flags ...string) *agent {
	t := n.cluster.t
	t.Helper()
	dir, err := os.MkdirTemp(n.cluster.dir, "consul")
	check(t, err)
	cmd := exec.Command(stack.Path(t, "consul"), append([]string{"agent", "-data-dir", dir, "-node", n.Name(), "-log-level", "warn",
		"-hcl", `ports { dns = -1, grpc = -1, grpc_tls = -1, serf_wan = -1 } performance { raft_multiplier = 1 }`}, flags...)...)
	cmd.Env = stack.Environment(dir)
	a := &agent{t: t, node: n, process: n.StartCmd(cmd)}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.Dial(ctx, "tcp", "127.0.0.1:8500")
	}}
	a.client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return a
}

// call asks the agent and returns what it answers.
func (a *agent) call(method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequest(method, "http://consul/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := a.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, answer.Status, text)
	}
	return text, err
}

func (a *agent) put(key string, value []byte) {
	a.t.Helper()
	eventually(a.t, 30*time.Second, func() error {
		_, err := a.call(http.MethodPut, "kv/"+key, value)
		return err
	})
}

// alive are the members that the agent sees alive.
func (a *agent) alive() (n int) {
	text, err := a.call(http.MethodGet, "agent/members", nil)
	var members []struct{ Status int }
	if err != nil || json.Unmarshal(text, &members) != nil {
		return 0
	}
	for _, m := range members {
		if m.Status == 1 {
			n++
		}
	}
	return n
}

// TestCatalog has hosts of which each knows no more than the server follow a Consul across control, as a cluster's do:
// others appear, change and are revoked there; who forges or replays is refused; a dead Consul changes nothing.
func TestCatalog(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	server, a, z := c.add("server", sw, "server"), c.add("ber-1", sw, "bridge"), c.add("muc-1", sw, "bridge")
	sign := func(r roster.Record) []byte {
		t.Helper()
		b, err := roster.Sign(c.authority.roster, r)
		check(t, err)
		return b
	}
	c.list(roster.Listing{Hosts: map[string]json.RawMessage{"server": sign(server.record)}, Endpoints: map[string]roster.Endpoints{"server": server.endpoints()}})
	consul := server.consul("-server", "-bootstrap-expect", "1", "-bind", server.Addr().String(), "-client", "127.0.0.1 "+server.record.Control.String(),
		"-hcl", `addresses { http = "0.0.0.0" }`)
	for _, n := range c.nodes {
		n.cfg.Roster.Consul = "127.0.0.1:8500"
		if n != server {
			n.cfg.Roster.Consul = server.record.Control.String() + ":8500"
		}
		n.start()
		consul.put("plenum/hosts/"+n.Name(), sign(n.record))
	}
	c.up(40 * time.Second)
	if h := a.status().Hosts; h != 3 {
		t.Errorf("%d hosts in the roster", h)
	}

	z.record.Epoch = 2
	consul.put("plenum/hosts/muc-1", sign(z.record))
	d := eventually(t, 10*time.Second, func() error {
		if e := z.path(overlay.Control, a).Epoch; e != 2 {
			return fmt.Errorf("ber-1 holds epoch %d", e)
		}
		return nil
	})
	t.Logf("a change has arrived everywhere after %s, a probe included", d)
	forged, err := roster.Sign(newAuthority(t).roster, z.record)
	check(t, err)
	old := z.record
	old.Epoch = 1
	for reason, bad := range map[string][]byte{"forged": forged, "older": sign(old)} {
		consul.put("plenum/hosts/muc-1", bad)
		eventually(t, 10*time.Second, func() error {
			for _, n := range c.nodes {
				if s := n.status(); s.Refused[reason] == 0 {
					return fmt.Errorf("%s has refused %v", n.Name(), s.Refused)
				}
			}
			return nil
		})
	}
	consul.put("plenum/hosts/muc-1", sign(z.record))

	f := c.send(a, z, overlay.Media, 100)
	consul.process.Kill()
	eventually(t, 20*time.Second, func() error {
		for _, n := range c.nodes {
			if p := strings.Join(n.status().Problems, "; "); !strings.Contains(p, "roster consul") {
				return fmt.Errorf("%s has no problem with Consul: %q", n.Name(), p)
			}
		}
		return nil
	})
	a.process.Kill() // it has the list on disk
	a.start()
	c.up(20 * time.Second)
	if h := a.status().Hosts; h != 3 {
		t.Errorf("%d hosts in the roster after a restart without Consul", h)
	}
	_, before := f.counts()
	eventually(t, 10*time.Second, func() error {
		if _, now := f.counts(); now < before+100 {
			return fmt.Errorf("%d packets", now-before)
		}
		return nil
	})
}

// TestGossip (E31) has Consul's own gossip run over control while media is flooded with twice what the uplink carries.
// Its probes take what they should when media is shaped, and do not when it is not.
func TestGossip(t *testing.T) {
	c, server, a, z := trio(t, nil)
	a.link.ImpairFrom(a.Host, netlab.Impairment{Rate: 20 * netlab.Mbit, Queue: time.Second})
	const gossip = `gossip_lan { probe_interval = "50ms", probe_timeout = "2s" } telemetry { prometheus_retention_time = "1m", disable_hostname = true }`
	var agents []*agent
	for _, n := range []*node{server, a, z} {
		flags := []string{"-bind", n.record.Control.String(), "-retry-join", server.record.Control.String(), "-retry-interval", "1s", "-hcl", gossip}
		if n == server {
			flags = append(flags, "-server", "-bootstrap-expect", "1")
		}
		agents = append(agents, n.consul(flags...))
	}
	from := agents[1]
	eventually(t, 60*time.Second, func() error {
		if n := from.alive(); n != 3 {
			return fmt.Errorf("ber-1 sees %d members", n)
		}
		return nil
	})
	const limit = 200 * time.Millisecond
	a.cfg.Uplink = 20_000_000
	a.reload()
	shaped := from.beside(c.flood(a, z))
	t.Logf("shaped: p99 of a probe of Consul's gossip %s", shaped)
	if n := from.alive(); shaped > limit || n != 3 {
		t.Errorf("beside media a probe takes %s at p99, %d members alive", shaped, n)
	}
	a.cfg.Uplink = 0
	a.reload()
	open := from.beside(c.flood(a, z))
	t.Logf("not shaped: p99 %s", open)
	if open <= limit {
		t.Errorf("without shaping a probe takes %s at p99: this test has no teeth", open)
	}
}

// beside waits until the agent has measured its probes for as long as its window is, then ends the flood.
func (a *agent) beside(end func()) time.Duration {
	a.t.Helper()
	defer end()
	const window = 10 * time.Second // of the summary
	time.Sleep(window + 2*time.Second)
	text, err := a.call(http.MethodGet, "agent/metrics?format=prometheus", nil)
	check(a.t, err)
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, " "); ok && strings.HasPrefix(name, "consul_memberlist_probeNode{") && strings.Contains(name, `quantile="0.99"`) {
			ms, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || ms != ms { // none came back at all
				return time.Hour
			}
			return time.Duration(ms * float64(time.Millisecond))
		}
	}
	a.t.Fatalf("no probes in Consul's metrics")
	return 0
}

// flood sends 40 Mbit/s of media from a to z until it is ended.
func (c *cluster) flood(a, z *node) (end func()) {
	c.t.Helper()
	sink, err := z.ListenPacket("udp", netip.AddrPortFrom(z.record.Media, 7000).String())
	check(c.t, err)
	from, err := a.ListenPacket("udp", netip.AddrPortFrom(a.record.Media, 0).String())
	check(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		start, sent := time.Now(), 0
		for b := make([]byte, 1200); ctx.Err() == nil; <-tick.C {
			for ; sent < int(time.Since(start).Seconds()*40e6/8/1200); sent++ {
				from.WriteTo(b, sink.LocalAddr())
			}
		}
	}()
	return func() { cancel(); from.Close(); <-done; sink.Close() }
}
