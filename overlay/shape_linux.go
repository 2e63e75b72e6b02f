package overlay

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// tunnelOverhead is what a packet of a device grows by on the underlay at most: IPv6, UDP, WireGuard's
	// header and tag, or Nebula's twice, when relayed.
	tunnelOverhead = 80
	// mediaShare of the uplink is for media; the rest is what control needs to pass without waiting.
	mediaShare = 0.85
	// shapedDelay bounds the queue in front of the bucket. Media that is older is of no use.
	shapedDelay = 0.05
	shapeHandle = 0x706c << 16 // "pl"
)

// shape holds what leaves by a device below mediaShare of uplink, counted as it will be on the underlay; an
// uplink of 0 takes that away. The queue is on the overlay's own device, so nobody else's is touched.
func shape(device string, uplink uint64) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	if uplink == 0 {
		err := netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index,
			Handle: shapeHandle, Parent: netlink.HANDLE_ROOT}, QdiscType: "tbf"})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			err = nil // there was none
		}
		return err
	}
	rate := float64(uplink) * mediaShare / 8 // bytes/s
	// The bucket takes the largest batch that a TUN device hands over at once, or 5 ms.
	burst := max(rate*0.005, 4*1500)
	q := nl.TcTbfQopt{
		Rate:   nl.TcRateSpec{Linklayer: nl.LINKLAYER_ETHERNET, Overhead: tunnelOverhead, Rate: uint32(min(rate, 1<<32-1))},
		Limit:  uint32(rate*shapedDelay + burst),
		Buffer: uint32(float64(netlink.TickInUsec()) * burst / rate * 1e6),
	}
	if err := replaceTBF(link.Attrs().Index, q); err != nil {
		return fmt.Errorf("shaping %s: %w", device, err)
	}
	return nil
}

// replaceTBF is netlink.QdiscReplace for a token bucket with an overhead, which the package's own has not.
func replaceTBF(index int, q nl.TcTbfQopt) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	request.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index), Handle: shapeHandle, Parent: netlink.HANDLE_ROOT})
	request.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("tbf")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_TBF_PARMS, q.Serialize())
	request.AddData(options)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
