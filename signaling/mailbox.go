package signaling

import (
	"sync"
	"sync/atomic"
	"time"

	"plenum/signaling/muc"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// What one person may send to one room. A client that joins, mutes and chats as fast as a person can
// stays far below; services (bridges, recorders, a stock Jicofo) speak for many and are not counted.
const (
	quotaBurst = 200
	quotaRate  = 20 // stanzas a second
)

// What everybody in one room may cause together, in stanzas delivered: five hundred who join at once, with all that they say
// then, and after that a twentieth of a processor. Joins are let in on credit.
const (
	roomBurst = 1_000_000
	roomRate  = 50_000 // a second
)

// maxSpare is the largest batch whose memory is kept for the next one.
const maxSpare = 1024

// A letter is a stanza, or a control event if do is set.
type letter struct {
	from muc.Sender
	st   *xmpp.Element
	do   func(now time.Time)
}

// A mailbox is what waits for one room, in order. Senders never block. Its policy by kind:
//
//   - control events (timers, answers, sessions that ended) are always taken; their number is bounded
//     by that of the sessions, timers and requests they end;
//   - stanzas count against their sender's quota in this room, so that who floods is alone with it;
//   - a presence beyond the quota is kept, the latest one replacing an earlier, and delivered as soon as
//     the quota allows: what others see of a flooder is late, never wrong. Other stanzas are refused;
//   - what goes to everybody counts against the room's budget besides, once for each, so that a room that floods is alone
//     with it, too.
type mailbox struct {
	wake chan struct{} // holds a value while the mailbox may have letters
	size atomic.Int64  // how many are in the room

	mu     sync.Mutex
	queue  []letter
	spare  []letter // the last batch, to be filled again
	quotas map[jid.JID]*quota
	budget float64 // deliveries left; below zero nothing new goes to everybody
	at     time.Time
	closed bool
}

type quota struct {
	tokens float64
	at     time.Time
	late   *letter // a presence that waits
}

// A verdict is what became of a stanza.
type verdict uint8

const (
	letterTaken verdict = iota
	letterRefused
	letterLate // the room has ended
)

func newMailbox() *mailbox {
	return &mailbox{wake: make(chan struct{}, 1), quotas: make(map[jid.JID]*quota), budget: roomBurst}
}

// control posts an event. It reports false when the room has ended.
func (m *mailbox) control(do func(now time.Time)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.putLocked(letter{do: do})
	return true
}

// post takes a stanza at now.
func (m *mailbox) post(now time.Time, l letter) verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return letterLate
	}
	if l.from.Service {
		m.putLocked(l)
		return letterTaken
	}
	q := m.quotas[l.from.JID]
	least := 0.0
	if q == nil {
		least = -roomBurst
		q = &quota{tokens: quotaBurst, at: now}
		m.quotas[l.from.JID] = q
	}
	q.refill(now)
	presence := l.st.Name == "presence"
	cost := 0.0
	if presence || l.st.Attr("type") == "groupchat" {
		cost = float64(m.size.Load())
	}
	m.refillLocked(now)
	switch {
	case q.tokens >= 1 && (cost == 0 || m.budget >= least):
		q.tokens--
		m.budget -= cost
		if presence {
			q.late = nil // superseded
		}
		m.putLocked(l)
		return letterTaken
	case presence:
		if q.late == nil {
			m.laterLocked(l.from.JID)
		}
		q.late = &l
		return letterTaken
	}
	return letterRefused
}

func (q *quota) refill(now time.Time) {
	q.tokens = min(quotaBurst, q.tokens+now.Sub(q.at).Seconds()*quotaRate)
	q.at = now
}

func (m *mailbox) refillLocked(now time.Time) {
	if !m.at.IsZero() {
		m.budget = min(roomBurst, m.budget+now.Sub(m.at).Seconds()*roomRate)
	}
	m.at = now
}

func (m *mailbox) laterLocked(who jid.JID) {
	time.AfterFunc(time.Second, func() { m.release(time.Now(), who) })
}

// release delivers a presence that has waited; it is owed whatever else its sender did meanwhile. A room that is over
// its budget waits longer.
func (m *mailbox) release(now time.Time, who jid.JID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.quotas[who]
	if m.closed || q == nil || q.late == nil {
		return
	}
	if m.refillLocked(now); m.budget < 0 {
		m.laterLocked(who)
		return
	}
	m.budget -= float64(m.size.Load())
	m.putLocked(*q.late)
	q.late = nil
}

// forget drops the quota of somebody who is not in the room any more. It reports false, and keeps it,
// when a presence still waits and its session can still send.
func (m *mailbox) forget(who jid.JID, gone bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if q := m.quotas[who]; q != nil && q.late != nil && !gone {
		return false
	}
	delete(m.quotas, who)
	return true
}

func (m *mailbox) putLocked(l letter) {
	m.queue = append(m.queue, l)
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take returns all letters; they are valid until the next call. Only the room's goroutine takes.
func (m *mailbox) take() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	batch := m.queue
	clear(m.spare)
	m.queue, m.spare = m.spare[:0], batch
	if cap(m.queue) > maxSpare {
		m.queue = nil
	}
	return batch
}

// close ends the mailbox and returns what was left in it.
func (m *mailbox) close() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	rest := m.queue
	m.queue, m.spare, m.quotas = nil, nil, nil
	return rest
}

func (m *mailbox) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}
