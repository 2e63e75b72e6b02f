//go:build linux

package main

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/overlay/netlab"
)

// TestNewAddress gives somebody in a call another address, and counts until hearing and seeing go on both ways: the provider
// renumbers the home, and, for make chaos, the cable to the home's network is pulled and the mobile one is left.
func TestNewAddress(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	lab := netlab.New(t)
	wan := lab.Switch("wan")
	server := lab.Host("server")
	lab.Link(server, wan, netlab.LinkConfig{})
	home := lab.NAT("home", wan, netlab.NATConfig{Kind: netlab.PortRestrictedCone})
	mobile := lab.NAT("mobile", wan, netlab.NATConfig{Kind: netlab.Symmetric})
	guest := lab.Host("guest")
	cable := lab.Link(guest, home.Inside, netlab.LinkConfig{})
	lab.Link(guest, mobile.Inside, netlab.LinkConfig{})

	self, err := os.Executable() // which is plenum or a participant when it is called so: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	at := server.Addr().String()
	ready := server.Path("/run/ready.json")
	server.StartCmd(&exec.Cmd{Path: self, Args: []string{
		"plenum", "dev", "--http", at + ":8000", "--media", at + ":10000", "--xmpp", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
		"--bridge-http", "127.0.0.1:0", "--resume-key", "secret", "--ready-file", "/run/ready.json",
	}})
	for end := time.Now().Add(mediaLimit); ; time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(ready); err == nil && json.Valid(text) {
			break
		} else if time.Now().After(end) {
			t.Fatal("plenum dev is not ready")
		}
	}
	var listening sync.WaitGroup
	t.Cleanup(listening.Wait)
	join := func(h *netlab.Host) *remote {
		out, write := io.Pipe()
		in, keep, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := h.StartCmd(&exec.Cmd{Path: self, Args: []string{"participant", "http://" + at + ":8000", "away"}, Stdin: in, Stdout: write})
		in.Close()
		t.Cleanup(func() {
			keep.Close()
			p.Signal(syscall.SIGKILL)
			p.Wait()
			write.Close()
		})
		r := &remote{t: t}
		listening.Go(func() { r.listen(out) })
		return r
	}
	one, other := join(guest), join(server)
	both := func(limit time.Duration, since time.Time) word {
		t.Helper()
		other.await(limit, "hears and sees the guest", gets(1, since))
		return one.await(limit, "hears and sees", gets(1, since))
	}
	first := both(mediaLimit, time.Now())
	measure := func(what string, change func(), limit time.Duration) {
		t.Helper()
		change()
		began := time.Now()
		w := both(limit, began.Add(200*time.Millisecond)) // nothing that was under way
		t.Logf("%s: heard and seen both ways after %v; %d resumptions, %d media sessions", what, time.Since(began).Round(time.Millisecond), w.Resumptions, w.Sessions)
		if w.ID != first.ID {
			t.Errorf("%s: it is somebody else now", what)
		}
	}
	measure("another address of the home", func() { home.Outside.Renumber(home.Host) }, mediaLimit)
	if fullLength() {
		measure("from the cable to the mobile network", func() {
			cable.Down()
			for _, gateway := range mobile.Addrs() {
				if mobile.Inside.Prefixes()[0].Contains(gateway) {
					if out, err := guest.Run("ip", "route", "replace", "default", "via", gateway.String()); err != nil {
						t.Fatal(out)
					}
				}
			}
		}, 2*time.Minute)
	}
}
