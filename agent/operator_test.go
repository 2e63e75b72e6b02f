//go:build linux

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/overlay/netlab"
	"plenum/overlay/netlab/stack"
)

// TestOperator does on two hosts what docs/OPERATIONS.md tells to do, wrong things too, and what a thief of the second
// one would try. When that has left, it is what it was.
func TestOperator(t *testing.T) {
	c := newCluster(t)
	srv, b := c.box("srv"), c.box("b")
	args := c.initArgs(srv)
	refused := func(x *box, want string, args ...string) {
		t.Helper()
		if out, err := x.try(nil, args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("plenum %s: %v, want %q in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	refused(srv, "in no cluster", "status")
	refused(srv, "no join service on this host", "token", "list")
	refused(srv, "no Vault here", "unseal")
	refused(srv, "usage: plenum token revoke ID", "token", "revoke")
	refused(srv, "age-keygen", append(slices.Clone(args), "--admin", "bob=age1nobody")...)
	refused(srv, "no token is given", "join")
	refused(srv, "not a join token", "join", "plenum-abc")

	was := filesBelow(t, srv.root)
	plan := srv.plenum(append(slices.Clone(args), "--plan")...)
	for _, want := range []string{"a new cluster\n", "folders\n", "sysctls\n", "programs\n", "files\n", "services\n", "interfaces\n", "firewall rules\n", "routes\n",
		"start Vault ", "nftables: table inet plenum_overlay", "10.86.0.0/16: Nebula on UDP 4242"} {
		if !strings.Contains(plan, want) {
			t.Errorf("no %q in the plan:\n%s", want, plan)
		}
	}
	if now := filesBelow(t, srv.root); !slices.Equal(was, now) {
		t.Errorf("the plan has made some of %v", now)
	}
	c.first = srv
	out := srv.plenum(args...)
	if !strings.Contains(out, "interfaces\n") || strings.Index(out, "routes\n") > strings.Index(out, "make /etc/plenum: ") || !strings.Contains(out, "BEGIN AGE ENCRYPTED FILE") {
		t.Errorf("init does not tell its plan first, or the break-glass key:\n%s", out)
	}
	if out := srv.plenum(args...); !strings.Contains(out, "nothing to do: srv runs test") {
		t.Errorf("init again: %s", out)
	}
	other := slices.Clone(args)
	other[slices.Index(other, "test")] = "other"
	refused(srv, "cannot become other", other...)
	refused(srv, "not a join token", "join", "plenum-abc")
	refused(srv, "plenum leave first", "join", c.token("muc", "server"))
	refused(srv, "is the only server", "host", "revoke", "srv")
	refused(srv, `"all" is none of trust, issue, retire, gossip`, "ca", "rotate", "all")

	// The donor of b has rules, a route, a setting and files of their own.
	check(t, os.MkdirAll(filepath.Join(b.root, "proc/sys/net/core"), 0o755))
	check(t, os.WriteFile(filepath.Join(b.root, "proc/sys/net/core/rmem_max"), []byte("212992\n"), 0o644))
	check(t, os.MkdirAll(filepath.Join(b.root, "etc/plenum"), 0o755))
	check(t, os.WriteFile(filepath.Join(b.root, "etc/plenum/own.txt"), []byte("mine"), 0o640))
	for _, own := range []string{"nft add table inet mine", "nft add chain inet mine input { type filter hook input priority 0; policy drop; }",
		"nft add rule inet mine input ct state established,related accept", "nft add rule inet mine input iif lo accept",
		"nft add rule inet mine input meta l4proto icmp accept", "nft add rule inet mine input udp dport { 4242, 51820, 10000 } accept",
		"nft add rule inet mine input iifname { plenum-control, plenum-media } accept", "ip route add 203.0.113.0/24 dev lo", "sysctl -qw net.ipv4.ip_forward=1"} {
		if out, err := b.Run("sh", "-c", strings.NewReplacer("{", "'{", "}", "}'").Replace(own)); err != nil {
			t.Fatalf("%s: %v: %s", own, err, out)
		}
	}
	before := b.footprint()
	token := c.token("muc", "bridge")
	if out := b.plenum("join", token[:50], token[50:], "--host", "b", "--binaries", c.bin); !strings.Contains(out, "nftables: inet mine input: drops what it does not name") {
		t.Errorf("nobody says what stands in the way:\n%s", out)
	}
	c.whole(time.Minute, srv, b)
	refused(b, "run it on a server host", "token", "list")
	refused(b, "plenum leave first", args...)

	t.Run("terminal", func(t *testing.T) { b.terminal(t) })
	t.Run("thief", func(t *testing.T) { c.thief(t, srv, b) })
	t.Run("reboot", func(t *testing.T) {
		id := filepath.Join(b.root, "proc/sys/kernel/random")
		check(t, os.MkdirAll(id, 0o755))
		check(t, os.WriteFile(filepath.Join(id, "boot_id"), []byte("one\n"), 0o644))
		if out := b.plenum("reboot"); !strings.Contains(out, "reboot this machine now") {
			t.Errorf("reboot: %s", out)
		}
		if e := c.eligibility("b"); e != "ineligible" {
			t.Errorf("before the reboot it is %q", e)
		}
		check(t, os.WriteFile(filepath.Join(id, "boot_id"), []byte("two\n"), 0o644))
		c.eventually(time.Minute, func() error {
			if e := c.eligibility("b"); e != "eligible" {
				return errors.New("after the reboot it is " + e)
			}
			return nil
		})
		check(t, os.RemoveAll(filepath.Join(b.root, "proc/sys/kernel")))
	})
	t.Run("rotation", func(t *testing.T) { // of CAs whose certificates have weeks to live
		start := time.Now()
		for _, stage := range []string{"trust", "issue", "retire"} {
			srv.plenum("ca", "rotate", stage)
		}
		c.eventually(time.Minute, func() error {
			if out := srv.plenum("ca", "status"); !strings.Contains(out, "stage retire") || !strings.Contains(out, "renewed since: none") {
				return errors.New(out)
			}
			return nil
		})
		t.Logf("all CAs are others after %s", time.Since(start).Round(time.Second))
		c.whole(time.Minute, srv, b)
	})

	b.plenum("leave")
	if diff := cmp.Diff(before, b.footprint()); diff != "" {
		t.Errorf("leave has changed what was there (-before +after):\n%s", diff)
	}
}

// terminal looks at the status as people and as programs do.
func (b *box) terminal(t *testing.T) {
	plain := b.plenum("status")
	if strings.Contains(plain, "\x1b") || !strings.Contains(plain, "control network") || !strings.Contains(plain, "media network") {
		t.Errorf("piped:\n%q", plain)
	}
	screen := func(command string) *netlab.Process {
		cmd := exec.Command("script", "-qec", filepath.Join(b.c.bin, "plenum")+" "+command+" --root "+b.root, os.DevNull)
		cmd.Env, cmd.Dir = append(stack.Environment(b.root), "TERM=xterm"), b.root
		return b.StartCmd(cmd)
	}
	live := screen("status")
	b.c.eventually(time.Minute, func() error { // drawn again and again
		if out := live.Output(); !strings.HasPrefix(out, home) || strings.Count(out, home) < 2 || !strings.Contains(out, "\x1b[32mup\x1b[0m") {
			return fmt.Errorf("on a terminal: %q", out)
		}
		return nil
	})
	live.Kill()
	once := screen("status --once")
	_ = once.Wait()
	if out := once.Output(); strings.Contains(out, "\x1b") || !strings.Contains(out, "media network") {
		t.Errorf("once on a terminal: %q", out)
	}
	var r Report
	if err := json.Unmarshal([]byte(b.plenum("status", "-o", "json")), &r); err != nil || len(r.Hosts) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// thief tries what root on the bridge b has: ports of servers, and b's own certificate as that of a server of Consul.
func (c *cluster) thief(t *testing.T, srv, b *box) {
	dial := func(port int) bool {
		_, err := b.Run("timeout", "2", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/10.86.0.1/%d", port))
		return err == nil
	}
	for port, open := range map[int]bool{8300: true, 4646: true, 4647: true, 8443: true, // what every host needs
		8200: false, 8201: false, 8203: false, 8500: false, 4648: false, 9710: false, 9713: false} {
		if dial(port) != open {
			t.Errorf("a bridge reaches port %d of a server: %t", port, !open)
		}
	}
	var config map[string]any
	text, err := os.ReadFile(filepath.Join(b.root, consulFile))
	check(t, err)
	check(t, json.Unmarshal(text, &config))
	data := filepath.Join(c.dir, "evil")
	config["server"], config["data_dir"] = true, data
	evil := filepath.Join(c.dir, "evil.json")
	check(t, os.WriteFile(evil, marshal(config), 0o600))
	for _, name := range []string{"run agent", "consul-"} {
		_, _ = b.Run("pkill", "-9", "-f", b.root+".*"+name)
	}
	cmd := exec.Command(filepath.Join(c.bin, "consul"), "agent", "-config-file", evil)
	cmd.Env, cmd.Dir = stack.Environment(b.root), c.dir
	p := b.StartCmd(cmd)
	c.eventually(time.Minute, func() error {
		if log := p.Output(); !regexp.MustCompile(`x509|ermission denied|bad certificate|ot a member`).MatchString(log) {
			return errors.New("it is not refused: " + log[max(0, len(log)-500):])
		}
		return nil
	})
	peers := srv.consul("operator", "raft", "list-peers")
	if voters := strings.Count(peers, "true"); voters != 1 {
		t.Errorf("a bridge that says it is a server votes:\n%s", peers)
	}
	if out := b.consul("kv", "get", "-stale", "-keys", "plenum/"); strings.HasPrefix(out, "plenum/") {
		t.Errorf("a bridge that says it is a server has the cluster's data: %.300s", out)
	}
	log := p.Output()
	t.Logf("it is told: %.300s", regexp.MustCompile(`(?m)^.*(x509|ermission denied|bad certificate).*$`).FindString(log))
	_ = p.Signal(os.Kill)
	_ = p.Wait()
	b.reboot()
	c.whole(90*time.Second, srv, b)
}

// management is the token of Consul that may do everything.
func (c *cluster) management() string {
	var tokens struct{ Consul string }
	b, err := os.ReadFile(filepath.Join(c.first.root, joinDir, "common.json"))
	check(c.t, err)
	check(c.t, json.Unmarshal(b, &tokens))
	return tokens.Consul
}

// consul runs the stock program on a server.
func (b *box) consul(args ...string) string {
	cmd := exec.Command(filepath.Join(b.c.bin, "consul"), args...)
	cmd.Env = append(stack.Environment(b.root), "CONSUL_HTTP_TOKEN="+b.c.management())
	p := b.StartCmd(cmd)
	_ = p.Wait()
	return p.Output()
}

// eligibility is whether Nomad gives a node tasks.
func (c *cluster) eligibility(node string) string {
	c.t.Helper()
	var tokens struct{ Nomad string }
	text, err := os.ReadFile(filepath.Join(c.first.root, joinDir, "common.json"))
	check(c.t, err)
	check(c.t, json.Unmarshal(text, &tokens))
	cmd := exec.Command(filepath.Join(c.bin, "nomad"), "node", "status", "-json")
	cmd.Env = append(stack.Environment(c.first.root), "NOMAD_ADDR=https://"+nomadAddress, "NOMAD_CACERT="+filepath.Join(c.first.root, tlsDir, "ca.pem"),
		"NOMAD_TLS_SERVER_NAME=localhost", "NOMAD_TOKEN="+tokens.Nomad)
	p := c.first.StartCmd(cmd)
	_ = p.Wait()
	var all []struct{ Name, SchedulingEligibility string }
	_ = json.Unmarshal([]byte(p.Output()), &all)
	for _, n := range all {
		if n.Name == node {
			return n.SchedulingEligibility
		}
	}
	return "none"
}

// footprint is what a host is besides its processes: rules, routes, interfaces, settings, mounts, and every file with its
// mode and content.
func (b *box) footprint() map[string]string {
	b.c.t.Helper()
	all := map[string]string{}
	for name, command := range map[string]string{"nftables": "nft list ruleset", "rules": "ip rule; ip -6 rule", "routes": "ip route show table all; ip -6 route show table all",
		"interfaces": "ip -br link; ip -br addr", "queues": "tc qdisc show", "settings": "sysctl -a 2>/dev/null | grep ^net | grep -v -e nf_conntrack_count -e random -e fib_sync -e netdev_rss -e tcp_mem -e tcp_fastopen_key"} {
		out, err := b.Run("sh", "-c", command)
		if err != nil {
			b.c.t.Fatalf("%s: %v: %s", command, err, out)
		}
		all[name] = out
	}
	mounts, _ := b.Run("cat", "/proc/self/mounts")
	for line := range strings.Lines(mounts) {
		if strings.Contains(line, b.root+"/") {
			all["mounts"] += line
		}
	}
	check(b.c.t, filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, _ := os.ReadFile(path)
		name, _ := filepath.Rel(b.root, path)
		if strings.HasPrefix(name, "proc/") && name != "proc/sys/net/core/rmem_max" { // the root's own kernel
			return nil
		}
		all["/"+name] = fmt.Sprintf("%s %q", info.Mode(), text)
		return nil
	}))
	return all
}
