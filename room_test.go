package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"plenum/signaling/client"
)

// joinAll has n participants join a room at once, half of them with dependency descriptors as current
// Chromium, half with picture ids as Firefox; some over the WebSocket channel, some by HTTP request.
func joinAll(t *testing.T, url, room string, n int) []*client.Participant {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	all := make([]*client.Participant, n)
	var joining sync.WaitGroup
	for i := range all {
		joining.Go(func() {
			p, err := client.Join(ctx, client.Config{
				URL: url, Room: room, Name: fmt.Sprint("participant ", i), Rewriting: true,
				Send:             client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: i%2 == 0},
				WebSocketChannel: i%5 == 4,
				HTTPRequest:      i%3 == 2,
				ResumeAfter:      100 * time.Millisecond,
			})
			if err != nil {
				t.Errorf("participant %d: %v", i, err)
				return
			}
			all[i] = p
		})
	}
	joining.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() {
		for _, p := range all {
			p.Close()
		}
	})
	return all
}

// await waits until what p has seen satisfies f.
func await(t testing.TB, p *client.Participant, limit time.Duration, what string, f func(client.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := p.Wait(ctx, f); err != nil {
		s := p.Stats()
		t.Fatalf("%s: %s: %v\n%s", p.ID(), what, err, s.String())
	}
}

// plays holds when the participant gets that many others by picture and by sound.
func plays(n int) func(client.Stats) bool {
	return func(s client.Stats) bool { return s.Playing(client.Video) == n && s.Playing(client.Audio) == n }
}

// TestTenParticipants is a room of ten that everybody hears and sees, and that people leave in every way.
func TestTenParticipants(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	shard := startDev(t)
	const n = 10
	all := joinAll(t, shard.HTTP, "ten", n)
	for _, p := range all {
		await(t, p, mediaLimit, "everybody else plays", plays(n-1))
	}
	first := all[0].Stats()
	m := first.Marks
	t.Logf("join → joined %v, → first video %v", m.Joined.Sub(m.Started), m.FirstVideo.Sub(m.Started))

	muted := all[1]
	if err := muted.MuteAudio(true); err != nil {
		t.Fatal(err)
	}
	for _, p := range all[2:] {
		await(t, p, soon, "hears of the mute", func(s client.Stats) bool {
			return s.Members[muted.ID()].Sources[muted.ID()+"-a0"].Muted
		})
	}

	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	gone := all[2]
	if err := gone.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	rest := slices.Delete(slices.Clone(all), 2, 3)
	for _, p := range rest {
		await(t, p, soon, "hears of the leaving", func(s client.Stats) bool { _, there := s.Members[gone.ID()]; return !there })
		await(t, p, mediaLimit, "the others still play", func(s client.Stats) bool { return s.Playing(client.Video) == n-2 })
	}

	cut := rest[3]
	if err := cut.DropSocket(); err != nil {
		t.Fatal(err)
	}
	await(t, cut, soon, "resumes", func(s client.Stats) bool { return s.Resumptions == 1 })
	if err := cut.SetDisplayName("back again"); err != nil {
		t.Fatal(err)
	}
	await(t, rest[0], soon, "hears the one who resumed", func(s client.Stats) bool { return s.Members[cut.ID()].Name == "back again" })
}

// TestLossyReceiver has a tenth of everything to and from one participant lost; nobody's picture stops.
func TestLossyReceiver(t *testing.T) {
	shard := startDev(t)
	all := joinAll(t, shard.HTTP, "lossy", 3)
	for _, p := range all {
		await(t, p, mediaLimit, "everybody else plays", plays(2))
	}
	all[0].Lose(0.1, 0.1)
	frames := func(p *client.Participant) (n uint64) {
		for _, r := range p.Stats().Received {
			n += r.Frames
		}
		return n
	}
	for _, p := range all {
		start := frames(p)
		await(t, p, mediaLimit, "pictures go on", func(client.Stats) bool { return frames(p) > start+100 })
	}
}

// TestVanished has somebody's line go dead: the room forgets them when their session has expired, and the
// bridge says before that that it hears nothing.
func TestVanished(t *testing.T) {
	shard := startDev(t, func(o *devOptions) { o.hibernation = 2 * time.Second })
	all := joinAll(t, shard.HTTP, "vanished", 3)
	for _, p := range all {
		await(t, p, mediaLimit, "everybody else plays", plays(2))
	}
	id := all[2].ID()
	all[2].Vanish()
	for _, p := range all[:2] {
		await(t, p, mediaLimit, "the vanished one leaves", func(s client.Stats) bool { _, there := s.Members[id]; return !there })
		await(t, p, mediaLimit, "the others play", plays(1))
	}
}
