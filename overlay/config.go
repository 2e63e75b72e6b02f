package overlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"plenum/overlay/roster"
)

// A Config is what overlay.json holds. The agent writes the file whole and sends SIGHUP.
type Config struct {
	Host   string   `json:"host"`             // this host's name in the roster
	Region string   `json:"region,omitempty"` // shown, not used
	Roles  []string `json:"roles"`            // the groups of this host; "server" is a lighthouse and a relay

	Control PlaneConfig `json:"control"`
	Media   PlaneConfig `json:"media"`

	Roster RosterConfig `json:"roster"`

	// Allow says who may reach what on the control plane. Without a rule nobody reaches anything but probes.
	Allow []Rule `json:"allow"`

	// Endpoints are hints where hosts may be found on the underlay; the servers' are what a host that joins
	// begins with.
	Endpoints map[string]roster.Endpoints `json:"endpoints,omitempty"`

	// Uplink is the rate of the slowest link that both planes leave by, bit/s. Media is held below it, so that
	// control never waits behind media in somebody else's queue. 0 leaves media alone.
	Uplink uint64 `json:"uplink,omitempty"`

	// Advertise are stable addresses of this host on the underlay, for hosts whose interfaces do not tell.
	Advertise []netip.Addr `json:"advertise,omitempty"`

	// Metrics is the address of /metrics; empty is port 9713 on the control plane.
	Metrics string `json:"metrics,omitempty"`
}

// A PlaneConfig is one network as this host takes part in it.
type PlaneConfig struct {
	Backend string       `json:"backend"` // nebula or wireguard
	Device  string       `json:"device"`  // default plenum-control, plenum-media
	Prefix  netip.Prefix `json:"prefix"`  // of the whole plane
	Address netip.Addr   `json:"address"` // of this host, in the prefix
	Port    uint16       `json:"port"`    // UDP on the underlay; default 4242 for Nebula, 51820 for WireGuard
	MTU     int          `json:"mtu"`     // default 1300 for control, 1380 for media: both fit a link of 1,460
	KeyFile string       `json:"key_file,omitempty"`
	Nebula  *Nebula      `json:"nebula,omitempty"`
}

// A RosterConfig says where records of peers come from. The key is the authority, sources are not.
type RosterConfig struct {
	Key    []byte `json:"key"`              // Ed25519 public key of the join service, base64
	File   string `json:"file,omitempty"`   // read again when it changes
	Consul string `json:"consul,omitempty"` // address of an agent, such as 127.0.0.1:8500
	Token  string `json:"token,omitempty"`  // for Consul: the file that holds it
}

const maxConfigBytes = 1 << 20

// ErrConfig wraps everything that is wrong with an overlay.json.
var ErrConfig = errors.New("overlay configuration")

// Load reads and validates the file at path. Relative file names in it are relative to its folder.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c, err := Parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	c.resolve(filepath.Dir(path))
	return c, nil
}

// Parse reads an overlay.json, fills in defaults and refuses contradictions. Unknown fields are errors:
// a misspelt rule must not open or close anything silently.
func Parse(b []byte) (Config, error) {
	var c Config
	if len(b) > maxConfigBytes {
		return c, fmt.Errorf("%w: larger than %d bytes", ErrConfig, maxConfigBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Config{}, fmt.Errorf("%w: something follows the object", ErrConfig)
	}
	if err := c.validate(); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return c, nil
}

func (c *Config) validate() error {
	if !validName(c.Host) {
		return fmt.Errorf("host %q is not a host name", c.Host)
	}
	for _, r := range c.Roles {
		if !validName(r) || r == "any" {
			return fmt.Errorf("role %q is not a name", r)
		}
	}
	for plane, p := range map[Plane]*PlaneConfig{Control: &c.Control, Media: &c.Media} {
		if err := p.validate(plane); err != nil {
			return fmt.Errorf("%s: %w", plane, err)
		}
	}
	switch {
	case c.Control.Device == c.Media.Device:
		return fmt.Errorf("both planes use device %s", c.Media.Device)
	case c.Control.Port == c.Media.Port:
		return fmt.Errorf("both planes use port %d", c.Media.Port)
	case c.Control.Prefix.Overlaps(c.Media.Prefix):
		return fmt.Errorf("prefixes %s and %s overlap", c.Control.Prefix, c.Media.Prefix)
	case len(c.Roster.Key) != 32:
		return fmt.Errorf("roster: the key has %d bytes, not 32", len(c.Roster.Key))
	case c.Roster.File == "" && c.Roster.Consul == "":
		return errors.New("roster: neither file nor consul is given")
	case c.Uplink != 0 && c.Uplink < 100_000:
		return fmt.Errorf("uplink of %d bit/s is too slow; the unit is bit/s", c.Uplink)
	}
	for _, r := range c.Allow {
		if err := r.validate(); err != nil {
			return err
		}
	}
	for _, a := range c.Advertise {
		if c.Control.Prefix.Contains(a) || c.Media.Prefix.Contains(a) {
			return fmt.Errorf("advertise: %s lies inside an overlay", a)
		}
	}
	if c.Metrics == "" {
		c.Metrics = netip.AddrPortFrom(c.Control.Address, Port).String()
	}
	return nil
}

func (p *PlaneConfig) validate(plane Plane) error {
	if p.Device == "" {
		p.Device = "plenum-" + string(plane)
	}
	if p.MTU == 0 {
		p.MTU = map[Plane]int{Control: 1300, Media: 1380}[plane]
	}
	switch p.Backend {
	case "nebula":
		if p.Nebula == nil || p.Nebula.CA == "" || p.Nebula.Cert == "" || p.Nebula.Key == "" {
			return errors.New("nebula needs ca, cert and key")
		}
		for _, f := range p.Nebula.Blocklist {
			if len(f) != 64 || strings.Trim(f, "0123456789abcdef") != "" {
				return fmt.Errorf("blocklist: %q is not a fingerprint", f)
			}
		}
		if p.Port == 0 {
			p.Port = 4242
		}
	case "wireguard":
		if p.KeyFile == "" {
			return errors.New("wireguard needs key_file")
		}
		if p.Port == 0 {
			p.Port = 51820
		}
	default:
		return fmt.Errorf("backend %q is neither nebula nor wireguard", p.Backend)
	}
	switch {
	case len(p.Device) > 15 || !validName(p.Device):
		return fmt.Errorf("device %q is not a name of at most 15 characters", p.Device)
	case !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Bits() == 0 || p.Prefix.Addr().Is4In6():
		return fmt.Errorf("prefix %q is not a network", p.Prefix)
	case !p.Prefix.Contains(p.Address) || p.Address.Zone() != "":
		return fmt.Errorf("address %s lies outside of %s", p.Address, p.Prefix)
	case p.MTU < minMTU(p.Address) || p.MTU > 9000:
		return fmt.Errorf("mtu %d is not between %d and 9000", p.MTU, minMTU(p.Address))
	}
	return nil
}

// minMTU is what IP asks of a link (RFC 791, RFC 8200).
func minMTU(a netip.Addr) int {
	if a.Is6() {
		return 1280
	}
	return 576
}

func (r Rule) validate() error {
	if len(r.From) == 0 || len(r.To) == 0 {
		return errors.New("allow: a rule needs from and to")
	}
	for _, g := range slices.Concat(r.From, r.To) {
		if !validName(g) {
			return fmt.Errorf("allow: group %q is not a name", g)
		}
	}
	switch r.Proto {
	case "tcp", "udp", "icmp", "any":
	default:
		return fmt.Errorf("allow: proto %q is none of tcp, udp, icmp, any", r.Proto)
	}
	_, _, err := r.ports()
	return err
}

// ports are the first and the last port; 0 and 65535 for any.
func (r Rule) ports() (first, last uint16, err error) {
	if r.Ports == "any" {
		return 0, 65535, nil
	}
	from, to, ranged := strings.Cut(r.Ports, "-")
	if !ranged {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return 0, 0, fmt.Errorf("allow: ports %q are neither a port, a range nor any", r.Ports)
	}
	return uint16(a), uint16(b), nil
}

// validName reports whether s is a label of letters, digits, dots, dashes and underscores, at most 63 long.
func validName(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.') {
			return false
		}
	}
	return s != "" && len(s) <= 63 && s != "." && s != ".."
}

// resolve makes file names absolute.
func (c *Config) resolve(dir string) {
	files := []*string{&c.Control.KeyFile, &c.Media.KeyFile, &c.Roster.File, &c.Roster.Token}
	for _, p := range []*PlaneConfig{&c.Control, &c.Media} {
		if p.Nebula != nil {
			files = append(files, &p.Nebula.CA, &p.Nebula.Cert, &p.Nebula.Key)
		}
	}
	for _, f := range files {
		if *f != "" && !filepath.IsAbs(*f) && !strings.Contains(*f, "-----BEGIN") {
			*f = filepath.Join(dir, *f)
		}
	}
}

// of is the configuration of one plane.
func (c *Config) of(p Plane) *PlaneConfig {
	if p == Media {
		return &c.Media
	}
	return &c.Control
}

// server reports whether this host is a lighthouse and a relay.
func (c *Config) server() bool { return slices.Contains(c.Roles, "server") }

// nests reports whether media may travel inside control where there is no other way: Nebula relays, WireGuard does not.
func (c *Config) nests() bool { return c.Control.Backend == "nebula" && c.Media.Backend == "wireguard" }
