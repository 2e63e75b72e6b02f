package bridge

import (
	"net/netip"
	"testing"
	"time"

	"plenum/bridge/packet"
)

func pathAt(port uint16) packet.Path {
	return packet.Path{Remote: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), port)}
}

func TestRoutes(t *testing.T) {
	r := newRoutes()
	a, b := &peer{name: "a", tag: 1}, &peer{name: "b", tag: 2}
	if !r.add(a) || !r.add(b) || r.add(&peer{name: "a", tag: 3}) || r.add(&peer{name: "c", tag: 2}) {
		t.Error("names are not unique")
	}
	if r.path(pathAt(1)) != nil {
		t.Error("a route from nowhere")
	}
	for i, test := range []struct {
		p      *peer
		proven bool
		ok     bool
		owner  *peer
	}{
		{a, false, true, a}, // free
		{a, false, true, a},
		{b, false, false, a}, // a forged address takes nothing away
		{b, true, true, b},   // b is there
		{a, false, false, b},
	} {
		if ok := r.claim(pathAt(1), test.p, test.proven); ok != test.ok || r.path(pathAt(1)) != test.owner {
			t.Errorf("claim %d: %v", i, ok)
		}
	}
	r.release(pathAt(1), a) // no longer its
	if r.path(pathAt(1)) != b {
		t.Error("a route was released by somebody else")
	}
	for port := range uint16(1000) {
		r.claim(pathAt(port+2), a, false)
		a.paths = append(a.paths, pathAt(port+2))
	}
	if paths, peers := r.size(); paths != 1001 || peers != 2 {
		t.Errorf("%d paths, %d peers", paths, peers)
	}
	r.remove(a)
	b.paths = []packet.Path{pathAt(1)}
	r.remove(b)
	if paths, peers := r.size(); paths != 0 || peers != 0 {
		t.Errorf("%d paths, %d peers are left", paths, peers)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter()
	now := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	allowed := 0
	for range 1000 {
		if l.allow(pathAt(1), now) {
			allowed++
		}
	}
	if allowed != stunBurst {
		t.Errorf("%d at once", allowed)
	}
	now = now.Add(time.Second)
	allowed = 0
	for range 1000 {
		if l.allow(pathAt(1), now) {
			allowed++
		}
	}
	if allowed != stunPerSecond {
		t.Errorf("%d after a second", allowed)
	}
	others := 0
	for port := range uint16(1000) {
		if l.allow(pathAt(port+2), now) {
			others++
		}
	}
	if others < 990 { // a few share the first one's bucket
		t.Errorf("%d of 1000 other addresses were allowed", others)
	}
}
