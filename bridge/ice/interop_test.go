package ice

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	pion "github.com/pion/ice/v4"
	"go.uber.org/goleak"

	"plenum/bridge/packet"
)

// Another implementation connects over loopback in less than 300 ms in either role, with candidates signalled
// in one direction only, as with Jitsi's clients.
func TestInterop(t *testing.T) {
	for _, controlling := range []bool{true, false} {
		name := map[bool]string{true: "we control", false: "we are controlled"}[controlling]
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			creds, err := NewCredentials(nil)
			if err != nil {
				t.Fatal(err)
			}
			a, err := New(Config{Controlling: controlling, Local: creds, Sockets: []netip.AddrPort{local}})
			if err != nil {
				t.Fatal(err)
			}
			them, err := pion.NewAgentWithOptions(
				pion.WithNetworkTypes([]pion.NetworkType{pion.NetworkTypeUDP4}),
				pion.WithIncludeLoopback(),
				pion.WithInterfaceFilter(func(n string) bool { return n == "lo" }),
				pion.WithMulticastDNSMode(pion.MulticastDNSModeDisabled),
			)
			if err != nil {
				t.Fatal(err)
			}
			defer them.Close()
			if err := them.OnCandidate(func(pion.Candidate) {}); err != nil {
				t.Fatal(err)
			}
			if err := them.GatherCandidates(); err != nil {
				t.Fatal(err)
			}
			ufrag, pwd, err := them.GetLocalUserCredentials()
			if err != nil {
				t.Fatal(err)
			}
			c, err := pion.NewCandidateHost(&pion.CandidateHostConfig{
				Network: "udp", Address: "127.0.0.1", Port: int(local.Port()), Component: 1,
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := them.AddRemoteCandidate(c); err != nil {
				t.Fatal(err)
			}

			// Our agent runs until the test ends.
			stop, connected := make(chan struct{}), make(chan time.Time, 1)
			ended := make(chan struct{})
			got := make(chan string, 16)
			go func() {
				defer close(ended)
				a.SetRemote(time.Now(), Credentials{ufrag, pwd}, nil)
				b := make([]byte, 1500)
				for told := false; ; {
					now := time.Now()
					next := a.Tick(now)
					for _, d := range a.Output() {
						conn.WriteToUDPAddrPort(d.Data, d.Path.Remote)
					}
					if !told && a.State() == Connected {
						told = true
						connected <- now
					}
					conn.SetReadDeadline(next)
					n, from, err := conn.ReadFromUDPAddrPort(b)
					select {
					case <-stop:
						return
					default:
					}
					if err != nil {
						continue
					}
					path := packet.Path{Remote: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}
					if b[0] < 4 {
						a.Handle(time.Now(), path, b[:n])
					} else {
						got <- string(b[:n])
					}
				}
			}()
			defer func() { close(stop); conn.Close(); <-ended }()

			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			began := time.Now()
			connect := them.Dial
			if controlling {
				connect = them.Accept
			}
			theirs, err := connect(ctx, creds.Ufrag, creds.Pwd)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case at := <-connected:
				t.Log("connected after", at.Sub(began))
				if d := time.Since(began); d > 300*time.Millisecond {
					t.Errorf("connected after %v", d)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("not connected")
			}
			if _, err := theirs.Write([]byte("media")); err != nil {
				t.Error(err)
			}
			select {
			case s := <-got:
				if s != "media" {
					t.Errorf("got %q", s)
				}
			case <-time.After(5 * time.Second):
				t.Error("nothing arrived")
			}
		})
	}
}
