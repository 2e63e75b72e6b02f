package focus

import (
	"os"
	"path/filepath"
	"testing"

	"plenum/wire/xmpp"
)

// FuzzStanza lets a participant say anything. It gets one answer if it asked, and whatever it said the
// other one keeps its session and can still be answered.
func FuzzStanza(f *testing.F) {
	files, _ := filepath.Glob("../../wire/jingle/testdata/*.xml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Add([]byte(`<mute xmlns='http://jitsi.org/jitmeet/audio' jid='golden@conference.meet.local/good'>true</mute>`), true)
	f.Add([]byte(`<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='000000000001'><bridge-session xmlns='http://jitsi.org/protocol/focus' id='00000000-0000-4000-8000-000000000002' restart='true'/></jingle>`), true)
	f.Fuzz(func(t *testing.T, b []byte, accepted bool) {
		payload, err := xmpp.Parse(b, xmpp.Limits{})
		if err != nil {
			return
		}
		w := newWorld(t)
		w.do("join", []string{"evil"})
		w.do("join", []string{"good"})
		w.do("bridge", []string{"jvb1", "all"})
		w.do("accept", []string{"good"})
		if accepted {
			w.do("accept", []string{"evil", "ssrc=7"})
		}
		good := w.c.participants[1].session
		if payload.Name == "jingle" && payload.Attr("sid") != "" {
			payload = payload.Clone().SetAttr("sid", w.sids["evil"])
		}
		for _, typ := range []string{"set", "get", "result", "error"} {
			replies := 0
			for _, a := range w.c.Step(w.now, Stanza{"evil", xmpp.IQ(typ, "1", "evil@meet.local/r", "golden@conference.meet.local/focus", payload)}) {
				if r, ok := a.(Reply); ok {
					replies++
					if _, err := xmpp.Parse(r.IQ.Append(nil), xmpp.Limits{}); err != nil || r.To != "evil" {
						t.Fatalf("%v: to %s %s", err, r.To, r.IQ)
					}
				}
				if r, ok := a.(BridgeRequest); ok {
					if len(r.Payload.Append(nil)) > 1<<17 {
						t.Fatalf("%d bytes for the bridge", len(r.Payload.Append(nil)))
					}
					w.describe(r)
				}
			}
			if want := map[string]int{"set": 1, "get": 1}[typ]; replies != want {
				t.Fatalf("%d replies to %s", replies, typ)
			}
		}
		if w.c.participants[1].session != good {
			t.Fatal("the other one lost its session")
		}
		if lines := w.do("source-add", []string{"good", "4000000000"}); len(lines) == 0 {
			t.Fatal("no answer to the other one")
		}
	})
}
