package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Package is one of the distribution's whose program tasks run. Its own units stay masked: it runs under Nomad alone.
type Package struct {
	Name    string
	Program string // its path, by which it is known to be there
	Units   []string
}

// Packages of roles, by what tasks run of them.
var (
	HAProxy = Package{"haproxy", "/usr/sbin/haproxy", []string{"haproxy.service"}}
	Coturn  = Package{"coturn", "/usr/bin/turnserver", []string{"coturn.service"}}
)

// There reports whether the package's program is on the host.
func (h *Host) There(p Package) bool {
	_, err := os.Stat(h.Path(p.Program))
	return err == nil
}

// InstallPackage masks the package's units and installs it.
func (h *Host) InstallPackage(ctx context.Context, p Package) error {
	for _, u := range p.Units {
		if err := h.mask(u); err != nil {
			return err
		}
	}
	err := apt(ctx, "install", "-y", "--no-install-recommends", p.Name)
	if err != nil { // its lists may be old, or none
		if err = apt(ctx, "update"); err == nil {
			err = apt(ctx, "install", "-y", "--no-install-recommends", p.Name)
		}
	}
	return err
}

// RemovePackage takes an installed package away, with its masks.
func (h *Host) RemovePackage(ctx context.Context, p Package) error {
	err := apt(ctx, "remove", "-y", p.Name)
	for _, u := range p.Units {
		path := h.Path(unitDir, u)
		if target, e := os.Readlink(path); e == nil && target == os.DevNull {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// mask keeps systemd from ever starting a unit (systemctl(1), mask).
func (h *Host) mask(unit string) error {
	path := h.Path(unitDir, unit)
	if target, err := os.Readlink(path); err == nil && target == os.DevNull {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := os.Symlink(os.DevNull, path)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is a unit of yours; move it away: %s runs under Nomad", path, strings.TrimSuffix(unit, ".service"))
	}
	return err
}

// apt runs Debian's package manager without questions.
func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Stopping reports whether the whole machine goes down.
func (h *Host) Stopping() bool {
	if !h.Systemd() {
		return false
	}
	out, _ := exec.Command("systemctl", "is-system-running").Output() // its status is 1 then
	return strings.TrimSpace(string(out)) == "stopping"
}

// Reboot has the machine go down and come back. Without systemd it is somebody else's to do: false.
func (h *Host) Reboot() (bool, error) {
	if !h.Systemd() {
		return false, nil
	}
	return true, Run("systemctl", "reboot")
}
