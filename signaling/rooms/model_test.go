package rooms

import (
	"bytes"
	"testing"
)

// The model is two shards, one room and Consul, in whole ticks. Everything that can happen, in every order, is
// tried until nothing new comes of it. A shard may take its steps at any time or not at all, which is what being
// frozen, slow or cut off comes to; requests and answers take as long as they like; Consul loses its leader and
// finds another, and expires what was not renewed. What shards decide is right itself, the code that runs.
const (
	modelTTL   = 2   // of a lease; sessions live twice that
	modelDelay = 1   // lock-delay
	modelNow   = 100 // all worlds are moved to this time, so that those that differ in nothing else are one
)

type modelShard struct {
	right    right
	open     bool // has the room open, as far as it has noticed
	life     uint64
	session  uint64 // that locked it
	has      bool   // believes that it has a session
	asked    int    // when a renewal was sent that is under way; 0: none
	answered bool   // Consul has had it; the answer is on its way
	known    bool   // and says that the session exists
}

type modelWorld struct {
	now      int
	shards   [2]modelShard
	expires  [2]int // of the shards' sessions; 0: gone
	holder   int    // shard whose session has the lock; -1: nobody
	lockable int    // from then on, after a session that ended unasked
	leader   bool
}

// A rule is one way to build it wrong.
type rule uint8

const (
	sound        rule = iota
	noLeaseCheck      // a stanza is written whatever the time
	fromAnswer        // the lease counts from the answer instead of the question
	anySession        // a new session's lease is good for the rooms of the one before
	keptServes        // who reaches nobody admits people
)

func (w modelWorld) serves(i int, broken rule) bool {
	s := w.shards[i]
	power := s.right.power(s.life, s.session, boottime(w.now))
	return s.open && (power == Serve || broken == noLeaseCheck || broken == keptServes && power == Keep)
}

// next returns all worlds that one step makes of w.
func (w modelWorld) next(broken rule) (all []modelWorld) {
	add := func(change func(*modelWorld)) {
		n := w
		change(&n)
		all = append(all, n.canonical())
	}
	add(func(n *modelWorld) {
		n.now++
		for i, e := range n.expires {
			if e != 0 && n.now >= e && n.leader {
				if n.expires[i] = 0; n.holder == i {
					n.holder, n.lockable = -1, n.now+modelDelay
				}
			}
		}
	})
	add(func(n *modelWorld) {
		if n.leader = !n.leader; n.leader {
			for i, e := range n.expires {
				if e != 0 {
					n.expires[i] = n.now + 2*modelTTL // a new leader starts the time of all sessions anew
				}
			}
		}
	})
	for i := range w.shards {
		s, at := w.shards[i], boottime(w.now)
		if s.asked != 0 && !s.answered && w.leader {
			add(func(n *modelWorld) {
				x := &n.shards[i]
				if x.answered, x.known = true, n.expires[i] != 0; x.known {
					n.expires[i] = n.now + 2*modelTTL
				}
			})
		}
		// The shard's own steps; each ends the room when its power is gone.
		step := func(change func(*modelWorld, *modelShard)) {
			add(func(n *modelWorld) {
				x := &n.shards[i]
				change(n, x)
				if broken == anySession && x.open {
					x.life, x.session = x.right.life, x.right.session
				}
				if x.open && x.right.power(x.life, x.session, at) == None {
					x.open = false
				}
			})
		}
		switch {
		case s.asked != 0:
			if s.answered {
				step(func(n *modelWorld, x *modelShard) {
					sent := boottime(x.asked)
					if broken == fromAnswer {
						sent = at
					}
					if x.known {
						x.right = x.right.renewed(sent, at)
					} else {
						x.right, x.has = x.right.gone(at), false
					}
					x.asked, x.answered, x.known = 0, false, false
				})
			}
			for _, v := range []verdict{isolated, cutOff, leaderless} { // the request or its answer is lost
				if v == leaderless && w.leader {
					continue
				}
				step(func(n *modelWorld, x *modelShard) {
					x.right = x.right.judged(at, at, v)
					x.asked, x.answered, x.known = 0, false, false
				})
			}
		case s.has:
			step(func(_ *modelWorld, x *modelShard) { x.asked = w.now })
		case w.leader:
			step(func(n *modelWorld, x *modelShard) {
				n.expires[i], x.has = n.now+2*modelTTL, true
				x.right = x.right.opened(at, at)
			})
		}
		if !w.leader || !s.has || w.expires[i] == 0 {
			continue
		}
		if s.right.leased(at) && (w.holder == i || w.holder < 0 && w.now >= w.lockable) { // opens it, or locks it again
			step(func(n *modelWorld, x *modelShard) {
				if n.holder = i; !x.open {
					x.open, x.life = true, x.right.life
				}
				x.session = x.right.session
			})
		}
		if s.open && w.holder == i { // the last one leaves
			step(func(n *modelWorld, x *modelShard) { x.open, n.holder = false, -1 })
		}
	}
	return all
}

// canonical moves a world to modelNow and forgets what makes no difference any more.
func (w modelWorld) canonical() modelWorld {
	by := modelNow - w.now
	future := func(t int) int { // a time that is over is no time
		if t += by; t <= modelNow {
			return 0
		}
		return t
	}
	past := func(t int) int {
		if t == 0 {
			return 0
		}
		return max(t+by, modelNow-modelTTL-1)
	}
	w.now, w.lockable = modelNow, future(w.lockable)
	for i := range w.shards {
		if w.expires[i] != 0 { // one that is over is only gone when a leader says so
			w.expires[i] = max(w.expires[i]+by, modelNow)
		}
		s := &w.shards[i]
		r := &s.right
		r.lease, r.keep = boottime(future(int(r.lease))), boottime(future(int(r.keep)))
		r.since, s.asked = boottime(past(int(r.since))), past(s.asked)
		same := func(a, b uint64) uint64 {
			if s.open && a == b {
				return 2
			}
			return 1
		}
		s.life, s.session = same(s.life, r.life), same(s.session, r.session)
		r.life, r.session = 2, 2
		if r.keep == 0 {
			r.alone = false
		}
	}
	return w
}

// key is a world in few bytes; which of the shards is which makes no difference.
func (w *modelWorld) key() [28]byte {
	flag := func(b bool) byte {
		if b {
			return 1
		}
		return 0
	}
	shard := func(i int) [13]byte {
		s := &w.shards[i]
		r := &s.right
		return [13]byte{byte(r.lease), byte(r.keep), byte(r.since), flag(r.alone), flag(s.open), byte(s.life), byte(s.session),
			flag(s.has), byte(s.asked), flag(s.answered), flag(s.known), byte(w.expires[i]), flag(w.holder == i)}
	}
	a, b := shard(0), shard(1)
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	var k [28]byte
	copy(k[:], a[:])
	copy(k[13:], b[:])
	k[26], k[27] = byte(w.lockable), flag(w.leader)
	return k
}

// explore tries everything and returns a world in which both shards serve the room, if there is one.
func explore(broken rule) (split *modelWorld, worlds int) {
	start := modelWorld{leader: true, now: modelNow, holder: -1}
	for i := range start.shards {
		start.shards[i].right = right{ttl: modelTTL, life: 1}
	}
	start = start.canonical()
	seen := map[[28]byte]struct{}{start.key(): {}}
	for edge := []modelWorld{start}; len(edge) > 0; {
		var next []modelWorld
		for _, w := range edge {
			for _, n := range w.next(broken) {
				k := n.key()
				if _, was := seen[k]; was {
					continue
				}
				if n.serves(0, broken) && n.serves(1, broken) {
					return &n, len(seen)
				}
				seen[k] = struct{}{}
				next = append(next, n)
			}
		}
		edge = next
	}
	return nil, len(seen)
}

// TestModel: no two shards serve a room, whatever happens. And the model can tell: it finds the split that each
// broken rule makes.
func TestModel(t *testing.T) {
	if w, n := explore(sound); w != nil {
		t.Errorf("split after %d worlds: %+v", n, *w)
	} else {
		t.Logf("%d worlds, none split", n)
	}
	for broken, name := range map[rule]string{
		noLeaseCheck: "no lease check", fromAnswer: "lease from the answer", anySession: "a new session is good for old rooms", keptServes: "kept rooms admit",
	} {
		t.Run(name, func(t *testing.T) {
			w, n := explore(broken)
			if w == nil {
				t.Fatalf("%d worlds and no split: the model is blind to it", n)
			}
			t.Logf("split after %d worlds: %+v", n, *w)
		})
	}
}
