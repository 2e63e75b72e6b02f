package overlay

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestQuiet lets a peer that is refused ten times a second have its line a minute, whatever the words are.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := Quiet(slog.New(slog.NewTextHandler(&out, nil)))
		expired := log.With("vpnAddrs", []netip.Addr{netip.MustParseAddr("10.99.0.7")})
		for i := range 1800 {
			expired.Info("handshake")
			expired.Error(fmt.Sprintf("certificate is expired, attempt %d", i))
			log.Info("invalid certificate", "from", netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), uint16(i)))
			time.Sleep(100 * time.Millisecond)
		}
		for _, what := range []string{"10.99.0.7", "192.0.2.7"} {
			if n := strings.Count(out.String(), what); n < 2 || n > 4 {
				t.Errorf("%d lines about %s in three minutes:\n%s", n, what, out.String())
			}
		}
		out.Reset()
		for i := range 1000 {
			log.Info("noise", "udpAddr", netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1))
		}
		if n := strings.Count(out.String(), "\n"); n > quietLines {
			t.Errorf("%d lines at once", n)
		}
	})
}
