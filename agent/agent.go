// Package agent makes a machine a host of a cluster and keeps it one: init, join, leave, doctor, and the loop that
// observes, plans and applies. What a host should be is a pure function of what it knows (Desired); what is to be done
// is a pure function of that and of what is there (Plan); only apply changes anything, step by step, and a second run
// finds nothing to do. Who may join, and with which certificates, is agent/join's and agent/pki's; how a file or a
// service comes about on this kind of host is agent/host's.
package agent

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsimple"

	"plenum/agent/host"
	"plenum/agent/join"
)

// Where things lie on a host, below its root.
const (
	configFile   = "/etc/plenum/plenum.hcl"
	consulFile   = "/etc/plenum/consul.json"
	nomadFile    = "/etc/plenum/nomad.json"
	vaultFile    = "/etc/plenum/vault.json"
	stateDir     = "/var/lib/plenum"
	keyDir       = stateDir + "/keys"
	tlsDir       = stateDir + "/tls"
	nebulaDir    = stateDir + "/nebula"
	answerFile   = stateDir + "/answer.json"
	joinDir      = stateDir + "/join" // of the join service
	overlayFile  = stateDir + "/overlay.json"
	seedFile     = stateDir + "/roster-seed.json"
	tokenFile    = stateDir + "/keys/consul.token"
	binDir       = "/opt/plenum/bin" // what tasks see
	libDir       = "/opt/plenum/lib" // what only the host runs
	lockFile     = "/run/plenum/agent.lock"
	adminDir     = "/etc/plenum/admins"        // on the host that made the cluster: what admins take away
	foundingFile = stateDir + "/founding.json" // on the host that made the cluster
)

// Metrics is the agent's port, TCP, on the control plane.
const Metrics = 9710

// Addresses of the servers' APIs on every host that has them.
const (
	consulAddress = "127.0.0.1:8500"
	nomadAddress  = "127.0.0.1:4646"
	vaultAddress  = "127.0.0.1:8200"
)

// A Config is the agent block of plenum.hcl: what a host says of itself, and never what it may do.
type Config struct {
	// Host is its name in the cluster: a-z, 0-9 and inner hyphens, at most 40 bytes. The default is the first label of the
	// machine's own name.
	Host string `hcl:"host,optional"`
	// Address is a stable address of the host on the underlay; the default is that of the default route. Server hosts
	// need one.
	Address string `hcl:"address,optional"`
	// Public are addresses under which clients reach this host, where interfaces do not tell.
	Public []string `hcl:"public,optional"`
	// UplinkMbit is the rate of the slowest link on the way out, as its donor says; 0 is unknown.
	UplinkMbit int `hcl:"uplink_mbit,optional"`
	// Every is how often the loop looks. The default is 5 s.
	Every string `hcl:"every,optional"`
	// Unseal is file or shamir: whether Vault is unsealed from a file that root alone reads, or by people.
	Unseal string `hcl:"unseal,optional"`
	// HostLife and ServerLife are how long the certificates live that this server's join service makes, 14 and 90 days
	// by default. They are chosen by init; tests make them short.
	HostLife   string `hcl:"host_life,optional"`
	ServerLife string `hcl:"server_life,optional"`

	root string
}

// A file is plenum.hcl as far as the agent reads it.
type file struct {
	Agent  *Config  `hcl:"agent,block"`
	Others hcl.Body `hcl:",remain"` // the blocks of other rooms
}

// LoadConfig reads plenum.hcl below root; a file that is not there is an empty one.
func LoadConfig(root string) (Config, error) {
	h, err := host.Open(root)
	if err != nil {
		return Config{}, err
	}
	var f file
	text, err := h.Read(configFile)
	if err == nil {
		err = hclsimple.Decode(h.Path(configFile), text, nil, &f)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Config{}, err
	}
	if f.Agent == nil {
		f.Agent = &Config{}
	}
	f.Agent.root = h.Root()
	return *f.Agent, f.Agent.validate()
}

func (c *Config) validate() error {
	if c.Unseal = cmp.Or(c.Unseal, "file"); c.Unseal != "file" && c.Unseal != "shamir" {
		return fmt.Errorf("agent: unseal %q is neither file nor shamir", c.Unseal)
	}
	c.Every, c.HostLife, c.ServerLife = cmp.Or(c.Every, "5s"), cmp.Or(c.HostLife, "336h"), cmp.Or(c.ServerLife, "2160h")
	for name, text := range map[string]string{"every": c.Every, "host_life": c.HostLife, "server_life": c.ServerLife} {
		if duration(text) <= 0 {
			return fmt.Errorf("agent: %s %q is not a duration such as 5s", name, text)
		}
	}
	for _, a := range slices.Concat(c.Public, []string{cmp.Or(c.Address, "::")}) {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("agent: %q is not an address", a)
		}
	}
	if c.UplinkMbit < 0 {
		return fmt.Errorf("agent: uplink_mbit is %d", c.UplinkMbit)
	}
	return nil
}

// duration is what validate has seen already; 0 when it is none.
func duration(text string) time.Duration {
	d, _ := time.ParseDuration(text)
	return d
}

// text is the agent block as it is written.
func (c *Config) text() []byte {
	var b []byte
	b = fmt.Appendf(b, "# %s\n\nagent {\n", "What this host says of itself. Edit, then: plenum join (again), or wait for the agent.")
	line := func(key string, value any) {
		text, _ := json.Marshal(value)
		b = fmt.Appendf(b, "  %s = %s\n", key, text)
	}
	line("host", c.Host)
	if c.Address != "" {
		line("address", c.Address)
	}
	if len(c.Public) > 0 {
		line("public", c.Public)
	}
	if c.UplinkMbit != 0 {
		line("uplink_mbit", c.UplinkMbit)
	}
	for _, o := range []struct{ key, value, usual string }{{"every", c.Every, "5s"}, {"unseal", c.Unseal, "file"},
		{"host_life", c.HostLife, "336h"}, {"server_life", c.ServerLife, "2160h"}} {
		if o.value != o.usual {
			line(o.key, o.value)
		}
	}
	return append(b, "}\n"...)
}

// loadAnswer reads what the join service said last. ok is false before the host has joined.
func loadAnswer(h *host.Host) (a join.Answer, ok bool, err error) {
	b, err := h.Read(answerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return a, false, nil
	}
	if err == nil {
		if err = json.Unmarshal(b, &a); err != nil {
			err = fmt.Errorf("%w: remove it, then plenum join with a new token: the host keeps its name and addresses by its key", err)
		}
	}
	if err != nil {
		return a, false, fmt.Errorf("%s: %w", h.Path(answerFile), err)
	}
	return a, true, nil
}

func saveAnswer(h *host.Host, a join.Answer) error {
	b, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		return err
	}
	return h.Write(answerFile, append(b, '\n'), 0o600)
}

// sum is the SHA-256 of a file of this process.
func sum(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := sha256.Sum256(b)
	return s[:], nil
}

// program is where a binary lies on the host. Its name says what is in it, so an upgrade never changes a file that runs.
func program(b join.Binary) string {
	if b.Name == "plenum" {
		return filepath.Join(binDir, "plenum-"+b.Version)
	}
	return filepath.Join(libDir, b.Name+"-"+hex.EncodeToString(b.SHA256[:min(6, len(b.SHA256))]))
}
