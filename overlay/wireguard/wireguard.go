// Package wireguard is an overlay.Backend on WireGuard: the kernel's where it has it, wireguard-go in this
// process otherwise. Peers are who their key says; the list of keys comes from signed records.
package wireguard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"plenum/overlay"
)

// New makes a backend without a device; Up starts it.
func New(log *slog.Logger) overlay.Backend {
	return &backend{log: log.With("backend", "wireguard"), known: map[wgtypes.Key]peer{}, shaken: map[wgtypes.Key]bool{}}
}

// A driver is one WireGuard device: the kernel's or one in this process.
type driver interface {
	configure(wgtypes.Config) error
	device() (*wgtypes.Device, error)
	close() error
}

// holder is a driver that can make packets wait while keys change. The kernel's cannot: it keeps 128 for each peer.
type holder interface {
	hold(peers []wgtypes.PeerConfig, now time.Time)
}

type backend struct {
	log    *slog.Logger
	driver driver
	up     overlay.Device
	peers  []overlay.Peer
	known  map[wgtypes.Key]peer // what the device was told
	shaken map[wgtypes.Key]bool // keys with which there was a handshake
}

type peer struct {
	address  netip.Addr
	endpoint netip.AddrPort
	retired  time.Time // not zero: its address moved to another key
}

const (
	// keepalive holds the mapping of a NAT open; 25 s is what WireGuard recommends.
	keepalive = 25 * time.Second
	// alive is how long a tunnel without a new handshake still counts as established (its REJECT_AFTER_TIME).
	alive = 180 * time.Second
	// grace is how long a key that a host has left may still bring in what was on its way.
	grace = 5 * time.Second
)

// Up implements overlay.Backend. A new private key takes effect at once: packets for peers wait until they
// have begun the handshake under it.
func (b *backend) Up(d overlay.Device) error {
	if b.driver != nil && d.Name != b.up.Name {
		return fmt.Errorf("wireguard: device %s cannot become %s; restart the overlay", b.up.Name, d.Name)
	}
	key, err := wgtypes.NewKey(d.Key)
	if err != nil {
		return fmt.Errorf("wireguard: private key: %w", err)
	}
	key[0], key[31] = key[0]&248, key[31]&127|64 // as the device keeps it
	if b.driver == nil {
		if b.driver, err = open(d.Name, d.MTU, b.log); err != nil {
			return fmt.Errorf("wireguard: %w", err)
		}
		if err := b.adopt(); err != nil {
			return err
		}
	}
	var c wgtypes.Config
	now, err := b.driver.device()
	if err != nil {
		return fmt.Errorf("wireguard: %w", err)
	}
	if now.PrivateKey != key {
		c.PrivateKey = &key
	}
	if port := int(d.Port); now.ListenPort != port {
		c.ListenPort = &port
	}
	if h, ok := b.driver.(holder); ok && c.PrivateKey != nil {
		var all []wgtypes.PeerConfig
		for _, p := range now.Peers {
			if a := b.known[p.PublicKey]; a.retired.IsZero() && time.Since(p.LastHandshakeTime) < alive && b.answers(a.address) {
				all = append(all, wgtypes.PeerConfig{PublicKey: p.PublicKey})
			}
		}
		h.hold(all, time.Now())
	}
	if c.PrivateKey != nil || c.ListenPort != nil {
		if err := b.driver.configure(c); err != nil {
			return fmt.Errorf("wireguard: %w", err)
		}
	}
	if err := address(d); err != nil {
		return fmt.Errorf("wireguard: device %s: %w", d.Name, err)
	}
	b.up = d
	return b.SetPeers(b.peers)
}

// adopt learns the peers of a kernel device that an earlier process left behind, so that their tunnels go on.
func (b *backend) adopt() error {
	d, err := b.driver.device()
	if err != nil {
		return fmt.Errorf("wireguard: %w", err)
	}
	for _, p := range d.Peers {
		known := peer{}
		if p.Endpoint != nil {
			known.endpoint = p.Endpoint.AddrPort()
		}
		for _, n := range p.AllowedIPs {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				known.address = a.Unmap()
			}
		}
		b.known[p.PublicKey] = known
	}
	return nil
}

// SetPeers implements overlay.Backend. A peer whose key changed is added under the new key, which takes the
// address over; the old key stays for a moment without it.
func (b *backend) SetPeers(peers []overlay.Peer) error {
	b.peers = peers
	if b.driver == nil {
		return nil
	}
	established, err := b.established()
	if err != nil {
		return err
	}
	now := time.Now()
	wanted := map[wgtypes.Key]bool{}
	owner := map[netip.Addr]bool{}
	var c wgtypes.Config
	var moved []wgtypes.PeerConfig // to another key
	for _, p := range peers {
		key, err := wgtypes.NewKey(p.Key)
		if err != nil {
			return fmt.Errorf("wireguard: peer %s: %w", p.Host, err)
		}
		wanted[key], owner[p.Address] = true, true
		k, ok := b.known[key]
		change := wgtypes.PeerConfig{PublicKey: key, UpdateOnly: ok}
		every := keepalive
		if !ok || k.address != p.Address || !k.retired.IsZero() {
			change.PersistentKeepaliveInterval = &every
			change.ReplaceAllowedIPs, change.AllowedIPs = true, []net.IPNet{host(p.Address)}
		}
		if !ok {
			k.endpoint = b.place(p.Address) // where its last key was
		}
		next := k.endpoint
		if len(p.Endpoints) > 0 && (p.Lost || !next.IsValid() || ok && !established[key]) {
			next = p.Endpoints[0]
		}
		stuck := ok && p.Lost && next.IsValid() && !b.shaken[key]
		if next != k.endpoint || !ok && next.IsValid() || stuck {
			change.Endpoint = net.UDPAddrFromAddrPort(next)
			if stuck {
				// WireGuard waits 5 s between two attempts, also after one that had nowhere to go. A peer
				// that is new has no such memory.
				c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: key, Remove: true})
				change.UpdateOnly, change.PersistentKeepaliveInterval = false, &every
				change.ReplaceAllowedIPs, change.AllowedIPs = true, []net.IPNet{host(p.Address)}
			}
		}
		if !ok || change.Endpoint != nil || change.ReplaceAllowedIPs {
			c.Peers = append(c.Peers, change)
		}
		if !ok && next.IsValid() && b.owned(p.Address, established) {
			moved = append(moved, change)
		}
		b.known[key] = peer{address: p.Address, endpoint: next}
	}
	for key, k := range b.known {
		switch {
		case wanted[key]:
		case !k.retired.IsZero() && now.Sub(k.retired) < grace:
		case k.retired.IsZero() && owner[k.address]:
			k.retired = now
			b.known[key] = k
			off := time.Duration(0)
			c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: key, UpdateOnly: true, PersistentKeepaliveInterval: &off})
		default:
			c.Peers = append(c.Peers, wgtypes.PeerConfig{PublicKey: key, Remove: true})
			delete(b.known, key)
			delete(b.shaken, key)
		}
	}
	if len(c.Peers) == 0 {
		return nil
	}
	if h, ok := b.driver.(holder); ok {
		h.hold(moved, now)
	}
	if err := b.driver.configure(c); err != nil {
		return fmt.Errorf("wireguard: peers: %w", err)
	}
	return nil
}

// answers reports whether the peer with this address was heard of lately.
func (b *backend) answers(a netip.Addr) bool {
	i := slices.IndexFunc(b.peers, func(p overlay.Peer) bool { return p.Address == a })
	return i >= 0 && !b.peers[i].Lost
}

// owned reports whether an address has a live tunnel.
func (b *backend) owned(a netip.Addr, established map[wgtypes.Key]bool) bool {
	for key, k := range b.known {
		if k.address == a && k.retired.IsZero() && established[key] {
			return true
		}
	}
	return false
}

// place is where packets for an address of the plane go now.
func (b *backend) place(a netip.Addr) netip.AddrPort {
	for _, k := range b.known {
		if k.address == a && k.retired.IsZero() {
			return k.endpoint
		}
	}
	return netip.AddrPort{}
}

// established are the keys with a live tunnel; where their packets go is WireGuard's business, it roams.
func (b *backend) established() (map[wgtypes.Key]bool, error) {
	d, err := b.driver.device()
	if err != nil {
		return nil, fmt.Errorf("wireguard: %w", err)
	}
	all := map[wgtypes.Key]bool{}
	for _, p := range d.Peers {
		all[p.PublicKey] = time.Since(p.LastHandshakeTime) < alive
		b.shaken[p.PublicKey] = p.LastHandshakeTime.Unix() > 0
		if k, ok := b.known[p.PublicKey]; ok && p.Endpoint != nil {
			k.endpoint = unmap(p.Endpoint.AddrPort())
			b.known[p.PublicKey] = k
		}
	}
	return all, nil
}

// Status implements overlay.Backend.
func (b *backend) Status() ([]overlay.Tunnel, error) {
	if b.driver == nil {
		return nil, nil
	}
	d, err := b.driver.device()
	if err != nil {
		return nil, fmt.Errorf("wireguard: %w", err)
	}
	var all []overlay.Tunnel
	for _, p := range d.Peers {
		k := b.known[p.PublicKey]
		if !k.retired.IsZero() || !k.address.IsValid() {
			continue
		}
		t := overlay.Tunnel{Address: k.address, Handshake: p.LastHandshakeTime,
			Sent: uint64(p.TransmitBytes), Received: uint64(p.ReceiveBytes)}
		if p.LastHandshakeTime.Unix() <= 0 {
			t.Handshake = time.Time{}
		}
		if p.Endpoint != nil {
			t.Remote = unmap(p.Endpoint.AddrPort())
		}
		all = append(all, t)
	}
	return all, nil
}

// Down implements overlay.Backend.
func (b *backend) Down() error {
	if b.driver == nil {
		return nil
	}
	err := b.driver.close()
	b.driver, b.known = nil, map[wgtypes.Key]peer{}
	return err
}

// open takes the kernel's WireGuard where there is one.
func open(name string, mtu int, log *slog.Logger) (driver, error) {
	link, err := netlink.LinkByName(name)
	switch {
	case err == nil && link.Type() == "wireguard":
		return openKernel(name)
	case err == nil:
		return openProcess(name, mtu, log)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	if err := netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: attributes}); err != nil {
		log.Info("kernel has no wireguard, running it in this process", "err", err)
		return openProcess(name, mtu, log)
	}
	return openKernel(name)
}

// address gives the device its MTU and its one address, and sets it up.
func address(d overlay.Device) error {
	link, err := netlink.LinkByName(d.Name)
	if err != nil {
		return err
	}
	if link.Attrs().MTU != d.MTU {
		if err := netlink.LinkSetMTU(link, d.MTU); err != nil {
			return err
		}
	}
	if link.Attrs().TxQLen != queue {
		if err := netlink.LinkSetTxQLen(link, queue); err != nil {
			return err
		}
	}
	const none = 1 // no link-local address: nobody would answer there
	_ = netlink.LinkSetIP6AddrGenMode(link, none)
	own := netlink.Addr{IPNet: &net.IPNet{IP: d.Address.Addr().AsSlice(),
		Mask: net.CIDRMask(d.Address.Bits(), d.Address.Addr().BitLen())}}
	if err := netlink.AddrReplace(link, &own); err != nil {
		return err
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return err
	}
	for _, a := range all {
		if !a.Equal(own) {
			if err := netlink.AddrDel(link, &a); err != nil {
				return err
			}
		}
	}
	return netlink.LinkSetUp(link)
}

func host(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
