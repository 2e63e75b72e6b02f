package peer

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/ice/v2"
	"github.com/pion/sctp"
	"github.com/pion/transport/v2/packetio"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testMedia = Media{
	Opus: 111, VP8: 100,
	Video: map[uint8]string{100: "vp8"}, RTX: map[uint8]uint8{96: 100},
	AudioLevel: 1, AbsSendTime: 3, TransportCC: 5, Descriptor: 11,
}

// A pair is a client and a peer that plays the bridge: it leads ICE, is the DTLS server and takes the
// data channel that the client opens.
type pair struct {
	client, bridge *Peer
	messages       chan string // what the bridge heard
	states         chan State  // of the client
	heard          chan string // what the client heard
}

func connect(t *testing.T, media Media) *pair {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	pr := &pair{messages: make(chan string, 16), states: make(chan State, 16), heard: make(chan string, 16)}
	bridge, err := New(Config{
		Remote:  Description{Setup: "active", Candidates: []Candidate{{IP: "127.0.0.1", Port: 9, Type: "host"}}},
		Media:   media,
		Network: &Network{}, Ledger: &Ledger{}, Log: log, controlling: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	pr.bridge = bridge
	offer := bridge.Local()
	offer.Setup, offer.SCTP = "actpass", 5000
	offer.Candidates = gathered(t, bridge)
	client, err := New(Config{
		Remote: offer, Media: media, Network: &Network{}, Ledger: &Ledger{}, Log: log,
		OnState:   func(s State, _ error) { pr.states <- s },
		OnMessage: func(b []byte) { pr.heard <- string(b) },
	})
	if err != nil {
		t.Fatal(err)
	}
	pr.client = client
	remote := client.Local()
	bridge.cfg.Remote.Ufrag, bridge.cfg.Remote.Pwd = remote.Ufrag, remote.Pwd
	bridge.cfg.Remote.Hash, bridge.cfg.Remote.Fingerprint = remote.Hash, remote.Fingerprint
	bridge.cfg.Remote.Candidates = nil
	t.Cleanup(func() {
		client.Close()
		bridge.Close()
	})
	return pr
}

// gathered returns where a peer listens.
func gathered(t *testing.T, p *Peer) []Candidate {
	t.Helper()
	done := make(chan struct{})
	if err := p.agent.OnCandidate(func(c ice.Candidate) {
		if c == nil {
			close(done)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.agent.GatherCandidates(); err != nil {
		t.Fatal(err)
	}
	<-done
	local, err := p.agent.GetLocalCandidates()
	if err != nil || len(local) == 0 {
		t.Fatal("no candidates", err)
	}
	return []Candidate{{IP: local[0].Address(), Port: local[0].Port(), Type: "host", Priority: 1}}
}

// serve is the bridge's side of run, with SCTP as a server and an echo on the channel.
func (pr *pair) serve(ctx context.Context, t *testing.T) {
	p := pr.bridge
	p.wg.Go(func() {
		conn, err := p.agent.Dial(ctx, p.cfg.Remote.Ufrag, p.cfg.Remote.Pwd)
		if err != nil {
			return
		}
		pipe := &dtlsPipe{Conn: conn, in: packetio.NewBuffer()}
		p.own(pipe)
		p.wg.Go(func() { p.read(conn, pipe) })
		secure, err := p.handshake(ctx, pipe)
		if err != nil {
			return
		}
		p.own(secure)
		if err := p.keys(secure, conn); err != nil {
			t.Error(err)
			return
		}
		p.wg.Go(func() { p.pace(ctx) })
		a, err := sctp.ServerWithOptions(sctp.WithNetConn(secure), sctp.WithLoggerFactory(quiet))
		if err != nil {
			return
		}
		p.own(a)
		ch, err := datachannel.Accept(a, &datachannel.Config{LoggerFactory: quiet})
		if err != nil {
			return
		}
		if ch.Config.Label != channelLabel || ch.Config.Protocol != channelProtocol {
			t.Errorf("channel %q, protocol %q", ch.Config.Label, ch.Config.Protocol)
		}
		buf := make([]byte, maxDatagram)
		for {
			n, text, err := ch.ReadDataChannel(buf)
			if err != nil {
				return
			}
			if !text {
				t.Error("binary message")
			}
			pr.messages <- string(buf[:n])
			_, _ = ch.WriteDataChannel([]byte("echo "+string(buf[:n])), true)
		}
	})
}

func (pr *pair) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pr.bridge.cancel = cancel
	pr.serve(ctx, t)
	pr.client.Start()
}

// until waits for a condition on real sockets; it polls, because what it waits for has no event.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	timeout := time.After(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-timeout:
			t.Fatalf("no %s within 15 s", what)
		case <-tick.C:
		}
	}
}

// TestCall runs everything over real sockets: the channel, audio, three layers of video, constraints,
// loss with repair, and a cut.
func TestCall(t *testing.T) {
	for _, tt := range []struct {
		name       string
		pictureIDs bool
	}{{"dependency descriptor", false}, {"picture ids", true}} {
		t.Run(tt.name, func(t *testing.T) {
			pr := connect(t, testMedia)
			c, b := pr.client, pr.bridge
			b.Map(
				Source{Kind: Audio, Name: "a-a0", Owner: "a", SSRC: 1},
				Source{Kind: Video, Name: "a-v0-low", Owner: "a", SSRC: 10, RTX: 11},
				Source{Kind: Video, Name: "a-v0-high", Owner: "a", SSRC: 30, RTX: 31},
			)
			c.AddAudio(1)
			c.AddVideo(Picture{Name: "a-v0", Colour: "green", PictureIDs: tt.pictureIDs, Encodings: []Encoding{{10, 11}, {20, 21}, {30, 31}}})
			c.SetLevel(30)
			pr.start(t)
			if s := <-pr.states; s != StateChecked {
				t.Fatalf("state %v", s)
			}
			if s := <-pr.states; s != StateConnected {
				t.Fatalf("state %v", s)
			}
			until(t, "channel", func() bool { return c.SendMessage([]byte("hello")) == nil })
			if got := <-pr.heard; got != "echo hello" {
				t.Errorf("heard %q", got)
			}
			ledger := b.cfg.Ledger
			until(t, "audio", func() bool { return ledger.Source("a-a0").Packets > 5 })
			if a := ledger.Source("a-a0"); a.Level != 30 || a.Lost != 0 || a.Unmapped != 0 {
				t.Errorf("audio %+v", a)
			}
			until(t, "video", func() bool {
				return ledger.Source("a-v0-low").Frames > 5 && ledger.Source("a-v0-high").Frames > 5
			})
			if v := ledger.Source("a-v0-high"); v.Colour != "green" || v.Height != 720 || v.Lost != 0 {
				t.Errorf("video %+v", v)
			}

			c.Constrain("a-v0", 180)
			high := ledger.Source("a-v0-high").Packets
			low := ledger.Source("a-v0-low").Frames
			until(t, "low layer", func() bool { return ledger.Source("a-v0-low").Frames > low+3 })
			if got := ledger.Source("a-v0-high").Packets; got > high+4 {
				t.Errorf("%d packets of 720p after a constraint of 180", got-high)
			}
			keys := ledger.Source("a-v0-high").KeyFrames
			c.Constrain("a-v0", 720)
			until(t, "another key frame", func() bool { return ledger.Source("a-v0-high").KeyFrames > keys })

			c.cfg.Network.Lose(0.2, 0)
			until(t, "repair", func() bool { return ledger.Source("a-v0-high").Recovered > 3 })
			c.cfg.Network.Lose(0, 0)
			if c.Sent().Retransmitted == 0 || c.Sent().Feedback == 0 {
				t.Errorf("sent %+v", c.Sent())
			}
			until(t, "video after loss", func() bool {
				v := ledger.Source("a-v0-high")
				return time.Since(v.LastFrame) < 200*time.Millisecond
			})

			c.SetLevel(127)
			until(t, "silence", func() bool { return ledger.Source("a-a0").Level == 127 })
			c.Enable("a-v0", false)
			frames := ledger.Source("a-v0-low").Frames
			c.Enable("a-v0", true)
			until(t, "video after unmute", func() bool { return ledger.Source("a-v0-low").Frames > frames+2 })
		})
	}
}

// TestKeyFrameRequest joins a stream in the middle: the receiver asks, the sender answers.
func TestKeyFrameRequest(t *testing.T) {
	pr := connect(t, testMedia)
	pr.client.AddVideo(Picture{Name: "a-v0", Colour: "blue", Encodings: []Encoding{{10, 11}}})
	pr.client.out.videos[0].layers[0].running = true // the key frame went out before anybody listened
	pr.client.out.videos[0].layers[0].position = 7
	pr.bridge.Map(Source{Kind: Video, Name: "a-v0", Owner: "a", SSRC: 10, RTX: 11})
	pr.start(t)
	until(t, "frames", func() bool { return pr.bridge.cfg.Ledger.Source("a-v0").Frames > 0 })
	if v := pr.bridge.cfg.Ledger.Source("a-v0"); v.Broken == 0 || v.Height != 720 {
		t.Errorf("%+v", v)
	}
	if pr.client.Sent().KeyFrameRequests == 0 {
		t.Error("nobody asked")
	}
}

func TestWrongFingerprint(t *testing.T) {
	pr := connect(t, testMedia)
	pr.client.cfg.Remote.Fingerprint = "00:11"
	pr.start(t)
	if s := <-pr.states; s != StateChecked {
		t.Fatalf("state %v", s)
	}
	if s := <-pr.states; s != StateFailed {
		t.Fatalf("state %v", s)
	}
}

// TestDelay keeps the order and costs the time.
func TestDelay(t *testing.T) {
	pr := connect(t, testMedia)
	pr.client.cfg.Network.Delay(60 * time.Millisecond)
	pr.start(t)
	until(t, "channel", func() bool { return pr.client.SendMessage([]byte("x")) == nil })
	<-pr.heard
	started := time.Now()
	for _, m := range []string{"1", "2", "3"} {
		if err := pr.client.SendMessage([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []string{"1", "2", "3"} {
		if got := <-pr.heard; got != "echo "+m {
			t.Errorf("heard %q, want %q", got, m)
		}
	}
	if d := time.Since(started); d < 60*time.Millisecond {
		t.Errorf("three messages after %v", d)
	}
}
