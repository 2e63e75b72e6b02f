//go:build linux

package overlay_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"plenum/overlay"
	"plenum/overlay/netlab"
)

// TestExample shows four hosts on two planes, one of them at home behind a NAT. Somebody pulls a cable and puts it back. It needs root. Run it with
//
//	go test -count=1 -v -run TestExample ./overlay
func TestExample(t *testing.T) {
	var out strings.Builder
	c := newCluster(t, nil)
	c.every = "1s"
	wan := c.lab.Switch("wan")
	server := c.add("server", wan, "server")
	berlin := c.add("berlin", wan, "bridge")
	munich := c.add("munich", wan, "bridge")
	nat := c.lab.NAT("nat", wan, netlab.NATConfig{Kind: netlab.Symmetric})
	home := c.add("home", nat.Inside, "bridge")
	c.start()

	// show prints the whole matrix once it is as settled says.
	show := func(title string, paths int, settled func(overlay.Path) bool) {
		var rows []overlay.Status
		eventually(t, 60*time.Second, func() error {
			text, err := server.Run(c.binary, "matrix", server.root)
			if err != nil {
				return err
			}
			if rows = nil; json.Unmarshal([]byte(text), &rows) != nil {
				return fmt.Errorf("%s", text)
			}
			n := 0
			for _, row := range rows {
				for _, p := range row.Paths {
					if !settled(p) || p.Up && !p.Measured {
						return fmt.Errorf("%s: %+v", row.Host, p)
					}
					n++
				}
				if nat := row.Planes[overlay.Media].NAT; nat == overlay.NATUnknown || nat == overlay.NATMapped {
					return fmt.Errorf("%s does not know its NAT", row.Host)
				}
			}
			if n != paths {
				return fmt.Errorf("%d paths", n)
			}
			return nil
		})
		fmt.Fprintln(&out, title)
		for _, n := range []*node{server, berlin, munich, home} {
			for _, row := range rows {
				if row.Host != n.Name() {
					continue
				}
				fmt.Fprintf(&out, "%s (NAT: %s)\n", row.Host, row.Planes[overlay.Media].NAT)
				half := len(row.Paths) / 2 // control, then media, each by host
				for i, p := range row.Paths[:half] {
					fmt.Fprintf(&out, "  %-7s control %-14s media %s\n", p.Host, way(p), way(row.Paths[half+i]))
				}
			}
		}
	}
	direct := func(p overlay.Path) bool { return p.Up && p.Route == overlay.Direct && p.MTU >= 1300 }
	show("Everybody is up.", 24, direct)
	berlin.link.Down()
	show("Berlin's cable is pulled.", 18, func(p overlay.Path) bool { return p.Up != (p.Host == "berlin") })
	berlin.link.Up()
	show("And back.", 24, direct)
	if out.String() != example {
		t.Errorf("the matrix was\n%s\nnot\n%s", out.String(), example)
	}
	t.Log("\n" + out.String())
}

// example is what TestExample sees: per pair and plane the way and its MTU.
const example = `Everybody is up.
server (NAT: none)
  berlin  control direct, 1300   media direct, 1380
  home    control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
berlin (NAT: none)
  home    control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
munich (NAT: none)
  berlin  control direct, 1300   media direct, 1380
  home    control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
home (NAT: symmetric)
  berlin  control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
Berlin's cable is pulled.
server (NAT: none)
  berlin  control down           media down
  home    control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
munich (NAT: none)
  berlin  control down           media down
  home    control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
home (NAT: symmetric)
  berlin  control down           media down
  munich  control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
And back.
server (NAT: none)
  berlin  control direct, 1300   media direct, 1380
  home    control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
berlin (NAT: none)
  home    control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
munich (NAT: none)
  berlin  control direct, 1300   media direct, 1380
  home    control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
home (NAT: symmetric)
  berlin  control direct, 1300   media direct, 1380
  munich  control direct, 1300   media direct, 1380
  server  control direct, 1300   media direct, 1380
`

// way is one cell of the matrix.
func way(p overlay.Path) string {
	if !p.Up {
		return "down"
	}
	return fmt.Sprintf("%s, %d", p.Route, p.MTU)
}
