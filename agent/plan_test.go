package agent

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/overlay"
)

// example is a host as others see it, with nothing that a test depends on.
func example(roles ...string) view {
	a := join.Answer{Cluster: "test", Host: "b", Region: "ber", Roles: roles, Control: netip.MustParsePrefix("10.86.0.2/16"), Media: netip.MustParsePrefix("10.87.0.2/16"),
		RosterKey: make([]byte, 32), NebulaCA: "ca", NebulaCert: "cert", TLSCA: "tls ca", TLSCert: "tls cert", CertificateTo: time.Unix(2e9, 0),
		Consul: join.Consul{Gossip: "Z29zc2lwIGdvc3NpcCBnb3NzaXAgZ29zc2lwIGdvc3M=", Token: "consul-token"}, Nomad: join.Nomad{Pool: join.Pool(roles), Introduction: "jwt", ConsulToken: "nomad-token"},
		Servers: []join.Server{{Host: "srv", Control: netip.MustParseAddr("10.86.0.1"), Underlay: []string{"192.0.2.1:4242"}, Join: "192.0.2.1:8443"}}}
	for _, name := range programsOf(roles) {
		a.Binaries = append(a.Binaries, join.Binary{Name: name, Version: "1", SHA256: []byte("0123456789abcdef0123456789abcdef")})
	}
	return view{cfg: Config{Host: "b", Every: "5s", Unseal: "file", HostLife: "336h", ServerLife: "2160h", root: "/"}, answer: a, path: func(p string) string { return p },
		facts: host.Facts{Arch: "amd64", Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}}
}

// done is what is observed when all steps of d were taken.
func done(d Desired) Observed {
	o := Observed{Folders: map[string]fs.FileMode{}, Sysctls: map[string]int64{}, Programs: map[string]bool{}, Files: map[string]string{}, Services: map[string]serviceState{}}
	for _, f := range d.Folders {
		o.Folders[f.Path] = f.Mode
	}
	for _, s := range d.Sysctls {
		o.Sysctls[s.Key] = s.Min
	}
	for _, p := range d.Programs {
		o.Programs[program(p)] = true
	}
	for _, f := range d.Files {
		o.Files[f.Path] = digest(f.Data, f.Mode)
	}
	for _, s := range d.Services {
		o.Services[s.Name] = serviceState{State: host.State{Running: true, Unit: s.Digest()}, Restart: files(s.Restart, o.Files), Reload: files(s.Reload, o.Files)}
	}
	return o
}

func what(steps []Step) (all []string) {
	for _, s := range steps {
		all = append(all, s.What)
	}
	return all
}

func TestPlan(t *testing.T) {
	v := example("bridge")
	d := v.desired()
	if steps := Plan(d, done(d)); len(steps) > 0 {
		t.Errorf("a host that is as it should be: %v", what(steps))
	}
	if all := what(Plan(d, Observed{})); slices.Contains(all, "start Vault") || !slices.Contains(all, "start Nomad") ||
		slices.Index(all, "start Overlay") > slices.Index(all, "start Consul") || slices.Index(all, "write "+consulFile) > slices.Index(all, "start Consul") {
		t.Errorf("a bare host: %v", all)
	}
	server := example("server")
	if d := server.desired(); !slices.Contains(what(Plan(d, Observed{})), "start Vault") {
		t.Error("a server without Vault")
	}
	for name, test := range map[string]struct {
		change func(*view)
		want   []string
	}{
		"renewed":         {func(v *view) { v.answer.NebulaCert = "new" }, []string{"change " + nebulaDir + "/host.crt", "reload Overlay"}},
		"TLS renewed":     {func(v *view) { v.answer.TLSCert = "new" }, []string{"change " + tlsDir + "/cert.pem", "reload Consul", "reload Nomad"}},
		"another uplink":  {func(v *view) { v.cfg.UplinkMbit = 50 }, []string{"change " + overlayFile, "reload Overlay"}},
		"another pool":    {func(v *view) { v.answer.Nomad.Pool = "plenum-edge" }, []string{"change " + nomadFile, "restart Nomad"}},
		"another program": {func(v *view) { v.answer.Binaries[1].SHA256 = []byte("another program's sum") }, []string{"install consul 1", "restart Consul"}},
	} {
		v := example("bridge")
		before := done(v.desired())
		test.change(&v)
		got := slices.DeleteFunc(what(Plan(v.desired(), before)), func(s string) bool { return s == "change "+configFile })
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	gone := done(d)
	gone.Services["plenum-consul"] = serviceState{}
	if got := what(Plan(d, gone)); !slices.Equal(got, []string{"start Consul"}) {
		t.Errorf("Consul has died: %v", got)
	}
}

// What is rendered is what the programs that read it accept, as far as that can be seen without starting them.
func TestRendered(t *testing.T) {
	for _, roles := range [][]string{{"bridge"}, {"server"}, {"server", "edge", "shard", "bridge"}} {
		v := example(roles...)
		for _, f := range v.desired().Files {
			if filepath.Ext(f.Path) == ".json" && f.Path != overlayFile {
				var o map[string]any
				if err := json.Unmarshal(f.Data, &o); err != nil {
					t.Errorf("%s: %v", f.Path, err)
				}
			}
			if strings.Contains(string(f.Data), "-token") && f.Mode != 0o600 {
				t.Errorf("%s holds a secret and has mode %o", f.Path, f.Mode)
			}
		}
		if _, err := overlay.Parse(v.overlay()); err != nil {
			t.Errorf("overlay.json: %v", err)
		}
	}
	v := example("bridge")
	var c struct {
		Leave  *bool `json:"leave_on_terminate"`
		Skip   bool  `json:"skip_leave_on_interrupt"`
		Server bool
		TLS    struct {
			Defaults struct {
				In  bool `json:"verify_incoming"`
				Out bool `json:"verify_outgoing"`
			}
			RPC struct {
				Name bool `json:"verify_server_hostname"`
			} `json:"internal_rpc"`
		}
	}
	if err := json.Unmarshal(v.consul(), &c); err != nil {
		t.Fatal(err)
	}
	if c.Leave == nil || *c.Leave || !c.Skip || c.Server || !c.TLS.Defaults.In || !c.TLS.Defaults.Out || !c.TLS.RPC.Name {
		t.Errorf("Consul: %+v", c)
	}
}

// The configuration that a host reads is the one that was written for it.
func TestConfig(t *testing.T) {
	root := t.TempDir()
	h, err := host.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Host: "b", Address: "192.0.2.7", Public: []string{"198.51.100.7"}, UplinkMbit: 300, Every: "7s", Unseal: "shamir", HostLife: "40s", ServerLife: "60s", root: h.Root()}
	if err := h.Mkdir("/etc/plenum", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(configFile, want.text(), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := LoadConfig(root)
	if err != nil || got.Host != want.Host || got.Every != "7s" || got.Unseal != "shamir" || got.UplinkMbit != 300 || !slices.Equal(got.Public, want.Public) || got.HostLife != "40s" {
		t.Errorf("%+v, %v", got, err)
	}
	for text, complaint := range map[string]string{
		"agent {\n  unseal = \"magic\"\n}":      "neither file nor shamir",
		"agent {\n  every = \"soon\"\n}":        "not a duration",
		"agent {\n  address = \"localhost\"\n}": "not an address",
		"agent {\n  hots = \"b\"\n}":            "plenum.hcl:2",
	} {
		if err := h.Write(configFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(root); err == nil || !strings.Contains(err.Error(), complaint) {
			t.Errorf("%s: %v, want %q", text, err, complaint)
		}
	}
}

// The units are what systemd wants. Programs that are not here yet are stood in for by the shell.
func TestUnits(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	v := example("server")
	dir := t.TempDir()
	var paths []string
	for _, u := range v.units() {
		if !strings.HasPrefix(u.Exec[0], "/opt/plenum/") {
			t.Errorf("%s starts %s", u.Name, u.Exec[0])
		}
		u.Exec[0] = "/bin/sh"
		path := filepath.Join(dir, u.Name+".service")
		if err := os.WriteFile(path, []byte(u.Text()), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		if u.Name == "plenum-nomad" && (!slices.Contains(u.Options, "KillMode=process") || !slices.Contains(u.Options, "Delegate=yes")) {
			t.Errorf("Nomad's tasks would not outlive it: %v", u.Options)
		}
	}
	if out, err := exec.Command(verify, append([]string{"verify", "--man=no"}, paths...)...).CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
