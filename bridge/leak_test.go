package bridge

import (
	"runtime"
	"testing"
	"time"
	"weak"
)

// A remainder is something that is to be garbage when what it was part of has ended.
type remainder struct {
	what string
	gone func() bool
}

func remainderOf[T any](what string, p *T) remainder {
	w := weak.Make(p)
	return remainder{what, func() bool { return w.Value() == nil }}
}

func collected(t *testing.T, all []remainder) {
	t.Helper()
	for _, r := range all {
		eventually(t, "the "+r.what+" is collected", func() bool { runtime.GC(); return r.gone() })
	}
}

// TestNothingStays has a conference end, and one participant leave another, and finds nothing of them in memory.
func TestNothingStays(t *testing.T) {
	b := start(t, nil)
	join(t, b, "m2", "cccc3333", "")
	conference, participant := talk(t, b, "m1")
	mustModify(t, b, modify+`meeting-id='m1' expire='true'/>`)
	collected(t, append(conference, participant...))

	conference, participant = talk(t, b, "m2")
	mustModify(t, b, modify+`meeting-id='m2'><endpoint id='aaaa1111' expire='true'/></conference-modify>`)
	collected(t, participant)
	for _, r := range conference {
		if r.gone() {
			t.Errorf("the %s of a conference that goes on is collected", r.what)
		}
	}
}

// talk has aaaa1111 join a meeting and send media until it has come through. It returns what is the
// conference's and what is the participant's.
func talk(t *testing.T, b *Bridge, meeting string) (conference, participant []remainder) {
	t.Helper()
	join(t, b, meeting, "aaaa1111", "")
	var e *member
	for _, l := range b.control.conferences() {
		if l.meeting.id == meeting {
			e = l.endpoint("aaaa1111")
		}
	}
	c := newClient(t)
	if err := e.peer.setRemote(c.join(t, e.peer.describe(), false)); err != nil {
		t.Fatal(err)
	}
	wait(t, "data channel", c.opened)
	seq := uint16(0)
	eventually(t, "media comes", func() (came bool) {
		seq++
		c.send(t, seq, []byte("opus"))
		done := make(chan struct{})
		e.live.do(func(time.Time) {
			if came = e.peer.t.RTP > 0; came {
				h := e.live.core.rooms[e.live.conf]
				conference = []remainder{remainderOf("live", e.live), remainderOf("conference", e.live.conf), remainderOf("hosted", h)}
				participant = []remainder{remainderOf("endpoint", e.engine), remainderOf("member", e),
					remainderOf("peer", e.peer), remainderOf("transport", e.peer.t)}
			}
			close(done)
		})
		<-done
		return came
	})
	return conference, participant
}
