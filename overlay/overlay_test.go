//go:build linux

package overlay_test

import (
	"context"
	"testing"
	"time"

	"plenum/overlay"
)

// every is each way to give two backends to two planes.
func eachBackend(t *testing.T, f func(t *testing.T, b map[overlay.Plane]string)) {
	for _, control := range []string{"nebula", "wireguard"} {
		for _, media := range []string{"wireguard", "nebula"} {
			t.Run(control+"-"+media, func(t *testing.T) {
				f(t, map[overlay.Plane]string{overlay.Control: control, overlay.Media: media})
			})
		}
	}
}

func TestTwoPlanesComeUp(t *testing.T) {
	eachBackend(t, func(t *testing.T, b map[overlay.Plane]string) {
		c := newCluster(t, b)
		sw := c.lab.Switch("net")
		server := c.add("server", sw, "server")
		c.add("ber-1", sw, "bridge")
		c.add("muc-1", sw, "bridge")
		start := time.Now()
		c.start()
		c.up(20 * time.Second)
		t.Logf("up after %s", time.Since(start))
		var rows []overlay.Status
		check(t, server.Do(func() error { // HTTP to the others goes by control
			var err error
			rows, err = overlay.Matrix(context.Background(), server.root)
			return err
		}))
		for _, r := range rows {
			t.Logf("%s %v %v", r.Host, r.Planes, r.Problems)
			for _, p := range r.Paths {
				t.Logf("  %+v", p)
			}
		}
	})
}
