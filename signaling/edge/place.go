package edge

import (
	"hash/maphash"
	"math"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"plenum/signaling/handover"
	"plenum/wire/meet"
)

// maxKnown bounds how many owners of rooms an edge remembers. A forgotten one costs a handover.
const maxKnown = 100_000

// A placer says which shard a request is for: the one that has been seen to own its room, and otherwise the one
// whose room it is by name, among the shards of the edge's own region while there are any.
type placer struct {
	domain, region string
	now            func() time.Time

	seed maphash.Seed

	mu     sync.RWMutex
	shards []weighted
	known  map[uint64]owner // by a hash of the room; a cache of what shards say
}

// A weighted shard takes a share of new rooms in proportion.
type weighted struct {
	Shard
	weight float64 // 0 takes none
	grown  float64 // the part of weight that is its age, up to 1
}

type owner struct {
	shard string
	until time.Time
}

// knownFor is how long an owner is believed without being seen again. Clients ask after their room every minute.
const knownFor = 5 * time.Minute

func newPlacer(domain, region string, now func() time.Time) *placer {
	return &placer{domain: domain, region: region, now: now, seed: maphash.MakeSeed(), known: map[uint64]owner{}}
}

func (p *placer) set(shards []weighted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards = shards
}

// place names a shard for the room of a request, or nothing when there is no room in it or no shard.
func (p *placer) place(path, query string) string {
	room := p.room(path, query)
	if room == "" {
		return ""
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if o, ok := p.known[maphash.String(p.seed, room)]; ok && p.now().Before(o.until) {
		if i := p.find(o.shard); i >= 0 && !p.shards[i].Ill {
			return o.shard
		}
	}
	return home(p.shards, p.region, room)
}

// find returns where a shard is in the list, or -1.
func (p *placer) find(shard string) int {
	return slices.IndexFunc(p.shards, func(s weighted) bool { return s.Name == shard })
}

// learn notes that a shard was named as the owner of the room of a request.
func (p *placer) learn(path, query, shard string) {
	room := p.room(path, query)
	if room == "" || shard == "" {
		return
	}
	now, key := p.now(), maphash.String(p.seed, room)
	p.mu.Lock()
	defer p.mu.Unlock()
	i := p.find(shard)
	if i < 0 {
		return
	}
	if _, ok := p.known[key]; !ok && len(p.known) >= maxKnown {
		for r, o := range p.known { // any will do, and one that is over is better
			delete(p.known, r)
			if now.Before(o.until) {
				break
			}
		}
	}
	p.known[key] = owner{p.shards[i].Name, now.Add(knownFor)}
}

// home returns the shard of a room by name alone: that of the highest claim (weighted rendezvous hashing), among the
// well ones of the region, or else of all regions. Neither the order of the list nor another shard's coming and going
// moves a room between two that stay. A name that ends in _ and the name of a shard is that shard's.
func home(shards []weighted, region, room string) string {
	for _, s := range shards {
		if name, _, _ := strings.Cut(room, "@"); !s.Ill && strings.HasSuffix(name, "_"+strings.ToLower(s.Name)) {
			return s.Name
		}
	}
	for _, near := range []bool{true, false} {
		if near && claim(region+"/", room) >= ripeness(shards, region) {
			continue
		}
		best, most := "", 0.0
		for _, s := range shards {
			if s.Ill || s.weight <= 0 || near && s.Region != region {
				continue
			}
			if score := -s.weight / math.Log(claim(s.Name, room)); best == "" || score > most || score == most && s.Name < best {
				best, most = s.Name, score
			}
		}
		if best != "" {
			return best
		}
	}
	return ""
}

// room returns the room that a request is about, as every shard names it, or nothing. Sockets and what keeps them
// alive have it in their query, pages in their path; it may have a tenant.
func (p *placer) room(path, query string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	tenant := ""
	if len(parts) > 1 && !meet.ReservedName(parts[0]) {
		tenant, parts = parts[0], parts[1:]
	}
	values, _ := url.ParseQuery(query) // what can be read of it, as shards do
	raw := values.Get("room")
	if t := values.Get("prefix"); t != "" {
		tenant = t
	}
	if raw == "" && len(parts) == 1 && !meet.ReservedName(parts[0]) {
		raw = parts[0]
	}
	if raw == "" {
		return ""
	}
	room, err := meet.Room(raw, tenant, p.domain)
	if err != nil {
		return ""
	}
	return room.String()
}

// claim is how strongly a name claims a room, between 0 and 1.
func claim(name, room string) float64 {
	return (float64(handover.Claim(name, room)>>11) + 0.5) / (1 << 53)
}

// ripeness is the share of its own new rooms that a region can take: all, unless all of its shards have come later than one
// elsewhere. Then it gets them bit by bit.
func ripeness(shards []weighted, region string) float64 {
	here, most := 0.0, 0.0
	for _, s := range shards {
		if s.Ill || s.weight <= 0 {
			continue
		}
		if most = max(most, s.grown); s.Region == region {
			here = max(here, s.grown)
		}
	}
	if most == 0 {
		return 1
	}
	return here / most
}

// weight is the share of new rooms of a shard that carries so many participants of what it is made for: it falls with every
// participant, to none when full.
func weight(participants, capacity int) float64 {
	w := max(1-float64(participants)/float64(max(capacity, 1)), 0)
	return w * w // at half of the load a quarter of the rooms
}

// grown is which part of its share a shard gets that has been in service for age: it grows over ramp, from the first room on.
func grown(age, ramp time.Duration) float64 {
	if age >= ramp {
		return 1
	}
	return max(0.02, float64(age)/float64(ramp))
}
