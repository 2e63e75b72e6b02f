package bridge

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"plenum/bridge/packet"
)

// A nat stands between a client and the bridge: to the bridge the client is at one of the nat's addresses, which
// can change in mid-call.
type nat struct {
	inside *net.UDPConn // where the client sends
	bridge netip.AddrPort

	mu      sync.Mutex
	client  netip.AddrPort
	outside *net.UDPConn
	group   sync.WaitGroup
}

func listen(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newNAT(t *testing.T, bridge netip.AddrPort) *nat {
	n := &nat{inside: listen(t), bridge: bridge}
	n.rebind(t)
	n.group.Go(func() {
		b := make([]byte, packet.MaxBytes)
		for {
			k, from, err := n.inside.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.client = from
			n.outside.WriteToUDPAddrPort(b[:k], n.bridge)
			n.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		n.inside.Close()
		n.mu.Lock()
		n.outside.Close()
		n.mu.Unlock()
		n.group.Wait()
	})
	return n
}

// rebind gives the client a new address; what is sent to the old one is lost.
func (n *nat) rebind(t *testing.T) {
	c := listen(t)
	n.mu.Lock()
	if n.outside != nil {
		n.outside.Close()
	}
	n.outside = c
	n.mu.Unlock()
	n.group.Go(func() {
		b := make([]byte, packet.MaxBytes)
		for {
			k, _, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.inside.WriteToUDPAddrPort(b[:k], n.client)
			n.mu.Unlock()
		}
	})
}

// A session is a client whose RTP comes back to it as an echo, with the time of the last.
type session struct {
	*client
	p    *peer
	tap  *tap
	seq  uint16
	back chan time.Time
}

func newCall(t *testing.T, describe func(*media, description) description) *session {
	m := startMedia(t, 2, mediaConfig{})
	room := new(echo)
	core := m.leastLoaded()
	core.attach(room)
	p, err := m.newPeer(core, peerConfig{Controlling: true, SCTP: true, Conference: room})
	if err != nil {
		t.Fatal(err)
	}
	c := &session{p: p, tap: newTap(room, p), client: newClient(t), back: make(chan time.Time, 1024)}
	p.attach(c.tap)
	if err := p.setRemote(c.join(t, describe(m, p.describe()), false)); err != nil {
		t.Fatal(err)
	}
	wait(t, "keys", c.tap.connected)
	var pump sync.WaitGroup
	stop := make(chan struct{})
	pump.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				c.seq++
				c.send(t, c.seq, []byte("hello"))
			}
		}
	})
	t.Cleanup(func() { close(stop); pump.Wait() })
	track := wait(t, "track", c.remote)
	pump.Go(func() {
		for {
			if _, _, err := track.ReadRTP(); err != nil {
				return
			}
			select {
			case c.back <- time.Now():
			default:
			}
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// flowing waits for n packets that come back from now on, and returns the longest gap.
func (c *session) flowing(t *testing.T, what string, n int) (gap time.Duration) {
	t.Helper()
	for len(c.back) > 0 {
		<-c.back
	}
	last := time.Now()
	for range n {
		at := wait(t, what, c.back)
		gap, last = max(gap, at.Sub(last)), at
	}
	return gap
}

func (c *session) path(t *testing.T) (p packet.Path) {
	t.Helper()
	inCore(t, c.p.core, func() { p, _ = c.p.t.Path() })
	return p
}

func direct(_ *media, d description) description { return d }

// A restart of ICE in mid-call: media goes on over the old pair until the client, which takes a new socket for
// it, has answered; DTLS, SRTP and the data channel know nothing of it.
func TestICERestart(t *testing.T) {
	c := newCall(t, direct)
	c.flowing(t, "echo", 10)
	before := c.path(t)
	for generation := 1; generation < 3; generation++ {
		if _, err := c.p.restartICE(); err != nil { // one whose answer never comes
			t.Fatal(err)
		}
		d, err := c.p.restartICE()
		if err != nil {
			t.Fatal(err)
		}
		if d.Setup != "passive" || d.Generation != 2*generation {
			t.Errorf("restart %d is described as %+v", generation, d)
		}
		c.flowing(t, "echo while the restart is pending", 20)
		if p := c.path(t); p != before {
			t.Errorf("moved to %v while the restart was pending", p)
		}
		r := c.answer(t, d, false)
		stale := r
		stale.Generation, stale.Ufrag = d.Generation-1, "stale"
		for _, r := range []remote{stale, r} {
			if err := c.p.setRemote(r); err != nil {
				t.Fatal(err)
			}
		}
		t.Log("gap of", c.flowing(t, "echo after the restart", 50))
		after := c.path(t)
		if after == before {
			t.Errorf("still at %v", after)
		}
		before = after
		wait(t, "channel", c.opened)
		if err := c.p.sendMessage([]byte("still here")); err != nil {
			t.Error(err)
		}
		if s := wait(t, "message", c.message); s != "still here" {
			t.Errorf("message %q", s)
		}
	}
	inCore(t, c.p.core, func() {
		if c.p.t.ICE().Moves == 0 {
			t.Error("no move was counted")
		}
	})
}

// A client behind a NAT that gives it another port in mid-call: it is followed there without being asked.
func TestFollowsClient(t *testing.T) {
	var n *nat
	c := newCall(t, func(m *media, d description) description {
		n = newNAT(t, d.Candidates[0].Addr)
		d.Candidates = d.Candidates[:1]
		d.Candidates[0].Addr = n.inside.LocalAddr().(*net.UDPAddr).AddrPort()
		return d
	})
	c.flowing(t, "echo", 10)
	before := c.path(t)
	n.rebind(t)
	gap := c.flowing(t, "echo after the move", 20)
	t.Log("gap of", gap)
	if gap > 1500*time.Millisecond { // its own next check is after 2 s
		t.Error("it was not followed by its media")
	}
	if after := c.path(t); after == before {
		t.Errorf("still at %v", after)
	}
}
