package overlay

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// world is a path as a network would treat its probes.
type world struct {
	p      *path
	now    time.Time
	rtt    time.Duration
	mtu    int     // larger packets vanish
	loss   float64 // of any packet
	cut    bool
	rand   *rand.Rand
	flying []flight
	sent   int
}

type flight struct {
	id uint64
	at time.Time
}

func newWorld(widest int) *world {
	now := time.Unix(1e9, 0)
	return &world{p: newPath(5*time.Second, widest, 576, now), now: now, rtt: 20 * time.Millisecond, mtu: 9000, rand: rand.New(rand.NewPCG(1, 2))}
}

// run lets d go by.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Millisecond) {
		rest := w.flying[:0]
		for _, f := range w.flying {
			if w.now.Before(f.at) {
				rest = append(rest, f)
			} else if !w.cut {
				w.p.Answer(f.id, w.now)
			}
		}
		w.flying = rest
		if w.now.UnixMilli()%100 != 0 {
			continue
		}
		for _, ping := range w.p.Tick(w.now) {
			w.sent++
			if ping.size <= w.mtu && !w.cut && w.rand.Float64() >= w.loss {
				w.flying = append(w.flying, flight{ping.id, w.now.Add(w.rtt)})
			}
		}
	}
}

func TestPathFindsMTU(t *testing.T) {
	for _, mtu := range []int{9000, 1380, 1379, 1300, 1220, 1000, 600} {
		for _, loss := range []float64{0, 0.05} {
			w := newWorld(1380)
			w.mtu, w.loss = mtu, loss
			w.run(30 * time.Second)
			if got, want := w.p.MTU(), min(mtu, 1380); got > want || loss == 0 && got < want-precision {
				t.Errorf("MTU %d, loss %.2f: measured %d", mtu, loss, got)
			}
		}
	}
}

func TestPathBecomesNarrower(t *testing.T) {
	w := newWorld(1380)
	w.run(20 * time.Second)
	w.mtu = 1250
	w.run(30 * time.Second)
	if got := w.p.MTU(); got > 1250 || got < 1240 {
		t.Errorf("measured %d of 1250", got)
	}
	if !w.p.up {
		t.Error("down because large packets vanish")
	}
	w.mtu = 9000
	w.run(11 * time.Minute)
	if got := w.p.MTU(); got != 1380 {
		t.Errorf("measured %d after it healed", got)
	}
}

func TestPathGoesDownAndUp(t *testing.T) {
	w := newWorld(1380)
	w.run(20 * time.Second)
	if !w.p.up || w.p.rtt < 10*time.Millisecond || w.p.rtt > 40*time.Millisecond || w.p.Loss() != 0 {
		t.Fatalf("up %t, rtt %s, loss %f", w.p.up, w.p.rtt, w.p.Loss())
	}
	w.cut = true
	w.run(8 * time.Second)
	if w.p.up {
		t.Error("up 8 s after it was cut")
	}
	w.run(time.Hour)
	before := w.sent
	w.run(time.Minute)
	if n := w.sent - before; n > 15 {
		t.Errorf("%d probes a minute to a peer that has been away for an hour", n)
	}
	if len(w.p.waiting) > 10 {
		t.Errorf("%d probes wait", len(w.p.waiting))
	}
	w.cut = false
	w.run(6 * time.Second)
	if !w.p.up {
		t.Error("down 6 s after it healed")
	}
}

func TestPathLoss(t *testing.T) {
	w := newWorld(1380)
	w.loss = 0.2
	w.run(10 * time.Minute)
	if l := w.p.Loss(); l < 0.05 || l > 0.4 || !w.p.up {
		t.Errorf("loss %.2f of 0.20, up %t", l, w.p.up)
	}
}

func TestJudge(t *testing.T) {
	at := netip.MustParseAddrPort
	local := map[netip.Addr]bool{netip.MustParseAddr("192.168.1.5"): true, netip.MustParseAddr("2001:db8::5"): true}
	for _, test := range []struct {
		want NAT
		seen []netip.AddrPort
	}{
		{NATUnknown, nil},
		{NATNone, []netip.AddrPort{at("192.168.1.5:51820"), at("[2001:db8::5]:51820")}},
		{NATMapped, []netip.AddrPort{at("203.0.113.1:51820")}},
		{NATMapped, []netip.AddrPort{at("192.168.1.5:51820"), at("203.0.113.1:51820")}}, // the first is a neighbour
		{NATMapped, []netip.AddrPort{at("192.168.1.5:52820")}},
		{NATCone, []netip.AddrPort{at("203.0.113.1:52820"), at("203.0.113.1:52820")}},
		{NATSymmetric, []netip.AddrPort{at("203.0.113.1:52820"), at("203.0.113.1:52821")}},
	} {
		if got := judge(test.seen, local, 51820); got != test.want {
			t.Errorf("seen at %v: %s, want %s", test.seen, got, test.want)
		}
	}
}

func FuzzMessage(f *testing.F) {
	m := message{kind: answer, id: 7, size: 1380, epoch: 3, at: netip.MustParseAddrPort("192.0.2.1:4242"), key: [32]byte{1}}
	f.Add(m.appendTo(nil, 0))
	f.Add((&message{kind: record, body: []byte(`{"json":{}}`)}).appendTo(nil, 200))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		again, err := parseMessage(m.appendTo(nil, 0))
		if len(m.body) == 0 {
			m.body, again.body = nil, nil
		}
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%+v became %+v: %v", m, again, err)
		}
	})
}
