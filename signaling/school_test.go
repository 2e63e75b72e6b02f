package signaling

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
)

// TestSchool has pupils behind one address join thirty rooms at once, while another address opens
// sockets that say nothing and asks for rooms that nobody wants: all of them get in.
func TestSchool(t *testing.T) {
	defer goleak.VerifyNone(t)
	const pupils, rooms = 400, 30 // a thousand take 4.4 s on two cores, their clients included
	s := testServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()

	var all sync.WaitGroup
	flooding, enough := context.WithCancel(t.Context())
	flood := flooder(s, flooding, &all)

	var joined sync.WaitGroup
	var mu sync.Mutex
	var took []time.Duration
	done := make(chan struct{})
	start := time.Now()
	for i := range pupils {
		joined.Add(1)
		all.Go(func() {
			began := time.Now()
			g, err := join(s, fmt.Sprint("class", i%rooms), nil)
			mu.Lock()
			took = append(took, time.Since(began))
			mu.Unlock()
			if err != nil {
				t.Errorf("pupil %d: %v", i, err)
			}
			joined.Done()
			<-done
			if g != nil {
				g.ws.Close()
			}
		})
	}
	joined.Wait()
	slices.Sort(took)
	t.Logf("%d in %d rooms in %v, p50 %v, p95 %v; the flood opened %d sockets", pupils, rooms, time.Since(start).Round(time.Millisecond),
		took[pupils/2].Round(time.Millisecond), took[pupils*95/100].Round(time.Millisecond), flood())
	if got := s.Sessions(); got.Sessions < pupils {
		t.Errorf("%+v", got)
	}
	if n := s.hall.sizes().conferences; n < rooms {
		t.Errorf("%d rooms", n)
	}
	enough()
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	close(done)
	all.Wait()
}

// flooder attacks from 127.0.0.2 until ctx ends; the function returned says how many sockets it got.
func flooder(s *Server, ctx context.Context, all *sync.WaitGroup) (opened func() int) {
	d := websocket.Dialer{
		Subprotocols:   []string{"xmpp"},
		NetDialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext,
	}
	var mu sync.Mutex
	n := 0
	for range 4 {
		all.Go(func() {
			var sockets []*websocket.Conn
			for ctx.Err() == nil {
				ws, _, err := d.DialContext(ctx, "ws://"+s.HTTPAddr().String()+"/xmpp-websocket?room=spam", nil)
				if err != nil {
					select { // refused: try again, as an attacker would
					case <-ctx.Done():
					case <-time.After(time.Millisecond):
					}
					continue
				}
				sockets = append(sockets, ws)
				mu.Lock()
				n++
				mu.Unlock()
			}
			for _, ws := range sockets {
				ws.Close()
			}
		})
	}
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}
