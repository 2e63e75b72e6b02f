package bridge

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"plenum/bridge/ice"
	"plenum/bridge/packet"
)

// routes finds the peer that a datagram is for. Media and DTLS go by path, which any core looks up in an
// immutable map without a lock; STUN goes by the ufrag or the tag that it names, because its address may be
// new, or somebody else's.
type routes struct {
	seed   maphash.Seed
	shards [64]shard

	mu     sync.RWMutex
	byName map[string]*peer
	byTag  map[uint32]*peer
}

// A shard holds the paths whose hash falls to it; a change copies it whole.
type shard struct {
	mu    sync.Mutex // serialises changes
	paths atomic.Pointer[map[packet.Path]*peer]
}

func newRoutes() *routes {
	return &routes{seed: maphash.MakeSeed(), byName: make(map[string]*peer), byTag: make(map[uint32]*peer)}
}

func (r *routes) shard(p packet.Path) *shard {
	return &r.shards[maphash.Comparable(r.seed, p)%uint64(len(r.shards))]
}

// path returns the peer at p, or nil.
func (r *routes) path(p packet.Path) *peer {
	if m := r.shard(p).paths.Load(); m != nil {
		return (*m)[p]
	}
	return nil
}

// stun returns the peer that a STUN datagram is for, or nil.
func (r *routes) stun(b []byte) *peer {
	ufrag, tag, ok := ice.Peek(b)
	if !ok {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if ufrag != nil {
		return r.byName[string(ufrag[:min(len(ufrag), ice.NameBytes)])]
	}
	return r.byTag[tag]
}

// add makes p known by name and tag; false when either is taken.
func (r *routes) add(p *peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byName[p.name] != nil || r.byTag[p.tag] != nil {
		return false
	}
	r.byName[p.name], r.byTag[p.tag] = p, p
	return true
}

func (r *routes) remove(p *peer) {
	r.mu.Lock()
	delete(r.byName, p.name)
	delete(r.byTag, p.tag)
	r.mu.Unlock()
	for _, path := range p.paths {
		r.release(path, p)
	}
}

// claim routes path to p. Only proof that p is there takes a path away from another peer, else anybody with
// credentials of his own could cut others off by a forged address. It reports whether p has the path.
func (r *routes) claim(path packet.Path, p *peer, proven bool) bool {
	s := r.shard(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	var old map[packet.Path]*peer
	if m := s.paths.Load(); m != nil {
		old = *m
	}
	if q := old[path]; q == p || q != nil && !proven {
		return q == p
	}
	m := make(map[packet.Path]*peer, len(old)+1)
	for k, v := range old {
		m[k] = v
	}
	m[path] = p
	s.paths.Store(&m)
	return true
}

// release ends the route of path, if it is still p's.
func (r *routes) release(path packet.Path, p *peer) {
	s := r.shard(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.paths.Load()
	if old == nil || (*old)[path] != p {
		return
	}
	m := make(map[packet.Path]*peer, len(*old))
	for k, v := range *old {
		if k != path {
			m[k] = v
		}
	}
	s.paths.Store(&m)
}

// size is the number of routed paths and of known peers, for metrics and tests.
func (r *routes) size() (paths, peers int) {
	for i := range r.shards {
		if m := r.shards[i].paths.Load(); m != nil {
			paths += len(*m)
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return paths, len(r.byName)
}

const (
	stunPerSecond = 50 // a client that begins sends one check per 20 to 60 ms
	stunBurst     = 100
)

// A limiter bounds STUN that names a known peer but comes from an address and port which is not yet known to be
// its, because each costs an HMAC. Its size is fixed: addresses that fall together share an allowance.
type limiter struct {
	seed    maphash.Seed
	buckets [4096]struct {
		tokens float32
		at     time.Time
	}
}

func newLimiter() *limiter { return &limiter{seed: maphash.MakeSeed()} }

func (l *limiter) allow(p packet.Path, now time.Time) bool {
	b := &l.buckets[maphash.Comparable(l.seed, p)%uint64(len(l.buckets))]
	b.tokens = min(stunBurst, b.tokens+stunPerSecond*float32(now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
