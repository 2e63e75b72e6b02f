package signaling

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"plenum/signaling/muc"
	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// TestRoomBudget has everybody in a large room send all the time: the room gets what it may have, newcomers get in, and
// in the end everybody is seen as they said last.
func TestRoomBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMailbox()
		const people, seconds = 200, 10
		m.size.Store(people)
		began := time.Now()
		taken, last, now := 0, map[jid.JID]string{}, ""
		read := func() {
			for _, l := range m.take() {
				taken++
				last[l.from.JID] = l.st.Attr("n")
			}
		}
		all := make([]jid.JID, people)
		for i := range all {
			all[i] = jid.MustParse(fmt.Sprintf("u%d@l/r", i))
		}
		everybody := func() {
			now = fmt.Sprint(time.Since(began))
			for _, who := range all {
				if m.post(time.Now(), letter{from: muc.Sender{JID: who}, st: xmpp.New("", "presence", "n", now)}) != letterTaken {
					t.Fatal("a presence was refused")
				}
			}
			read()
		}
		for time.Since(began) < seconds*time.Second {
			everybody()
			time.Sleep(50 * time.Millisecond)
		}
		if most := (roomBurst+seconds*roomRate)/people + people; taken > most || taken < most/2 {
			t.Errorf("%d presences in %d s, %d are allowed", taken, seconds, most)
		}
		everybody() // what is left
		newcomer := letter{from: muc.Sender{JID: jid.MustParse("new@l/r")}, st: xmpp.New("", "presence", "n", "in")}
		m.post(time.Now(), newcomer)
		if read(); last[newcomer.from.JID] != "in" {
			t.Error("a newcomer has to wait")
		}
		said := letter{from: newcomer.from, st: xmpp.New("", "message", "type", "groupchat")}
		if m.post(time.Now(), said) != letterRefused {
			t.Error("a message goes to everybody in a room that is over its budget")
		}
		if said.st.SetAttr("type", "chat"); m.post(time.Now(), said) != letterTaken {
			t.Error("a message to one does not")
		}
		time.Sleep(time.Minute)
		read()
		for who, n := range last {
			if n != now && who != newcomer.from.JID {
				t.Fatalf("%v is seen as of %s, the last was at %s", who, n, now)
			}
		}
		m.close()
		time.Sleep(time.Minute)
	})
}
