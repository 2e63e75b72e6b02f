package signaling

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sync"
	"sync/atomic"
	"time"

	"plenum/signaling/muc"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// A revived session (session.Config.ResumeKey) believes that it is in its room, and the room does not know
// it: the shard that had both is gone, or the session was away for longer than it is kept. It is told what
// the stock client takes for a room that has vanished, and asks for the conference and joins again, with all
// that its presence holds, without a word to its user. Two things must not come between:
//
//   - what it sends until then goes nowhere: an error to each presence would be one more attempt to join, of
//     which the client makes three;
//   - its media session has to end before it is offered another. Nobody knows that session's id any more, so
//     ids are not random: a participant's are made of its address and their number, and the first few are
//     ended blindly. The client refuses those that it does not have.
type revivals struct {
	any atomic.Int32 // len(by), for a look without the lock
	mu  sync.Mutex
	by  map[jid.JID]struct{}
}

// maxBlindEnds is how many sessions of a participant are ended that nobody knows of. One in a call has had
// one, and one more for each move to another bridge.
const maxBlindEnds = 4

func (r *revivals) add(who jid.JID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = make(map[jid.JID]struct{})
	}
	r.by[who] = struct{}{}
	r.any.Store(int32(len(r.by)))
}

// remove reports whether who was there.
func (r *revivals) remove(who jid.JID) bool {
	if r.any.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := r.by[who]
	delete(r.by, who)
	r.any.Store(int32(len(r.by)))
	return there
}

func (r *revivals) has(who jid.JID) bool {
	if r.any.Load() == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := r.by[who]
	return there
}

// revive makes a revived session join its room anew. Its nick is what the client took from its address.
func (h *hall) revive(s sender, room jid.JID) {
	who := s.JID()
	nick, err := room.WithResource(who.Local()[:min(len(who.Local()), 8)])
	if err != nil {
		return
	}
	h.revivals.add(who)
	lost := xmpp.Presence("", "", who.String(), nick.String())
	h.cfg.Deliver(who, xmpp.NewFrame(xmpp.ErrorReply(lost, muc.NoRoom)))
}

// premature reports whether a stanza comes from a session that has yet to join its room anew.
func (h *hall) premature(who jid.JID, el *xmpp.Element) bool {
	return h.revivals.has(who) && (el.Name != "presence" || el.Child(meet.NSMUC, "x") == nil && el.Attr("type") == "")
}

// rejoined ends the media sessions that somebody who was revived may still have.
func (a *actor) rejoined(now time.Time, who jid.JID, nick string) {
	if a.conf == nil || !a.hall.revivals.remove(who) {
		return
	}
	for n := range maxBlindEnds {
		end := jingle.Session{Action: jingle.SessionTerminate, SID: mediaSession(a.jid, who, n),
			Reason: &jingle.Reason{Condition: "gone"}}
		a.say(now, xmpp.IQ("set", idPrefix+"0", "", a.occupant(nick), end.Element()))
	}
}

// mediaSession is the id of a participant's n-th media session in a room.
func mediaSession(room, who jid.JID, n int) string {
	b := append([]byte(room.String()), 0)
	b = append(append(b, who.String()...), 0)
	sum := sha256.Sum256(binary.BigEndian.AppendUint32(b, uint32(n)))
	return hex.EncodeToString(sum[:6])
}
