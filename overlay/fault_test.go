//go:build linux

package overlay_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/overlay"
	"plenum/overlay/netlab"
	"plenum/overlay/roster"
)

// trio is a server and two hosts, all up.
func trio(t *testing.T, b map[overlay.Plane]string) (c *cluster, server, a, z *node) {
	t.Helper()
	c = newCluster(t, b)
	sw := c.lab.Switch("net")
	server, a, z = c.add("server", sw, "server"), c.add("ber-1", sw, "bridge"), c.add("muc-1", sw, "bridge")
	c.start()
	c.up(20 * time.Second)
	return c, server, a, z
}

// TestKilledNothingInClear kills the overlay while it carries packets, takes its devices away as well, and
// finds none of the payload on any cable. Without the guard the packets leave by the default route.
func TestKilledNothingInClear(t *testing.T) {
	t.Parallel()
	c, _, a, z := trio(t, nil)
	capture := c.lab.Capture(netlab.CaptureConfig{Match: func(f []byte) bool { return bytes.Contains(f, []byte(payloadMark)) }})
	out, err := a.Run("ip", "route", "add", "default", "dev", a.link.Interface(a.Host))
	if err != nil {
		t.Fatal(out)
	}
	flows := []*flow{c.send(a, z, overlay.Control, 200), c.send(a, z, overlay.Media, 200)}
	running := func() error {
		for _, f := range flows {
			if _, got := f.counts(); got < 50 {
				return fmt.Errorf("%d packets arrived", got)
			}
		}
		return nil
	}
	eventually(t, 5*time.Second, running)
	a.process.Kill()
	for _, f := range flows {
		sent, _ := f.counts()
		eventually(t, 5*time.Second, func() error {
			if now, _ := f.counts(); now < sent+100 {
				return fmt.Errorf("%d packets sent while it was dead", now-sent)
			}
			return nil
		})
	}
	// Worse: the devices themselves are gone, and with them their routes and addresses.
	for _, device := range []string{"plenum-control", "plenum-media"} {
		if out, err := a.Run("ip", "link", "del", device); err != nil {
			t.Fatal(out)
		}
	}
	check(t, a.Do(func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 50 {
			for _, to := range []netip.Addr{z.record.Control, z.record.Media} {
				if _, err := conn.WriteTo([]byte(payloadMark), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))); err == nil {
					t.Errorf("a packet for %s went somewhere", to)
				}
			}
		}
		return nil
	}))
	// And worse still: somebody routes the prefix elsewhere. The table has the last word.
	for _, p := range []netip.Prefix{controlPrefix, mediaPrefix} {
		if out, err := a.Run("ip", "route", "add", p.String(), "dev", a.link.Interface(a.Host)); err != nil {
			t.Fatal(out)
		}
	}
	check(t, a.Do(func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 50 {
			_, _ = conn.WriteTo([]byte(payloadMark), net.UDPAddrFromAddrPort(netip.AddrPortFrom(z.record.Media, 9)))
		}
		return nil
	}))
	check(t, capture.Stop())
	if all, clear := capture.Seen(); clear > 0 || all == 0 {
		t.Fatalf("%d of %d frames held the payload in clear", clear, all)
	}
}

// TestKilledComesBack kills a process and starts it again. It takes less than a second, unless the machine is so busy
// that a handshake has to be repeated.
func TestKilledComesBack(t *testing.T) {
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	c.add("server", sw, "server")
	a, z := c.add("ber-1", sw, "bridge"), c.add("muc-1", sw, "bridge")
	c.every = "5s" // as it comes
	c.start()
	c.up(20 * time.Second)
	before := rules(t, a)
	best := time.Hour
	for range 5 {
		a.process.Kill()
		a.start()
		d := eventually(t, 20*time.Second, func() error {
			for _, p := range overlay.Planes {
				if !a.path(p, z).Up {
					return fmt.Errorf("%s is down", p)
				}
			}
			return nil
		})
		t.Logf("back after %s", d)
		best = min(best, d)
	}
	if best > time.Second && !slow {
		t.Errorf("back after %s at best", best)
	}
	c.up(20 * time.Second)
	if after := rules(t, a); after != before {
		t.Errorf("rules before:\n%s\nafter:\n%s", before, after)
	}
}

// rules are the packet filter and the routes that carry our mark, as the tools of the system show them.
func rules(t *testing.T, n *node) string {
	t.Helper()
	nft, err := n.Run("nft", "--stateless", "list", "ruleset")
	check(t, err)
	routes, err := n.Run("ip", "route", "show", "type", "unreachable")
	check(t, err)
	return nft + routes
}

// TestForeignRules leaves what others have made alone, in whichever order they come.
func TestForeignRules(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	n := c.add("alone", c.lab.Switch("net"), "server")
	n.Nft("table inet theirs {\n chain out {\n type filter hook output priority 0\n ip daddr 10.99.0.0/16 counter\n }\n}\n")
	before, err := n.Run("nft", "--stateless", "list", "table", "inet", "theirs")
	check(t, err)
	c.start()
	healthy := func() error {
		if s := n.status(); !s.Planes[overlay.Control].Up || !s.Planes[overlay.Media].Up || len(s.Problems) > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}
	eventually(t, 10*time.Second, healthy)
	want := rules(t, n)
	n.process.Kill()
	n.start()
	eventually(t, 10*time.Second, healthy)
	if now := rules(t, n); now != want { // none left over from before
		t.Errorf("rules are now\n%s, were\n%s", now, want)
	}
	after, err := n.Run("nft", "--stateless", "list", "table", "inet", "theirs")
	check(t, err)
	if after != before {
		t.Errorf("their table became\n%s", after)
	}
	// A firewall that restarts flushes everything; ours comes back, and once.
	if out, err := n.Run("nft", "delete", "table", "inet", "plenum_overlay"); err != nil {
		t.Fatal(out)
	}
	eventually(t, 10*time.Second, func() error {
		if now := rules(t, n); now != want {
			return fmt.Errorf("rules are now\n%s, were\n%s", now, want)
		}
		return nil
	})
}

// TestKeyRotation changes a host's WireGuard key under traffic in both directions and loses nothing.
func TestKeyRotation(t *testing.T) {
	c, server, a, z := trio(t, nil)
	there, back := c.send(a, z, overlay.Media, 3000), c.send(z, a, overlay.Media, 3000)
	for round := range 3 {
		next := x25519(t)
		a.record.Next, a.record.Epoch = next.PublicKey().Bytes(), a.record.Epoch+1
		c.publish()
		eventually(t, 10*time.Second, func() error {
			if e := a.path(overlay.Control, z).Epoch; e != a.record.Epoch {
				return fmt.Errorf("muc-1 has epoch %d", e)
			}
			return nil
		})
		a.wg = next
		a.reload()
		// The record that names the key alone comes after everybody has moved, as the join service does it.
		followed := "peer=ber-1 key=" + strconv.Quote(base64.StdEncoding.EncodeToString(next.PublicKey().Bytes()))
		for _, n := range []*node{server, z} {
			eventually(t, 10*time.Second, func() error {
				if !strings.Contains(n.process.Output(), followed) {
					return fmt.Errorf("round %d: %s has not followed", round, n.Name())
				}
				return nil
			})
		}
		a.record.WireGuard, a.record.Next, a.record.Epoch = next.PublicKey().Bytes(), nil, a.record.Epoch+1
		c.publish()
		eventually(t, 10*time.Second, func() error {
			if e := z.path(overlay.Control, a).Epoch; e == 0 {
				return fmt.Errorf("no epoch")
			}
			if e := a.path(overlay.Control, z).Epoch; e != a.record.Epoch {
				return fmt.Errorf("muc-1 has epoch %d", e)
			}
			return nil
		})
	}
	complete(t, map[string]*flow{"from the host that changes its key": there, "to it": back})
}

// TestCertificateReload renews a host's certificate under traffic in both directions and loses nothing.
func TestCertificateReload(t *testing.T) {
	c, _, a, z := trio(t, nil)
	there, back := c.send(a, z, overlay.Control, 3000), c.send(z, a, overlay.Control, 3000)
	for range 2 {
		a.certify(2 * time.Hour)
		want := a.cert.NotAfter()
		a.reload()
		eventually(t, 15*time.Second, func() error {
			if got := z.path(overlay.Control, a).Until; !got.Equal(want.Truncate(time.Second)) {
				return fmt.Errorf("muc-1 sees a certificate until %s, not %s", got, want)
			}
			return nil
		})
	}
	complete(t, map[string]*flow{"from the host with the new certificate": there, "to it": back})
}

// TestPeersUpdated changes the table of who may reach what, a record, and the list of peers, by one that comes and goes, under
// traffic on both planes, and loses nothing.
func TestPeersUpdated(t *testing.T) {
	c, server, a, z := trio(t, nil)
	flows := map[string]*flow{"control": c.send(a, z, overlay.Control, 3000), "media": c.send(a, z, overlay.Media, 3000)}
	a.cfg.Allow = append(a.cfg.Allow, overlay.Rule{From: []string{"bridge"}, To: []string{"bridge"}, Proto: "tcp", Ports: "80"})
	a.reload()
	z.record.Region, z.record.Epoch = "muc", 2
	c.publish()
	eventually(t, 10*time.Second, func() error {
		if e := z.path(overlay.Control, a).Epoch; e != 2 {
			return fmt.Errorf("ber-1 has epoch %d", e)
		}
		return nil
	})
	ghost := z.record
	ghost.Host, ghost.WireGuard, ghost.Control, ghost.Media = "ghost", x25519(t).PublicKey().Bytes(), netip.MustParseAddr("10.99.0.99"), netip.MustParseAddr("10.98.0.99")
	for i, hosts := range []int{4, 3, 4, 3} {
		ghost.Epoch, ghost.Revoked = uint64(i+1), hosts == 3
		c.ghosts = []roster.Record{ghost}
		c.publish()
		eventually(t, 10*time.Second, func() error {
			for _, n := range []*node{server, a, z} {
				if h := n.status().Hosts; h != hosts {
					return fmt.Errorf("%s knows %d hosts, not %d", n.Name(), h, hosts)
				}
			}
			return nil
		})
	}
	complete(t, flows)
}

// complete lets flows go on until each has sent 10,000 packets, and wants all of them to have arrived.
func complete(t *testing.T, flows map[string]*flow) {
	t.Helper()
	const enough = 10_000
	for name, f := range flows {
		eventually(t, 30*time.Second, func() error {
			if sent, _ := f.counts(); sent < enough {
				return fmt.Errorf("%d packets were sent: %s", sent, name)
			}
			return nil
		})
	}
	for name, f := range flows {
		sent, lost := f.halt()
		t.Logf("%d of %d lost: %s", lost, sent, name)
		if lost > 0 && !slow {
			t.Errorf("%d of %d packets were lost: %s", lost, sent, name)
		}
	}
}

// TestRevoked puts a host out of both planes on every other host in less than 10 s, though only one of them hears
// of it from its source; the rest learn it over control.
func TestRevoked(t *testing.T) {
	t.Parallel()
	c, server, a, z := trio(t, nil)
	for _, n := range []*node{a, z} { // their source falls silent
		n.cfg.Roster.File = filepath.Join(c.dir, "nothing.json")
		n.reload()
	}
	print, err := z.cert.Fingerprint()
	check(t, err)
	z.record.Revoked, z.record.Fingerprints, z.record.Epoch = true, []string{print}, 2
	c.publish()
	d := eventually(t, 10*time.Second, func() error {
		for _, n := range []*node{server, a} {
			s := n.status()
			if s.Host == "" {
				return fmt.Errorf("%s does not answer", n.Name())
			}
			for _, p := range s.Paths {
				if p.Host == z.Name() {
					return fmt.Errorf("%s still has %s as its peer", n.Name(), p.Host)
				}
			}
		}
		for _, p := range z.status().Paths {
			if p.Up {
				return fmt.Errorf("the revoked host still reaches %s by %s", p.Host, p.Plane)
			}
		}
		return nil
	})
	t.Logf("out after %s", d)
	// It keeps knocking. A tunnel may outlive its peer's removal by a moment; from then on nothing gets through.
	f := c.send(z, a, overlay.Control, 50)
	g := c.send(z, a, overlay.Media, 50)
	sent, got, since := 0, -1, time.Now()
	eventually(t, 10*time.Second-d, func() error {
		sentControl, control := f.counts()
		sentMedia, media := g.counts()
		if control+media != got {
			sent, got, since = sentControl+sentMedia, control+media, time.Now()
		}
		if quiet := sentControl + sentMedia - sent; quiet < 100 {
			return fmt.Errorf("%d packets of the revoked host have arrived, the last %s ago", got, time.Since(since))
		}
		return nil
	})
}

// TestReplayed has a neighbour send again, from its own address, the handshakes with which a host has come back: its tunnels
// are not led astray, and packets go on.
func TestReplayed(t *testing.T) {
	t.Parallel()
	c, server, a, z := trio(t, nil)
	const udp = 42 // where its payload begins, behind Ethernet and IPv4
	to := server.link.Addr(server.Host).AsSlice()
	capture := server.link.Capture(netlab.CaptureConfig{Keep: 100, Match: func(f []byte) bool {
		if len(f) <= udp || f[12] != 8 || f[13] != 0 || f[23] != 17 || !bytes.Equal(f[30:34], to) {
			return false
		}
		switch port := binary.BigEndian.Uint16(f[36:]); port {
		case 4242:
			return f[udp] == 0x10 && f[udp+1] == 0 // version 1, handshake
		case 51820:
			return f[udp] == 1 && len(f) == udp+148 // initiation
		}
		return false
	}})
	a.process.Kill()
	a.start()
	c.up(20 * time.Second)
	check(t, capture.Stop())
	caught := map[uint16][][]byte{}
	for _, f := range capture.Frames() {
		if bytes.Equal(f[26:30], a.link.Addr(a.Host).AsSlice()) {
			port := binary.BigEndian.Uint16(f[36:])
			caught[port] = append(caught[port], f[udp:])
		}
	}
	if len(caught) < 2 {
		t.Fatalf("caught handshakes for %d ports", len(caught))
	}
	flows := []*flow{c.send(server, a, overlay.Control, 200), c.send(server, a, overlay.Media, 200)}
	check(t, z.Do(func() error {
		conn, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for range 20 {
			for port, all := range caught {
				for _, b := range all {
					_, _ = conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.link.Addr(server.Host), port)))
				}
			}
			time.Sleep(20 * time.Millisecond) // WireGuard takes 50 initiations a second
		}
		return nil
	}))
	for _, f := range flows {
		start, _ := f.counts()
		eventually(t, 10*time.Second, func() error {
			if now, _ := f.counts(); now < start+500 { // seen twice by who looks every 2 s
				return fmt.Errorf("%d packets sent after the replay", now-start)
			}
			return nil
		})
	}
	for _, plane := range overlay.Planes {
		if p := server.path(plane, a); !p.Up || p.Remote.Addr() == z.link.Addr(z.Host) {
			t.Errorf("the way to %s by %s is %+v", a.Name(), plane, p)
		}
	}
	for i, f := range flows {
		sent, lost := f.halt()
		t.Logf("%d of %d packets of flow %d were lost", lost, sent, i)
		if lost > sent/20 && !slow { // it may still be choosing between the host's addresses
			t.Errorf("%d of %d packets of flow %d were lost", lost, sent, i)
		}
	}
}

// TestNotAllowed starts the process without what it needs: it says what that is, and comes up once that is there.
func TestNotAllowed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, nil)
	n := c.add("alone", c.lab.Switch("net"), "server")
	c.publish()
	n.write()
	out, err := n.Run("setpriv", "--bounding-set", "-net_admin", c.binary, "run-overlay", "--root", n.root)
	if err == nil || !strings.Contains(out, "needs root, or the capability CAP_NET_ADMIN") {
		t.Errorf("without the capability: %v: %s", err, out)
	}
	if out, err := n.Run("mount", "-t", "tmpfs", "none", "/dev/net"); err != nil {
		t.Fatal(out)
	}
	n.start()
	eventually(t, 10*time.Second, func() error {
		if p := strings.Join(n.status().Problems, "; "); !strings.Contains(p, "control: ") || !strings.Contains(p, "media: ") || strings.Count(p, "modprobe tun") != 2 {
			return fmt.Errorf("problems: %q", p)
		}
		return nil
	})
	if out, err := n.Run("umount", "/dev/net"); err != nil {
		t.Fatal(out)
	}
	eventually(t, 10*time.Second, func() error {
		if s := n.status(); !s.Planes[overlay.Control].Up || !s.Planes[overlay.Media].Up || len(s.Problems) > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// TestGarbage throws noise, replayed handshakes and replayed records at both ports; nobody notices.
func TestGarbage(t *testing.T) {
	t.Parallel()
	c, server, a, z := trio(t, nil)
	var caught [][]byte
	capture := a.link.Capture(netlab.CaptureConfig{Keep: 200, Match: func(f []byte) bool { return len(f) > 42 && f[12] == 8 && f[13] == 0 && f[23] == 17 }})
	a.process.Kill()
	a.start()
	c.up(10 * time.Second)
	check(t, capture.Stop())
	for _, f := range capture.Frames() {
		caught = append(caught, f[42:])
	}
	if len(caught) == 0 {
		t.Fatal("caught no packet to replay")
	}
	f := c.send(server, a, overlay.Control, 100)
	g := c.send(server, a, overlay.Media, 100)
	check(t, z.Do(func() error { // a neighbour on the same network
		conn, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range 3000 {
			b := make([]byte, 1+i%1400)
			rand.Read(b)
			if i%3 == 0 {
				b = caught[i%len(caught)]
			}
			for _, port := range []uint16{4242, 51820} {
				_, _ = conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.link.Addr(a.Host), port)))
			}
		}
		return nil
	}))
	c.up(5 * time.Second)
	for _, f := range []*flow{f, g} {
		_, before := f.counts()
		eventually(t, 5*time.Second, func() error { // noise may crowd a queue, and leaves nothing behind
			if _, now := f.counts(); now < before+100 {
				return fmt.Errorf("%d packets arrived after the garbage", now-before)
			}
			return nil
		})
	}
	// A forged and a replayed record through the file.
	forged, err := roster.Sign(newAuthority(t).roster, z.record)
	check(t, err)
	z.record.Epoch = 3
	c.publish()
	eventually(t, 5*time.Second, func() error {
		if e := z.path(overlay.Control, a).Epoch; e != 3 {
			return fmt.Errorf("epoch %d", e)
		}
		return nil
	})
	z.record.Epoch = 2
	old, err := roster.Sign(c.authority.roster, z.record)
	check(t, err)
	for _, bad := range [][]byte{forged, old} {
		c.list(roster.Listing{Hosts: map[string]json.RawMessage{z.Name(): bad}})
		eventually(t, 5*time.Second, func() error {
			r := a.status().Refused
			if bytes.Equal(bad, forged) && r["forged"] == 0 || bytes.Equal(bad, old) && r["older"] == 0 {
				return fmt.Errorf("refused %v", r)
			}
			return nil
		})
	}
	if p := a.path(overlay.Media, z); !p.Up {
		t.Errorf("the path broke by a bad record: %+v", p)
	}
}
