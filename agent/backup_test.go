//go:build linux

package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

// TestRestore loses the only server with its disk. A bare machine at its address gets the backup, and the cluster's
// other host comes back by itself.
func TestRestore(t *testing.T) {
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	id, err := age.GenerateX25519Identity()
	check(t, err)
	c.found(srv, "--admin", "eve="+id.Recipient().String())
	b.join(c.token("ber", "bridge"))
	c.whole(90*time.Second, srv, b)

	file, key, other := filepath.Join(c.dir, "backup"), filepath.Join(c.dir, "eve.key"), filepath.Join(c.dir, "thief.key")
	srv.plenum("backup", file)
	thief, err := age.GenerateX25519Identity()
	check(t, err)
	check(t, os.WriteFile(key, []byte(id.String()+"\n"), 0o600))
	check(t, os.WriteFile(other, []byte(thief.String()+"\n"), 0o600))
	text, err := os.ReadFile(file)
	check(t, err)
	for _, secret := range []string{"hvs.", "PRIVATE KEY", "secret_id", "unseal"} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("the backup shows %q", secret)
		}
	}

	srv.KillAll()
	for _, device := range []string{controlDevice, mediaDevice} {
		if out, err := srv.Run("ip", "link", "del", device); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if _, err := srv.Run("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	check(t, os.RemoveAll(srv.root))
	check(t, os.Mkdir(srv.root, 0o755))

	if out, err := srv.try(nil, "restore", file, "--identity", other, "--binaries", c.bin); err == nil {
		t.Errorf("somebody else's key opens the backup:\n%s", out)
	}
	if left := filesBelow(t, srv.root); len(left) > 1 { // the lock
		t.Fatalf("a wrong key made %v", left)
	}
	start := time.Now()
	srv.plenum("restore", file, "--identity", key, "--binaries", c.bin)
	t.Logf("restored in %s", time.Since(start).Round(100*time.Millisecond))
	t.Logf("whole again after %s more", c.whole(3*time.Minute, srv, b).Round(100*time.Millisecond))
	if out := srv.plenum("host", "list"); !strings.Contains(out, "b ") {
		t.Errorf("hosts are\n%s", out)
	}
	d := c.box("d") // Vault signs, and addresses go on where they were
	d.join(c.token("muc", "bridge"))
	if r := srv.report().host("d"); r.Control != "10.86.0.3" {
		t.Errorf("d is %+v", r)
	}
}
