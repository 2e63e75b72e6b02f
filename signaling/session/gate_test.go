package session

import (
	"testing"
	"testing/synctest"

	"github.com/gorilla/websocket"

	"plenum/wire/xmpp"
)

// What waits for a guest is not written once it is void, also when the shard may speak again by then; accounts are
// none of it.
func TestGate(t *testing.T) {
	for name, then := range map[string]uint64{"may not speak": 0, "may speak again": 2} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				life := uint64(1)
				b := newBed(t, func(c *Config) { c.Gate = func() uint64 { return life }; c.ResumeKey = []byte("secret") })
				c := b.dial("?room=r")
				c.login()
				c.send(bindIn)
				c.recv()
				s := b.h.session()
				s.Send(message("before"))
				c.want(`<message xmlns='jabber:client' id='before'/>`)
				life = then
				s.Send(xmpp.NewFrame(xmpp.Message("", "after", "", "")))
				if got, code := c.ended(); len(got) != 0 || code != websocket.CloseAbnormalClosure {
					t.Errorf("was told %v, %d", got, code)
				}
				<-s.done
				synctest.Wait()
				if b.srv.Session(s.JID()) != nil {
					t.Error("still there to be resumed")
				}
				life = 3
				c = b.dial("?room=r")
				c.login()
			})
		})
	}
}
