package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"plenum/agent/host"
	"plenum/agent/join"
	"plenum/overlay/guard"
)

// A Desired is what a host should be. Everything in it is made or put right, in this order, and nothing else is
// touched.
type Desired struct {
	Folders  []Folder
	Sysctls  []Sysctl
	Programs []join.Binary
	Files    []File
	Services []Service
}

// A Folder is made if it is not there.
type Folder struct {
	Path string
	Mode fs.FileMode
	Why  string
}

// A Sysctl is a kernel setting that is at least as high.
type Sysctl struct {
	Key string
	Min int64
	Why string
}

// A File has exactly this content.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
	Why  string
	Once bool // it is left alone once it is there: people change it, or the program that reads it
}

// A Service runs.
type Service struct {
	host.Unit
	Why     string
	Restart []string // files whose change it notices only when it starts
	Reload  []string // files that it reads again when it gets SIGHUP
}

// Observed is what is there, as far as a Desired asks.
type Observed struct {
	Folders  map[string]fs.FileMode
	Sysctls  map[string]int64
	Programs map[string]bool
	Files    map[string]string // content's digest and mode
	Services map[string]serviceState
}

// A serviceState is a service, and what the files were that it has read.
type serviceState struct {
	host.State
	Restart string `json:"restart"` // digest of its Restart files when it started
	Reload  string `json:"reload"`  // of its Reload files when it last read them
}

// A Step is one thing to do.
type Step struct {
	Kind string `json:"kind"` // folder, sysctl, program, file, service; in plans also what commands and networks do
	What string `json:"what"` // "start Consul"
	Why  string `json:"why"`
	Unit string `json:"unit,omitempty"` // of a service

	folder  *Folder
	sysctl  *Sysctl
	program *join.Binary
	file    *File
	service *Service
	act     string // of a service: start, restart, reload
}

// sysctls are the kernel settings of every host.
var sysctls = []Sysctl{
	{"net.core.rmem_max", 16 << 20, "a burst of packets waits in the socket instead of being lost"},
	{"net.core.wmem_max", 16 << 20, "a batch to everybody in a room fits the socket"},
	{"fs.inotify.max_user_instances", 512, "one for each task"},
	{"net.core.somaxconn", 4096, "a room that joins at once"},
}

// desired is what v's host should be.
func (v *view) desired() Desired {
	a := v.answer
	d := Desired{
		Folders: []Folder{
			{"/etc/plenum", 0o755, "configuration"},
			{stateDir, 0o755, "state"},
			{keyDir, 0o700, "private keys, made here and never sent"},
			{tlsDir, 0o755, "certificates of Consul, Nomad and Vault"},
			{nebulaDir, 0o755, "certificates of the control network"},
			{"/run/plenum", 0o755, "sockets and locks"},
			{"/var/log/plenum", 0o750, "logs"},
			{binDir, 0o755, "the program that tasks run"},
			{libDir, 0o755, "programs of the host"},
			{stateDir + "/consul", 0o700, "Consul's data"},
			{stateDir + "/nomad", 0o755, "Nomad's data"},
			{stateDir + "/nomad/client", 0o700, "Nomad's own state"},
		},
		Sysctls:  sysctls,
		Programs: slices.DeleteFunc(slices.Clone(a.Binaries), func(b join.Binary) bool { return b.Name == "vault" && !v.is(join.RoleServer) }),
		Files: []File{
			{configFile, v.cfg.text(), 0o644, "what this host says of itself", true},
			{seedFile, v.seed(), 0o600, "signed records of the hosts, to begin with", false},
			{nebulaDir + "/ca.crt", []byte(a.NebulaCA), 0o644, "who may sign hosts of the control network", false},
			{nebulaDir + "/host.crt", []byte(a.NebulaCert), 0o644, v.lasting(), false},
			{overlayFile, v.overlay(), 0o600, "both networks of this host", false},
		},
	}
	if len(a.TLSCert) > 0 {
		d.Files = append(d.Files,
			File{tlsDir + "/ca.pem", []byte(a.TLSCA), 0o644, "who may sign for Consul, Nomad and Vault", false},
			File{tlsDir + "/cert.pem", []byte(a.TLSCert), 0o644, "this host's certificate towards them", false})
	}
	d.Files = append(d.Files, File{consulFile, v.consul(), 0o600, "Consul: " + v.part(), false},
		File{nomadFile, v.nomad(), 0o600, "Nomad: " + v.part() + ", pool " + a.Nomad.Pool, false})
	d.Files = append(d.Files, v.helpers()...)
	if a.Consul.Token != "" {
		d.Files = append(d.Files, File{tokenFile, []byte(a.Consul.Token + "\n"), 0o600, "this host's token towards Consul", false})
	}
	if a.Nomad.Introduction != "" {
		d.Files = append(d.Files, File{stateDir + "/nomad/client/intro_token.jwt", []byte(a.Nomad.Introduction), 0o600, "introduces this host to Nomad", true})
	}
	tls := []string{tlsDir + "/ca.pem", tlsDir + "/cert.pem"}
	reasons := map[string]Service{
		"plenum-overlay": {Why: "control and media between hosts, encrypted", Reload: []string{overlayFile, nebulaDir + "/ca.crt", nebulaDir + "/host.crt"}},
		"plenum-vault":   {Why: "signs certificates; its keys never leave it", Restart: []string{vaultFile}, Reload: tls},
		"plenum-consul":  {Why: "who is there, and who owns a room", Reload: append([]string{consulFile}, tls...)},
		"plenum-nomad":   {Why: "places shards and bridges", Restart: []string{nomadFile}, Reload: tls},
		"plenum-agent":   {Why: "keeps all this as it should be, and renews certificates"},
	}
	if v.is(join.RoleServer) {
		d.Folders = append(d.Folders, Folder{stateDir + "/vault", 0o700, "Vault's storage"})
		d.Files = append(d.Files, File{vaultFile, v.vault(), 0o600, "Vault: integrated storage, on loopback", false})
	}
	for _, u := range v.units() {
		s := reasons[u.Name]
		s.Unit = u
		d.Services = append(d.Services, s)
	}
	return d
}

// lasting says what the host's certificate is, and until when where it is known.
func (v *view) lasting() string {
	if v.answer.CertificateTo.IsZero() {
		return "this host's certificate"
	}
	return "this host's certificate, until " + v.answer.CertificateTo.UTC().Format("2006-01-02 15:04 MST")
}

// networkSteps are what the networks' process does when it starts, for the eyes of who reads a plan.
func (v *view) networkSteps() []Step {
	control, media := "the cluster's control prefix", "its media prefix"
	if v.answer.Control.IsValid() {
		control, media = v.answer.Control.Masked().String(), v.answer.Media.Masked().String()
	}
	return []Step{
		{Kind: "interface", What: "make " + controlDevice, Why: control + ": Nebula on UDP 4242"},
		{Kind: "interface", What: "make " + mediaDevice, Why: media + ": WireGuard on UDP 51820"},
		{Kind: "firewall rule", What: "nftables: table inet " + guard.Table, Why: "drops packets of " + control + " and " + media + " on every other interface; it admits nothing"},
		{Kind: "route", What: "unreachable " + control + " and " + media, Why: "while a network is down its packets go nowhere"},
	}
}

// part says what the host is to Consul and Nomad.
func (v *view) part() string {
	if v.is(join.RoleServer) {
		return "server and client"
	}
	return "client"
}

// only keeps the services named, with everything else.
func (d Desired) only(services ...string) Desired {
	d.Services = slices.DeleteFunc(slices.Clone(d.Services), func(s Service) bool { return !slices.Contains(services, s.Name) })
	return d
}

// Plan says what is to be done to get from o to d, and nothing when that is nothing. It is pure.
func Plan(d Desired, o Observed) []Step {
	var steps []Step
	for _, f := range d.Folders {
		if mode, ok := o.Folders[f.Path]; !ok || mode != f.Mode {
			steps = append(steps, Step{Kind: "folder", What: "make " + f.Path, Why: f.Why, folder: &f})
		}
	}
	for _, s := range d.Sysctls {
		if o.Sysctls[s.Key] < s.Min {
			steps = append(steps, Step{Kind: "sysctl", What: "set " + s.Key + " = " + strconv.FormatInt(s.Min, 10), Why: s.Why, sysctl: &s})
		}
	}
	for _, p := range d.Programs {
		if !o.Programs[program(p)] {
			why := "as the join service tells its SHA-256" // the plan of a host that has not joined
			if len(p.SHA256) > 0 {
				why = "SHA-256 " + hex.EncodeToString(p.SHA256)
			}
			steps = append(steps, Step{Kind: "program", What: fmt.Sprintf("install %s %s", p.Name, p.Version), Why: why, program: &p})
		}
	}
	wanted := map[string]string{}
	for _, f := range d.Files {
		seen, there := o.Files[f.Path]
		wanted[f.Path] = digest(f.Data, f.Mode)
		if f.Once && there {
			wanted[f.Path] = seen
			continue
		}
		if seen != wanted[f.Path] {
			verb := "write "
			if there {
				verb = "change "
			}
			steps = append(steps, Step{Kind: "file", What: verb + f.Path, Why: f.Why, file: &f})
		}
	}
	for _, s := range d.Services {
		state := o.Services[s.Name]
		step := Step{Kind: "service", Why: s.Why, Unit: s.Name, service: &s}
		switch restart, reload := files(s.Restart, wanted), files(s.Reload, wanted); {
		case !state.Running:
			step.act, step.What = "start", "start "+describe(s.Name)
		case state.Unit != s.Digest():
			step.act, step.What, step.Why = "restart", "restart "+describe(s.Name), "its unit changed"
		case state.Restart != restart:
			step.act, step.What, step.Why = "restart", "restart "+describe(s.Name), "its configuration changed"
		case state.Reload != reload:
			step.act, step.What, step.Why = "reload", "reload "+describe(s.Name), "its configuration or certificates changed"
		default:
			continue
		}
		steps = append(steps, step)
	}
	return steps
}

func digest(data []byte, mode fs.FileMode) string {
	s := sha256.Sum256(data)
	return fmt.Sprintf("%x %o", s[:12], mode.Perm())
}

// files is one digest of several files.
func files(paths []string, digests map[string]string) string {
	var all []string
	for _, p := range paths {
		all = append(all, digests[p])
	}
	return digest([]byte(strings.Join(all, "\n")), 0)
}

// String is a plan's line.
func (s Step) String() string { return s.What + ": " + s.Why }

// marshalSteps writes steps as JSON, one object a line.
func marshalSteps(steps []Step) []byte {
	if steps == nil {
		steps = []Step{}
	}
	b, err := json.MarshalIndent(steps, "", "  ")
	if err != nil {
		panic("agent: " + err.Error())
	}
	return append(b, '\n')
}
