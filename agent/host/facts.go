package host

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// Facts are what a host is.
type Facts struct {
	Name      string       `json:"name"`
	Arch      string       `json:"arch"` // as Go names it
	CPUs      int          `json:"cpus"`
	Memory    int64        `json:"memory"` // bytes
	Addresses []netip.Addr `json:"addresses"`
	Interface string       `json:"interface"` // that of the default route
	Systemd   bool         `json:"systemd"`
	Firewalls []string     `json:"firewalls,omitempty"` // ufw, firewalld, docker, or chains of nftables: whose rules may be in the way
	Apt       bool         `json:"apt,omitempty"`       // packages are Debian's
	CNI       string       `json:"cni,omitempty"`       // where network plug-ins are
	Programs  []string     `json:"programs,omitempty"`  // those of role packages that are installed
	// Needrestart is whether it is there, which restarts services after upgrades.
	Needrestart bool `json:"needrestart,omitempty"`
	// Libraries are the files that Programs load, by where they lie: where they are looked for.
	Libraries map[string]string `json:"libraries,omitempty"`
}

// Facts looks at the host.
func (h *Host) Facts() (Facts, error) {
	f := Facts{Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Systemd: h.Systemd()}
	name, err := os.Hostname()
	if err != nil {
		return f, err
	}
	f.Name, _, _ = strings.Cut(name, ".")
	f.Memory = memory()
	f.Interface, f.Addresses = addresses()
	if h.root == "/" {
		f.Firewalls = firewalls()
		_, err := exec.LookPath("apt-get")
		f.Apt = err == nil
		_, err = os.Stat("/etc/needrestart/conf.d")
		f.Needrestart = err == nil
	}
	if len(f.Firewalls) == 0 || f.Firewalls[0] == "docker" { // the others' chains are theirs to change
		f.Firewalls = append(f.Firewalls, closed()...)
	}
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni"} {
		if _, err := os.Stat(dir + "/bridge"); err == nil {
			f.CNI = dir
			break
		}
	}
	for _, p := range []string{"/usr/sbin/haproxy", "/usr/bin/turnserver"} {
		if _, err := os.Stat(p); err == nil {
			f.Programs = append(f.Programs, p)
		}
	}
	f.Libraries = libraries(f.Programs)
	return f, nil
}

// Refresh looks again at what changes while a host runs, its addresses. It starts no program, so that it can be done
// every few seconds.
func (f *Facts) Refresh() { f.Interface, f.Addresses = addresses() }

func memory() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			return atoi(strings.TrimSuffix(strings.TrimSpace(rest), "kB")) << 10
		}
	}
	return 0
}

// addresses are those of the underlay: of interfaces that are up and no tunnels, the one with the default route first.
func addresses() (first string, all []netip.Addr) {
	for _, far := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		if c, err := net.Dial("udp", far); err == nil { // sends nothing; the kernel chooses a source
			local, _ := netip.ParseAddrPort(c.LocalAddr().String())
			all = append(all, local.Addr().Unmap().WithZone(""))
			c.Close()
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return "", all
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || strings.HasPrefix(i.Name, "plenum-") ||
			strings.HasPrefix(i.Name, "docker") || strings.HasPrefix(i.Name, "veth") || strings.HasPrefix(i.Name, "nomad") {
			continue
		}
		own, _ := i.Addrs()
		for _, a := range own {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr().IsLinkLocalUnicast() {
				continue
			}
			if len(all) > 0 && p.Addr() == all[0] {
				first = i.Name
			}
			if !slices.Contains(all, p.Addr()) {
				all = append(all, p.Addr())
			}
			if first == "" && len(all) == 1 {
				first = i.Name
			}
		}
	}
	return first, all
}

// firewalls names the programs whose rules may drop what the cluster needs.
func firewalls() (all []string) {
	if out, err := exec.Command("ufw", "status").Output(); err == nil && strings.Contains(string(out), "Status: active") {
		all = append(all, "ufw")
	}
	if exec.Command("firewall-cmd", "--state").Run() == nil {
		all = append(all, "firewalld")
	}
	if _, err := os.Stat("/var/run/docker.sock"); err == nil {
		all = append(all, "docker")
	}
	return all
}
