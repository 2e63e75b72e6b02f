// Package fleet knows which bridges exist, how loaded they are and where, from what they say in the
// brewery room. Choosing one is a pure function. It holds no connection and starts no goroutine.
package fleet

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/jid"
)

// Numbers of Jicofo's selector.
const (
	overloaded    = 0.8              // stress from which a bridge is chosen only when nothing else is left
	full          = 1.0              // stress beyond which even the region does not count
	rampUp        = 20 * time.Second // how long a placed endpoint is counted before presence shows it
	defaultStress = 0.01             // of one participant, unless the bridge says otherwise
	failureMemory = time.Minute      // how long a failed bridge is left alone
	illForGood    = 3                // presences in a row that say unhealthy until a bridge has failed
)

// A Bridge is one bridge as the selection sees it.
type Bridge struct {
	JID     jid.JID // its occupant in the brewery
	Region  string
	RelayID string
	Version string
	// Families are those of the addresses at which clients reach it; none: not known, taken as all.
	Families []string
	// Stress is the reported stress level, 1 being full, plus that of endpoints placed since.
	Stress float64
	// Draining bridges, and those unwell for a moment, take endpoints only when nothing else is left;
	// shutting down ones never do, and those in graceful shutdown take only endpoints of conferences
	// that they have.
	Draining, ShuttingDown, Graceful bool
	// Failed is set while the bridge has been unhealthy for a while or has failed a request recently.
	Failed bool
}

// A Request asks for a place for one endpoint.
type Request struct {
	Region     string    // of the participant; empty when unknown
	Near       []string  // neighbours of that region; filled in by Fleet
	Families   []string  // Family of each who is to reach the bridge, without those that are unknown
	Release    string    // of the shard; filled in by Fleet
	Conference []jid.JID // bridges that the conference already uses
}

// A Choice is the selected bridge; Reason says which rule chose it.
type Choice struct {
	Bridge  jid.JID
	Region  string
	Version string
	Reason  string
}

// Select chooses a bridge. Bridges of one conference are not connected to each other, so all of it is on one, and
// thereby on one version, and stays there as long as that bridge works; it moves for somebody who does not reach it,
// when all reach another. A new one goes, in this order,
//
//	to who is reached by all  whoever is not reached has no media but by TURN
//	to the region, then near  while there is somebody below the load from which everybody on a bridge suffers;
//	                          then anywhere, for within a cluster distance costs less than that
//	to the shard's release    so that old shards keep to old bridges and new ones to new, both ways of an upgrade
//	to the least loaded
func Select(bridges []Bridge, r Request) (Choice, bool) {
	usable := keep(bridges, func(b Bridge) bool { return !b.Failed && !b.ShuttingDown })
	reached := func(b Bridge) bool { return b.reached(r.Families) }
	if c, ok := stay(keep(usable, reached), r.Conference, "conference is there"); ok {
		return c, true
	}
	among := keep(usable, func(b Bridge) bool { return !b.Graceful && reached(b) })
	if !slices.ContainsFunc(among, func(b Bridge) bool { return !b.Draining && b.Stress < full }) {
		if c, ok := stay(usable, r.Conference, "conference is there"+notReached); ok {
			return c, true
		}
	}
	remark := ""
	if len(among) == 0 {
		among, remark = keep(usable, func(b Bridge) bool { return !b.Graceful }), notReached
	}
	if len(among) == 0 {
		// What failed somebody else may still work for those who are there.
		return stay(bridges, r.Conference, "conference is there, and nothing else")
	}
	slices.SortStableFunc(among, func(a, b Bridge) int {
		return cmp.Or(cmp.Compare(a.other(r.Release), b.other(r.Release)), cmp.Compare(a.Stress, b.Stress), cmp.Compare(a.JID.String(), b.JID.String()))
	})
	home := func(b Bridge) bool { return r.Region != "" && b.Region == r.Region }
	near := func(b Bridge) bool { return slices.Contains(r.Near, b.Region) }
	far := func(Bridge) bool { return true }
	for _, rule := range []struct {
		reason   string
		where    func(Bridge) bool
		load     float64
		draining bool
	}{
		{"least loaded in region", home, overloaded, false},
		{"least loaded near the region", near, overloaded, false},
		{"least loaded", far, overloaded, false},
		{"all overloaded, in region", home, full, false},
		{"all overloaded, near the region", near, full, false},
		{"all overloaded", far, math.Inf(1), false},
		{"all draining", far, math.Inf(1), true},
	} {
		fit := keep(among, func(b Bridge) bool { return b.Draining == rule.draining && b.Stress < rule.load && rule.where(b) })
		if len(fit) == 0 {
			continue
		}
		first := fit[0]
		if rule.load > full { // there is no lighter one: the release is no reason to crush it
			first = slices.MinFunc(fit, func(a, b Bridge) int { return cmp.Compare(a.Stress, b.Stress) })
		}
		if first.other(r.Release) == 0 && slices.ContainsFunc(usable, func(b Bridge) bool { return b.other(r.Release) == 1 }) {
			remark = ", of this release" + remark
		}
		return choice(first, rule.reason+remark), true
	}
	return Choice{}, false
}

// notReached is added to the reason for a bridge that not everybody reaches, by what is known of them.
const notReached = ", though not everybody's kind of address"

// reached reports whether a bridge has addresses of all families.
func (b *Bridge) reached(families []string) bool {
	return len(b.Families) == 0 || !slices.ContainsFunc(families, func(f string) bool { return !slices.Contains(b.Families, f) })
}

// other is 1 for a bridge of another release, which comes later than one of this.
func (b *Bridge) other(release string) int {
	if release == "" || b.Version == release {
		return 0
	}
	return 1
}

func keep(bridges []Bridge, fits func(Bridge) bool) (some []Bridge) {
	for _, b := range bridges {
		if fits(b) {
			some = append(some, b)
		}
	}
	return some
}

// stay returns the first of a conference's bridges that is among bridges.
func stay(bridges []Bridge, conference []jid.JID, reason string) (Choice, bool) {
	for _, used := range conference {
		for _, b := range bridges {
			if b.JID == used && !b.ShuttingDown {
				return choice(b, reason), true
			}
		}
	}
	return Choice{}, false
}

func choice(b Bridge, reason string) Choice { return Choice{b.JID, b.Region, b.Version, reason} }

// A Fleet is the registry of bridges. Its methods may be called from any goroutine and do not block.
type Fleet struct {
	release string
	groups  [][]string // of neighbouring regions

	mu      sync.Mutex
	bridges map[jid.JID]*entry
}

type entry struct {
	Bridge
	vitals
	reported       float64  // stress in the last presence
	said           []string // families of addresses
	perParticipant float64
	ill            int // presences in a row that said unhealthy
	failedUntil    time.Time
	gracefulSaid   bool        // refused a request because of it
	placed         []time.Time // endpoints placed within rampUp, oldest first
}

// New returns an empty fleet of a shard of a release, whose bridges come before others; empty: none do. The regions of a group are near each other: a bridge there is better than one
// anywhere else when the participant's own region has none.
func New(release string, groups ...[]string) *Fleet {
	if release != "" {
		release = "plenum-" + release // so do our bridges say it
	}
	return &Fleet{release: release, groups: groups, bridges: map[jid.JID]*entry{}}
}

// near returns the neighbours of a region.
func (f *Fleet) near(region string) (all []string) {
	for _, g := range f.groups {
		if slices.Contains(g, region) {
			all = append(all, g...)
		}
	}
	return all
}

// Observe takes the stats of a bridge's presence in the brewery. It reports whether the bridge became usable
// or stopped being so, or is to be left from now on: conferences have to be told. A bridge that is away is not
// observed: see Back.
func (f *Fleet) Observe(now time.Time, bridge jid.JID, stats colibri.Stats) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.bridges[bridge]
	if e == nil {
		e = &entry{Bridge: Bridge{JID: bridge}}
		f.bridges[bridge] = e
		e.observe(stats)
		return e.usable(now)
	}
	usable, leave := e.usable(now), e.leave()
	e.observe(stats)
	return usable != e.usable(now) || !leave && e.leave()
}

// Leave reports whether conferences on a bridge should move away: it is shutting down, or has been unhealthy
// for a while, and there is another one to go to. A bridge that was short of CPU for a moment is not left:
// moving costs everybody more than that.
func (f *Fleet) Leave(now time.Time, bridge jid.JID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.bridges[bridge]
	if e == nil || !e.leave() {
		return false
	}
	for other, o := range f.bridges {
		if other != bridge && o.usable(now) {
			return true
		}
	}
	return false
}

// Lost forgets a bridge. It reports whether it was known.
func (f *Fleet) Lost(bridge jid.JID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, known := f.bridges[bridge]
	delete(f.bridges, bridge)
	return known
}

// Failed keeps a bridge out of the choice for a minute, or, when it refused because of its graceful
// shutdown, for new conferences only, until its presence says otherwise.
func (f *Fleet) Failed(now time.Time, bridge jid.JID, graceful bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.bridges[bridge]
	switch {
	case e == nil:
	case graceful:
		e.gracefulSaid = true
	default:
		e.failedUntil = now.Add(failureMemory)
	}
}

// Select chooses a bridge for one endpoint and counts the endpoint there until presence can show it.
func (f *Fleet) Select(now time.Time, r Request) (Choice, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Near, r.Release = f.near(r.Region), f.release
	c, ok := Select(f.snapshot(now), r)
	if ok {
		e := f.bridges[c.Bridge]
		e.placed = append(e.placed, now)
	}
	return c, ok
}

// Bridges returns every known bridge as the selection sees it at now, ordered by JID.
func (f *Fleet) Bridges(now time.Time) []Bridge {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot(now)
}

func (f *Fleet) snapshot(now time.Time) []Bridge {
	all := make([]Bridge, 0, len(f.bridges))
	for _, e := range f.bridges {
		all = append(all, e.at(now))
	}
	slices.SortFunc(all, func(a, b Bridge) int { return cmp.Compare(a.JID.String(), b.JID.String()) })
	return all
}
