//go:build linux

package overlay_test

import (
	"crypto/ecdh"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slackhq/nebula"
	"github.com/slackhq/nebula/cert"
	"github.com/slackhq/nebula/config"
	device "github.com/slackhq/nebula/overlay"
	"golang.zx2c4.com/wireguard/conn"
	wg "golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"plenum/overlay"
	"plenum/overlay/netlab"
)

// A face is one of a crowd: a live peer on both planes of which there is nothing but its tunnels and its answers, so that
// one process can be a hundred.
type face struct {
	Control, Media netip.Addr
	Port           uint16 // of control; media's is one more
	Cert, Key, CA  string
	WireGuard      []byte
	Every          time.Duration // between its probes

	Server struct {
		Control, Media netip.Addr
		At             netip.Addr
		WireGuard      []byte
	}
}

// crowd adds n live peers of server on a host of their own. It is to be called before start; the function it returns
// starts them.
func (c *cluster) crowd(server *node, n int) (start func()) {
	c.t.Helper()
	h := c.lab.Host("crowd")
	sw := c.lab.Switch("crowd-net", netip.MustParsePrefix("198.51.100.0/24"))
	c.lab.Link(h, sw, netlab.LinkConfig{})
	second := c.lab.Link(server.Host, sw, netlab.LinkConfig{})
	ca, err := c.authority.ca.MarshalPEM()
	check(c.t, err)
	var all []face
	for i := range n {
		key, secret := x25519(c.t), x25519(c.t)
		f := face{Control: netip.AddrFrom4([4]byte{10, 99, 1, byte(i)}), Media: netip.AddrFrom4([4]byte{10, 98, 1, byte(i)}),
			Port: uint16(20000 + 2*i), Every: 5 * time.Second * time.Duration(max(25, n)) / 25, WireGuard: secret.Bytes(), CA: string(ca)}
		crt, err := c.authority.certify(fmt.Sprintf("face-%d", i), netip.PrefixFrom(f.Control, 16), []string{"bridge"}, key.PublicKey().Bytes(), time.Hour).MarshalPEM()
		check(c.t, err)
		f.Cert, f.Key = string(crt), string(cert.MarshalPrivateKeyToPEM(cert.Curve_CURVE25519, key.Bytes()))
		f.Server.Control, f.Server.Media, f.Server.At = server.record.Control, server.record.Media, second.Addr(server.Host)
		f.Server.WireGuard = server.wg.PublicKey().Bytes()
		all = append(all, f)
		r := server.record
		r.Host, r.WireGuard, r.Control, r.Media, r.Roles = fmt.Sprintf("face-%d", i), secret.PublicKey().Bytes(), f.Control, f.Media, []string{"bridge"}
		c.ghosts = append(c.ghosts, r)
	}
	text, err := json.Marshal(all)
	check(c.t, err)
	file := filepath.Join(c.dir, "crowd.json")
	check(c.t, os.WriteFile(file, text, 0o600))
	return func() { h.StartCmd(exec.Command(c.binary, "crowd", file)) }
}

// runCrowd is the crowd's process.
func runCrowd(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var all []face
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	for _, f := range all {
		if err := f.control(); err != nil {
			return err
		}
		if err := f.media(); err != nil {
			return err
		}
	}
	select {}
}

func (f *face) control() error {
	c := config.NewC(slog.New(slog.DiscardHandler))
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	err := c.LoadString(fmt.Sprintf(`
pki: {ca: %s, cert: %s, key: %s}
listen: {host: 0.0.0.0, port: %d}
static_host_map: {"%s": ["%s:4242"]}
lighthouse: {am_lighthouse: false, hosts: ["%s"]}
tun: {user: true, mtu: 1300}
firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}
`, quote(f.CA), quote(f.Cert), quote(f.Key), f.Port, f.Server.Control, f.Server.At, f.Server.Control))
	if err != nil {
		return err
	}
	made := make(chan *device.UserDevice, 1)
	control, err := nebula.Main(c, false, "crowd", slog.New(slog.DiscardHandler), func(_ *config.C, _ *slog.Logger, networks []netip.Prefix, _ int) (device.Device, error) {
		d, err := device.NewUserDevice(networks)
		if err == nil {
			made <- d.(*device.UserDevice)
		}
		return d, err
	})
	if err != nil {
		return err
	}
	if err := control.Start(); err != nil {
		return err
	}
	r, w := (<-made).Pipe()
	go func() {
		b := make([]byte, 9000)
		for {
			n, err := r.Read(b)
			if err != nil {
				return
			}
			if p := answer(b[:n]); p != nil {
				_, _ = w.Write(p)
			}
		}
	}()
	go ask(w, f.Control, f.Server.Control, f.Every)
	return nil
}

func (f *face) media() error {
	t := &faceTUN{out: make(chan []byte, 100), events: make(chan tun.Event, 1)}
	d := wg.NewDevice(t, conn.NewDefaultBind(), wg.NewLogger(wg.LogLevelSilent, ""))
	key, err := ecdh.X25519().NewPrivateKey(f.WireGuard)
	if err != nil {
		return err
	}
	if err := d.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s:51820\nallowed_ip=%s/32\npersistent_keepalive_interval=25\n",
		hex.EncodeToString(key.Bytes()), f.Port+1, hex.EncodeToString(f.Server.WireGuard), f.Server.At, f.Server.Media)); err != nil {
		return err
	}
	go ask(t, f.Media, f.Server.Media, f.Every)
	return d.Up()
}

// faceTUN is a device that answers what it is asked.
type faceTUN struct {
	out    chan []byte
	events chan tun.Event
}

func (t *faceTUN) send(p []byte) {
	select {
	case t.out <- p:
	default:
	}
}

func (t *faceTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	sizes[0] = copy(bufs[0][offset:], <-t.out)
	return 1, nil
}

func (t *faceTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		if p := answer(b[offset:]); p != nil {
			t.send(p)
		}
	}
	return len(bufs), nil
}
func (t *faceTUN) File() *os.File           { return nil }
func (t *faceTUN) MTU() (int, error)        { return 1380, nil }
func (t *faceTUN) Name() (string, error)    { return "face", nil }
func (t *faceTUN) Events() <-chan tun.Event { return t.events }
func (t *faceTUN) Close() error             { return nil }
func (t *faceTUN) BatchSize() int           { return 1 }

// ask probes as every overlay process does, every other time with the full size as well.
func ask(w any, from, to netip.Addr, every time.Duration) {
	send := func(p []byte) {
		if t, ok := w.(*faceTUN); ok {
			t.send(p)
		} else {
			_, _ = w.(io.Writer).Write(p)
		}
	}
	time.Sleep(time.Duration(from.As4()[3]) * every / 100) // not all at once
	for id := uint64(1); ; id++ {
		send(packet(from, to, 1, id, 76))
		if id%2 == 0 {
			send(packet(from, to, 1, id, 1300-28))
		}
		time.Sleep(every)
	}
}

// answer is the answer to a probe, and nil to everything else.
func answer(p []byte) []byte {
	if len(p) < 28+76 || p[0] != 0x45 || p[9] != 17 || string(p[28:32]) != "plO1" || p[32] != 1 {
		return nil
	}
	return packet(netip.AddrFrom4([4]byte(p[16:20])), netip.AddrFrom4([4]byte(p[12:16])), 2, binary.BigEndian.Uint64(p[36:]), 76)
}

// packet is a message of the overlay in UDP in IPv4.
func packet(from, to netip.Addr, kind byte, id uint64, length int) []byte {
	b := make([]byte, 28+length)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(b[20:], overlay.Port)
	binary.BigEndian.PutUint16(b[22:], overlay.Port)
	binary.BigEndian.PutUint16(b[24:], uint16(8+length))
	copy(b[28:], "plO1")
	b[32] = kind
	binary.BigEndian.PutUint64(b[36:], id)
	return b
}

// program builds plenum itself, as make build does.
func program(b *testing.B) string {
	b.Helper()
	to := filepath.Join(b.TempDir(), "plenum")
	build := exec.Command("go", "build", "-trimpath", "-o", to, "plenum")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return to
}

// BenchmarkOverlayPeers measures what plenum run overlay costs on a server that has so many live peers on both planes, and
// nothing to do.
func BenchmarkOverlayPeers(b *testing.B) {
	plenum := program(b)
	for _, n := range []int{3, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				c := newCluster(b, nil)
				c.overlay = []string{plenum, "run", "overlay"}
				server := c.add("server", c.lab.Switch("net"), "server")
				c.every = "5s" // as it comes
				start := c.crowd(server, n)
				c.start()
				start()
				up := func() (n int) {
					for _, p := range server.status().Paths {
						if p.Up && p.Measured {
							n++
						}
					}
					return n
				}
				eventually(b, 120*time.Second, func() error {
					time.Sleep(500 * time.Millisecond) // an answer costs more than all else
					if now := up(); now < 2*n {
						return fmt.Errorf("%d of %d paths are up", now, 2*n)
					}
					return nil
				})
				const settle, window = 10 * time.Second, 30 * time.Second
				time.Sleep(settle)
				before, _ := usage(b, server)
				time.Sleep(window) // what is measured is time itself
				after, resident := usage(b, server)
				b.ReportMetric(float64(resident)/(1<<20), "MiB")
				b.ReportMetric(100*(after-before).Seconds()/window.Seconds(), "%core")
				b.ReportMetric(float64(up()), "paths")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
