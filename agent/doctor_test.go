//go:build linux

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plenum/agent/join"
)

// A firewall that lets in what the host's roles need is none in the way; one that does not is told by its own tool, once.
func TestFirewalls(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	rules := filepath.Join(dir, "rules")
	for name, script := range map[string]string{
		"ufw": `case $1 in
status) echo "Status: active"; [ ! -e ` + rules + ` ] || cat ` + rules + `;;
allow) if [ "$2" = in ]; then echo "Anywhere on $4   ALLOW   Anywhere"; else echo "$2   ALLOW   Anywhere"; fi >> ` + rules + `;;
esac`,
		"firewall-cmd": `case $* in
--reload) ;;
*query*) grep -qx -e "$(echo "$*" | sed s/query/add/)" ` + rules + `;;
*) echo "$*" >> ` + rules + `;;
esac`,
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	for name, first := range map[string]string{"ufw": "ufw allow 4242/udp; ", "firewalld": "firewall-cmd --permanent --add-port=4242/udp; "} {
		_ = os.Remove(rules)
		w := &work{view: example(join.RoleBridge)}
		f := w.firewall(name)
		if f.Severity != "warn" || !strings.HasPrefix(f.Fix, first) || strings.Contains(f.Fix, "8443") || f.repair == nil {
			t.Fatalf("%s: %+v", name, f)
		}
		check(t, f.repair())
		if f := w.firewall(name); f.Severity != "ok" {
			t.Errorf("%s after its repair: %+v", name, f)
		}
		w.answer.Roles = []string{join.RoleServer, join.RoleEdge}
		f = w.firewall(name)
		if f.Severity != "warn" || !strings.Contains(f.Fix, "8443/tcp") || !strings.Contains(f.Fix, "443/tcp") || strings.Contains(f.Fix, "4242") {
			t.Errorf("%s of a server and edge: %+v", name, f)
		}
	}
	w := &work{view: example(join.RoleBridge)}
	if f := w.firewall("inet filter input"); f.What != "nftables: inet filter input" || !strings.Contains(f.Fix, "nft insert rule inet filter input udp dport 4242 accept; ") {
		t.Errorf("%+v", f)
	}
	if f := w.firewall("docker"); f.Severity != "ok" {
		t.Errorf("%+v", f)
	}
}
