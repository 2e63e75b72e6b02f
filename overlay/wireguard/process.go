package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"plenum/overlay"
)

// process runs wireguard-go on a persistent TUN device. It is spoken to in WireGuard's own cross-platform
// configuration protocol (https://www.wireguard.com/xplatform/), without the socket, whose path is not per
// network namespace.
type process struct {
	d     *device.Device
	gate  *gate
	log   *slog.Logger
	group sync.WaitGroup
}

func openProcess(name string, mtu int, log *slog.Logger) (driver, error) {
	if err := overlay.Persist(name); err != nil {
		return nil, err
	}
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	g := newGate(t)
	d := device.NewDevice(g, newBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { log.Warn(fmt.Sprintf(format, args...)) },
	})
	if err := d.Up(); err != nil {
		d.Close()
		return nil, err
	}
	return &process{d: d, gate: g, log: log}, nil
}

func (p *process) close() error {
	p.d.Close()
	p.group.Wait()
	return nil
}

func (p *process) configure(c wgtypes.Config) error { return p.d.IpcSet(encode(c)) }

func (p *process) device() (*wgtypes.Device, error) {
	text, err := p.d.IpcGet()
	if err != nil {
		return nil, err
	}
	return decode(text)
}

// encode writes a change as a "set" operation.
func encode(c wgtypes.Config) string {
	var b strings.Builder
	if c.PrivateKey != nil {
		fmt.Fprintf(&b, "private_key=%x\n", c.PrivateKey[:])
	}
	if c.ListenPort != nil {
		fmt.Fprintf(&b, "listen_port=%d\n", *c.ListenPort)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(&b, "public_key=%x\n", p.PublicKey[:])
		if p.Remove {
			b.WriteString("remove=true\n")
			continue
		}
		if p.UpdateOnly {
			b.WriteString("update_only=true\n")
		}
		if p.Endpoint != nil {
			fmt.Fprintf(&b, "endpoint=%s\n", unmap(p.Endpoint.AddrPort()))
		}
		if p.ReplaceAllowedIPs {
			b.WriteString("replace_allowed_ips=true\n")
		}
		for _, n := range p.AllowedIPs {
			fmt.Fprintf(&b, "allowed_ip=%s\n", n.String())
		}
		// Last: it is what starts the handshake, which then knows its address.
		if p.PersistentKeepaliveInterval != nil {
			fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", int(p.PersistentKeepaliveInterval.Seconds()))
		}
	}
	return b.String()
}

// decode reads the answer to a "get" operation.
func decode(text string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{}
	var p *wgtypes.Peer
	var seconds int64
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		var err error
		switch name {
		case "private_key":
			err = setKey(&d.PrivateKey, value)
			d.PublicKey = d.PrivateKey.PublicKey()
		case "listen_port":
			d.ListenPort, err = strconv.Atoi(value)
		case "public_key":
			d.Peers = append(d.Peers, wgtypes.Peer{})
			p = &d.Peers[len(d.Peers)-1]
			err = setKey(&p.PublicKey, value)
		case "endpoint":
			var a netip.AddrPort
			a, err = netip.ParseAddrPort(value)
			p.Endpoint = net.UDPAddrFromAddrPort(a)
		case "last_handshake_time_sec":
			seconds, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			var nanos int64
			nanos, err = strconv.ParseInt(value, 10, 64)
			p.LastHandshakeTime = time.Unix(seconds, nanos)
		case "tx_bytes":
			p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
		case "rx_bytes":
			p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
		case "allowed_ip":
			var n *net.IPNet
			if _, n, err = net.ParseCIDR(value); err == nil {
				p.AllowedIPs = append(p.AllowedIPs, *n)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return d, lines.Err()
}

func setKey(k *wgtypes.Key, value string) error {
	b, err := hex.DecodeString(value)
	if err == nil && len(b) != len(k) {
		err = fmt.Errorf("key of %d bytes", len(b))
	}
	copy(k[:], b)
	return err
}
