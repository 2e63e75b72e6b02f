// Package guard keeps packets for the overlays inside them, by the kernel and therefore also while no process
// of ours runs: a route that makes each prefix unreachable when its device is gone, and a table of nftables
// that drops the prefixes on every other interface, and what a TURN server's user would open there or on the
// host itself. It can refuse, never admit: a drop in somebody else's
// table stays a drop. It owns routes and rules only; binding a socket to a device is each room's own.
//
// Everything it makes carries its mark (the table's name, a comment on each rule, the routes' protocol), so
// that a start after any end finds its own and touches nothing else.
package guard

import (
	"fmt"
	"net/netip"
)

// A Plane is a prefix and the one device that its packets may pass.
type Plane struct {
	Prefix netip.Prefix
	Device string

	// Accept is who may reach this host on the plane when Filter is set; for backends without a firewall.
	Accept []Accept
	Filter bool
}

// An Accept lets some addresses reach a range of ports.
type Accept struct {
	From        []netip.Addr // nil is anybody on the plane
	Proto       uint8        // IPPROTO_*; 0 is any, then ports do not count
	First, Last uint16
}

// Table is the name of the nftables table, family inet.
const Table = "plenum_overlay"

// Protocol marks routes that plenum made (rtnetlink(7), rtm_protocol); the numbers up to 192 are handed out
// by nobody for this range.
const Protocol = 112

// metric is worse than any other route's: a device that is there always wins.
const metric = 1 << 30

// Apply makes the kernel hold exactly the guard of these planes. Rules are replaced in one transaction, so
// there is no moment without them.
func Apply(planes []Plane) error {
	if err := applyRoutes(planes); err != nil {
		return fmt.Errorf("guard: routes: %w", err)
	}
	if err := applyRules(planes); err != nil {
		return fmt.Errorf("guard: nftables: %w", err)
	}
	return nil
}

// Repair applies the guard anew when somebody has removed part of it, as restarting a firewall does, and
// reports whether that was so.
func Repair(planes []Plane) (bool, error) {
	whole, err := intact(planes)
	if err != nil || whole {
		return false, err
	}
	return true, Apply(planes)
}

// Remove takes everything away that carries the mark. Only a host that leaves does this.
func Remove() error {
	if err := applyRoutes(nil); err != nil {
		return fmt.Errorf("guard: routes: %w", err)
	}
	if err := removeRules(); err != nil {
		return fmt.Errorf("guard: nftables: %w", err)
	}
	return nil
}
