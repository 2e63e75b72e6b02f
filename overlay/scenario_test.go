//go:build linux

package overlay_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"plenum/overlay"
	"plenum/overlay/netlab"
)

// TestPartition (E25) cuts two hosts from each other that both reach the server: control goes on by the relay, media
// inside control, nothing storms, and all is direct again when it heals.
func TestPartition(t *testing.T) {
	t.Parallel()
	c, _, a, z := trio(t, nil)
	f := c.send(a, z, overlay.Control, 100)
	c.lab.Partition(a, z)
	d := eventually(t, 30*time.Second, func() error {
		p, m := a.path(overlay.Control, z), a.path(overlay.Media, z)
		if !p.Up || p.Route != overlay.Relayed || p.Relay != "server" || !m.Up || m.Route != overlay.Relayed || m.Relay != "server" || !m.Nested {
			return fmt.Errorf("control %+v, media %+v", p, m)
		}
		return nil
	})
	t.Logf("relayed after %s", d)
	capture := c.lab.Capture(netlab.CaptureConfig{Keep: 1})
	start, _ := f.counts()
	eventually(t, 10*time.Second, func() error {
		if now, _ := f.counts(); now < start+300 {
			return fmt.Errorf("%d sent", now-start)
		}
		return nil
	})
	check(t, capture.Stop())
	if all, _ := capture.Seen(); all > 5000 { // three seconds; the flow itself is on six links' ends
		t.Errorf("%d frames in three seconds", all)
	}
	c.lab.Heal(a, z)
	d = eventually(t, 60*time.Second, func() error {
		p, m := a.path(overlay.Control, z), a.path(overlay.Media, z)
		if !p.Up || p.Route != overlay.Direct || !m.Up || m.Route != overlay.Direct || m.Nested {
			return fmt.Errorf("control %+v, media %+v", p, m)
		}
		return nil
	})
	t.Logf("direct again after %s", d)
}

// TestLighthousesLost (E26) stops one, then all servers: tunnels go on; a new host says what is wrong, and gets in
// when one is back.
func TestLighthousesLost(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	s1, s2 := c.add("server-1", sw, "server"), c.add("server-2", sw, "server")
	a, z := c.add("ber-1", sw, "bridge"), c.add("muc-1", sw, "bridge")
	c.start()
	c.up(20 * time.Second)
	flows := []*flow{c.send(a, z, overlay.Control, 100), c.send(z, a, overlay.Media, 100)}
	s1.process.Kill()
	late := c.add("late", sw, "bridge")
	c.publish()
	late.start()
	c.connected(20*time.Second, s2, a, z, late)
	s2.process.Kill()
	later := c.add("later", sw, "bridge")
	c.publish()
	later.start()
	eventually(t, 20*time.Second, func() error {
		if p := strings.Join(later.status().Problems, "; "); !strings.Contains(p, "none of 2 lighthouses answers") {
			return fmt.Errorf("problems: %q", p)
		}
		return nil
	})
	for _, f := range flows {
		if sent, lost := f.halt(); lost > 0 && !slow {
			t.Errorf("%d of %d packets between hosts were lost with the lighthouses", lost, sent)
		}
	}
	s2.start()
	c.connected(40*time.Second, s2, a, z, late, later)
}

// TestExpiry (E27): of two hosts whose certificates live for a few seconds one renews and loses nothing; the other is
// warned, is out as soon as its certificate ends, and floods nobody's log.
func TestExpiry(t *testing.T) {
	t.Parallel()
	const life = 20 * time.Second
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	server, a, z := c.add("server", sw, "server"), c.add("ber-1", sw, "bridge"), c.add("muc-1", sw, "bridge")
	a.certify(life)
	z.certify(life)
	c.start()
	c.up(10 * time.Second)
	f, g := c.send(server, a, overlay.Control, 200), c.send(a, server, overlay.Control, 200)
	knock := c.send(z, a, overlay.Control, 20)
	eventually(t, life, func() error {
		if p := strings.Join(z.status().Problems, "; "); !strings.Contains(p, "expires in") {
			return fmt.Errorf("problems: %q", p)
		}
		return nil
	})
	a.certify(time.Hour)
	a.reload()
	end := z.cert.NotAfter()
	eventually(t, 2*life, func() error {
		if p, q := a.path(overlay.Control, z), server.path(overlay.Control, z); p.Up || q.Up || time.Now().Before(end) {
			return fmt.Errorf("the host whose certificate has ended is up: %+v %+v", p, q)
		}
		return nil
	})
	if late := time.Since(end); late > 15*time.Second { // an interval of 2 s, then three probes, on a busy machine
		t.Errorf("out %s after the end", late)
	}
	before, _ := knock.counts()
	eventually(t, 10*time.Second, func() error {
		if now, _ := knock.counts(); now < before+60 {
			return fmt.Errorf("%d sent", now-before)
		}
		return nil
	})
	for _, n := range []*node{server, a} {
		lines := 0
		for line := range strings.Lines(n.process.Output()) {
			if strings.Contains(line, "backend=nebula") && strings.Contains(line, z.record.Control.String()) {
				lines++
			}
		}
		if lines > 3 { // in half a minute: one, and one for the window that may have turned
			t.Errorf("%s wrote %d lines about it", n.Name(), lines)
		}
	}
	for _, f := range []*flow{f, g} {
		if sent, lost := f.halt(); lost > 0 && !slow {
			t.Errorf("%d of %d packets of the renewed host were lost", lost, sent)
		}
	}
	if !a.path(overlay.Media, z).Up {
		t.Error("media went with the certificate of control")
	}
}

// TestRollover (E28) moves three hosts to another CA one by one; no pair loses a packet.
func TestRollover(t *testing.T) {
	t.Parallel()
	c, server, a, z := trio(t, nil)
	nodes := []*node{server, a, z}
	var flows []*flow
	for _, n := range nodes {
		for _, m := range nodes {
			if n != m {
				flows = append(flows, c.send(n, m, overlay.Control, 100))
			}
		}
	}
	first, err := c.authority.ca.MarshalPEM()
	check(t, err)
	next, key := newCA(t, "second")
	second, err := next.MarshalPEM()
	check(t, err)
	trust := func(pem ...[]byte) {
		for _, n := range nodes {
			n.file("ca.crt", bytes.Join(pem, nil))
			n.reload()
		}
	}
	trust(first, second)
	c.authority.ca, c.authority.caKey = next, key
	issuer, err := next.Fingerprint()
	check(t, err)
	for _, n := range nodes {
		n.certify(3 * time.Hour)
		if n.cert.Issuer() != issuer {
			t.Fatal("not of the second CA")
		}
		n.reload()
		for _, m := range nodes {
			if m == n {
				continue
			}
			eventually(t, 20*time.Second, func() error {
				if got := m.path(overlay.Control, n); !got.Up || !got.Until.Equal(n.cert.NotAfter().Truncate(time.Second)) {
					return fmt.Errorf("%s sees %s until %s", m.Name(), n.Name(), got.Until)
				}
				return nil
			})
		}
	}
	trust(second)
	eventually(t, 10*time.Second, func() error { // an interval passes
		if sent, _ := flows[0].counts(); sent < 600 {
			return fmt.Errorf("%d sent", sent)
		}
		return nil
	})
	c.up(time.Second)
	for _, f := range flows {
		if sent, lost := f.halt(); lost > 0 && !slow {
			t.Errorf("%d of %d packets were lost", lost, sent)
		}
	}
}

// TestBlackHole (E32) has a path swallow what is larger than 1,280 bytes: both planes find that out, and what a room
// sends gets through, in one piece where it fits.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	_, _, a, z := trio(t, nil)
	a.link.Impair(netlab.Impairment{MTU: 1280})
	for _, p := range overlay.Planes {
		d := eventually(t, 30*time.Second, func() error {
			if m := a.path(p, z).MTU; m > 1280-60 || m < 1280-100 {
				return fmt.Errorf("%s has an MTU of %d", p, m)
			}
			return nil
		})
		t.Logf("%s: %d after %s", p, a.path(p, z).MTU, d)
	}
	sink, err := z.ListenPacket("udp", netip.AddrPortFrom(z.record.Media, 7000).String())
	check(t, err)
	defer sink.Close()
	from, err := a.ListenPacket("udp", netip.AddrPortFrom(a.record.Media, 0).String())
	check(t, err)
	defer from.Close()
	for _, size := range []int{1150, 1300} {
		eventually(t, 5*time.Second, func() error {
			if _, err := from.WriteTo(make([]byte, size), sink.LocalAddr()); err != nil {
				return err
			}
			sink.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, _, err := sink.ReadFrom(make([]byte, 2000))
			if err == nil && n != size {
				err = fmt.Errorf("%d bytes", n)
			}
			return err
		})
	}
}

// TestNAT (E33) puts hosts behind NATs. Each is told what stands before it and as what it is seen, and both planes
// reach everybody, by a relay where they must: media over WireGuard inside control.
func TestNAT(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	world := c.lab.Switch("world", netip.MustParsePrefix("198.51.100.0/24"))
	c.add("server-1", world, "server")
	c.add("server-2", world, "server")
	cone := c.lab.NAT("cone", world, netlab.NATConfig{Kind: netlab.PortRestrictedCone})
	symmetric := c.lab.NAT("symmetric", world, netlab.NATConfig{Kind: netlab.Symmetric})
	a, b := c.add("home-1", cone.Inside, "bridge"), c.add("home-2", cone.Inside, "bridge")
	z := c.add("office", symmetric.Inside, "bridge")
	c.start()
	eventually(t, 40*time.Second, func() error {
		for _, n := range c.nodes {
			s := n.status()
			if len(s.Paths) != 2*(len(c.nodes)-1) {
				return fmt.Errorf("%s has %d paths", n.Name(), len(s.Paths))
			}
			for _, p := range s.Paths {
				if !p.Up {
					return fmt.Errorf("%s does not reach %s by %s", n.Name(), p.Host, p.Plane)
				}
			}
		}
		return nil
	})
	eventually(t, 20*time.Second, func() error {
		for _, w := range []struct {
			n    *node
			kind overlay.NAT
			at   netip.Addr
		}{{c.nodes[0], overlay.NATNone, netip.Addr{}}, {a, overlay.NATCone, cone.Addr()}, {b, overlay.NATCone, cone.Addr()}, {z, overlay.NATSymmetric, symmetric.Addr()}} {
			planes := w.n.status().Planes
			if len(planes) != 2 {
				return fmt.Errorf("%s does not answer", w.n.Name())
			}
			for name, p := range planes {
				if p.NAT != w.kind || w.at.IsValid() && (len(p.Observed) == 0 || p.Observed[0].Addr() != w.at) {
					return fmt.Errorf("%s: %s: %+v, want %s at %s", w.n.Name(), name, p, w.kind, w.at)
				}
			}
		}
		return nil
	})
	// Two behind the same NAT need nobody in between.
	eventually(t, 40*time.Second, func() error {
		for _, plane := range overlay.Planes {
			if p := a.path(plane, b); !p.Up || p.Route != overlay.Direct {
				return fmt.Errorf("home-1 reaches home-2 by %s: %+v", plane, p)
			}
		}
		return nil
	})
	for _, p := range z.status().Paths {
		t.Logf("%s to %s by %s: %s %s up=%t", z.Name(), p.Host, p.Plane, p.Route, p.Relay, p.Up)
	}
}

// TestFamilies joins a host that has IPv6 only and one that has IPv4 only, by a server that has both.
func TestFamilies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	four, six := c.lab.Switch("four", netip.MustParsePrefix("198.51.100.0/24")), c.lab.Switch("six", netip.MustParsePrefix("2001:db8:6::/64"))
	server := c.add("server", four, "server")
	second := c.lab.Link(server.Host, six, netlab.LinkConfig{})
	server.public = append(server.public, second.Addr(server.Host))
	a, b := c.add("six-1", six, "bridge"), c.add("six-2", six, "bridge")
	z := c.add("four-1", four, "bridge")
	if !a.Addr().Is6() || !z.Addr().Is4() {
		t.Fatalf("hosts at %s and %s", a.Addr(), z.Addr())
	}
	c.start()
	c.up(40 * time.Second)
	eventually(t, 30*time.Second, func() error {
		for _, plane := range overlay.Planes {
			if p := a.path(plane, b); p.Route != overlay.Direct || !p.Remote.Addr().Is6() {
				return fmt.Errorf("between two with IPv6 by %s: %+v", plane, p)
			}
			if p, q := server.path(plane, a), server.path(plane, z); p.Route != overlay.Direct || !p.Remote.Addr().Is6() || q.Route != overlay.Direct || !q.Remote.Addr().Is4() {
				return fmt.Errorf("from the server by %s: by IPv6 %+v, by IPv4 %+v", plane, p, q)
			}
			if p := a.path(plane, z); p.Route != overlay.Relayed || p.Relay != "server" {
				return fmt.Errorf("from IPv6 to IPv4 by %s: %+v", plane, p)
			}
		}
		return nil
	})
}

// TestStranger has a host come with a certificate of another authority and a WireGuard key that is not in its record. It
// gets nowhere, whatever it knows of the others, and they go on.
func TestStranger(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	server, a, z := c.add("server", sw, "server"), c.add("ber-1", sw, "bridge"), c.add("stranger", sw, "bridge")
	right, key := c.authority.ca, c.authority.caKey
	c.authority.ca, c.authority.caKey = newCA(t, "another")
	z.certify(time.Hour)
	c.authority.ca, c.authority.caKey = right, key
	z.wg = x25519(t)
	c.start()
	c.connected(20*time.Second, server, a)
	eventually(t, 20*time.Second, func() error { // its own ends of both planes are there
		if s := z.status(); !s.Planes[overlay.Control].Up || !s.Planes[overlay.Media].Up {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	capture := z.link.Capture(netlab.CaptureConfig{})
	knocks := []*flow{c.send(z, a, overlay.Control, 50), c.send(z, a, overlay.Media, 50)}
	eventually(t, 20*time.Second, func() error { // long enough for many handshakes
		if sent, _ := knocks[0].counts(); sent < 400 {
			return fmt.Errorf("%d sent", sent)
		}
		return nil
	})
	for _, n := range c.nodes {
		for _, p := range n.status().Paths {
			if p.Up && (n == z || p.Host == z.Name()) {
				t.Errorf("%s reaches %s by %s", n.Name(), p.Host, p.Plane)
			}
		}
	}
	for i, f := range knocks {
		if _, got := f.counts(); got > 0 {
			t.Errorf("%d packets of flow %d arrived", got, i)
		}
	}
	check(t, capture.Stop())
	if all, _ := capture.Seen(); all < 8 {
		t.Errorf("it has not even tried: %d frames", all)
	}
	c.connected(time.Second, server, a)
}

// TestRenumbered changes a host's address under live tunnels, as providers do every night.
func TestRenumbered(t *testing.T) {
	t.Parallel()
	c, _, a, z := trio(t, nil)
	flows := []*flow{c.send(a, z, overlay.Control, 100), c.send(a, z, overlay.Media, 100), c.send(z, a, overlay.Control, 100), c.send(z, a, overlay.Media, 100)}
	for round := range 2 {
		a.link.Renumber(a.Host)
		for i, f := range flows {
			_, before := f.counts()
			d := eventually(t, 20*time.Second, func() error {
				if _, now := f.counts(); now < before+50 {
					return fmt.Errorf("round %d: flow %d has not moved: %d", round, i, now-before)
				}
				return nil
			})
			t.Logf("round %d: flow %d goes on, after %s", round, i, d)
		}
	}
	c.up(10 * time.Second)
	for i, f := range flows {
		sent, lost := f.halt()
		t.Logf("flow %d: %d of %d lost", i, lost, sent)
	}
}

// TestFirewall tries every pair of hosts on every port of a table, with the certificates of Nebula and with the
// addresses of WireGuard to tell who is who.
func TestFirewall(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"nebula", "wireguard"} {
		t.Run(backend, func(t *testing.T) {
			c := newCluster(t, map[overlay.Plane]string{overlay.Control: backend, overlay.Media: "wireguard"})
			c.allow = []overlay.Rule{
				{From: []string{"any"}, To: []string{"server"}, Proto: "tcp", Ports: "8300-8302"},
				{From: []string{"server", "edge"}, To: []string{"bridge"}, Proto: "tcp", Ports: "5222"},
				{From: []string{"edge"}, To: []string{"any"}, Proto: "any", Ports: "any"},
			}
			sw := c.lab.Switch("net")
			c.add("server", sw, "server")
			c.add("ber-1", sw, "bridge")
			c.add("edge-1", sw, "edge")
			c.add("muc-1", sw, "bridge")
			c.start()
			c.up(20 * time.Second)
			allowed := func(from, to *node, port int) bool {
				switch {
				case from.record.Is("edge"):
					return true
				case port >= 8300 && port <= 8302:
					return to.record.Is("server")
				case port == 5222:
					return from.record.Is("server") && to.record.Is("bridge")
				}
				return false
			}
			ports := []int{80, 5222, 8299, 8300, 8302, 8303}
			for _, to := range c.nodes {
				for _, port := range ports {
					l, err := to.Listen("tcp", netip.AddrPortFrom(to.record.Control, uint16(port)).String())
					check(t, err)
					defer l.Close()
				}
			}
			type result struct {
				text string
				ok   bool
			}
			results, n := make(chan result), 0
			for _, from := range c.nodes {
				for _, to := range c.nodes {
					if from == to {
						continue
					}
					for _, port := range ports {
						n++
						go func() {
							within := 1500 * time.Millisecond
							if allowed(from, to, port) {
								within = 10 * time.Second
							}
							ctx, cancel := context.WithTimeout(context.Background(), within)
							defer cancel()
							conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(to.record.Control.String(), fmt.Sprint(port)))
							if err == nil {
								conn.Close()
							}
							results <- result{fmt.Sprintf("%s to %s:%d: %v, want %t", from.Name(), to.Name(), port, err, allowed(from, to, port)), (err == nil) == allowed(from, to, port)}
						}()
					}
				}
			}
			for range n {
				if r := <-results; !r.ok {
					t.Error(r.text)
				}
			}
		})
	}
}
