package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plenum/signaling"
	"plenum/signaling/client/count"
	"plenum/signaling/rooms"
	"plenum/wire/jid"
)

// A slowOwner is a store of leases that takes its time, and counts who comes.
type slowOwner struct {
	rooms.Owner
	delay atomic.Int64
	mu    sync.Mutex
	asked []time.Time
}

func (o *slowOwner) Acquire(ctx context.Context, room jid.JID) (rooms.Lease, error) {
	o.mu.Lock()
	o.asked = append(o.asked, time.Now())
	o.mu.Unlock()
	select {
	case <-time.After(time.Duration(o.delay.Load())):
	case <-ctx.Done():
		return rooms.Lease{}, ctx.Err()
	}
	return o.Owner.Acquire(ctx, room)
}

// TestWaterfall (E4) has the store of leases be slow, and hundreds ask for rooms all the same: so many may wait, the others
// are told to come again, each at another time; who joins a room that is there notices nothing, and when the store is
// well again everybody gets a room without a second wave.
func TestWaterfall(t *testing.T) {
	slow, crowd := 500*time.Millisecond, 240
	if fullLength() {
		slow = 5 * time.Second
	}
	owner := &slowOwner{Owner: new(rooms.Memory)}
	k := newRack(t, 0, func(c *signaling.Config) {
		c.Owner = owner
		c.Edges = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} // each request is from an address of its own
	})
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}, Timeout: mediaLimit}
	defer client.CloseIdleConnections()
	var serial, shed atomic.Int64
	ask := func(room string) (code int, again time.Duration) {
		n := serial.Add(1)
		r, _ := http.NewRequest(http.MethodPost, k.url+"/conference-request/v1", strings.NewReader(`{"room":"`+room+`@conference.localhost"}`))
		r.Header.Set("X-Forwarded-For", fmt.Sprintf("10.0.%d.%d", n/250, n%250))
		answer, err := client.Do(r)
		if err != nil {
			t.Errorf("request: %v", err)
			return 0, 0
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
		return answer.StatusCode, time.Duration(seconds) * time.Second
	}
	until := func(room string) { // a client that wants this room
		for {
			code, again := ask(room)
			if code == http.StatusOK || code == 0 {
				return
			}
			if shed.Add(1); code != http.StatusTooManyRequests || again < time.Second {
				t.Errorf("told %d, to come again after %v", code, again)
				return
			}
			time.Sleep(again)
		}
	}
	const steady = 40 // a second
	requests := func(n int, prefix string) (all *sync.WaitGroup) {
		all = new(sync.WaitGroup)
		for i := range n {
			all.Go(func() { until(fmt.Sprint(prefix, i)) })
			time.Sleep(time.Second / steady)
		}
		return all
	}
	requests(steady, "steady").Wait()
	if shed.Load() > 0 {
		t.Fatal("turned away without need")
	}
	ask("there")
	a := &arena{T: t, http: k.url}
	owner.delay.Store(int64(slow))
	var all sync.WaitGroup
	for i := range crowd {
		all.Go(func() { until(fmt.Sprint("crowd", i)) })
	}
	// Meanwhile people join the room that is there.
	ctx := a.context()
	var joins []time.Duration
	for i := 0; i < 100; i++ {
		began := time.Now()
		cfg := a.config()
		cfg.Room, cfg.Nick = "there", uint32(i+1)
		c, err := count.Dial(ctx, cfg)
		if err == nil {
			if err = c.Join(); err == nil {
				err = c.Until(ctx, c.Complete)
			}
			defer c.Close()
		}
		if err != nil {
			t.Fatalf("join %d: %v", i, err)
		}
		joins = append(joins, time.Since(began))
	}
	slices.Sort(joins)
	if p99 := joins[98]; p99 > 2*time.Second {
		t.Errorf("p99 of joins is %v", p99)
	}
	time.Sleep(slow)
	owner.delay.Store(0)
	recovered := time.Now()
	requests(10*steady, "after").Wait()
	all.Wait()
	owner.mu.Lock()
	defer owner.mu.Unlock()
	most, first := 0, 0
	after := slices.DeleteFunc(slices.Clone(owner.asked), func(at time.Time) bool { return at.Before(recovered) })
	for i, at := range after { // the most in any second after the recovery
		for at.Sub(after[first]) >= time.Second {
			first++
		}
		most = max(most, i-first+1)
	}
	t.Logf("%d times turned away; joins meanwhile p50 %v, p99 %v; after it at most %d requests a second, steady is %d",
		shed.Load(), joins[50].Round(time.Millisecond), joins[98].Round(time.Millisecond), most, steady)
	if shed.Load() == 0 {
		t.Error("nobody was turned away")
	}
	if most > 2*steady {
		t.Errorf("%d requests in a second after the recovery, %d before", most, steady)
	}
}

// TestLoudRoom (E5) has a room of two hundred in which everybody sends fifty presences a second. It gets what a
// room may have, and others join theirs as before.
func TestLoudRoom(t *testing.T) {
	const free = "127.0.0.1:0"
	p := startProgram(t, 0, "dev", "--http", free, "--xmpp", free, "--metrics", free, "--media", free, "--bridge-http", free)
	a := &arena{T: t, http: p.ready.HTTP}
	ctx := a.context()
	const people, lasts = 200, 3 * time.Second
	quiet := a.joins(40)
	members := make([]*count.Client, people)
	for i := range members {
		cfg := a.config()
		cfg.Room, cfg.Nick, cfg.Crowd = "loud", uint32(i+1), people
		c, err := count.Dial(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Join(); err != nil {
			t.Fatal(err)
		}
		members[i] = c
	}
	before := p.metric("plenum_shard_deliveries_total")
	began := time.Now()
	flooding, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	var sent atomic.Int64
	for _, c := range members {
		c.SetDeadline(time.Time{})
		context.AfterFunc(flooding, func() { c.SetDeadline(time.Now()) })
		all.Go(func() { _ = c.Until(flooding, func(count.Counts) bool { return false }) })
		all.Go(func() {
			pace := time.NewTicker(20 * time.Millisecond) // more than one may, and a burst that one may
			defer pace.Stop()
			for flooding.Err() == nil && c.Presence(false) == nil {
				sent.Add(1)
				<-pace.C
			}
		})
	}
	loud := a.joins(40)
	time.Sleep(time.Until(began.Add(lasts)))
	made, took := p.metric("plenum_shard_deliveries_total")-before, time.Since(began)
	stop()
	all.Wait()
	t.Logf("%d presences sent in a room of %d, %.0f deliveries in %v; meanwhile join p50 %v, p95 %v, before p50 %v, p95 %v",
		sent.Load(), people, made, took.Round(time.Millisecond), loud[20].Round(time.Millisecond), p95(loud), quiet[20].Round(time.Millisecond), p95(quiet))
	if most := 1_000_000 + 50_000*(took.Seconds()+1) + people*people; made > most {
		t.Errorf("%.0f deliveries, a room may have %.0f", made, most)
	}
	if fullLength() && loud[20] > time.Second { // two hundred clients on the same processors: only where nothing else runs
		t.Errorf("join p50 is %v", loud[20])
	}
}
