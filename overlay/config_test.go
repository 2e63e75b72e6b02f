package overlay

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const sample = `{
  "host": "ber-1", "region": "ber", "roles": ["server", "bridge"],
  "control": {"backend": "nebula", "prefix": "10.99.0.0/16", "address": "10.99.0.1",
    "nebula": {"ca": "ca.crt", "cert": "host.crt", "key": "host.key"}},
  "media": {"backend": "wireguard", "prefix": "fd00:98::/64", "address": "fd00:98::1", "key_file": "/etc/wg.key"},
  "roster": {"key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "file": "roster.json"},
  "endpoints": {"muc-1": {"control": ["192.0.2.1:4242"]}},
  "allow": [{"from": ["any"], "to": ["server"], "proto": "tcp", "ports": "8300-8302"}]
}`

func TestParse(t *testing.T) {
	c, err := Parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	c.resolve("/var/lib/plenum")
	if c.Control.Port != 4242 || c.Media.Port != 51820 || c.Control.Device != "plenum-control" || c.Media.MTU != 1380 ||
		c.Control.Nebula.CA != "/var/lib/plenum/ca.crt" || c.Media.KeyFile != "/etc/wg.key" || c.Metrics != "10.99.0.1:9713" || !c.server() {
		t.Errorf("%+v", c)
	}
	for _, test := range []struct{ from, to, want string }{
		{`"host": "ber-1"`, `"host": "../x/"`, "host name"},
		{`"backend": "nebula"`, `"backend": "ipsec"`, "neither nebula nor wireguard"},
		{`"prefix": "10.99.0.0/16"`, `"prefix": "10.99.0.1/16"`, "not a network"},
		{`"address": "10.99.0.1"`, `"address": "10.98.0.1"`, "outside"},
		{`fd00:98::/64", "address": "fd00:98::1"`, `10.99.4.0/24", "address": "10.99.4.1"`, "overlap"},
		{`"key_file": "/etc/wg.key"`, `"key_file": "/etc/wg.key", "port": 4242`, "port 4242"},
		{`"key_file": "/etc/wg.key"`, `"key_file": "/etc/wg.key", "device": "plenum-control"`, "device"},
		{`"key_file": "/etc/wg.key"`, `"key_file": "/etc/wg.key", "mtu": 1200`, "mtu"},
		{`AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=`, `AAAA`, "3 bytes"},
		{`, "file": "roster.json"`, ``, "neither file nor consul"},
		{`"8300-8302"`, `"8302-8300"`, "ports"},
		{`"proto": "tcp"`, `"proto": "sctp"`, "proto"},
		{`"from": ["any"]`, `"form": ["any"]`, "unknown field"},
		{`"from": ["any"]`, `"from": []`, "from and to"},
		{`"allow"`, `"uplink": 20, "allow"`, "too slow"},
		{`"allow"`, `"advertise": ["10.99.0.7"], "allow"`, "inside an overlay"},
		{`"region"`, `} {"region"`, ""},
	} {
		text := strings.Replace(sample, test.from, test.to, 1)
		if text == sample {
			t.Fatalf("%s is not in the sample", test.from)
		}
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.to, err, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"control":{"prefix":"::/0","address":"::1%eth0"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(text); err != nil {
			t.Errorf("%s is refused: %v", text, err)
		}
	})
}
