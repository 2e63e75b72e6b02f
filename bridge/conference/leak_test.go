package conference

import (
	"runtime"
	"slices"
	"testing"
	"time"
	"weak"
)

// TestLeaversAreCollected has somebody who took part in everything leave a conference that goes on.
func TestLeaversAreCollected(t *testing.T) {
	r := newRoom(t)
	bob, cid := r.join("bob"), r.join("cid")
	e, src := leave(r, bob, cid)
	for end := time.Now().Add(10 * time.Second); e.Value() != nil || src.Value() != nil; {
		runtime.GC()
		if time.Now().After(end) {
			t.Fatalf("still there: endpoint %v, source %v", e.Value() != nil, src.Value() != nil)
		}
	}
	if r.c.Len() != 2 || bob.e.c != r.c { // they are in use until here
		t.Fatal("the others have left too")
	}
}

func leave(r *room, bob, cid *client) (weak.Pointer[Endpoint], weak.Pointer[source]) {
	alice := r.join("alice")
	all := []*client{cid, bob, alice}
	for _, c := range all {
		c.e.SetConstraints(want(360), r.now)
	}
	for i := range 40 {
		r.pass(frameTime)
		for _, c := range all { // alice comes last, and once with a gap
			c.audio(speech(i))
			if i == 20 {
				c.seq[1]++
			}
			c.frame(0, 2, c.answersPLI() || c.n[0] == 0)
		}
		r.flush()
	}
	if len(bob.on("alice-v0")) == 0 || len(bob.on("alice-a0")) == 0 || len(alice.on("bob-v0")) == 0 {
		r.t.Fatal("no media")
	}
	alice.e.SetConstraints(want(180), r.now)
	e, src := weak.Make(alice.e), weak.Make(alice.e.sources[0])
	r.c.Remove("alice", r.now)
	r.all = slices.Delete(r.all, 2, 3)
	return e, src
}
