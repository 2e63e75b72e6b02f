package main

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"plenum/signaling/client"
)

// perCall are functions that make what there is per session, room, conference or participant. None of them may
// wait for a channel: the runtime keeps what it allocates for that.
var perCall = []string{
	"plenum/signaling/session.newConn", "plenum/signaling/session.(*Server).bind",
	"plenum/signaling.newMailbox", "plenum/signaling/muc.New", "plenum/signaling/focus.New",
	"plenum/bridge.(*control).create", "plenum/bridge.(*live).add", "plenum/bridge.(*media).newPeer",
	"plenum/bridge/conference.New", "plenum/bridge/conference.(*Conference).AddEndpoint", "plenum/bridge/conference.(*Endpoint).addSource",
	"plenum/bridge/transport.New", "plenum/bridge/transport.newKeys", "plenum/bridge/ice.New",
	"github.com/pion/dtls/v3.createConn", "github.com/pion/sctp.createAssociationFromConfigWithTsn",
	"plenum/signaling/client.newMailbox", "plenum/signaling/client/peer.New",
}

// alive counts the objects of each function of perCall that are in memory, as far as they were made while
// runtime.MemProfileRate was 1.
func alive() map[string]int64 {
	runtime.GC() // the profile is as of the last but one
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 1000)
	for {
		n, ok := runtime.MemProfile(records, false)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, n+1000)
	}
	sum := map[string]int64{}
	for _, r := range records {
		frames := runtime.CallersFrames(r.Stack())
		for f, more := frames.Next(); ; f, more = frames.Next() {
			if slices.Contains(perCall, f.Function) {
				sum[f.Function] += r.InUseObjects()
			}
			if !more || !strings.HasPrefix(f.Function, "runtime.") {
				break
			}
		}
	}
	return sum
}

// TestNothingStays has people join rooms and leave them in every way. Nothing that was made for them is in
// memory afterwards, neither at the server nor at the clients.
func TestNothingStays(t *testing.T) {
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 1
	shard := startDev(t, func(o *devOptions) { o.hibernation = time.Second })
	before, last := alive(), map[string]int64{}
	for end := time.Now().Add(soon); before["plenum/signaling/session.(*Server).bind"] == 0 || before["plenum/signaling/muc.New"] == 0 || !maps.Equal(before, last); {
		if time.Now().After(end) {
			t.Fatal("the bridge does not come to its brewery")
		}
		before, last = alive(), before
	}
	during := meet(t, shard.HTTP)
	for _, f := range perCall {
		if during[f] <= before[f] {
			t.Errorf("%s has not made anything: was it renamed?", f)
		}
	}
	after := alive()
	for end := time.Now().Add(30 * time.Second); !maps.Equal(after, before); after = alive() {
		if time.Now().After(end) {
			for _, f := range perCall {
				t.Errorf("%s: %d objects before, %d during, %d after", f, before[f], during[f], after[f])
			}
			return
		}
	}
}

// meet has two rooms with three people each, who leave in different ways, and returns what was in use meanwhile.
func meet(t *testing.T, url string) (during map[string]int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*mediaLimit)
	defer cancel()
	var all [6]*client.Participant
	for i := range all {
		p, err := client.Join(ctx, client.Config{
			URL: url, Room: fmt.Sprint("nothing-stays-", i%2), Rewriting: i != 4, WebSocketChannel: i == 5, HTTPRequest: i == 3,
			Send: client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: i != 4},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		all[i] = p
	}
	for _, p := range all {
		await(t, p, mediaLimit, "everybody else plays", plays(2))
	}
	during = alive()
	all[0].Vanish()
	all[1].Vanish()
	for _, p := range all[2:4] {
		if err := p.Leave(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return during // the rest is cut off
}
