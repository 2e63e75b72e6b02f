package fleet

import (
	"net/netip"
	"slices"
	"time"

	"plenum/wire/jid"
)

// A bridge is dead when two signs out of four say so: its connection to us is gone, it does not answer on that connection, its media
// addresses do not answer, its clients complain. One sign alone moves nobody: connections break, and a firewall may lie
// between us and media.
//
//	connection gone  and  media refused, or silent for 0.3 s      its process has ended
//	connection gone  and  media that never answered us, for 5 s   nothing else can be known (the Java bridge)
//	no pong, or complaints  and  media silent for 0.9 s,          its host has, or it hangs; only when another one answers:
//	                             which answered before            else it is we who are cut off
const (
	Beat       = 300 * time.Millisecond // between two looks at a bridge that is well
	Flutter    = 50 * time.Millisecond  // between two looks at one that may not be
	goneSilent = 300 * time.Millisecond
	hangSilent = 900 * time.Millisecond
	noPong     = 600 * time.Millisecond
	goneBlind  = 5 * time.Second
	trouble    = 10 * time.Second // how long a complaint counts
	maxServes  = 8                // media addresses of one bridge
)

// vitals are the signs of life of one bridge.
type vitals struct {
	media      []address
	away       time.Time // since when its connection is gone
	asked      time.Time // the oldest ping that it has not answered
	complained time.Time // by a client
	heard      time.Time // the last sign of life of its media
	answered   time.Time // the last pong
}

// An address is one at which a bridge takes media.
type address struct {
	netip.AddrPort
	alive   bool      // has answered before
	shut    bool      // refused while its bridge was well: not meant for us
	refused bool      // lately
	probed  time.Time // the oldest probe since the last answer
}

// Serves notes at which addresses clients are told to reach a bridge.
func (f *Fleet) Serves(bridge jid.JID, at []netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.bridges[bridge]
	if e == nil {
		return
	}
	v := &e.vitals
	for _, a := range at {
		if len(v.media) < maxServes && !slices.ContainsFunc(v.media, func(m address) bool { return m.AddrPort == a }) {
			v.media = append(v.media, address{AddrPort: a})
		}
	}
}

// Trouble notes that a client has lost a bridge.
func (f *Fleet) Trouble(now time.Time, bridge jid.JID) {
	f.with(bridge, func(v *vitals) { v.complained = now })
}

// Away notes that a bridge's connection is gone, without a word that this is the end.
func (f *Fleet) Away(now time.Time, bridge jid.JID) {
	f.with(bridge, func(v *vitals) {
		if v.away.IsZero() {
			v.away = now
			for i := range v.media { // what was asked before does not count
				v.media[i].probed = time.Time{}
			}
		}
	})
}

// Back notes that it is there again. It reports whether it had been away.
func (f *Fleet) Back(bridge jid.JID) (was bool) {
	f.with(bridge, func(v *vitals) {
		was = !v.away.IsZero()
		v.away, v.asked = time.Time{}, time.Time{}
	})
	return was
}

// Answered notes the answer of a bridge to a ping.
func (f *Fleet) Answered(now time.Time, bridge jid.JID) {
	f.with(bridge, func(v *vitals) { v.asked, v.answered = time.Time{}, now })
}

// Heard notes that media answered at an address of a bridge, or, with refused, that nobody listens there.
func (f *Fleet) Heard(now time.Time, bridge jid.JID, at netip.AddrPort, refused bool) {
	f.with(bridge, func(v *vitals) {
		for i := range v.media {
			switch a := &v.media[i]; {
			case a.AddrPort != at:
			case !refused:
				a.alive, a.refused, a.probed, v.heard = true, false, time.Time{}, now
			case a.alive || !v.away.IsZero():
				a.refused = true
			default:
				a.shut = true
			}
		}
	})
}

func (f *Fleet) with(bridge jid.JID, do func(v *vitals)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.bridges[bridge]; e != nil {
		do(&e.vitals)
	}
}

// A Round is what a look at all bridges leads to.
type Round struct {
	Probe map[jid.JID][]netip.AddrPort // addresses to ask for a sign of life
	Ping  []jid.JID                    // bridges to ask over their connections
	Dead  []jid.JID                    // those to be given up; the caller tells Lost
	Next  time.Duration                // when to look again
}

// Look takes the pulse of all bridges. With late the last look was so long ago that answers may lie unread, and what
// was not heard counts for nothing.
func (f *Fleet) Look(now time.Time, late bool) Round {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Round{Probe: make(map[jid.JID][]netip.AddrPort), Next: Beat}
	doubt := false
	for _, e := range f.bridges {
		v := &e.vitals
		if late {
			v.pardon(now)
		}
		if !v.away.IsZero() {
			r.Next = Flutter
		}
		if v.gone(now) || v.hangs(now) && f.otherAnswersLocked(v) {
			r.Dead = append(r.Dead, e.JID)
			continue
		}
		for i := range v.media {
			if a := &v.media[i]; !a.shut {
				if a.probed.IsZero() {
					a.probed = now
				}
				r.Probe[e.JID] = append(r.Probe[e.JID], a.AddrPort)
			}
		}
		doubt = doubt || v.away.IsZero() && v.silent(now, goneSilent)
	}
	for _, e := range f.bridges { // in doubt all are asked: is it us?
		if v := &e.vitals; doubt && v.away.IsZero() && v.asked.IsZero() {
			v.asked = now
			r.Ping = append(r.Ping, e.JID)
		}
	}
	return r
}

// pardon forgets what was asked and not answered.
func (v *vitals) pardon(now time.Time) {
	for i := range v.media {
		v.media[i].probed = time.Time{}
	}
	if !v.asked.IsZero() {
		v.asked = now
	}
}

// gone reports whether its process has ended.
func (v *vitals) gone(now time.Time) bool {
	if v.away.IsZero() {
		return false
	}
	known := slices.ContainsFunc(v.media, func(a address) bool { return a.alive || a.refused })
	return v.silent(now, goneSilent) || !known && now.Sub(v.away) >= goneBlind
}

// hangs reports whether it does nothing any more, or cannot be reached.
func (v *vitals) hangs(now time.Time) bool {
	mute := !v.asked.IsZero() && now.Sub(v.asked) >= noPong
	complaints := !v.complained.IsZero() && now.Sub(v.complained) < trouble
	return v.away.IsZero() && v.silent(now, hangSilent) && (mute || complaints)
}

// silent reports whether media is refused or has been silent for so long, at all addresses from which anything can
// be learned.
func (v *vitals) silent(now time.Time, long time.Duration) bool {
	alive, refused := 0, 0
	for _, a := range v.media {
		switch {
		case a.shut:
		case a.refused:
			refused++
		case a.alive && (a.probed.IsZero() || now.Sub(a.probed) < long):
			return false
		case a.alive:
			alive++
		}
	}
	return alive+refused > 0
}

// otherAnswersLocked reports whether there is a bridge to go to, and it was heard since v was not.
func (f *Fleet) otherAnswersLocked(v *vitals) bool {
	for _, e := range f.bridges {
		o := &e.vitals
		if o != v && o.away.IsZero() && !e.ShuttingDown && (o.heard.After(v.heard) || o.answered.After(v.heard)) {
			return true
		}
	}
	return false
}
