package handover

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
	"sync/atomic"

	"plenum/signaling/rooms"
	"plenum/wire/jid"
)

// A Shard is one of the cluster's, as the catalogue lists it.
type Shard struct {
	Name, Region string
	HTTP, XMPP   string // HOST:PORT on the control network
}

// Shards is the list of a cluster's shards. The zero value is empty. It may be used from any goroutine.
type Shards struct {
	self string
	list atomic.Pointer[[]Shard]
}

// NewShards returns an empty list, in which this shard is called self.
func NewShards(self string) *Shards { return &Shards{self: self} }

// Set replaces the list. Its order means nothing.
func (s *Shards) Set(list []Shard) {
	list = slices.Clone(list)
	s.list.Store(&list)
}

// List returns the list; it is not to be changed.
func (s *Shards) List() []Shard {
	if l := s.list.Load(); l != nil {
		return *l
	}
	return nil
}

// Home returns the shard whose a room is by its name alone. Each shard's claim is a hash of both names
// (rendezvous hashing), so that one shard more or less moves no room between two others, whatever their order.
// except leaves this shard out.
func (s *Shards) Home(room jid.JID, except bool) (rooms.Shard, bool) {
	var best Shard
	var most uint64
	for _, x := range s.List() {
		if except && x.Name == s.self {
			continue
		}
		if c := Claim(x.Name, room.String()); best.Name == "" || cmp.Or(cmp.Compare(c, most), cmp.Compare(x.Name, best.Name)) > 0 {
			best, most = x, c
		}
	}
	return rooms.Shard{Name: best.Name, Addr: best.HTTP}, best.Name != ""
}

// Claim is how strongly a shard claims a room by their names alone: FNV-1a, finished so that all bits depend on all.
func Claim(shard, room string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(shard))
	h.Write([]byte{0})
	h.Write([]byte(room))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Wanted returns the shard that a room is forced onto: by its pin, or by a name that ends in _ and the name of a
// shard. A shard that is not in the list forces nothing.
func (s *Shards) Wanted(room jid.JID, pin string) (rooms.Shard, bool) {
	list := s.List()
	named := func(match func(Shard) bool) (rooms.Shard, bool) {
		i := slices.IndexFunc(list, match)
		if i < 0 {
			return rooms.Shard{}, false
		}
		return rooms.Shard{Name: list[i].Name, Addr: list[i].HTTP}, true
	}
	if pin != "" {
		if x, ok := named(func(x Shard) bool { return x.Name == pin }); ok {
			return x, true
		}
	}
	return named(func(x Shard) bool { return strings.HasSuffix(room.Local(), "_"+strings.ToLower(x.Name)) })
}
