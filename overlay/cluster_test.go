//go:build linux

package overlay_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slackhq/nebula/cert"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"plenum/overlay"
	"plenum/overlay/nebula"
	"plenum/overlay/netlab"
	"plenum/overlay/roster"
	"plenum/overlay/wireguard"
)

// backends are what the product has.
var backends = map[string]func(*slog.Logger) overlay.Backend{"nebula": nebula.New, "wireguard": wireguard.New}

// TestMain runs the overlay's process instead of tests when a test started it on a host.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "run-overlay" {
		if err := runOverlay(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "crowd" {
		fmt.Fprintln(os.Stderr, runCrowd(os.Args[2]))
		os.Exit(1)
	}
	if len(os.Args) > 2 && os.Args[1] == "matrix" {
		rows, err := overlay.Matrix(context.Background(), os.Args[2])
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(rows)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runOverlay(args []string) error {
	o := overlay.Options{Backends: backends, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	f := flag.NewFlagSet("overlay", flag.ContinueOnError)
	o.Flags(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return overlay.Run(ctx, o)
}

// An authority signs certificates and records, as the join service does.
type authority struct {
	t      netlab.TB
	roster ed25519.PrivateKey
	ca     cert.Certificate
	caKey  ed25519.PrivateKey
}

func newCA(t netlab.TB, name string) (cert.Certificate, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	now := time.Now()
	c, err := (&cert.TBSCertificate{Version: cert.Version2, Name: name, IsCA: true, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), PublicKey: pub, Curve: cert.Curve_CURVE25519}).Sign(nil, cert.Curve_CURVE25519, key)
	check(t, err)
	return c, key
}

func newAuthority(t netlab.TB) *authority {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	a := &authority{t: t, roster: key}
	a.ca, a.caKey = newCA(t, "first")
	return a
}

// certify makes a certificate of a host that lives for life.
func (a *authority) certify(name string, network netip.Prefix, groups []string, public []byte, life time.Duration) cert.Certificate {
	a.t.Helper()
	now := time.Now()
	c, err := (&cert.TBSCertificate{Version: cert.Version2, Name: name, Groups: groups, Networks: []netip.Prefix{network},
		NotBefore: now.Add(-time.Second), NotAfter: now.Add(life), PublicKey: public, Curve: cert.Curve_CURVE25519}).
		Sign(a.ca, cert.Curve_CURVE25519, a.caKey)
	check(a.t, err)
	return c
}

// A cluster is hosts with the overlay's process on them, and what the join service would have given them.
type cluster struct {
	t         netlab.TB
	lab       *netlab.Lab
	authority *authority
	dir       string
	backend   map[overlay.Plane]string
	allow     []overlay.Rule
	nodes     []*node
	ghosts    []roster.Record // in the roster, and nowhere else
	every     string          // --probe-every
	binary    string
	overlay   []string // the command of the overlay's process
}

// A node is one host of a cluster. Its fields may be changed before write and reload.
type node struct {
	*netlab.Host
	cluster *cluster
	link    *netlab.Link
	root    string
	cfg     overlay.Config
	record  roster.Record
	key     *ecdh.PrivateKey // Nebula's
	wg      *ecdh.PrivateKey
	cert    cert.Certificate
	public  []netip.Addr // stable addresses, for servers
	process *netlab.Process
}

var (
	controlPrefix = netip.MustParsePrefix("10.99.0.0/16")
	mediaPrefix   = netip.MustParsePrefix("10.98.0.0/16")
)

func newCluster(t netlab.TB, backend map[overlay.Plane]string) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "ov") // short: the path of a socket has 107 bytes
	check(t, err)
	lab := netlab.New(t)
	t.Cleanup(func() {
		races(t, dir)
		os.RemoveAll(dir)
	})
	if backend == nil {
		backend = map[overlay.Plane]string{overlay.Control: "nebula", overlay.Media: "wireguard"}
	}
	binary, err := os.Executable()
	check(t, err)
	return &cluster{t: t, lab: lab, authority: newAuthority(t), dir: dir, backend: backend, every: "300ms", binary: binary,
		overlay: []string{binary, "run-overlay"},
		allow:   []overlay.Rule{{From: []string{"any"}, To: []string{"any"}, Proto: "any", Ports: "any"}}}
}

// races fails the test for races that the processes of hosts have found in our code. Nebula has some of its own, between
// handshakes and what is asked of it meanwhile.
func races(t netlab.TB, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "race.*"))
	check(t, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		check(t, err)
		for report := range strings.SplitSeq(string(text), "==================") {
			if ours(report) {
				t.Fatalf("%s", report)
			}
		}
	}
}

// ours reports whether one of the two accesses of a race is made by our code and not by a library.
func ours(report string) bool {
	accesses, _, _ := strings.Cut(report, "\nGoroutine ")
	for stack := range strings.SplitSeq(accesses, "\n\n") {
		for line := range strings.Lines(stack) {
			f := strings.TrimSpace(line)
			if !strings.HasSuffix(f, ")") { // the place of a function
				continue
			}
			if strings.HasPrefix(f, "plenum/") {
				return true
			}
			if domain, _, ok := strings.Cut(f, "/"); ok && strings.Contains(domain, ".") {
				break
			}
		}
	}
	return false
}

// add makes a host on a switch and everything the overlay needs on it; start starts it.
func (c *cluster) add(name string, at netlab.Node, roles ...string) *node {
	c.t.Helper()
	h := c.lab.Host(name)
	return c.adopt(h, c.lab.Link(h, at, netlab.LinkConfig{}), roles...)
}

func (c *cluster) adopt(h *netlab.Host, link *netlab.Link, roles ...string) *node {
	c.t.Helper()
	i := len(c.nodes) + 1
	n := &node{Host: h, cluster: c, link: link, root: filepath.Join(c.dir, h.Name()), key: x25519(c.t), wg: x25519(c.t)}
	hostKey, _, err := ed25519.GenerateKey(rand.Reader)
	check(c.t, err)
	n.record = roster.Record{Host: h.Name(), Epoch: 1, HostKey: hostKey, Nebula: n.key.PublicKey().Bytes(), WireGuard: n.wg.PublicKey().Bytes(),
		Control: netip.AddrFrom4([4]byte{10, 99, 0, byte(i)}), Media: netip.AddrFrom4([4]byte{10, 98, 0, byte(i)}), Roles: roles}
	n.cfg = overlay.Config{Host: h.Name(), Roles: roles, Allow: c.allow,
		Roster:  overlay.RosterConfig{Key: c.authority.roster.Public().(ed25519.PublicKey), File: filepath.Join(c.dir, "roster.json")},
		Control: overlay.PlaneConfig{Backend: c.backend[overlay.Control], Prefix: controlPrefix, Address: n.record.Control, Port: 4242},
		Media:   overlay.PlaneConfig{Backend: c.backend[overlay.Media], Prefix: mediaPrefix, Address: n.record.Media, Port: 51820}}
	if slices.Contains(roles, "server") {
		n.public = []netip.Addr{link.Addr(h)}
	}
	check(c.t, os.MkdirAll(filepath.Join(n.root, "var/lib/plenum"), 0o755))
	n.certify(time.Hour)
	c.nodes = append(c.nodes, n)
	return n
}

func x25519(t netlab.TB) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	check(t, err)
	return k
}

// certify writes new Nebula certificates for the planes that use them.
func (n *node) certify(life time.Duration) {
	n.cluster.t.Helper()
	a := n.cluster.authority
	for plane, p := range map[overlay.Plane]*overlay.PlaneConfig{overlay.Control: &n.cfg.Control, overlay.Media: &n.cfg.Media} {
		if p.Backend != "nebula" {
			p.KeyFile = "wireguard.key"
			continue
		}
		c := a.certify(n.Name(), netip.PrefixFrom(p.Address, p.Prefix.Bits()), n.record.Roles, n.key.PublicKey().Bytes(), life)
		text, err := c.MarshalPEM()
		check(n.cluster.t, err)
		n.file(string(plane)+".crt", text)
		ca, err := a.ca.MarshalPEM()
		check(n.cluster.t, err)
		n.file("nebula.key", cert.MarshalPrivateKeyToPEM(cert.Curve_CURVE25519, n.key.Bytes()))
		if p.Nebula == nil {
			n.file("ca.crt", ca)
			p.Nebula = &overlay.Nebula{CA: "ca.crt", Cert: string(plane) + ".crt", Key: "nebula.key"}
		}
		n.cert = c
	}
}

// file writes a file beside overlay.json.
func (n *node) file(name string, text []byte) {
	n.cluster.t.Helper()
	check(n.cluster.t, os.WriteFile(filepath.Join(n.root, "var/lib/plenum", name), text, 0o600))
}

// write writes overlay.json and the key as they are now.
func (n *node) write() {
	n.cluster.t.Helper()
	n.file("wireguard.key", []byte(base64.StdEncoding.EncodeToString(n.wg.Bytes())+"\n"))
	text, err := json.Marshal(n.cfg)
	check(n.cluster.t, err)
	n.file("overlay.json", text)
}

// reload writes everything and has the process read it.
func (n *node) reload() {
	n.cluster.t.Helper()
	n.write()
	check(n.cluster.t, n.process.Signal(syscall.SIGHUP))
}

// publish writes the roster for everybody.
func (c *cluster) publish() {
	c.t.Helper()
	l := roster.Listing{Hosts: map[string]json.RawMessage{}, Endpoints: map[string]roster.Endpoints{}}
	for _, n := range c.nodes {
		signed, err := roster.Sign(c.authority.roster, n.record)
		check(c.t, err)
		l.Hosts[n.Name()] = signed
		if len(n.public) > 0 {
			l.Endpoints[n.Name()] = n.endpoints()
		}
	}
	for _, g := range c.ghosts {
		signed, err := roster.Sign(c.authority.roster, g)
		check(c.t, err)
		l.Hosts[g.Host] = signed
	}
	c.list(l)
}

// endpoints are the hints of a server.
func (n *node) endpoints() (e roster.Endpoints) {
	for _, a := range n.public {
		e.Control = append(e.Control, netip.AddrPortFrom(a, n.cfg.Control.Port))
		e.Media = append(e.Media, netip.AddrPortFrom(a, n.cfg.Media.Port))
	}
	return e
}

func (c *cluster) list(l roster.Listing) {
	c.t.Helper()
	text, err := json.Marshal(l)
	check(c.t, err)
	temporary := filepath.Join(c.dir, "roster.new")
	check(c.t, os.WriteFile(temporary, text, 0o600))
	check(c.t, os.Rename(temporary, filepath.Join(c.dir, "roster.json")))
}

// start publishes the roster and starts the process on every host.
func (c *cluster) start() {
	c.t.Helper()
	c.publish()
	for _, n := range c.nodes {
		n.start()
	}
}

func (n *node) start() {
	n.cluster.t.Helper()
	n.write()
	args := append(slices.Clone(n.cluster.overlay), "--root", n.root, "--probe-every", n.cluster.every)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GORACE=log_path="+filepath.Join(n.root, "race"))
	n.process = n.StartCmd(cmd)
}

// status asks the process; the zero Status when it does not answer.
func (n *node) status() overlay.Status {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, _ := overlay.Read(ctx, n.root)
	return s
}

// path is n's way to a peer.
func (n *node) path(p overlay.Plane, peer *node) overlay.Path {
	for _, c := range n.status().Paths {
		if c.Plane == p && c.Host == peer.Name() {
			return c
		}
	}
	return overlay.Path{}
}

// up waits until every host reaches every other on both planes.
func (c *cluster) up(within time.Duration) {
	c.t.Helper()
	c.connected(within, c.nodes...)
}

func (c *cluster) connected(within time.Duration, nodes ...*node) {
	c.t.Helper()
	eventually(c.t, within, func() error {
		for _, n := range nodes {
			s := n.status()
			for _, m := range nodes {
				for _, p := range overlay.Planes {
					i := slices.IndexFunc(s.Paths, func(x overlay.Path) bool { return x.Plane == p && x.Host == m.Name() })
					if n != m && (i < 0 || !s.Paths[i].Up) {
						return fmt.Errorf("%s does not reach %s by %s: %v", n.Name(), m.Name(), p, s.Problems)
					}
				}
			}
		}
		return nil
	})
}

// eventually waits until f has nothing to complain about.
func eventually(t netlab.TB, within time.Duration, f func() error) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		err := f()
		if err == nil {
			break
		}
		if time.Since(start) > within {
			t.Fatalf("after %s: %v", within, err)
		}
	}
	return time.Since(start)
}

func check(t netlab.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// A flow is numbered packets from one host to another by a plane.
type flow struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
	from net.PacketConn
	to   net.PacketConn

	mu   sync.Mutex
	sent int
	got  map[uint32]bool
	last time.Time
}

const payloadMark = "this must never be seen in clear"

// send starts a flow of so many packets a second.
func (c *cluster) send(from, to *node, p overlay.Plane, perSecond int) *flow {
	c.t.Helper()
	a := map[overlay.Plane]netip.Addr{overlay.Control: from.record.Control, overlay.Media: from.record.Media}[p]
	b := map[overlay.Plane]netip.Addr{overlay.Control: to.record.Control, overlay.Media: to.record.Media}[p]
	f := &flow{got: map[uint32]bool{}}
	var err error
	f.from, err = from.ListenPacket("udp", netip.AddrPortFrom(a, 0).String())
	check(c.t, err)
	f.to, err = to.ListenPacket("udp", netip.AddrPortFrom(b, 0).String())
	check(c.t, err)
	// What a test that is slow to read loses is not the overlay's loss.
	raw, err := f.to.(*net.UDPConn).SyscallConn()
	check(c.t, err)
	check(c.t, raw.Control(func(fd uintptr) {
		check(c.t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
	}))
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	f.wg.Go(func() {
		buf := make([]byte, 2000)
		for {
			n, _, err := f.to.ReadFrom(buf)
			if err != nil {
				return
			}
			if n >= 4 {
				f.mu.Lock()
				f.got[binary.BigEndian.Uint32(buf)] = true
				f.last = time.Now()
				f.mu.Unlock()
			}
		}
	})
	f.wg.Go(func() {
		const batch = 5 * time.Millisecond
		tick := time.NewTicker(batch)
		defer tick.Stop()
		start := time.Now()
		for i := uint32(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for due := uint32(time.Since(start).Seconds() * float64(perSecond)); i < due; i++ {
				f.from.WriteTo(append(binary.BigEndian.AppendUint32(nil, i), payloadMark...), f.to.LocalAddr())
				f.mu.Lock()
				f.sent++
				f.mu.Unlock()
			}
		}
	})
	c.t.Cleanup(f.end)
	return f
}

// halt stops sending, waits for what is under way, and returns how many were sent and lost.
func (f *flow) halt() (sent, lost int) {
	f.stop()
	deadline := time.Now().Add(2 * time.Second)
	for {
		f.mu.Lock()
		sent, lost = f.sent, f.sent-len(f.got)
		f.mu.Unlock()
		if lost == 0 || time.Now().After(deadline) {
			f.end()
			return sent, lost
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (f *flow) end() {
	f.stop()
	f.from.Close()
	f.to.Close()
	f.wg.Wait()
}

// counts returns how many packets were sent and how many arrived.
func (f *flow) counts() (sent, got int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent, len(f.got)
}
