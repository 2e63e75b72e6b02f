// Package nebula is an overlay.Backend on Nebula, run in process: hosts find each other by lighthouses, get
// through NAT by punching or by relays, and are who their certificate says. Roles are the certificate's
// groups, so the firewall does not depend on anything that a peer claims by itself.
package nebula

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/slackhq/nebula"
	"github.com/slackhq/nebula/config"

	"plenum/overlay"
)

// New makes a backend without a device; Up starts it.
func New(log *slog.Logger) overlay.Backend {
	return &backend{log: log.With("backend", "nebula"), handshakes: map[uint32]time.Time{}, tried: map[netip.Addr]time.Time{}}
}

type backend struct {
	log     *slog.Logger
	device  overlay.Device
	peers   []overlay.Peer
	config  *config.C
	control *nebula.Control
	text    string // the configuration in use

	handshakes map[uint32]time.Time     // by tunnel index; Nebula itself keeps no time
	tried      map[netip.Addr]time.Time // relayed peers: when a direct way was last looked for
}

// lookAgain is how often a relayed peer is asked directly. Nebula by itself does so every so many packets only.
const lookAgain = 10 * time.Second

// ErrIdentity is a change that a running device cannot make.
var ErrIdentity = errors.New("nebula: the address, port or device changed; restart the overlay")

// Up implements overlay.Backend. Certificates, trusted CAs, the blocklist and the firewall are read again each time.
func (b *backend) Up(d overlay.Device) error {
	if b.control != nil && (d.Name != b.device.Name || d.Address != b.device.Address || d.Port != b.device.Port) {
		return ErrIdentity
	}
	text, err := render(d, b.peers)
	if err != nil {
		return err
	}
	if b.control != nil {
		return b.reload(d, text)
	}
	if err := overlay.Persist(d.Name); err != nil {
		return err
	}
	c := config.NewC(b.log)
	if err := c.LoadString(text); err != nil {
		return fmt.Errorf("nebula: %w", err)
	}
	control, err := nebula.Main(c, false, "plenum", b.log, nil)
	if err != nil {
		return fmt.Errorf("nebula: %w", err)
	}
	if err := control.Start(); err != nil {
		return fmt.Errorf("nebula: %w", err)
	}
	b.device, b.text, b.config, b.control = d, text, c, control
	return nil
}

// reload hands the whole configuration over; Nebula finds out by itself what changed, and handshakes anew,
// beside the tunnels in use, where its certificate did.
func (b *backend) reload(d overlay.Device, text string) error {
	if text == b.text {
		b.device = d
		return nil
	}
	if err := check(d); err != nil {
		return err // Nebula would only log it, and go on with half of the change
	}
	if err := b.config.ReloadConfigString(text); err != nil {
		return fmt.Errorf("nebula: %w", err)
	}
	b.device, b.text = d, text
	return nil
}

// SetPeers implements overlay.Backend. Nebula knows its peers by certificate and finds them by itself; what it
// has to be told are the lighthouses, and which tunnels to close.
func (b *backend) SetPeers(peers []overlay.Peer) error {
	gone := map[netip.Addr]bool{}
	for _, p := range b.peers {
		gone[p.Address] = true
	}
	for _, p := range peers {
		delete(gone, p.Address)
	}
	b.peers = slices.Clone(peers)
	if b.control == nil {
		return nil
	}
	text, err := render(b.device, b.peers)
	if err != nil {
		return err
	}
	if err := b.reload(b.device, text); err != nil {
		return err
	}
	for a := range gone {
		delete(b.tried, a)
		b.control.CloseTunnel(a, false)
	}
	return nil
}

// Status implements overlay.Backend.
func (b *backend) Status() ([]overlay.Tunnel, error) {
	if b.control == nil {
		return nil, nil
	}
	hosts := b.control.ListHostmapHosts(false)
	all := make([]overlay.Tunnel, 0, len(hosts))
	seen := make(map[uint32]time.Time, len(hosts))
	for _, h := range hosts {
		at, known := b.handshakes[h.LocalIndex]
		if !known {
			at = time.Now()
		}
		seen[h.LocalIndex] = at
		t := overlay.Tunnel{Address: h.VpnAddrs[0], Remote: h.CurrentRemote, Handshake: at}
		if !h.CurrentRemote.IsValid() && len(h.CurrentRelaysToMe) > 0 {
			t.Relay = h.CurrentRelaysToMe[0]
			if now := time.Now(); now.Sub(b.tried[t.Address]) >= lookAgain {
				b.tried[t.Address] = now
				b.control.CreateTunnel(t.Address) // beside the one in use
			}
		}
		if h.Cert != nil {
			t.Until = h.Cert.NotAfter()
		}
		all = append(all, t)
	}
	b.handshakes = seen
	return all, nil
}

// Validity says when this host's certificate begins and ends.
func (b *backend) Validity() (from, to time.Time) {
	if b.control == nil {
		return
	}
	if c := b.control.GetCertByVpnIp(b.device.Address.Addr()); c != nil {
		return c.NotBefore(), c.NotAfter()
	}
	return
}

// Down implements overlay.Backend.
func (b *backend) Down() error {
	if b.control == nil {
		return nil
	}
	b.control.Stop()
	err := b.control.Wait()
	b.control = nil
	return err
}
