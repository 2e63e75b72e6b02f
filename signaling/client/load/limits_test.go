package load

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/signaling/client/count"
)

// TestStormAndIdle runs both scenarios in small, so that the benchmarks do not rot.
func TestStormAndIdle(t *testing.T) {
	defer goleak.VerifyNone(t)
	pid, c := shard(t)
	c.Room = "small"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := Storm{Client: c, Crowd: 20, PID: pid}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Everybody sees everybody, and the focus.
	if r.Deliveries < 20*21 || r.Wall <= 0 || r.After.RSS <= 0 {
		t.Errorf("%+v", r)
	}
	i, err := Idle{Client: c, Sessions: 20, PerRoom: 5, PID: pid, Settle: 10 * time.Millisecond}.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if i.LoginWall <= 0 || i.After.RSS <= 0 {
		t.Errorf("%+v", i)
	}
}

// TestOutOfFiles has a shard that may open 64 files, and far more clients: those that are in stay in, it does
// not spin, and when some leave others get in.
func TestOutOfFiles(t *testing.T) {
	defer goleak.VerifyNone(t)
	pid, c := shardWith(t, "PLENUM_LOAD_FILES=64")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	in, err := dialAll(ctx, 40, func(i int) count.Config {
		c := c
		c.Room, c.Nick = fmt.Sprint("room-", i%4), uint32(i)
		return c
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, c := range in {
			c.Close()
		}
	}()
	wait, stop := context.WithTimeout(ctx, 2*time.Second)
	waiting := make(chan int)
	for range 100 {
		go func() {
			if c, err := count.Open(wait, c); err == nil {
				<-wait.Done()
				c.Close()
				waiting <- 1
				return
			}
			waiting <- 0
		}()
	}
	before, err := Measure(pid)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := range 10 {
		for n, c := range in {
			if _, err := c.Ask(fmt.Sprintf(`<iq id="ping-%d" to="localhost" type="get" xmlns="jabber:client"><ping xmlns="urn:xmpp:ping"/></iq>`, i), fmt.Sprintf("ping-%d", i)); err != nil {
				t.Fatalf("client %d, which was in: %v", n, err)
			}
		}
		select {
		case <-wait.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	took := time.Since(began)
	after, err := Measure(pid)
	if err != nil {
		t.Fatal(err)
	}
	if share := (after.CPU - before.CPU).Seconds() / took.Seconds(); share > 0.5 { // one that spins takes all
		t.Errorf("%.2f of a core for 40 clients that ping", share)
	}
	more := 0
	for range 100 {
		more += <-waiting
	}
	stop()
	if more > 24 {
		t.Errorf("%d more with 64 files", more)
	}
	for _, c := range in[:30] {
		c.Leave()
	}
	c.Room, c.Nick = "room-1", 99
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) { // it sees by and by that they have gone
		again, err := count.Dial(ctx, c)
		if err == nil {
			again.Leave()
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("after others have left: %v", err)
		}
	}
}
