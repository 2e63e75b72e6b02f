package rooms

import (
	"bytes"
	"slices"
	"testing"
)

// The model is two shards, one room and Consul, in whole ticks. Everything that can happen, in every order, is
// tried until nothing new comes of it. A shard may take its steps at any time or not at all, which is what being
// frozen, slow or cut off comes to; its process may be replaced by another one, which takes over its session; requests
// and answers take as long as they like, and a stanza may be a tick on its way; Consul loses its leader and finds
// another, and expires, at any time after its TTL, what was not renewed. What shards decide is right itself, the code
// that runs.
//
// It is explored twice, as all at once would take minutes: without rooms that open by hash; and with them, but without
// processes that are replaced, stanzas on their way, and requests that take time. By hash the room is at home on shard 0.
const (
	modelTTL   = 2   // of a lease, and the least that a session lives
	modelDelay = 1   // lock-delay
	modelNow   = 100 // all worlds are moved to this time, so that those that differ in nothing else are one
)

type modelShard struct {
	right    right
	open     bool // has the room open, as far as it has noticed
	life     uint64
	session  uint64 // that locked it; 0: nobody did, it was opened by hash
	alone    int    // since when each verdict was that there is no leader; 0: the last was not, or it has a lease
	early    bool   // it opened the room by hash without having waited that long
	flying   bool   // something that it wrote in the tick before is on its way, of a room that it had locked
	has      bool   // believes that it has a session
	asked    int    // when a renewal was sent that is under way; 0: none
	answered bool   // Consul has had it; the answer is on its way
	known    bool   // and says that the session exists
	ghost    int    // end of the lease of a process that was replaced and runs on; 0: none. Only where there is no flock
}

type modelWorld struct {
	hash     bool // rooms open by hash
	now      int
	shards   [2]modelShard
	expires  [2]int // of the shards' sessions; 0: gone
	holder   int    // shard whose session has the lock; -1: nobody
	lockable int    // from then on, after a session that ended unasked
	leader   bool
	calm     int  // ticks since there is a leader, up to modelTTL; 0: there is none
	command  bool // something that a former owner told the bridge is on its way. Only where bridges know no fence
	fenced   bool // the bridge has heard from the present owner. Likewise
}

// A rule is one way to build it wrong.
type rule uint8

const (
	sound         rule = iota
	noLeaseCheck       // a stanza is written whatever the time
	fromAnswer         // the lease counts from the answer instead of the question
	anySession         // a new session's lease is good for the rooms of the one before
	keptServes         // who reaches nobody admits people
	noLockDelay        // the lock is free when the session ends
	cutOffServes       // who is cut off from a leader goes on as if there were none
	fewSay             // that there is no leader is taken from servers that do not know
	ownHash            // by hash a room is at home on each shard
	hashStays          // what was opened by hash is open for good
	noFlock            // a process is replaced while it runs
	noFence            // bridges obey whoever comes last
	cutOffForgets      // who is cut off forgets since when there was no leader, and goes on as if there were none: ours, once
)

// says is how each rule is called.
var says = map[rule]string{
	noLeaseCheck: "no lease check", fromAnswer: "lease from the answer", anySession: "a new session is good for old rooms", keptServes: "kept rooms admit",
	noLockDelay: "no lock-delay", cutOffServes: "the cut off serve on", fewSay: "few servers say that there is no leader", ownHash: "a hash of one's own",
	hashStays: "rooms opened by hash stay", noFlock: "two processes of one shard", noFence: "bridges without a fence",
	cutOffForgets: "the cut off forget since when",
}

func (w modelWorld) serves(i int, broken rule) bool {
	s := w.shards[i]
	power := s.right.power(s.life, s.session, boottime(w.now))
	return s.open && (power == Serve || broken == noLeaseCheck || broken == keptServes && power == Keep || broken == hashStays && s.session == 0)
}

// split reports whether the room is served twice although it must not be. What was opened by hash may be, but not by both,
// and no longer than modelTTL once there is a leader again: then it is found and merged.
func (w modelWorld) split(broken rule) bool {
	a, b := w.serves(0, broken), w.serves(1, broken)
	for i := range w.shards {
		if g := w.shards[i].ghost; g > w.now && (a || b) || w.shards[i].early {
			return true
		}
	}
	x, y := &w.shards[0], &w.shards[1]
	if (x.session == 0) != (y.session == 0) {
		return a && b && w.calm == modelTTL
	}
	return a && (b || y.flying) || b && x.flying
}

// next returns all worlds that one step makes of w.
func (w modelWorld) next(broken rule) (all []modelWorld) {
	add := func(change func(*modelWorld)) {
		n := w
		change(&n)
		all = append(all, n.canonical())
	}
	if w.hash && (w.shards[0].asked != 0 || w.shards[1].asked != 0) {
		return w.steps(broken) // which takes no time
	}
	add(func(n *modelWorld) {
		for i := range n.shards {
			n.shards[i].flying = !w.hash && w.serves(i, broken)
		}
		if n.now++; n.leader {
			n.calm = min(n.calm+1, modelTTL)
		}
	})
	for i, e := range w.expires {
		if e != 0 && w.now >= e && w.leader {
			add(func(n *modelWorld) {
				if n.expires[i] = 0; n.holder == i {
					n.holder, n.fenced = -1, false
					n.command = broken == noFence
					if broken != noLockDelay {
						n.lockable = n.now + modelDelay
					}
				}
			})
		}
	}
	add(func(n *modelWorld) {
		n.calm = 0
		if n.leader = !n.leader; n.leader {
			for i, e := range n.expires {
				if e != 0 {
					n.expires[i] = n.now + modelTTL // a new leader starts the time of all sessions anew
				}
			}
		}
	})
	if broken == noFence && w.holder >= 0 && !w.fenced {
		add(func(n *modelWorld) { n.fenced = true })
	}
	return append(all, w.steps(broken)...)
}

// steps returns all worlds that a step of a shard, or Consul's answer to it, makes of w.
func (w modelWorld) steps(broken rule) (all []modelWorld) {
	add := func(change func(*modelWorld)) {
		n := w
		change(&n)
		all = append(all, n.canonical())
	}
	for i := range w.shards {
		s, at := w.shards[i], boottime(w.now)
		if s.asked != 0 && !s.answered && w.leader {
			add(func(n *modelWorld) {
				x := &n.shards[i]
				if x.answered, x.known = true, n.expires[i] != 0; x.known {
					n.expires[i] = n.now + modelTTL
				}
			})
		}
		if !w.hash {
			add(func(n *modelWorld) { // its process is replaced
				x := &n.shards[i]
				ghost := 0
				if broken == noFlock && w.serves(i, broken) {
					ghost = int(x.right.lease)
				}
				*x = modelShard{right: right{ttl: modelTTL, life: 1}, flying: x.flying, ghost: ghost}
			})
		}
		// The shard's own steps; each ends the room when its power is gone.
		step := func(change func(*modelWorld, *modelShard)) {
			add(func(n *modelWorld) {
				x := &n.shards[i]
				change(n, x)
				if broken == anySession && x.open && x.session != 0 {
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
						x.alone = 0
						x.right = x.right.renewed(sent, at)
					} else {
						x.right, x.has = x.right.gone(at), false
					}
					x.asked, x.answered, x.known = 0, false, false
				})
			}
			for _, v := range []verdict{isolated, cutOff, leaderless} { // the request or its answer is lost
				if v == leaderless && w.leader && broken != fewSay {
					continue
				}
				told := v
				if v == cutOff && broken == cutOffServes {
					v = leaderless
				}
				step(func(n *modelWorld, x *modelShard) {
					if told != leaderless {
						x.alone = 0
					} else if x.alone == 0 && w.hash {
						x.alone = w.now
					}
					lonely := x.right.alone
					x.right = x.right.judged(at, at, v)
					if broken == cutOffForgets && v == cutOff && x.right.keep > at {
						x.right.alone = lonely
					}
					x.asked, x.answered, x.known = 0, false, false
				})
			}
		case s.has:
			step(func(_ *modelWorld, x *modelShard) { x.asked = w.now })
		case w.leader: // takes over the session that its predecessor has left, or opens one
			step(func(n *modelWorld, x *modelShard) {
				n.expires[i], x.has, x.alone = n.now+modelTTL, true, 0
				x.right = x.right.opened(at, at)
			})
		}
		if w.hash && !s.open && s.right.orphaned(at) && (i == 0 || broken == ownHash) {
			step(func(_ *modelWorld, x *modelShard) {
				x.open, x.life, x.session = true, x.right.life, 0
				x.early = x.alone == 0 || w.now-x.alone < modelTTL
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
			step(func(n *modelWorld, x *modelShard) { x.open, x.flying, n.holder = false, false, -1 })
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
		s.alone = past(s.alone)
		same := func(a, b uint64) uint64 {
			if s.open && a == b {
				return 2
			}
			return 1
		}
		s.ghost = future(s.ghost)
		if s.life = same(s.life, r.life); !s.open || s.session != 0 {
			s.session = same(s.session, r.session)
		}
		r.life, r.session = 2, 2
		if r.keep == 0 {
			r.alone = false
		}
		if !w.hash { // since when is only for rooms that open so
			r.since = 0
		}
	}
	return w
}

// key is a world in few bytes.
func (w *modelWorld) key() [35]byte {
	flag := func(b bool) byte {
		if b {
			return 1
		}
		return 0
	}
	shard := func(i int) [16]byte {
		s := &w.shards[i]
		r := &s.right
		return [16]byte{byte(r.lease), byte(r.keep), byte(r.since), flag(r.alone), flag(s.open), byte(s.life), byte(s.session),
			flag(s.has), byte(s.asked), flag(s.answered), flag(s.known), byte(w.expires[i]), flag(w.holder == i),
			flag(s.flying), byte(s.ghost), byte(s.alone)}
	}
	a, b := shard(0), shard(1)
	if !w.hash && bytes.Compare(a[:], b[:]) > 0 { // which of the shards is which makes no difference then
		a, b = b, a
	}
	var k [35]byte
	copy(k[:], a[:])
	copy(k[16:], b[:])
	k[32], k[33], k[34] = byte(w.lockable), flag(w.leader)|byte(w.calm)<<1, flag(w.command)|flag(w.fenced)<<1
	return k
}

// explore tries everything and returns a world in which the room is split, or obeyed to for a former owner, if there is one.
func explore(hash bool, broken rule) (split *modelWorld, worlds int) {
	start := modelWorld{hash: hash, leader: true, now: modelNow, holder: -1}
	for i := range start.shards {
		start.shards[i].right = right{ttl: modelTTL, life: 1}
	}
	start = start.canonical()
	seen := map[[35]byte]struct{}{start.key(): {}}
	for edge := []modelWorld{start}; len(edge) > 0; {
		var next []modelWorld
		for _, w := range edge {
			for _, n := range w.next(broken) {
				k := n.key()
				if _, was := seen[k]; was {
					continue
				}
				if n.split(broken) || n.command && n.fenced {
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
	for _, hash := range []bool{false, true} {
		if w, n := explore(hash, sound); w != nil {
			t.Errorf("split after %d worlds: %+v", n, *w)
		} else {
			t.Logf("%d worlds, none split", n)
		}
	}
	for broken, name := range says {
		t.Run(name, func(t *testing.T) {
			w, n := explore(slices.Contains([]rule{fewSay, ownHash, hashStays, cutOffForgets}, broken), broken)
			if w == nil {
				t.Fatalf("%d worlds and no split: the model is blind to it", n)
			}
			t.Logf("split after %d worlds: %+v", n, *w)
		})
	}
}
