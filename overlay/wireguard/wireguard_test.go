package wireguard

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"plenum/overlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A model is WireGuard's device as the kernel has it, behind wgctrl: this machine's kernel may have none. Each change is made
// to wireguard-go's as well, which must end up the same.
type model struct {
	t       *testing.T
	d       wgtypes.Device
	process *process
	changes int
	closed  bool
}

func newModel(t *testing.T) *model {
	d := device.NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(d.Close)
	return &model{t: t, process: &process{d: d}}
}

func (m *model) Close() error { m.closed = true; return nil }

func (m *model) Device(name string) (*wgtypes.Device, error) {
	d := m.d
	d.Peers = slices.Clone(d.Peers)
	return &d, nil
}

// ConfigureDevice does what wg_set_device does (drivers/net/wireguard/netlink.c).
func (m *model) ConfigureDevice(name string, c wgtypes.Config) error {
	m.changes++
	if c.PrivateKey != nil {
		m.d.PrivateKey, m.d.PublicKey = *c.PrivateKey, c.PrivateKey.PublicKey()
	}
	if c.ListenPort != nil {
		m.d.ListenPort = *c.ListenPort
	}
	if c.ReplacePeers {
		m.d.Peers = nil
	}
	for _, p := range c.Peers {
		i := slices.IndexFunc(m.d.Peers, func(q wgtypes.Peer) bool { return q.PublicKey == p.PublicKey })
		switch {
		case p.Remove:
			if i >= 0 {
				m.d.Peers = slices.Delete(m.d.Peers, i, i+1)
			}
			continue
		case i < 0 && p.UpdateOnly:
			continue
		case i < 0:
			m.d.Peers = append(m.d.Peers, wgtypes.Peer{PublicKey: p.PublicKey, LastHandshakeTime: time.Unix(0, 0)})
			i = len(m.d.Peers) - 1
		}
		if p.Endpoint != nil {
			m.d.Peers[i].Endpoint = p.Endpoint
		}
		if p.ReplaceAllowedIPs {
			m.d.Peers[i].AllowedIPs = nil
		}
		for _, n := range p.AllowedIPs {
			for j := range m.d.Peers { // an address belongs to one peer
				m.d.Peers[j].AllowedIPs = slices.DeleteFunc(m.d.Peers[j].AllowedIPs, func(o net.IPNet) bool { return o.String() == n.String() })
			}
			m.d.Peers[i].AllowedIPs = append(m.d.Peers[i].AllowedIPs, n)
		}
		if p.PersistentKeepaliveInterval != nil {
			m.d.Peers[i].PersistentKeepaliveInterval = *p.PersistentKeepaliveInterval
		}
	}
	if c.ReplacePeers { // which this process never does
		return nil
	}
	if err := m.process.configure(c); err != nil {
		return err
	}
	other, err := m.process.device()
	if err != nil {
		return err
	}
	if a, b := peers(&m.d), peers(other); a != b {
		m.t.Errorf("the kernel has\n%s\nwireguard-go\n%s", a, b)
	}
	return nil
}

// peers are what a device knows of its peers, in a form to compare.
func peers(d *wgtypes.Device) string {
	var all []string
	for _, p := range d.Peers {
		all = append(all, fmt.Sprint(p.PublicKey, p.Endpoint, p.AllowedIPs))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// shake makes a handshake with a peer have happened.
func (m *model) shake(key wgtypes.Key, at time.Time) {
	for i := range m.d.Peers {
		if m.d.Peers[i].PublicKey == key {
			m.d.Peers[i].LastHandshakeTime = at
		}
	}
}

// roam has packets of a peer come from another place.
func (m *model) roam(key wgtypes.Key, at string) {
	m.t.Helper()
	m.peer(key).Endpoint = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at))
	if err := m.process.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key, UpdateOnly: true, Endpoint: m.peer(key).Endpoint}}}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) peer(key wgtypes.Key) *wgtypes.Peer {
	for i := range m.d.Peers {
		if m.d.Peers[i].PublicKey == key {
			return &m.d.Peers[i]
		}
	}
	return nil
}

// holds fails the test unless a peer has these addresses and goes to that place.
func (m *model) holds(key wgtypes.Key, address, endpoint string) {
	m.t.Helper()
	p := m.peer(key)
	if p == nil {
		m.t.Fatalf("there is no peer %s", key)
	}
	var all []string
	for _, n := range p.AllowedIPs {
		all = append(all, n.String())
	}
	if got := strings.Join(all, " "); got != address {
		m.t.Errorf("peer %s has %q, want %q", key, got, address)
	}
	if got := fmt.Sprint(p.Endpoint); got != endpoint {
		m.t.Errorf("peer %s is at %s, want %s", key, got, endpoint)
	}
}

func key(i byte) wgtypes.Key {
	k := wgtypes.Key(bytes.Repeat([]byte{i}, 32))
	return k.PublicKey()
}

func peerOf(i, k byte, lost bool, at ...string) overlay.Peer {
	public := key(k)
	p := overlay.Peer{Host: fmt.Sprint("host-", i), Address: netip.AddrFrom4([4]byte{10, 98, 0, i}), Key: public[:], Lost: lost}
	for _, a := range at {
		p.Endpoints = append(p.Endpoints, netip.MustParseAddrPort(a))
	}
	return p
}

// TestPeers changes the list of peers step by step and looks what the device is told.
func TestPeers(t *testing.T) {
	m := newModel(t)
	b := New(slog.New(slog.DiscardHandler)).(*backend)
	b.driver = &kernel{name: "plenum-media", client: m}
	set := func(peers ...overlay.Peer) {
		t.Helper()
		if err := b.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	still := func(what string, peers ...overlay.Peer) {
		t.Helper()
		before := m.changes
		if set(peers...); m.changes != before {
			t.Errorf("%s changes the device", what)
		}
	}
	const here, there = "192.0.2.1:51820", "[2001:db8::1]:51820"

	set(peerOf(1, 1, true, here), peerOf(2, 2, true))
	m.holds(key(1), "10.98.0.1/32", here)
	m.holds(key(2), "10.98.0.2/32", "<nil>")
	if every := m.peer(key(1)).PersistentKeepaliveInterval; every != keepalive {
		t.Errorf("keepalive every %s", every)
	}
	m.shake(key(1), time.Now())
	m.shake(key(2), time.Now())
	still("the same list", peerOf(1, 1, false, here), peerOf(2, 2, false))
	still("a hint about a peer that answers", peerOf(1, 1, false, there), peerOf(2, 2, false))

	m.roam(key(1), there)
	still("a peer that has roamed", peerOf(1, 1, false, here), peerOf(2, 2, false))

	set(peerOf(1, 1, false, here), peerOf(2, 2, true, here))
	m.holds(key(1), "10.98.0.1/32", there)
	m.holds(key(2), "10.98.0.2/32", here)

	// A host changes its key: the address goes over, what is under way still comes in under the old one.
	set(peerOf(1, 11, false, here), peerOf(2, 2, false))
	m.holds(key(11), "10.98.0.1/32", there)
	m.holds(key(1), "", there)
	if every := m.peer(key(1)).PersistentKeepaliveInterval; every != 0 {
		t.Errorf("the old key is kept alive every %s", every)
	}
	if all, err := b.Status(); err != nil || len(all) != 2 {
		t.Errorf("%d tunnels, %v", len(all), err)
	}
	m.shake(key(11), time.Now())
	still("a retired key within its grace", peerOf(1, 11, false, there), peerOf(2, 2, false))
	k := b.known[key(1)]
	k.retired = time.Now().Add(-grace)
	b.known[key(1)] = k
	set(peerOf(1, 11, false, there), peerOf(2, 2, false))
	if m.peer(key(1)) != nil {
		t.Error("the old key outlives its grace")
	}
	// And back to a key that it had.
	set(peerOf(1, 1, false, there), peerOf(2, 2, false))
	m.holds(key(1), "10.98.0.1/32", there)

	set(peerOf(1, 1, false, there))
	if m.peer(key(2)) != nil {
		t.Error("a host that is gone is still a peer")
	}
	if err := b.SetPeers([]overlay.Peer{{Host: "short", Key: []byte("short")}}); err == nil {
		t.Error("a key of 5 bytes is taken")
	}

	if err := b.Down(); err != nil || !m.closed || m.d.PrivateKey != (wgtypes.Key{}) || len(m.d.Peers) > 0 {
		t.Errorf("after Down the device has %d peers and a key: %t; %v", len(m.d.Peers), m.d.PrivateKey != wgtypes.Key{}, err)
	}
}

// TestStuck gives a peer with which there never was a handshake another place: WireGuard would wait 5 s before it tried that,
// so the peer is made anew.
func TestStuck(t *testing.T) {
	m := newModel(t)
	b := New(slog.New(slog.DiscardHandler)).(*backend)
	b.driver = &kernel{name: "plenum-media", client: m}
	for i, at := range []string{"192.0.2.1:51820", "192.0.2.2:51820", "192.0.2.2:51820"} {
		if i > 0 {
			m.peer(key(1)).TransmitBytes = 148 // an attempt, which would be remembered
		}
		if err := b.SetPeers([]overlay.Peer{peerOf(1, 1, true, at)}); err != nil {
			t.Fatal(err)
		}
		m.holds(key(1), "10.98.0.1/32", at)
		if m.peer(key(1)).TransmitBytes != 0 {
			t.Error("the peer is the same as before")
		}
	}
}

// TestAdopt finds a device of the kernel that an earlier process has left, with tunnels that are to go on.
func TestAdopt(t *testing.T) {
	m := newModel(t)
	first := New(slog.New(slog.DiscardHandler)).(*backend)
	first.driver = &kernel{name: "plenum-media", client: m}
	list := []overlay.Peer{peerOf(1, 1, true, "192.0.2.1:51820"), peerOf(2, 2, true, "192.0.2.2:51820")}
	if err := first.SetPeers(list); err != nil {
		t.Fatal(err)
	}
	m.shake(key(1), time.Now())
	m.shake(key(2), time.Now())
	changes := m.changes

	second := New(slog.New(slog.DiscardHandler)).(*backend)
	second.driver = &kernel{name: "plenum-media", client: m}
	if err := second.adopt(); err != nil {
		t.Fatal(err)
	}
	for i := range list {
		list[i].Lost = false
	}
	if err := second.SetPeers(list); err != nil || m.changes != changes {
		t.Errorf("%d changes to what was there already, %v", m.changes-changes, err)
	}
	if err := second.SetPeers(list[:1]); err != nil || m.peer(key(2)) != nil || m.peer(key(1)) == nil {
		t.Errorf("a host revoked while nobody ran is still a peer, %v", err)
	}
}

// TestDecode reads back what wireguard-go says.
func TestDecode(t *testing.T) {
	k := wgtypes.Key(bytes.Repeat([]byte{7}, 32))
	text := fmt.Sprintf("private_key=%x\nlisten_port=51820\npublic_key=%x\nendpoint=[2001:db8::1]:5\nlast_handshake_time_sec=12\nlast_handshake_time_nsec=5\ntx_bytes=6\nrx_bytes=7\nallowed_ip=10.98.0.7/32\n", k[:], k[:])
	d, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	p := d.Peers[0]
	if d.ListenPort != 51820 || d.PrivateKey != k || p.PublicKey != k || p.Endpoint.String() != "[2001:db8::1]:5" ||
		!p.LastHandshakeTime.Equal(time.Unix(12, 5)) || p.TransmitBytes != 6 || p.ReceiveBytes != 7 || p.AllowedIPs[0].String() != "10.98.0.7/32" {
		t.Errorf("read %+v", d)
	}
	for _, bad := range []string{"private_key=12\n", "listen_port=x\n", "public_key=" + strings.Repeat("zz", 32) + "\n",
		"public_key=" + strings.Repeat("00", 32) + "\nallowed_ip=10.0.0.0\n"} {
		if _, err := decode(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
