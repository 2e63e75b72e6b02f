package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/overlay"
)

// A Finding is one thing that doctor looked at.
type Finding struct {
	What     string `json:"what"`
	Severity string `json:"severity"` // ok, warn, bad
	Measured string `json:"measured"`
	Wanted   string `json:"wanted,omitempty"`
	Fix      string `json:"fix,omitempty"` // a command, or a sentence

	repair func() error
}

// Doctor looks at what a host needs, before and after it joined, and repairs what it can take back.
func (c *Command) Doctor(ctx context.Context, fix bool, token string) error {
	w, err := newWork(c.Root)
	if err != nil {
		return err
	}
	findings := w.examine(ctx, token)
	bad := 0
	for i := range findings {
		f := &findings[i]
		if f.Severity != "ok" && fix && f.repair != nil {
			if err := f.repair(); err != nil {
				f.Fix = err.Error()
			} else {
				f.Severity, f.Measured = "ok", f.Wanted+" (repaired)"
			}
		}
		if f.Severity == "bad" {
			bad++
		}
	}
	if c.JSON {
		if _, err := c.Out.Write(append(marshal(findings), '\n')); err != nil {
			return err
		}
	} else {
		for _, f := range findings {
			line := fmt.Sprintf("%-5s %-28s %s", f.Severity, f.What, f.Measured)
			if f.Severity != "ok" {
				line += fmt.Sprintf(" (wanted: %s)", f.Wanted)
				if f.Fix != "" {
					line += "\n      fix: " + f.Fix
				}
			}
			c.say("%s", line)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d findings keep this host from working", bad)
	}
	return nil
}

func (w *work) examine(ctx context.Context, token string) []Finding {
	all := []Finding{w.root(), tun(), w.space(), w.memory()}
	for _, s := range w.desired().Sysctls {
		all = append(all, w.setting(s))
	}
	all = append(all, openFiles())
	for _, f := range w.facts.Firewalls {
		all = append(all, w.firewall(f))
	}
	all = append(all, w.ports()...)
	all = append(all, w.clock(ctx, token)...)
	if w.joined() {
		all = append(all, w.member(ctx)...)
	}
	if _, err := os.Stat(w.host.Path("run/reboot-required")); err == nil {
		all = append(all, Finding{What: "reboot", Severity: "warn", Measured: "an upgrade asks for one", Wanted: "none", Fix: "plenum reboot"})
	}
	return all
}

func (w *work) root() Finding {
	f := Finding{What: "privileges", Severity: "ok", Measured: "root", Wanted: "root"}
	if os.Geteuid() != 0 {
		f.Severity, f.Measured, f.Fix = "bad", "user "+strconv.Itoa(os.Geteuid()), "run it with sudo"
	}
	return f
}

func tun() Finding {
	f := Finding{What: "tunnel devices", Severity: "ok", Measured: "/dev/net/tun", Wanted: "/dev/net/tun"}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		f.Severity, f.Measured, f.Fix = "bad", "none", "modprobe tun; in a container the host has to pass /dev/net/tun"
	}
	return f
}

func (w *work) space() Finding {
	f := Finding{What: "disk", Severity: "ok", Wanted: "4 GB free"}
	var s unix.Statfs_t
	path := w.host.Path("var/lib")
	if unix.Statfs(path, &s) != nil && unix.Statfs(w.host.Root(), &s) != nil {
		f.Measured = "unknown"
		return f
	}
	free := s.Bavail * uint64(s.Bsize)
	f.Measured = fmt.Sprintf("%d GB free", free>>30)
	if free < 4<<30 {
		f.Severity, f.Fix = "warn", "free space below "+path
	}
	if free < 1<<30 {
		f.Severity = "bad"
	}
	return f
}

func (w *work) memory() Finding {
	f := Finding{What: "memory", Severity: "ok", Measured: fmt.Sprintf("%d MB", w.facts.Memory>>20), Wanted: "1,000 MB"}
	if w.facts.Memory < 900<<20 {
		f.Severity, f.Fix = "warn", "a host with less is slow under load"
	}
	return f
}

func (w *work) setting(s Sysctl) Finding {
	text, err := w.host.Sysctl(s.Key)
	n, _ := strconv.ParseInt(text, 10, 64)
	f := Finding{What: s.Key, Severity: "ok", Measured: text, Wanted: strconv.FormatInt(s.Min, 10)}
	if err != nil || n < s.Min {
		f.Severity, f.Fix = "warn", fmt.Sprintf("sysctl -w %s=%d (plenum doctor --fix)", s.Key, s.Min)
		f.repair = func() error { return w.host.SetSysctl(s.Key, f.Wanted) }
	}
	return f
}

func openFiles() Finding {
	f := Finding{What: "open files", Severity: "ok", Wanted: "65536"}
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return f
	}
	f.Measured = strconv.FormatUint(l.Max, 10)
	if l.Max < 65536 {
		f.Severity, f.Fix = "warn", "units set their own limit; without systemd raise the hard limit of the shell that starts plenum"
	}
	return f
}

// firewall warns of rules that no accept of ours overrides: a packet has to pass every table.
func (w *work) firewall(name string) Finding {
	f := Finding{What: name, Severity: "warn", Measured: "in the way", Wanted: strings.Join(w.open(), ", ") + " let in"}
	var fixes [][]string
	switch name {
	case "ufw":
		fixes = w.ufw()
	case "firewalld":
		fixes = w.firewalld()
	case "docker":
		f.Severity, f.Measured = "ok", "active: its rules concern forwarded packets only"
		return f
	default: // a chain of nftables: family table chain
		f.What, f.Measured = "nftables: "+name, "drops what it does not name"
		f.Fix = "if it does not yet: "
		for _, port := range w.open() {
			number, proto, _ := strings.Cut(port, "/")
			f.Fix += fmt.Sprintf("nft insert rule %s %s dport %s accept; ", name, proto, number)
		}
		f.Fix += fmt.Sprintf("nft insert rule %s iifname '{ %s, %s }' accept; the same in /etc/nftables.conf", name, controlDevice, mediaDevice)
		return f
	}
	if len(fixes) == 0 {
		f.Severity, f.Measured = "ok", "lets in what is needed"
		return f
	}
	var lines []string
	for _, c := range fixes {
		lines = append(lines, strings.Join(c, " "))
	}
	f.Fix = strings.Join(lines, "; ")
	f.repair = func() error {
		for _, c := range fixes {
			if err := host.Run(c...); err != nil {
				return err
			}
		}
		return nil
	}
	return f
}

// open are the ports that the world has to reach on this host, as far as its roles are known.
func (w *work) open() []string {
	all := []string{"4242/udp", "51820/udp", "10000/udp"}
	if w.is(join.RoleServer) {
		all = append(all, fmt.Sprintf("%d/tcp", join.Port))
	}
	if w.is(join.RoleEdge) {
		all = append(all, "80/tcp", "443/tcp")
	}
	return all
}

// ufw says what it has to be told yet.
func (w *work) ufw() (fixes [][]string) {
	out, _ := exec.Command("ufw", "status").Output()
	allowed := func(what string) bool {
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, what+" ") && strings.Contains(line, "ALLOW") {
				return true
			}
		}
		return false
	}
	for _, port := range w.open() {
		if !allowed(port) {
			fixes = append(fixes, []string{"ufw", "allow", port})
		}
	}
	for _, device := range []string{controlDevice, mediaDevice} {
		if !allowed("Anywhere on " + device) {
			fixes = append(fixes, []string{"ufw", "allow", "in", "on", device})
		}
	}
	return fixes
}

// firewalld says what it has to be told yet.
func (w *work) firewalld() (fixes [][]string) {
	add := func(zone []string, what string) {
		command := func(verb string) []string {
			return slices.Concat([]string{"firewall-cmd", "--permanent"}, zone, []string{"--" + verb + "-" + what})
		}
		if host.Run(command("query")...) != nil {
			fixes = append(fixes, command("add"))
		}
	}
	for _, port := range w.open() {
		add(nil, "port="+port)
	}
	for _, device := range []string{controlDevice, mediaDevice} {
		add([]string{"--zone=trusted"}, "interface="+device)
	}
	if len(fixes) > 0 {
		fixes = append(fixes, []string{"firewall-cmd", "--reload"})
	}
	return fixes
}

// obstacles says what stands in the way of a host that is about to join. It does not keep it from trying.
func (c *Command) obstacles(w *work) {
	all := append(w.ports(), tun(), w.space())
	for _, f := range w.facts.Firewalls {
		all = append(all, w.firewall(f))
	}
	for _, f := range all {
		if f.Severity != "ok" {
			c.say("%s: %s: %s. %s", f.Severity, f.What, f.Measured, f.Fix)
		}
	}
}

// ports says whose the ports are that the host needs, before it has joined.
func (w *work) ports() (all []Finding) {
	if w.joined() {
		return nil
	}
	for _, p := range []int{4242, 51820} {
		f := Finding{What: "UDP " + strconv.Itoa(p), Severity: "ok", Measured: "free", Wanted: "free"}
		if c, err := net.ListenPacket("udp", ":"+strconv.Itoa(p)); err != nil {
			f.Severity, f.Measured, f.Fix = "bad", err.Error(), "stop what uses it: ss -ulpn"
		} else {
			c.Close()
		}
		all = append(all, f)
	}
	for _, p := range []int{8500, 4646} {
		f := Finding{What: "TCP " + strconv.Itoa(p), Severity: "ok", Measured: "free", Wanted: "free"}
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p)); err != nil {
			f.Severity, f.Measured, f.Fix = "bad", err.Error(), "a Consul or Nomad runs here already: ss -tlpn"
		} else {
			l.Close()
		}
		all = append(all, f)
	}
	return all
}

// clock compares this host's clock with a join service's, and its address with what the service sees.
func (w *work) clock(ctx context.Context, token string) (all []Finding) {
	c, _, err := w.clientOr(token)
	if err != nil {
		return []Finding{{What: "token", Severity: "bad", Measured: err.Error(), Wanted: "a join token of your cluster"}}
	}
	if c == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	before := time.Now()
	ch, err := c.Challenge(ctx)
	if err != nil {
		return []Finding{{What: "join service", Severity: "bad", Measured: err.Error(), Wanted: "an answer", Fix: fmt.Sprintf("let TCP %d out to %s", join.Port, strings.Join(c.Addresses, ", "))}}
	}
	offset := ch.Time.Sub(before.Add(time.Since(before) / 2)).Round(time.Millisecond)
	f := Finding{What: "clock", Severity: "ok", Measured: offset.String() + " behind the cluster's", Wanted: "within " + join.MaxSkew.String()}
	if offset.Abs() > join.MaxSkew {
		f.Severity, f.Fix = "bad", "timedatectl set-ntp true"
	}
	all = append(all, f, Finding{What: "join service", Severity: "ok", Measured: "answers"})
	if seen, err := netip.ParseAddr(ch.Seen); err == nil {
		f := Finding{What: "address seen from outside", Severity: "ok", Measured: seen.String()}
		own := false
		for _, a := range w.facts.Addresses {
			own = own || a == seen
		}
		if !own {
			f.Severity, f.Measured, f.Wanted = "warn", seen.String()+", which no interface here has: NAT", "an address of this host"
			f.Fix = "a bridge behind NAT needs UDP 10000 forwarded and public = [\"" + seen.String() + "\"] in plenum.hcl"
		}
		all = append(all, f)
	}
	return all
}

// clientOr is a client for the cluster of the host, or of the token.
func (w *work) clientOr(token string) (*join.Client, join.Request, error) {
	if w.joined() {
		return w.client()
	}
	if token == "" {
		return nil, join.Request{}, nil
	}
	t, err := join.ParseToken(token)
	if err != nil {
		return nil, join.Request{}, err
	}
	if time.Now().After(t.Expires) {
		return nil, join.Request{}, fmt.Errorf("it expired at %s, by this host's clock", t.Expires.Format(time.RFC3339))
	}
	return join.NewClient(t, nil, nil), join.Request{}, nil
}

// member looks at a host that has joined.
func (w *work) member(ctx context.Context) (all []Finding) {
	left := time.Until(w.answer.CertificateTo).Round(time.Minute)
	f := Finding{What: "certificate", Severity: "ok", Measured: left.String() + " left", Wanted: "renewed by itself"}
	if left <= 0 {
		f.Severity, f.Measured, f.Fix = "bad", "expired "+(-left).String()+" ago", "the agent renews it when a join service answers: is plenum-agent running, and TCP 8443 let out?"
	}
	all = append(all, f)
	for _, u := range w.units() {
		s, err := w.host.Services().State(ctx, u.Name)
		f := Finding{What: describe(u.Name), Severity: "ok", Measured: "runs", Wanted: "runs"}
		if err != nil || !s.Running {
			f.Severity, f.Measured, f.Fix = "bad", "does not run", "the agent starts it; plenum join starts all"
		}
		all = append(all, f)
	}
	s, err := overlay.Read(ctx, w.host.Root())
	if err != nil {
		return append(all, Finding{What: "networks", Severity: "bad", Measured: err.Error(), Wanted: "up"})
	}
	for _, p := range s.Problems {
		all = append(all, Finding{What: "networks", Severity: "warn", Measured: p, Wanted: "no problem"})
	}
	for _, p := range s.Paths {
		f := Finding{What: string(p.Plane) + " to " + p.Host, Severity: "ok", Measured: fmt.Sprintf("%s, %s, MTU %d", p.Route, p.RTT.Round(time.Microsecond), p.MTU), Wanted: "up"}
		if !p.Up {
			f.Severity, f.Measured = "warn", "down since "+p.Since.Format(time.RFC3339)
		}
		all = append(all, f)
	}
	return all
}
