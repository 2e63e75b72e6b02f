// Package overlay joins hosts by two encrypted networks: control for Consul, Nomad, Vault and XMPP, media for
// the relays between bridges. It owns the two devices as a process of its own (plenum run overlay), so that
// whatever else on the host restarts never touches a tunnel. It decides who is a peer by signed records
// (overlay/roster) and lets nothing out in clear (overlay/guard); it does not make certificates or keys.
package overlay

import (
	"net/netip"
	"time"
)

// A Plane is one of the two networks.
type Plane string

const (
	Control Plane = "control"
	Media   Plane = "media"
)

// Planes are both networks in the order in which they come up.
var Planes = []Plane{Control, Media}

// A Backend is one network's device and its tunnels. overlay/nebula and overlay/wireguard are the two there are.
// Its methods are called from one goroutine.
type Backend interface {
	// Up brings the device up. Called again it applies what differs and leaves established tunnels alone.
	Up(d Device) error
	// SetPeers replaces the list of peers. Peers in both the old and the new list keep their tunnels.
	SetPeers(peers []Peer) error
	// Status describes the tunnels as they are now.
	Status() ([]Tunnel, error)
	// Down stops the tunnels. The device stays, silent, so that nothing bound to it finds another way out.
	Down() error
}

// A Device is what a Backend needs to know of its own end.
type Device struct {
	Plane   Plane
	Name    string       // of the interface, at most 15 bytes
	Address netip.Prefix // own address with the length of the plane's prefix
	Port    uint16       // UDP on the underlay
	MTU     int          // of the device, bytes; paths may turn out narrower
	Groups  []string     // the roles of this host

	Key        []byte   // WireGuard: the private key, 32 bytes
	Nebula     *Nebula  // Nebula only
	Firewall   []Rule   // who may reach this plane; nil leaves it open
	Lighthouse bool     // Nebula: this host answers where others are, and relays
	Advertise  []string // Nebula: addresses of the underlay, host:port, beside those found on the interfaces
}

// Nebula is where a host's identity on Nebula lies: PEM files, or PEM itself.
type Nebula struct {
	CA        string   `json:"ca"`                  // one or several certificates, all of them trusted
	Cert      string   `json:"cert"`                // this host's
	Key       string   `json:"key"`                 // its private key
	Blocklist []string `json:"blocklist,omitempty"` // fingerprints of revoked certificates, hex SHA-256
}

// A Peer is another host as a Backend sees it.
type Peer struct {
	Host       string
	Address    netip.Addr       // on this plane
	Key        []byte           // WireGuard: the public key in use, 32 bytes
	Endpoints  []netip.AddrPort // hints where it may be on the underlay, the likeliest first
	Lighthouse bool             // a server host with a stable address
	Lost       bool             // not heard of for a while: hints count again
}

// A Tunnel is the state of the way to one peer.
type Tunnel struct {
	Address   netip.Addr     // of the peer, on this plane
	Remote    netip.AddrPort // where packets go now; zero when relayed or unknown
	Relay     netip.Addr     // the relay's address on this plane, if there is one
	Handshake time.Time      // of the last one; zero when none succeeded
	Until     time.Time      // end of the peer's certificate; zero where there is none
	Sent      uint64         // bytes
	Received  uint64         // bytes
}

// A Rule lets the hosts of one group reach ports of the hosts of another. What no rule names is dropped;
// probes of the overlay itself and ICMP always pass.
type Rule struct {
	From  []string `json:"from"`  // groups, or "any"
	To    []string `json:"to"`    // groups, or "any"
	Proto string   `json:"proto"` // tcp, udp, icmp or any
	Ports string   `json:"ports"` // "8300", "8300-8302" or "any"
}

// Port is the overlay's own on both planes: probes by UDP, metrics by TCP.
const Port = 9713
