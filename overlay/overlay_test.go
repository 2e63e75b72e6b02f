//go:build linux

package overlay_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"plenum/overlay"
	"plenum/overlay/netlab"
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
		eventually(t, 5*time.Second, func() error {
			out, err := server.Run(c.binary, "matrix", server.root)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 3 {
				return fmt.Errorf("%d rows, %w", len(rows), err)
			}
			for _, r := range rows {
				if len(r.Paths) != 4 || len(r.Problems) > 0 {
					return fmt.Errorf("%s: %d paths, problems %v", r.Host, len(r.Paths), r.Problems)
				}
				for _, p := range r.Paths {
					if !p.Up || p.Route != overlay.Direct || p.RTT <= 0 || p.Handshake.IsZero() {
						return fmt.Errorf("%s: %+v", r.Host, p)
					}
				}
			}
			return nil
		})
		// The matrix is in the metrics, of both planes, for whoever may reach them on control.
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: server.Dial}}
		eventually(t, 10*time.Second, func() error {
			answer, err := client.Get("http://" + netip.AddrPortFrom(c.nodes[1].record.Control, overlay.Port).String() + "/metrics")
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			if err != nil {
				return err
			}
			for _, want := range []string{`path_up{peer="muc-1",plane="media"} 1`, `path_up{peer="server",plane="control"} 1`,
				`path_rtt_seconds{peer="muc-1",plane="media"} `, `path_loss_ratio{peer="muc-1",plane="media"} `, `path_mtu_bytes{peer="muc-1",plane="media"} 1380`,
				`path_handshake_age_seconds{peer="muc-1",plane="control"} `, `path_relayed{peer="muc-1",plane="control"} 0`, `nat{kind="none",plane="media"} 1`} {
				if !strings.Contains(string(text), "plenum_overlay_"+want) {
					return fmt.Errorf("no %s in the metrics", want)
				}
			}
			return nil
		})
	})
}

// TestManyPeers gives one host a hundred peers of which none answers, the worst case for what it keeps and tries.
func TestManyPeers(t *testing.T) {
	c := newCluster(t, nil)
	sw := c.lab.Switch("net")
	n := c.add("server", sw, "server")
	c.add("ber-1", sw, "bridge")
	for i := range 100 {
		h := &node{Host: n.Host, cluster: c, cfg: n.cfg, record: n.record}
		h.record.Host = fmt.Sprintf("ghost-%d", i)
		h.record.WireGuard = x25519(t).PublicKey().Bytes()
		h.record.Control = netip.AddrFrom4([4]byte{10, 99, 1, byte(i)})
		h.record.Media = netip.AddrFrom4([4]byte{10, 98, 1, byte(i)})
		h.record.Roles = []string{"bridge"}
		c.ghosts = append(c.ghosts, h.record)
	}
	c.every = "5s"
	c.start()
	c.up(20 * time.Second)
	if s := n.status(); s.Hosts != 102 {
		t.Fatalf("%d hosts in the roster", s.Hosts)
	}
	before, _ := usage(t, n)
	time.Sleep(5 * time.Second) // what is measured is time itself
	after, resident := usage(t, n)
	t.Logf("with 101 peers: %d MiB resident, %.1f %% of a core", resident>>20, 100*(after-before).Seconds()/5)
	if resident > 80<<20 && !slow {
		t.Errorf("%d MiB resident", resident>>20)
	}
}

// usage is the processor time and the resident memory of the overlay's process.
func usage(t netlab.TB, n *node) (cpu time.Duration, resident int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.process.PID()))
	check(t, err)
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	number := func(i int) int {
		v, err := strconv.Atoi(fields[i])
		check(t, err)
		return v
	}
	const tick = 10 * time.Millisecond
	return time.Duration(number(11)+number(12)) * tick, number(21) * os.Getpagesize()
}
