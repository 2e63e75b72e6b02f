package nebula

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/slackhq/nebula/cert"
	"go.yaml.in/yaml/v3"

	"plenum/overlay"
)

// socketBuffer is what the kernel keeps at most while this process does not get to run, bytes; WireGuard's is as large.
const socketBuffer = 7 << 20

// dict is one level of Nebula's configuration.
type dict = map[string]any

// render writes Nebula's configuration for a device and its peers. PEM is put in by value, so that a change
// of a certificate's file is a change of the configuration.
func render(d overlay.Device, peers []overlay.Peer) (string, error) {
	if d.Nebula == nil {
		return "", errors.New("nebula: no identity given")
	}
	ca, err := pem(d.Nebula.CA)
	if err != nil {
		return "", err
	}
	crt, err := pem(d.Nebula.Cert)
	if err != nil {
		return "", err
	}
	key, err := pem(d.Nebula.Key)
	if err != nil {
		return "", err
	}
	static, lighthouses := dict{}, []string{}
	for _, p := range peers {
		if p.Lighthouse && len(p.Endpoints) > 0 {
			var at []string
			for _, e := range p.Endpoints {
				at = append(at, e.String())
			}
			slices.Sort(at) // their order is no news
			static[p.Address.String()] = at
			lighthouses = append(lighthouses, p.Address.String())
		}
	}
	slices.Sort(lighthouses)
	relays := lighthouses
	if d.Lighthouse {
		lighthouses, relays = []string{}, []string{}
	}
	blocklist := slices.Clone(d.Nebula.Blocklist)
	slices.Sort(blocklist)
	text, err := yaml.Marshal(dict{
		"pki": dict{"ca": ca, "cert": crt, "key": key, "blocklist": blocklist, "disconnect_invalid": true},
		// [::] takes IPv4 as well.
		// The kernel's own buffer of 208 KiB is full after a few ms of a busy machine.
		"listen":          dict{"host": "::", "port": int(d.Port), "read_buffer": socketBuffer, "write_buffer": socketBuffer},
		"static_host_map": static,
		"lighthouse": dict{"am_lighthouse": d.Lighthouse, "hosts": lighthouses, "interval": 10, "advertise_addrs": nonNil(d.Advertise),
			// Never offer an address of an overlay as one of the underlay, nor believe one.
			"local_allow_list": dict{"interfaces": dict{"plenum-.*": false, "docker.*": false, "nomad": false}}},
		"relay": dict{"am_relay": d.Lighthouse, "use_relays": !d.Lighthouse, "relays": relays},
		// Answering a punch with a handshake is what gets two NATs past each other. Mappings are kept by the
		// overlay's probes.
		"punchy": dict{"punch": false, "respond": true, "delay": "100ms", "respond_delay": "500ms"},
		"tun":    dict{"dev": d.Name, "mtu": d.MTU, "tx_queue": 2000},
		// A dead way is given up after 2 to 6 s, a certificate that ended or is blocked after 2.
		"timers":     dict{"connection_alive_interval": 2, "pending_deletion_interval": 4},
		"handshakes": dict{"try_interval": "100ms", "retries": 10},
		"counters":   dict{"try_promote": 100},
		"firewall": dict{
			"outbound": []dict{{"port": "any", "proto": "any", "host": "any"}},
			"inbound":  inbound(d),
		},
	})
	return string(text), err
}

// inbound are the rules of this host: those of the table whose To is one of its groups.
func inbound(d overlay.Device) []dict {
	if d.Firewall == nil {
		return []dict{{"port": "any", "proto": "any", "host": "any"}}
	}
	rules := []dict{
		{"port": "any", "proto": "icmp", "host": "any"},
		{"port": overlay.Port, "proto": "udp", "host": "any"},
	}
	for _, r := range d.Firewall {
		if !slices.ContainsFunc(r.To, func(g string) bool { return g == "any" || slices.Contains(d.Groups, g) }) {
			continue
		}
		for _, from := range r.From {
			rule := dict{"port": r.Ports, "proto": r.Proto}
			if from == "any" {
				rule["host"] = "any"
			} else {
				rule["group"] = from
			}
			rules = append(rules, rule)
		}
	}
	return rules
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// pem returns the PEM text itself, or that in the file it names.
func pem(s string) (string, error) {
	if strings.Contains(s, "-----BEGIN") {
		return s, nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return "", fmt.Errorf("nebula: %w", err)
	}
	return string(b), nil
}

// check refuses an identity that Nebula would refuse, before any of it is applied.
func check(d overlay.Device) error {
	text, err := pem(d.Nebula.Cert)
	if err != nil {
		return err
	}
	crt, _, err := cert.UnmarshalCertificateFromPEM([]byte(text))
	if err != nil {
		return fmt.Errorf("nebula: certificate: %w", err)
	}
	if !slices.ContainsFunc(crt.Networks(), func(p netip.Prefix) bool { return p == d.Address }) {
		return fmt.Errorf("nebula: the certificate is for %v, not for %s", crt.Networks(), d.Address)
	}
	if now := time.Now(); crt.Expired(now) {
		return fmt.Errorf("nebula: the certificate is valid from %s to %s only", crt.NotBefore(), crt.NotAfter())
	}
	text, err = pem(d.Nebula.Key)
	if err != nil {
		return err
	}
	key, _, curve, err := cert.UnmarshalPrivateKeyFromPEM([]byte(text))
	if err != nil {
		return fmt.Errorf("nebula: key: %w", err)
	}
	if err := crt.VerifyPrivateKey(curve, key); err != nil {
		return fmt.Errorf("nebula: key: %w", err)
	}
	if text, err = pem(d.Nebula.CA); err != nil {
		return err
	}
	if _, err := cert.NewCAPoolFromPEM([]byte(text)); err != nil && !errors.Is(err, cert.ErrExpired) {
		return fmt.Errorf("nebula: CA: %w", err)
	}
	return nil
}
