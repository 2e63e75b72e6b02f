//go:build linux

package agent

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestShamir has people hold Vault's key: they take the CAs through their three stages, and open Vault after all power
// was lost. Until then nothing is signed. It takes minutes: PLENUM_CHAOS=1.
func TestShamir(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("three stages of a rotation take minutes: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	out := c.found(srv, "--unseal", "shamir", "--host-life", "60s", "--server-life", "60s")
	_, out, _ = strings.Cut(out, "five shares")
	shares := regexp.MustCompile(`(?m)^[A-Za-z0-9+/=]{40,}$`).FindAllString(out, -1)
	if len(shares) != 5 {
		t.Fatalf("init showed %d shares:\n%s", len(shares), out)
	}
	b.join(c.token("muc", "bridge"))
	c.whole(90*time.Second, srv, b)
	flow := c.flow(b, "10.86.0.1")
	for _, stage := range []string{"trust", "issue", "retire"} {
		c.eventually(2*time.Minute, func() error { // until all have renewed since the last
			out, err := srv.try(nil, "ca", "rotate", stage, "--share", shares[0], "--share", shares[2], "--share", shares[4])
			if err != nil {
				return errors.New(stage + ": " + out)
			}
			return nil
		})
	}
	sent, lost := flow.halt()
	t.Logf("%d of %d packets lost while the CAs were rotated", lost, sent)
	if lost > 0 || sent < 100 {
		t.Errorf("too many")
	}
	srv.KillAll()
	srv.reboot()
	c.eventually(time.Minute, func() error {
		if out, err := srv.try(nil, "token", "create", "--region", "ber", "--roles", "bridge"); err == nil || !strings.Contains(out, "plenum unseal") {
			return errors.New("with Vault sealed a token is made, or nobody says what to do: " + out)
		}
		return nil
	})
	for _, share := range shares[:3] {
		srv.plenum("unseal", share)
	}
	c.eventually(time.Minute, func() error {
		out, err := srv.try(nil, "token", "create", "--region", "ber", "--roles", "bridge")
		if err != nil {
			return errors.New(out)
		}
		return nil
	})
	c.whole(90*time.Second, srv, b)
}

// TestDiskFull joins a host whose disk is too small: it says so, and goes on when there is space.
func TestDiskFull(t *testing.T) {
	if os.Getenv("PLENUM_CHAOS") == "" {
		t.Skip("another cluster: PLENUM_CHAOS=1")
	}
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	c.found(srv)
	if out, err := b.Run("mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", b.root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	token := c.token("ber", "bridge")
	if out, err := b.try(nil, "join", token, "--host", "b", "--binaries", c.bin); err == nil || !strings.Contains(out, "no space left") {
		t.Errorf("on a full disk: %v\n%s", err, out)
	}
	if out, err := b.Run("mount", "-o", "remount,size=1500m", b.root); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.join(token)
	c.whole(90*time.Second, srv, b)
}
