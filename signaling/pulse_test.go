package signaling

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"plenum/wire/colibri"
	"plenum/wire/xmpp"
)

// wards are two bridges under observation, and a conference of two on the first.
type wards struct {
	*lobby
	people  []*guest
	bridges [2]*guest
	media   [2]atomic.Int32 // alive, silent or refused
	hung    [2]atomic.Bool  // does not answer over its connection either
	asked   [2]int
	first   int // has the conference
}

const (
	mediaAlive = iota
	mediaSilent
	mediaRefused
)

// A mediaConn is a UDP socket towards a bridge's media.
type mediaConn struct {
	net.Conn
	state  *atomic.Int32
	answer chan []byte
	closed chan struct{}
	once   sync.Once
}

func (c *mediaConn) Write(b []byte) (int, error) {
	switch c.state.Load() {
	case mediaAlive:
		c.answer <- append([]byte{stunSuccess >> 8, stunSuccess & 0xff}, b[2:]...)
	case mediaRefused:
		return 0, syscall.ECONNREFUSED
	}
	return len(b), nil
}

func (c *mediaConn) Read(b []byte) (int, error) {
	select {
	case a := <-c.answer:
		return copy(b, a), nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *mediaConn) Close() error { c.once.Do(func() { close(c.closed) }); return nil }

// newWards runs f when the two have been offered media on the first bridge and its signs of life are known.
func newWards(t *testing.T, f func(w *wards)) {
	synctest.Test(t, func(t *testing.T) {
		w := &wards{}
		w.lobby = newLobby(t, func(c *hallConfig) {
			c.Dial = func(at netip.AddrPort) (net.Conn, error) {
				return &mediaConn{state: &w.media[at.Addr().As4()[3]-1], answer: make(chan []byte, 1000), closed: make(chan struct{})}, nil
			}
		})
		w.run(func(context.Context) {
			w.bridges = [2]*guest{w.bridge("jvb1"), w.bridge("jvb2")}
			for i, b := range w.bridges {
				w.working(b, "0", &w.asked[i])
				answer := b.answer
				b.answer = func(iq *xmpp.Element) *xmpp.Element {
					switch {
					case w.hung[i].Load():
						return nil
					case iq.Child(xmpp.NSPing, "ping") != nil:
						return xmpp.Result(iq)
					}
					reply := answer(iq)
					if m, err := colibri.ParseModified(reply.Child(colibri.NS, "conference-modified")); err == nil {
						for _, e := range m.Endpoints {
							e.Transport.ICE.Candidates[0].IP = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}).String()
						}
						reply = xmpp.Result(iq, m.Element())
					}
					return reply
				}
			}
			w.open(hallRoom)
			w.people = []*guest{w.guest("ann"), w.guest("bob")}
			for _, g := range w.people {
				client(g)
				w.join(g, hallRoom)
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			w.moved(t, true)
			if w.asked[1] > 0 {
				w.first = 1
			}
			f(w)
			for _, g := range w.people {
				w.gone(g)
			}
		})
	})
}

// moved fails unless everybody has been offered a session since the last call, or nobody.
func (w *wards) moved(t *testing.T, want bool) {
	t.Helper()
	synctest.Wait()
	for _, g := range w.people {
		begun, ended := 0, 0
		for _, e := range g.take() {
			switch e.ChildNamed("jingle").Attr("action") {
			case "session-initiate":
				begun++
			case "session-terminate":
				ended++
			}
		}
		if want && begun != 1 || !want && begun+ended > 0 {
			t.Fatalf("%s: %d sessions begun, %d ended", g.nick, begun, ended)
		}
	}
}

// TestProcessDies: the connection breaks and nobody listens at the media address: all are elsewhere at once.
func TestProcessDies(t *testing.T) {
	newWards(t, func(w *wards) {
		w.media[w.first].Store(mediaRefused)
		w.gone(w.bridges[w.first])
		w.moved(t, true)
	})
}

// TestProcessDiesBehindFirewall: as before, but nobody says so.
func TestProcessDiesBehindFirewall(t *testing.T) {
	newWards(t, func(w *wards) {
		w.media[w.first].Store(mediaSilent)
		w.gone(w.bridges[w.first])
		time.Sleep(250 * time.Millisecond)
		w.moved(t, false)
		time.Sleep(150 * time.Millisecond)
		w.moved(t, true)
	})
}

// TestPresenceLossMovesNobody: the connection breaks and media goes on. When the bridge comes back it is told what it may
// have missed, and nobody notices anything.
func TestPresenceLossMovesNobody(t *testing.T) {
	newWards(t, func(w *wards) {
		w.gone(w.bridges[w.first])
		time.Sleep(time.Minute)
		w.moved(t, false)
		again := w.bridge(w.bridges[w.first].nick)
		again.answer = w.bridges[w.first].answer
		w.join(again, brewery)
		stats := colibri.Stats{{Name: "stress_level", Value: "0"}, {Name: "drain", Value: "false"}}
		w.h.Stanza(again, xmpp.Presence("", "", "", brewery+"/"+again.nick, stats.Element()))
		time.Sleep(time.Second)
		w.moved(t, false)
		w.media[w.first].Store(mediaRefused) // and then it dies
		w.gone(again)
		w.moved(t, true)
	})
}

// TestMediaSilenceMovesNobody: media does not answer us any more, but the bridge does.
func TestMediaSilenceMovesNobody(t *testing.T) {
	newWards(t, func(w *wards) {
		w.media[w.first].Store(mediaSilent)
		time.Sleep(time.Minute)
		w.moved(t, false)
		w.h.cfg.Fleet.Trouble(time.Now(), w.h.cfg.Fleet.Bridges(time.Now())[w.first].JID) // a client says the same
		time.Sleep(time.Second)
		w.moved(t, true)
	})
}

// TestBridgeHangs: it answers nothing, and nothing breaks.
func TestBridgeHangs(t *testing.T) {
	newWards(t, func(w *wards) {
		began := time.Now()
		w.media[w.first].Store(mediaSilent)
		w.hung[w.first].Store(true)
		time.Sleep(700 * time.Millisecond)
		w.moved(t, false)
		time.Sleep(900 * time.Millisecond)
		w.moved(t, true)
		t.Logf("within %v", time.Since(began))
	})
}

// TestCutOff: nobody answers us: that is no sign of anybody's death.
func TestCutOff(t *testing.T) {
	newWards(t, func(w *wards) {
		for i := range w.bridges {
			w.media[i].Store(mediaSilent)
			w.hung[i].Store(true)
		}
		time.Sleep(time.Minute)
		w.moved(t, false)
	})
}
