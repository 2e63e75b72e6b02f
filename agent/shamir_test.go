//go:build linux

package agent

import (
	"errors"
	"fmt"
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

	// Vault is sealed for longer than a renewal interval: nobody is cut off. Then for longer than certificates live.
	mark := len(b.logged("plenum-agent", 0))
	check(t, kill(srv, srv.pid(srv.root+vaultFile)))
	c.eventually(time.Minute, func() error {
		if !strings.Contains(b.logged("plenum-agent", mark), "renewal: ") {
			return errors.New("b has not tried to renew its certificate")
		}
		return nil
	})
	sent, lost := flow.halt()
	t.Logf("%d of %d packets lost while the CAs were rotated and Vault was sealed", lost, sent)
	if lost > 0 || sent < 100 {
		t.Errorf("too many")
	}
	c.eventually(2*time.Minute, func() error {
		if left := max(time.Until(b.certificateTo()), time.Until(srv.certificateTo())); left > -3*time.Second {
			return fmt.Errorf("certificates are valid for %s", left)
		}
		return nil
	})
	for _, share := range shares[1:4] {
		srv.plenum("unseal", share)
	}
	t.Logf("whole %s after Vault was unsealed", c.whole(2*time.Minute, srv, b).Round(100*time.Millisecond))
	if left := time.Until(b.certificateTo()); left < 0 {
		t.Errorf("b's certificate expired %s ago", -left)
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
