package ice

import (
	"net/netip"
	"testing"

	"github.com/pion/stun/v3"
)

func TestAlive(t *testing.T) {
	for _, remote := range []string{"192.0.2.7:4711", "[2001:db8::7]:4711", "[::ffff:192.0.2.7]:4711"} {
		from := netip.MustParseAddrPort(remote)
		ask := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewSoftware("twenty-four bytes, padded"))
		b, ok := AppendAlive(nil, ask.Raw, from)
		if !ok || len(b) > len(ask.Raw) {
			t.Fatalf("%s: %d bytes to %d, %v", remote, len(b), len(ask.Raw), ok)
		}
		m := &stun.Message{Raw: b}
		if err := m.Decode(); err != nil || m.Type != stun.BindingSuccess || m.TransactionID != ask.TransactionID {
			t.Fatalf("%v %v", m, err)
		}
		var mapped stun.XORMappedAddress
		if err := mapped.GetFrom(m); err != nil || mapped.IP.String() != from.Addr().Unmap().String() || mapped.Port != 4711 {
			t.Errorf("%v, %v", mapped, err)
		}
	}
	from := netip.MustParseAddrPort("192.0.2.7:4711")
	for name, m := range map[string]*stun.Message{
		"short":      stun.MustBuild(stun.TransactionID, stun.BindingRequest), // its answer would be longer
		"named":      stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername("somebody:else"), stun.NewSoftware("padding")),
		"indication": stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodBinding, stun.ClassIndication), stun.NewSoftware("padding, as above")),
		"answer":     stun.MustBuild(stun.TransactionID, stun.BindingSuccess, stun.NewSoftware("padding, as above")),
	} {
		if b, ok := AppendAlive(nil, m.Raw, from); ok || len(b) > 0 {
			t.Errorf("%s was answered", name)
		}
	}
}

func FuzzAlive(f *testing.F) {
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewSoftware("padding")).Raw)
	f.Add(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername("a:b")).Raw)
	from := netip.MustParseAddrPort("192.0.2.7:4711")
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, ok := AppendAlive(nil, b, from); ok && len(out) > len(b) {
			t.Errorf("%d bytes for %d", len(out), len(b))
		}
	})
}
