package rooms

import "time"

// A boottime is a reading of CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody sets.
type boottime = time.Duration

// A Power is what a shard may do with a room.
type Power uint8

const (
	None  Power = iota // nothing: the room is somebody else's, or will be
	Keep               // those who are there stay and hear each other; nobody comes in
	Serve              // everything
)

// A right is what a shard has been told about its leases, and thereby what it may do at a moment. It is a value
// without clock or connection; the model in model_test.go runs it through everything that can happen.
//
//	lease  now < sent + TTL of a renewal that Consul answered: no other session can hold its locks
//	keep   no server could be asked, or none has a leader: what is open stays, a TTL from each such answer on
//
// When both are over the right has lapsed: the rooms of that life are void for good, whatever comes later. A
// process that slept finds itself there, without having done anything.
type right struct {
	ttl     time.Duration
	life    uint64   // counts lapses; rooms of an earlier life are void
	session uint64   // counts sessions; only rooms locked by the present one have its lease
	lease   boottime // end of it
	keep    boottime // end of that
	alone   bool     // keep is because no server has had a leader since the lease
	since   boottime // of the first answer in a row that no server has a leader
}

// A verdict is what the servers said when the agent could not renew.
type verdict uint8

const (
	isolated   verdict = iota // nobody reachable, or too few to know whether others have a leader
	cutOff                    // somebody has a leader, and this shard does not reach it
	leaderless                // most servers are known to have none
)

// What one server answered to the question for the leader.
type say uint8

const (
	silent  say = iota // nothing in time: it may be well, and hidden from us
	refused            // its host says that it does not run
	without            // it has no leader
	leads              // it has one
)

// judge weighs the servers' answers. That few servers see no leader proves nothing while others, out of our
// sight, may have elected one; a server that does not run has none.
func judge(says []say) verdict {
	n := map[say]int{}
	for _, s := range says {
		n[s]++
	}
	switch {
	case n[leads] > 0:
		return cutOff
	case n[without] > 0 && 2*(n[without]+n[refused]) > len(says):
		return leaderless
	}
	return isolated
}

// power is what may be done with a room of a life, locked by a session; session 0 is a room that was opened
// without a lock, while there was no leader.
func (r right) power(life, session uint64, now boottime) Power {
	switch {
	case life != r.life:
		return None
	case session == r.session && (now < r.lease || now < r.keep && r.alone), session == 0 && now < r.keep && r.alone:
		return Serve
	case now < r.keep:
		return Keep
	}
	return None
}

// leased reports whether locks can be taken and are good.
func (r right) leased(now boottime) bool { return now < r.lease }

// orphaned reports whether rooms open by hash: no server has had a leader for longer than an election takes.
func (r right) orphaned(now boottime) bool {
	return r.alone && now < r.keep && now-r.since >= r.ttl && now >= r.lease
}

// lapse begins a new life if the right is over.
func (r right) lapse(now boottime) right {
	if now >= r.lease && now >= r.keep {
		r.life++
		r.lease, r.keep, r.alone, r.since = 0, 0, false, 0
	}
	return r
}

// opened: Consul has made a session, asked for at sent.
func (r right) opened(sent, now boottime) right {
	r = r.lapse(now)
	r.session++
	r.lease, r.since = sent+r.ttl, 0
	return r
}

// renewed: Consul has renewed the session, asked to at sent.
func (r right) renewed(sent, now boottime) right {
	r = r.lapse(now)
	r.lease, r.since = sent+r.ttl, 0
	return r
}

// gone: Consul does not know the session.
func (r right) gone(now boottime) right {
	r.lease = 0
	return r.lapse(now)
}

// judged: the servers were asked at sent, because the session could not be renewed.
func (r right) judged(sent, now boottime, v verdict) right {
	r = r.lapse(now)
	switch {
	case v == cutOff: // whoever leads may give our rooms away
		r.since, r.alone = 0, false
	case v != leaderless:
		r.since = 0
	case r.since == 0:
		r.since = sent
	}
	if v != cutOff && now < max(r.lease, r.keep) { // what has lapsed is not kept
		// Once out of sight of a leader who may have given our rooms away, we only keep.
		seen := now < r.lease || r.alone
		r.keep, r.alone = sent+r.ttl, v == leaderless && seen
	}
	return r
}
