package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"
	"github.com/vishvananda/netlink"

	"plenum/agent/join"
	"plenum/agent/pki"
	"plenum/overlay"
)

// A Founding is what init is told. It is kept, so that a killed init goes on with the same addresses.
type Founding struct {
	Cluster string       `json:"cluster"`
	Region  string       `json:"region"`
	Roles   []string     `json:"roles"`
	Control netip.Prefix `json:"control"`
	Media   netip.Prefix `json:"media"`
	Admins  []string     `json:"admins,omitempty"` // NAME=age1…
}

// Defaults of the overlays' prefixes: rarely used, and easy to tell apart.
var (
	DefaultControl = netip.MustParsePrefix("10.86.0.0/16")
	DefaultMedia   = netip.MustParsePrefix("10.87.0.0/16")
)

// complete fills in what init was not told.
func (f *Founding) complete() {
	f.Cluster = cmp.Or(f.Cluster, "plenum")
	if len(f.Roles) == 0 {
		f.Roles = []string{join.RoleServer, join.RoleEdge, join.RoleShard, join.RoleBridge}
	}
	if !f.Control.IsValid() {
		f.Control = DefaultControl
	}
	if !f.Media.IsValid() {
		f.Media = DefaultMedia
	}
}

// agrees says where a second init is told something else than the first, which cannot become true by it.
func (f *Founding) agrees(old Founding) error {
	roles := func(r []string) string {
		if len(r) == 0 {
			return ""
		}
		r = append([]string{join.RoleServer}, r...)
		slices.Sort(r)
		return strings.Join(slices.Compact(r), ",")
	}
	prefix := func(p netip.Prefix) string {
		if !p.IsValid() {
			return ""
		}
		return p.String()
	}
	for _, x := range [][3]string{{"--cluster", f.Cluster, old.Cluster}, {"--region", f.Region, old.Region}, {"--roles", roles(f.Roles), roles(old.Roles)},
		{"--control", prefix(f.Control), prefix(old.Control)}, {"--media", prefix(f.Media), prefix(old.Media)}} {
		if x[1] != "" && x[1] != x[2] {
			return fmt.Errorf("this host has made the cluster %s, with %s %s: that cannot become %s any more; plenum leave --force ends that cluster", old.Cluster, x[0], x[2], x[1])
		}
	}
	for _, a := range f.Admins {
		if len(old.Admins) > 0 && !slices.Contains(old.Admins, a) {
			return fmt.Errorf("admin %s was not told to the first init: plenum admin add %s", a, a)
		}
	}
	return nil
}

func (f *Founding) validate(facts []netip.Addr) error {
	f.complete()
	if !validHost.MatchString(f.Cluster) || !validHost.MatchString(f.Region) {
		return fmt.Errorf("cluster %q and region %q are names of a-z, 0-9 and inner hyphens", f.Cluster, f.Region)
	}
	if !slices.Contains(f.Roles, join.RoleServer) {
		f.Roles = append([]string{join.RoleServer}, f.Roles...)
	}
	for _, r := range f.Roles {
		if !slices.Contains([]string{join.RoleServer, join.RoleEdge, join.RoleShard, join.RoleBridge, join.RoleRecorder}, r) {
			return fmt.Errorf("role %q is none of server, edge, shard, bridge, recorder", r)
		}
	}
	if f.Control.Overlaps(f.Media) {
		return fmt.Errorf("the overlays' prefixes %s and %s overlap", f.Control, f.Media)
	}
	for _, p := range []netip.Prefix{f.Control, f.Media} {
		if !p.IsValid() || p != p.Masked() || p.Bits() > p.Addr().BitLen()-8 {
			return fmt.Errorf("%s is no network with room for 250 hosts", p)
		}
		for _, a := range facts {
			if p.Contains(a) {
				return fmt.Errorf("%s is used here already (%s); choose others with --control and --media", p, a)
			}
		}
	}
	if len(f.Admins) == 0 {
		return errors.New("a cluster needs people: --admin NAME=age1… (age-keygen makes a key); backups and the break-glass key are for their eyes alone")
	}
	for _, a := range f.Admins {
		name, key, ok := strings.Cut(a, "=")
		if !ok || !validHost.MatchString(name) {
			return fmt.Errorf("--admin %q is not NAME=age1…", a)
		}
		if _, err := age.ParseX25519Recipient(key); err != nil {
			return fmt.Errorf("--admin %s: %q is no public key that age-keygen printed: %w", name, key, err)
		}
	}
	return nil
}

// first is the answer for the first host before anybody can sign one.
func (f *Founding) first(host string, address netip.Addr) join.Answer {
	own := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr().Next(), p.Bits()) }
	a := join.Answer{Cluster: f.Cluster, Host: host, Region: f.Region, Roles: f.Roles, Control: own(f.Control), Media: own(f.Media),
		Nomad: join.Nomad{Pool: join.Pool(f.Roles)}}
	a.Servers = []join.Server{{Host: host, Control: a.Control.Addr(), Underlay: []string{netip.AddrPortFrom(address, 4242).String()},
		Join: net.JoinHostPort(address.String(), strconv.Itoa(join.Port))}}
	return a
}

// Init makes this host the first of a new cluster, or goes on where an earlier run was killed.
//
//	addresses → Vault on loopback → CAs → own certificate → overlays → Vault's cluster address → Consul → Nomad → join service
func (c *Command) Init(ctx context.Context, f Founding, set func(*Config)) error {
	w, lock, err := c.work()
	if err != nil {
		return err
	}
	defer lock.Close()
	set(&w.cfg)
	if err := errors.Join(w.cfg.validate(), w.choose()); err != nil {
		return err
	}
	if w.joined() && !w.first {
		return fmt.Errorf("this host is part of %s already; plenum leave first", w.answer.Cluster)
	}
	address, err := stable(w.cfg, w.facts)
	if err != nil {
		return err
	}
	w.cfg.Address = address.String()
	if !w.first {
		if err := f.validate(w.facts.Addresses); err != nil {
			return err
		}
	} else {
		old, err := w.founding()
		if err == nil {
			err = f.agrees(old)
		}
		if err != nil {
			return err
		}
		f = old
	}
	w.first = true
	if w.answer.Host == "" {
		w.answer = f.first(w.cfg.Host, address)
	}
	if len(w.answer.Binaries) == 0 {
		if w.answer.Binaries, err = c.local(ctx, programs); err != nil {
			return err
		}
	}
	v := w.view
	if !w.joined() {
		v.answer.Nomad.Introduction, v.answer.Consul.Token, v.answer.TLSCert = "later", "later", "later"
	}
	if err := c.printPlan(ctx, w, v, w.initSteps()...); err != nil || c.Plan {
		return err
	}
	c.obstacles(w)
	n, err := c.found(ctx, w, f)
	if err == nil {
		err = w.ownNode(ctx)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		c.say("nothing to do: %s runs %s", w.answer.Host, w.answer.Cluster)
		return nil
	}
	c.say("\ncluster %s runs on %s. The next host:\n  here:   plenum token create --region %s --roles bridge\n  there:  plenum join TOKEN", w.answer.Cluster, w.answer.Host, f.Region)
	return nil
}

// ownNode waits until the first host's own node is ready. Its client asks the server beside it as soon as that leads,
// which is before it has read its keys; it is refused, and asks again after 15 to 30 s. Nothing else waits for that, and
// starting it anew only has it lose the same race again.
func (w *work) ownNode(ctx context.Context) error {
	c, err := local(w.host)
	if err != nil {
		return err
	}
	return w.until(ctx, "this host's own node, for half a minute; others may join already", patience, func(ctx context.Context) error { return nomadReady(ctx, w.host, c) })
}

// initSteps are what init does besides files and services.
func (w *work) initSteps() []Step {
	if w.joined() && w.answer.Nomad.Introduction != "" {
		return nil
	}
	return []Step{
		{Kind: "key", What: "make four keys in " + keyDir, Why: "the private halves never leave this host"},
		{Kind: "cluster", What: "initialise Vault", Why: "engines, keys and CAs for hosts and servers; unsealed by " + w.cfg.Unseal},
		{Kind: "cluster", What: "bootstrap Consul's rights", Why: "default is to deny; a token for each host"},
		{Kind: "cluster", What: "bootstrap Nomad's rights", Why: "nodes only by introduction, one pool for each role"},
	}
}

func (w *work) founding() (f Founding, err error) {
	b, err := w.host.Read(foundingFile)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	return f, err
}

// found does it, part by part. Every part may be repeated.
func (c *Command) found(ctx context.Context, w *work, f Founding) (int, error) {
	total := 0
	if !w.joined() {
		if err := w.host.Mkdir(stateDir, 0o755); err != nil {
			return 0, err
		}
		if err := w.host.Write(foundingFile, marshal(f), 0o600); err != nil {
			return 0, err
		}
		// Vault binds its cluster address when it starts and does not like it to change, so the device is there before
		// the network is.
		if err := prepareDevice(w.answer.Control); err != nil {
			return 0, err
		}
		d := w.desired()
		d.Files = slices.DeleteFunc(d.Files, func(f File) bool { return f.Path != vaultFile && f.Path != configFile })
		n, err := w.apply(ctx, d.only("plenum-vault"))
		total += n
		if err == nil {
			err = w.await(ctx, "plenum-vault")
		}
		if err != nil {
			return total, err
		}
		w.crash("before vault setup")
		if err := w.foundHost(ctx, f, c.Release); err != nil {
			return total, err
		}
		total++
	}
	total += w.pack(ctx)
	n, err := w.converge(ctx, "plenum-overlay", "plenum-vault", "plenum-consul")
	total += n
	if err != nil {
		return total, err
	}
	if w.answer.Nomad.Introduction == "" {
		if n, err = w.bootstrap(ctx, f); err != nil {
			return total + n, err
		}
		total += n
	}
	n, err = w.converge(ctx)
	return total + n, err
}

// foundHost sets Vault up and has it sign for the first host.
func (w *work) foundHost(ctx context.Context, f Founding, release string) error {
	w.hand.say("set up Vault: engines, keys and CAs")
	cfg := w.pki()
	cfg.Control = f.Control
	for _, a := range f.Admins {
		_, key, _ := strings.Cut(a, "=")
		cfg.Admins = append(cfg.Admins, key)
	}
	if w.cfg.Unseal == "shamir" {
		cfg.Shares, cfg.Threshold = 5, 3
		cfg.HandOut = func(shares []string) error {
			w.shares = shares[:cfg.Threshold] // Vault is restarted before this is over
			w.hand.say("five shares of Vault's key, three open it; they are shown this once:\n%s", strings.Join(shares, "\n"))
			return nil
		}
	}
	v, err := pki.New(cfg)
	if err == nil {
		err = v.Setup(ctx)
	}
	if err != nil {
		return err
	}
	w.vault = v
	id, err := loadIdentity(w.host)
	if err != nil {
		return err
	}
	keys, err := id.public()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, id.tls)
	if err != nil {
		return err
	}
	s, err := w.bootstrapper()
	if err != nil {
		return err
	}
	defer s.Close()
	admin := "init"
	if len(f.Admins) > 0 {
		admin, _, _ = strings.Cut(f.Admins[0], "=")
	}
	a, err := s.Found(ctx, join.Cluster{Name: f.Cluster, Control: f.Control, Media: f.Media}, f.Region, admin,
		join.Request{Host: w.cfg.Host, Roles: f.Roles, Keys: keys, Facts: w.factsFor(release), CSR: csr})
	if err != nil {
		return err
	}
	a.Binaries = w.answer.Binaries
	return w.keep(a)
}

// bootstrap makes Consul and Nomad this cluster's. It may be done again.
func (w *work) bootstrap(ctx context.Context, f Founding) (int, error) {
	s, err := w.bootstrapper()
	if err != nil {
		return 0, err
	}
	defer s.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, 3*patience, errors.New("too long"))
	defer cancel()
	w.crash("before consul bootstrap")
	w.hand.say("bootstrap Consul's rights: default is to deny")
	if err := s.BootstrapConsul(ctx); err != nil {
		return 0, err
	}
	n, err := w.converge(ctx, "plenum-nomad")
	if err != nil {
		return n, err
	}
	w.crash("before nomad bootstrap")
	w.hand.say("bootstrap Nomad's rights: nodes only by introduction")
	introduction, err := s.BootstrapNomad(ctx)
	if err != nil {
		return n, err
	}
	w.crash("after nomad bootstrap")
	if err := w.firstAdmins(ctx, s, f); err != nil {
		return n, err
	}
	a := w.answer
	a.Nomad.Introduction = introduction
	return n + 2, w.keep(a)
}

// firstAdmins makes the people whom init was told of admins, and leaves what only they can read in a folder.
func (w *work) firstAdmins(ctx context.Context, s *join.Service, f Founding) error {
	if err := w.host.Mkdir(adminDir, 0o700); err != nil {
		return err
	}
	for _, text := range f.Admins {
		name, key, _ := strings.Cut(text, "=")
		if _, err := w.host.Read(adminDir + "/" + name + ".age"); err == nil {
			continue // an earlier run did
		}
		p, err := s.AdminAdd(ctx, name, key, "init")
		if err != nil {
			return fmt.Errorf("admin %s: %w", name, err)
		}
		if err := w.host.Write(adminDir+"/"+name+".age", []byte(p.Bundle), 0o600); err != nil {
			return err
		}
		w.hand.say("tokens of %s, for their age key alone: %s", name, adminDir+"/"+name+".age")
	}
	key, err := w.vault.BreakGlassKey(ctx)
	if err != nil || key == "" {
		return err
	}
	w.hand.say("the break-glass CA's key, for the admins' age keys alone, is %s; keep this copy elsewhere:\n%s", adminDir+"/break-glass.age", key)
	return w.host.Write(adminDir+"/break-glass.age", []byte(key), 0o600)
}

// bootstrapper is a join service that does not run.
func (w *work) bootstrapper() (*join.Service, error) {
	return join.New(w.service(slog.New(slog.DiscardHandler)))
}

// service is how the join service runs on this server host.
func (w *work) service(log *slog.Logger) join.Config {
	if w.vault == nil {
		w.vault, _ = pki.New(w.pki()) // refused by join.New when it is nil
	}
	c := join.Config{Vault: w.vault, Consul: consulAddress, Nomad: "https://" + nomadAddress, CA: w.host.Path(tlsDir, "ca.pem"),
		Dir: w.host.Path(joinDir), Socket: w.host.Path("run/plenum/join.sock"), Log: log}
	for _, b := range w.answer.Binaries {
		c.Binaries = append(c.Binaries, join.File{Name: b.Name, Arch: w.facts.Arch, Version: b.Version, Path: w.host.Path(program(b))})
	}
	return c
}

// prepareDevice makes the control plane's device with its address, silent until the overlay takes it.
func prepareDevice(p netip.Prefix) error {
	if err := overlay.Persist(controlDevice); err != nil {
		return fmt.Errorf("device %s: %w; it needs root and /dev/net/tun", controlDevice, err)
	}
	link, err := netlink.LinkByName(controlDevice)
	if err == nil {
		err = netlink.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}})
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", controlDevice, err)
	}
	return nil
}
