package signaling

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"plenum/signaling/fleet"
	"plenum/signaling/focus"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// pulsePrefix begins the ids of pings to bridges.
const pulsePrefix = "pulse-"

// A pulse feels for signs of life of the bridges that conferences are on, and gives up those that are dead
// (fleet.Look says when). It asks their media addresses in STUN, and over their connections when it is in doubt.
type pulse struct {
	h    *hall
	dial func(netip.AddrPort) (net.Conn, error) // nil: media is not asked
	wake chan struct{}

	// owned by run
	probes  map[probe]net.Conn
	readers sync.WaitGroup
}

type probe struct {
	bridge jid.JID
	at     netip.AddrPort
}

func newPulse(h *hall) *pulse {
	return &pulse{h: h, dial: h.cfg.Dial, wake: make(chan struct{}, 1), probes: make(map[probe]net.Conn)}
}

// dialMedia connects, so that the kernel says when nobody listens.
func dialMedia(at netip.AddrPort) (net.Conn, error) {
	return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
}

// hurry has it look at once. It does not block.
func (p *pulse) hurry() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run looks until the shard stops.
func (p *pulse) run(quit <-chan struct{}) {
	defer p.readers.Wait()
	defer p.closeExcept(nil)
	timer := time.NewTimer(fleet.Beat)
	defer timer.Stop()
	expected := time.Now().Add(fleet.Beat)
	for {
		select {
		case <-quit:
			return
		case <-p.wake:
		case <-timer.C:
		}
		now := time.Now()
		r := p.h.cfg.Fleet.Look(now, now.After(expected.Add(fleet.Beat/2)))
		for _, bridge := range r.Dead {
			p.h.cfg.Log.Warn("bridge is dead", "bridge", bridge.Resource())
			p.h.bridgeDied(bridge)
		}
		for _, bridge := range r.Ping {
			p.h.pingBridge(bridge)
		}
		p.probe(r.Probe)
		expected = time.Now().Add(r.Next)
		timer.Reset(r.Next)
	}
}

// probe asks each address for a sign of life, and forgets the others.
func (p *pulse) probe(wanted map[jid.JID][]netip.AddrPort) {
	if p.dial == nil {
		return
	}
	keep := make(map[probe]bool)
	for bridge, all := range wanted {
		for _, at := range all {
			k := probe{bridge, at}
			keep[k] = true
			conn := p.probes[k]
			if conn == nil {
				var err error
				if conn, err = p.dial(at); err != nil {
					continue // no way there from here, or no descriptors left
				}
				p.probes[k] = conn
				p.readers.Go(func() { p.listen(k, conn) })
			}
			if _, err := conn.Write(question()); errors.Is(err, syscall.ECONNREFUSED) {
				p.heard(k, true)
			}
		}
	}
	p.closeExcept(keep)
}

func (p *pulse) closeExcept(keep map[probe]bool) {
	for k, conn := range p.probes {
		if !keep[k] {
			conn.Close()
			delete(p.probes, k)
		}
	}
}

// listen takes what comes back until its socket is closed.
func (p *pulse) listen(k probe, conn net.Conn) {
	var b [128]byte
	for {
		n, err := conn.Read(b[:])
		switch {
		case err == nil:
			if n >= 20 && binary.BigEndian.Uint16(b[:]) == stunSuccess {
				p.heard(k, false)
			}
		case errors.Is(err, syscall.ECONNREFUSED):
			p.heard(k, true)
		case errors.Is(err, net.ErrClosed), !errors.Is(err, os.ErrDeadlineExceeded) && !isUnreachable(err):
			return
		}
	}
}

func isUnreachable(err error) bool {
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

func (p *pulse) heard(k probe, refused bool) {
	p.h.cfg.Fleet.Heard(time.Now(), k.bridge, k.at, refused)
	if refused {
		p.hurry()
	}
}

// Of STUN (RFC 8489).
const (
	stunRequest  = 0x0001
	stunSuccess  = 0x0101
	stunCookie   = 0x2112a442
	stunSoftware = 0x8022
)

// question is a STUN binding request for nobody, as long as its answer may be.
func question() []byte {
	b := make([]byte, 0, 48)
	b = binary.BigEndian.AppendUint16(b, stunRequest)
	b = binary.BigEndian.AppendUint16(b, 28)
	b = binary.BigEndian.AppendUint32(b, stunCookie)
	b = b[:20]
	rand.Read(b[8:])
	b = binary.BigEndian.AppendUint16(b, stunSoftware)
	b = binary.BigEndian.AppendUint16(b, 24)
	return append(b, "plenum: are you alive?  "...)
}

// away takes that a session lost its socket and may come back.
func (h *hall) away(who jid.JID) {
	h.brewing(func(now time.Time, a *actor) {
		if nick, in := a.room.Nick(who); in {
			a.bridgeAway(now, nick)
		}
	})
}

// resumed takes that it came back.
func (h *hall) resumed(who jid.JID) {
	h.brewing(func(now time.Time, a *actor) {
		if nick, in := a.room.Nick(who); in {
			a.bridgeBack(nick)
		}
	})
}

// brewing runs f on the goroutine of the bridges' brewery, if there is one.
func (h *hall) brewing(f func(now time.Time, a *actor)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.rooms[h.brewery]; a != nil {
		a.box.control(func(now time.Time) { f(now, a) })
	}
}

// bridgeDied takes all conferences off a bridge, and its session from it: if it still lives, it comes anew.
func (h *hall) bridgeDied(bridge jid.JID) {
	if h.cfg.Fleet.Lost(bridge) {
		h.cfg.Metrics.lostBridges.Inc()
		h.bridgeLost(bridge)
	}
	h.brewing(func(now time.Time, a *actor) {
		if real, in := a.room.Address(bridge.Resource()); in && h.cfg.End != nil {
			h.cfg.End(real)
		}
	})
}

func (h *hall) pingBridge(bridge jid.JID) {
	h.brewing(func(now time.Time, a *actor) {
		h.mu.Lock()
		h.serial++
		id := pulsePrefix + strconv.FormatUint(h.serial, 10)
		h.mu.Unlock()
		a.say(now, xmpp.IQ("get", id, "", bridge.String(), xmpp.New(xmpp.NSPing, "ping")))
	})
}

// pong reports whether an answer was one to a ping.
func (a *actor) pong(now time.Time, from jid.JID, iq *xmpp.Element) bool {
	if !strings.HasPrefix(iq.Attr("id"), pulsePrefix) {
		return false
	}
	a.hall.cfg.Fleet.Answered(now, from)
	return true
}

// bridgeAway takes that a bridge's connection is gone. Nobody is moved for that alone.
func (a *actor) bridgeAway(now time.Time, nick string) {
	if bridge, err := a.jid.WithResource(nick); err == nil {
		a.log.Log(context.Background(), a.hall.ending(), "bridge disconnected", "bridge", nick)
		a.hall.cfg.Fleet.Away(now, bridge)
		a.hall.pulse.hurry()
	}
}

func (a *actor) bridgeBack(nick string) {
	if bridge, err := a.jid.WithResource(nick); err == nil && a.hall.cfg.Fleet.Back(bridge) {
		a.log.Info("bridge is back", "bridge", nick)
		a.hall.tellAll(focus.BridgeBack{Bridge: bridge})
	}
}
