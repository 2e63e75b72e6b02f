//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"go.uber.org/goleak"

	"plenum/overlay/netlab"
	"plenum/signaling/client"
	"plenum/signaling/client/peer"
	"plenum/signaling/trace"
	"plenum/wire/colibri"
)

var (
	networksShard    = flag.String("networks.shard", "", "`URL` of a shard whose bridge BenchmarkNetworks measures; without one it is plenum dev")
	networksOnly     = flag.String("networks.only", "", "comma-separated `NAMES` of bad networks; all of them without")
	networksWindow   = flag.Duration("networks.window", 30*time.Second, "for how long a network is measured")
	networksSettle   = flag.Duration("networks.settle", 10*time.Second, "how long a call may take to settle before that")
	networksParallel = flag.Int("networks.parallel", 4, "how many networks are measured at once, each in a room of its own")
	networksTrace    = flag.Bool("networks.trace", false, "print what plenum room trace says at the end of each call")
	networksRepeats  = flag.Int("networks.repeats", 1, "how often each is measured, with other seeds")
)

// offered is what there is to get: a camera in full size, one as a thumbnail, and two voices, with what IP, UDP, RTP and
// SRTP add.
const offered = 1_500*netlab.Kbit*107/100 + 200*netlab.Kbit*107/100 + 2*netlab.Bitrate(50*(60+70)*8)

// A badNetwork is one path of a call of three: two send camera and voice, a third looks at the one in full size and at
// the other in small.
type badNetwork struct {
	name, about string
	// up and down are the third's path or, where uplink is set, the path of the first who sends.
	up, down netlab.Impairment
	uplink   bool
	// steps change the rate of down, in order.
	steps []rateStep
	// beside adds another receiver on a perfect network.
	beside bool
}

type rateStep struct {
	after time.Duration // from when the call has settled
	rate  netlab.Bitrate
}

func badNetworks() []badNetwork {
	const ms = time.Millisecond
	return []badNetwork{
		{name: "good", about: "10 Mbit/s, RTT 30 ms",
			down: netlab.Impairment{Rate: 10 * netlab.Mbit, Delay: 15 * ms}, up: netlab.Impairment{Delay: 15 * ms}},
		{name: "loss", about: "1.5 Mbit/s, RTT 100 ms, 2 % lost by chance",
			down: netlab.Impairment{Rate: 1500 * netlab.Kbit, Delay: 50 * ms, Loss: 0.02, Queue: 200 * ms}, up: netlab.Impairment{Delay: 50 * ms}},
		{name: "3g", about: "780 kbit/s, RTT 150 ms, jitter 40 ms, 0.5 % lost, 500 ms of queue",
			down: netlab.Impairment{Rate: 780 * netlab.Kbit, Delay: 75 * ms, Jitter: 40 * ms, Loss: 0.005, Queue: 500 * ms},
			up:   netlab.Impairment{Rate: 330 * netlab.Kbit, Delay: 75 * ms, Jitter: 40 * ms, Queue: 500 * ms}},
		{name: "hotel", about: "2 Mbit/s, RTT 60 ms, jitter 40 ms, a run of 4 lost in 400",
			down: netlab.Impairment{Rate: 2 * netlab.Mbit, Delay: 30 * ms, Jitter: 40 * ms, Burst: netlab.Burst{Every: 400, Length: 4}, Queue: 200 * ms},
			up:   netlab.Impairment{Rate: 1 * netlab.Mbit, Delay: 30 * ms, Jitter: 40 * ms, Queue: 200 * ms}},
		{name: "dsl", about: "the sender has 1 Mbit/s up, RTT 40 ms, 300 ms of queue", uplink: true,
			up:   netlab.Impairment{Rate: 1 * netlab.Mbit, Delay: 20 * ms, Queue: 300 * ms},
			down: netlab.Impairment{Rate: 10 * netlab.Mbit, Delay: 20 * ms}},
		{name: "satellite", about: "5 Mbit/s, RTT 600 ms, 0.5 % lost",
			down: netlab.Impairment{Rate: 5 * netlab.Mbit, Delay: 300 * ms, Loss: 0.005, Queue: 300 * ms}, up: netlab.Impairment{Rate: netlab.Mbit, Delay: 300 * ms}},
		{name: "step", about: "3, then 0.6, then 3 Mbit/s, RTT 40 ms, 200 ms of queue",
			down: netlab.Impairment{Rate: 3 * netlab.Mbit, Delay: 20 * ms, Queue: 200 * ms}, up: netlab.Impairment{Delay: 20 * ms},
			steps: []rateStep{{5 * time.Second, 600 * netlab.Kbit}, {17 * time.Second, 3 * netlab.Mbit}}},
		{name: "two", about: "one receiver has 500 kbit/s, RTT 80 ms, the other a perfect network",
			down: netlab.Impairment{Rate: 500 * netlab.Kbit, Delay: 40 * ms, Queue: 200 * ms}, up: netlab.Impairment{Delay: 40 * ms}, beside: true},
	}
}

// A quality is what one receiver had of a call.
type quality struct {
	network, who    string
	used, available netlab.Bitrate
	height          int           // of the large picture, in the end
	full            time.Duration // from the last step, or from the offer, to the large picture in full size; 0: never
	freezes         uint64        // of the large picture
	frozen, longest time.Duration
	fps             float64 // of the large picture
	audio           float64 // share made up
	queue           [2]time.Duration
	lost            float64 // share of video packets that never came
	dropped         float64 // share of packets that the full queue dropped
	window          time.Duration
}

// TestNarrowPath has a call over a path that carries a third of what there is to get: sound comes through, for the bridge
// does not send more than passes.
func TestNarrowPath(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	shard := startDev(t)
	rows, err := callOver(t.Context(), shard.HTTP, badNetwork{name: "narrow",
		down: netlab.Impairment{Rate: 600 * netlab.Kbit, Delay: 20 * time.Millisecond, Queue: 200 * time.Millisecond},
		up:   netlab.Impairment{Delay: 20 * time.Millisecond}}, 1, 5*time.Second, 5*time.Second, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	q := rows[0]
	t.Logf("%+v", q)
	if q.audio > 0.2 {
		t.Errorf("%.0f %% of the sound is made up", 100*q.audio)
	}
	if q.dropped > 0.25 {
		t.Errorf("%.0f %% of what was sent found the path full", 100*q.dropped)
	}
	if q.used < 50*netlab.Kbit {
		t.Errorf("%d kbit/s were used of 600", q.used/netlab.Kbit)
	}
}

// BenchmarkNetworks has calls over bad networks and prints what people would have seen and heard.
func BenchmarkNetworks(b *testing.B) {
	defer urgent()() // what is measured to the millisecond here would seem to be the network's
	url := *networksShard
	end := func(string) {}
	if url == "" {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p, err := launch(ctx, buildServers(b).plenum, -1)
		if p != nil {
			defer p.stop()
		}
		if err != nil {
			b.Fatal(err)
		}
		url = p.shard
		if *networksTrace {
			end = func(room string) {
				if v, err := trace.Fetch(context.Background(), room, []string{p.debug, p.bridge}); err != nil || v.Print(os.Stderr) != nil {
					b.Error(err)
				}
			}
		}
	}
	type outcome struct {
		rows []quality
		err  error
	}
	var outcomes []chan outcome
	slots := make(chan struct{}, *networksParallel)
	for i := range *networksRepeats {
		for _, n := range badNetworks() {
			if *networksOnly != "" && !slices.Contains(strings.Split(*networksOnly, ","), n.name) {
				continue
			}
			c := make(chan outcome, 1)
			outcomes = append(outcomes, c)
			go func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				rows, err := callOver(context.Background(), url, n, uint64(i+1), *networksSettle, *networksWindow, end)
				c <- outcome{rows, err}
			}()
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nnetwork\tfor\tkbit/s used\tof\tshare\tlines\tfull size after\tframes/s\tfreezes\tfrozen\tlongest gap\tvideo lost\tsound made up\tqueue p50/p95 ms\t\n")
	for _, c := range outcomes {
		o := <-c
		if o.err != nil {
			b.Error(o.err)
		}
		for _, q := range o.rows {
			q.print(w)
		}
	}
	w.Flush()
}

func (q quality) print(w *tabwriter.Writer) {
	full := "-"
	if q.full > 0 {
		full = fmt.Sprintf("%.1f s", q.full.Seconds())
	}
	fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%.0f %%\t%d\t%s\t%.1f\t%d\t%.1f s\t%d ms\t%.2f %%\t%.2f %%\t%d/%d\n", q.network, q.who,
		q.used/netlab.Kbit, q.available/netlab.Kbit, 100*float64(q.used)/float64(q.available), q.height, full, q.fps, q.freezes, q.frozen.Seconds(),
		q.longest.Milliseconds(), 100*q.lost, 100*q.audio, q.queue[0].Milliseconds(), q.queue[1].Milliseconds())
}

// A path is the bad network of one participant: a relay in front of each address of the bridge.
type path struct {
	up, down netlab.Impairment

	mu     sync.Mutex
	relays map[netip.AddrPort]*netlab.Relay
	err    error
}

func (p *path) detour(to netip.AddrPort) netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.relays[to]; r != nil {
		return r.Addr()
	}
	r, err := netlab.NewRelay(netlab.RelayConfig{Target: to, Up: p.up, Down: p.down})
	if err != nil {
		p.err = errors.Join(p.err, err)
		return to
	}
	if p.relays == nil {
		p.relays = map[netip.AddrPort]*netlab.Relay{}
	}
	p.relays[to] = r
	return r.Addr()
}

func (p *path) rate(down netlab.Bitrate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down.Rate = down
	for _, r := range p.relays {
		p.err = errors.Join(p.err, r.Impair(p.up, p.down))
	}
}

// stats are those of the way to the bridge, or from it, and how long its queue is.
func (p *path) stats(up bool) (s netlab.Stats, queue time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.relays {
		u, d := r.Stats()
		qu, qd := r.Backlog()
		if up {
			d, qd = u, qu
		}
		if d.Bytes >= s.Bytes {
			s, queue = d, qd
		}
	}
	return s, queue
}

func (p *path) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.relays {
		r.Close()
	}
}

// callOver has one call over a bad network; end is told its room before it ends.
func callOver(ctx context.Context, url string, n badNetwork, seed uint64, settle, window time.Duration, end func(room string)) (rows []quality, err error) {
	ctx, cancel := context.WithTimeout(ctx, settle+window+time.Minute)
	defer cancel()
	n.up.Seed, n.down.Seed = 2*seed, 2*seed+1
	bad := &path{up: n.up, down: n.down}
	defer bad.close()
	fine := &path{}
	defer fine.close()

	room := fmt.Sprintf("network-%s-%d", n.name, seed)
	join := func(name string, p *path, send client.Media, wanted *colibri.ReceiverVideoConstraints) (*client.Participant, error) {
		c := client.Config{URL: url, Room: room, Name: name, Rewriting: true, WebSocketChannel: true, Send: send, Constraints: wanted}
		if p != nil {
			c.Detour = p.detour
		}
		q, err := client.Join(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", n.name, name, err)
		}
		return q, nil
	}
	camera := client.Media{Audio: true, Video: true, Simulcast: true, DependencyDescriptor: true, Camera: true}
	first := camera
	var paths [3]*path
	if n.uplink {
		paths[0], first.Adapt = bad, true
	} else {
		paths[2] = bad
	}
	senders := make([]*client.Participant, 2)
	for i, send := range []client.Media{first, camera} {
		none := 0
		if senders[i], err = join(fmt.Sprint("sender ", i+1), paths[i], send, &colibri.ReceiverVideoConstraints{LastN: &none}); err != nil {
			return nil, err
		}
		defer senders[i].Close()
	}
	large := senders[0].ID() + "-v0"
	all := -1
	wanted := &colibri.ReceiverVideoConstraints{
		LastN: &all, OnStageSources: []string{large}, DefaultConstraints: &colibri.VideoConstraints{MaxHeight: 180, MaxFrameRate: -1},
		Constraints: map[string]colibri.VideoConstraints{large: {MaxHeight: 720, MaxFrameRate: -1}},
	}
	type receiver struct {
		*client.Participant
		who  string
		path *path
	}
	receivers := []receiver{{who: "receiver", path: paths[2]}}
	if n.beside {
		receivers = []receiver{{who: "the bad one", path: bad}, {who: "the good one", path: fine}}
	}
	for i := range receivers {
		r := &receivers[i]
		if r.path == nil {
			r.path = fine
		}
		if r.Participant, err = join(r.who, r.path, client.Media{}, wanted); err != nil {
			return nil, err
		}
		defer r.Close()
	}
	for _, r := range receivers {
		if err := r.Wait(ctx, func(s client.Stats) bool { return s.Source(large).Frames > 0 && s.Playing(client.Audio) == 2 }); err != nil {
			return nil, fmt.Errorf("%s: %s: no media: %w", n.name, r.who, err)
		}
	}

	watched := make([]watch, len(receivers))
	began := time.Now()
	var start time.Time
	var before []sample
	var capacity float64 // bits
	steps, rate := n.steps, n.down.Rate
	if n.uplink {
		rate = n.up.Rate
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	last := began
	for now := began; start.IsZero() || now.Sub(start) < window; {
		if start.IsZero() && now.Sub(began) >= settle {
			start = now
			for i, r := range receivers {
				before = append(before, take(r.Participant, r.path, bad, n.uplink, large))
				r.RestartGaps()
				watched[i].queue = nil
			}
			last = now
		}
		if !start.IsZero() {
			capacity += min(float64(rate), float64(offered)) * now.Sub(last).Seconds()
			last = now
			if len(steps) > 0 && now.Sub(start) >= steps[0].after {
				rate = steps[0].rate
				bad.rate(rate)
				steps = steps[1:]
				if len(steps) == 0 {
					for i := range watched {
						watched[i].full = time.Time{}
					}
					began = now
				}
			}
		}
		for i, r := range receivers {
			watched[i].look(now, began, r.Stats().Source(large), r.path, bad, n.uplink)
		}
		select {
		case now = <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if bad.err != nil {
		return nil, bad.err
	}
	end(room)
	for i, r := range receivers {
		after, v := take(r.Participant, r.path, bad, n.uplink, large), &watched[i]
		took := after.at.Sub(start)
		q := quality{
			network: n.name, who: r.who, window: took, height: after.video.Height,
			used:      netlab.Bitrate(float64(8*(after.bytes-before[i].bytes)) / took.Seconds()),
			available: netlab.Bitrate(capacity / took.Seconds()),
			freezes:   after.video.Freezes - before[i].video.Freezes, frozen: after.video.Frozen - before[i].video.Frozen,
			longest: after.video.MaxGap, fps: float64(after.video.Frames-before[i].video.Frames) / took.Seconds(),
			queue: [2]time.Duration{quantile(v.queue, 0.5), quantile(v.queue, 0.95)},
		}
		if r.path == fine && !n.uplink {
			q.available = offered
		}
		if gap := after.at.Sub(after.video.LastFrame); gap > 200*time.Millisecond { // still standing
			q.freezes, q.frozen, q.longest = q.freezes+1, q.frozen+gap, max(q.longest, gap)
		}
		if !v.full.IsZero() {
			q.full = v.full.Sub(began)
		}
		if heard := after.heard - before[i].heard; heard > 0 {
			q.audio = float64(after.made-before[i].made) / float64(max(heard, 2*took-time.Second)) // silence is made up too
		}
		if missing := 2*took - (after.heard - before[i].heard); missing > took/5 {
			q.audio += float64(missing) / float64(2*took)
		}
		if n := after.video.Packets - before[i].video.Packets; n > 0 {
			q.lost = float64(after.video.Lost-before[i].video.Lost) / float64(n)
		}
		if n := after.path.In - before[i].path.In; n > 0 {
			q.dropped = float64(after.path.Dropped-before[i].path.Dropped) / float64(n)
		}
		rows = append(rows, q)
	}
	return rows, nil
}

// A sample is a receiver's counters at a moment.
type sample struct {
	at          time.Time
	bytes       uint64
	path        netlab.Stats
	video       peer.Received
	heard, made time.Duration
}

func take(p *client.Participant, own, bad *path, up bool, large string) sample {
	s := p.Stats()
	x := sample{at: time.Now(), video: s.Source(large)}
	for _, r := range s.Received {
		if r.Source.Kind == client.Audio && r.Source.Owner != "jvb" {
			x.heard += r.Heard
			x.made += r.MadeUp
		}
	}
	if up {
		own = bad
	}
	of, _ := own.stats(up)
	x.bytes, x.path = of.Bytes, of
	return x
}

// A watch looks at what happens meanwhile.
type watch struct {
	queue []time.Duration
	full  time.Time // since when the picture is in full size
}

func (w *watch) look(now, since time.Time, video peer.Received, own, bad *path, up bool) {
	if up {
		own = bad
	}
	_, queue := own.stats(up)
	w.queue = append(w.queue, queue)
	switch {
	case video.Height < 720 || video.LastFrame.Before(since):
		w.full = time.Time{}
	case w.full.IsZero():
		w.full = now
	}
}

func quantile(v []time.Duration, q float64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[int(q*float64(len(v)-1))]
}
