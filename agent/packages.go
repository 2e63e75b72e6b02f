package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"

	"plenum/agent/host"
	"plenum/agent/join"
)

// packagesFile names the packages that plenum installed here. Those that were here before are not its own.
const packagesFile = stateDir + "/packages.json"

// What keeps Debian's helpers away from what runs under us.
const (
	needrestartFile = "/etc/needrestart/conf.d/plenum.conf"
	upgradesFile    = "/etc/apt/apt.conf.d/52plenum"
)

// packages are what the host's roles need of the distribution, on hosts that have its package manager.
func (v *view) packages() []host.Package {
	if !v.facts.Apt || !v.is(join.RoleEdge) {
		return nil
	}
	return []host.Package{host.HAProxy, host.Coturn}
}

// helpers are the files that keep needrestart and unattended-upgrades from restarting or rebooting what carries calls.
func (v *view) helpers() (all []File) {
	if v.facts.Needrestart {
		all = append(all, File{Path: needrestartFile, Mode: 0o644, Why: "needrestart leaves the networks, Consul, Nomad and tasks alone",
			Data: []byte("# " + host.Mark + "\n$nrconf{override_rc}{qr(^plenum-)} = 0;\n1;\n")})
	}
	if v.facts.Apt {
		all = append(all, File{Path: upgradesFile, Mode: 0o644, Why: "unattended-upgrades neither reboots nor replaces what calls run on: plenum reboot does",
			Data: []byte("// " + host.Mark + `
Unattended-Upgrade::Automatic-Reboot "false";
Unattended-Upgrade::Package-Blacklist { "^consul$"; "^nomad$"; "^vault$"; "^haproxy$"; "^coturn$"; };
`)})
	}
	return all
}

// own are the packages that plenum installed.
func (h *hand) ownPackages() (names []string, err error) {
	b, err := h.host.Read(packagesFile)
	if err == nil {
		err = json.Unmarshal(b, &names)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return names, err
}

// pack installs what the roles need of the distribution. Without it the host joins all the same: tasks that need it wait.
func (w *work) pack(ctx context.Context) (n int) {
	for _, p := range w.packages() {
		if w.host.There(p) {
			continue
		}
		w.hand.say("install %s: for the tasks of this host's roles", p.Name)
		own, err := w.ownPackages()
		if err == nil && !slices.Contains(own, p.Name) {
			err = w.host.Write(packagesFile, marshal(append(own, p.Name)), 0o600)
		}
		if err == nil {
			err = w.host.InstallPackage(ctx, p)
		}
		if err != nil {
			w.hand.say("without %s for now, plenum join again installs it: %v", p.Name, err)
			continue
		}
		n++
	}
	if f, err := w.host.Facts(); err == nil && n > 0 {
		w.facts = f // what tasks see of the host
	}
	return n
}

// unpack removes the packages that pack installed.
func (w *work) unpack(ctx context.Context) error {
	names, err := w.ownPackages()
	for _, p := range []host.Package{host.HAProxy, host.Coturn} {
		if slices.Contains(names, p.Name) {
			w.hand.say("remove %s", p.Name)
			err = errors.Join(err, w.host.RemovePackage(ctx, p))
		}
	}
	return err
}

// packageSteps are what pack would do.
func (v *view) packageSteps(h *host.Host) (all []Step) {
	for _, p := range v.packages() {
		if !h.There(p) {
			for _, u := range p.Units {
				all = append(all, Step{Kind: "package", What: "mask " + u, Why: "it runs under Nomad, and never by itself"})
			}
			all = append(all, Step{Kind: "package", What: "install " + p.Name, Why: "for the tasks of this host's roles"})
		}
	}
	return all
}
