// Package client is a headless Jitsi participant: it joins a room over the public wire exactly as
// lib-jitsi-meet does, sends real Opus and VP8, receives and counts, and can be told to mute, lose,
// delay, fall silent, leave or vanish. Tests, load tools, the probe and the recorder use it; servers do
// not. Package peer is its media half; this package speaks XMPP, Jingle and the bridge channel.
//
//	p, err := client.Join(ctx, client.Config{
//		URL: "http://127.0.0.1:8000", Room: "standup", Rewriting: true,
//		Send: client.Media{Audio: true, Video: true, Simulcast: true},
//	})
//	defer p.Close()
//	err = p.Wait(ctx, func(s client.Stats) bool { return s.Playing(client.Video) == 3 })
//
// Goroutines of one participant: its own, one per socket that reads, and those of the media peer; a
// hundred participants in one process are fine.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"plenum/signaling/client/clip"
	"plenum/signaling/client/peer"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

var (
	// ErrClosed is returned by methods of a participant that has left or was closed.
	ErrClosed = errors.New("participant is gone")
	// ErrConnection says that the connection to the shard was lost and could not be resumed.
	ErrConnection = errors.New("connection to the shard lost")
	// ErrKicked says that the room put the participant out.
	ErrKicked = errors.New("put out of the room")
	// ErrConfig is returned by Join for settings that make no sense.
	ErrConfig = errors.New("client: bad config")
)

// Kinds of media.
const (
	Audio = peer.Audio
	Video = peer.Video
)

// Media says what a participant sends.
type Media struct {
	Audio, Video bool
	// Simulcast sends three encodings, 180, 360 and 720 pixels high; otherwise 720 alone.
	Simulcast bool
	// DependencyDescriptor describes layers as current Chromium does. Without it VP8 carries picture
	// ids, as Firefox and older clients send.
	DependencyDescriptor bool
	// Colour of the picture, one of clip.Colours. Default: chosen by the endpoint id.
	Colour string
	// Level of the tone in -dBov, 1 (loud) to 126. Default: 30. See SetLevel.
	Level uint8
	// Camera sends frames as large and as frequent as those of a camera, up to 200, 500 and 1,500 kbit/s.
	Camera bool
	// Adapt has congestion control decide how much is sent.
	Adapt bool
	// AudioMuted and VideoMuted join muted, with sources that are announced.
	AudioMuted, VideoMuted bool
}

// Config describes one participant. URL and Room are required.
type Config struct {
	// URL of the shard as a browser would open it, "https://meet.example" or with a tenant's path.
	URL string
	// Room is the name in the link, without tenant.
	Room string
	// Domain is the client domain. Default: "localhost". MUC and focus are "conference." and "focus."
	// in front of it unless said otherwise.
	Domain, MUC, Focus string
	// Name is shown to people. Default: none.
	Name string
	// Password of a locked room.
	Password string
	// Token is a JWT for the shard.
	Token string

	Send Media

	// Rewriting announces SSRC rewriting, as all current clients do.
	Rewriting bool
	// WebSocketChannel uses the colibri WebSocket as bridge channel and announces no SCTP.
	WebSocketChannel bool
	// HTTPRequest asks for the conference by HTTP instead of by IQ.
	HTTPRequest bool
	// NoTransportCC and NoRTX leave those features out.
	NoTransportCC, NoRTX bool
	// InitialLastN is told in the session-accept; nil says nothing.
	InitialLastN *int
	// Constraints are sent when the channel opens. Default: what the stock client sends first,
	// {"assumedBandwidthBps":-1,"lastN":-1}.
	Constraints *colibri.ReceiverVideoConstraints

	// ResumeAfter is the time from losing the socket to the first attempt to resume. Default: 1.5 to 3 s
	// by chance, as the stock client.
	ResumeAfter time.Duration
	// NoRestart does not ask for a new session when ICE has failed.
	NoRestart bool

	// SSRC chooses the numbers of our sources, and Answer changes what is said of them to an offer, as faulty and hostile clients
	// do. Default: chance, and nothing.
	SSRC   func() uint32
	Answer func(*jingle.Session)

	// Detour names the address that media for another goes to and comes from, such as that of a bad network. Default: none.
	Detour func(netip.AddrPort) netip.AddrPort

	// TLS settings for https and wss, for a shard with a self-signed certificate.
	TLS *tls.Config
	// OnEvent is told what happens, in order, on the participant's goroutine: it must not block and must
	// not call methods of the participant other than Stats.
	OnEvent func(Event)
	// Log gets debug lines. Default: none.
	Log *slog.Logger
}

// validate fills defaults.
func (cfg *Config) validate() (*url.URL, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%w: URL %q", ErrConfig, cfg.URL)
	}
	if cfg.Room == "" {
		return nil, fmt.Errorf("%w: no room", ErrConfig)
	}
	if cfg.Send.Colour != "" && clip.Videos(cfg.Send.Colour) == nil {
		return nil, fmt.Errorf("%w: colour %q is not one of %q", ErrConfig, cfg.Send.Colour, clip.Colours)
	}
	setDefault(&cfg.Domain, "localhost")
	setDefault(&cfg.MUC, "conference."+cfg.Domain)
	setDefault(&cfg.Focus, "focus."+cfg.Domain)
	setDefault(&cfg.Send.Level, 30)
	if cfg.ResumeAfter == 0 {
		cfg.ResumeAfter = 1500*time.Millisecond + rand.N(1500*time.Millisecond)
	}
	if cfg.SSRC == nil {
		cfg.SSRC = func() uint32 { return rand.Uint32N(1<<32-2) + 1 }
	}
	if cfg.Answer == nil {
		cfg.Answer = func(*jingle.Session) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return u, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// A Participant is one person in one room. Its methods may be called from any goroutine.
type Participant struct {
	cfg    Config
	log    *slog.Logger
	target target
	http   http.Client
	base   *url.URL
	net    *peer.Network
	ledger *peer.Ledger

	cancel  context.CancelFunc // ends everything that the participant started
	closing <-chan struct{}    // closed by cancel
	wg      sync.WaitGroup
	box     *mailbox
	joined  chan struct{} // closed with the own presence
	done    chan struct{} // closed when the participant's goroutine has ended
	err     error         // why; readable after done

	// Owned by the participant's goroutine.
	stream     stream
	iqs        map[string]func(*xmpp.Element)
	lastIQ     int
	lastStats  time.Time
	pings      int // unanswered
	room       room
	session    *session
	restarts   int
	over       bool
	audioMuted bool
	videoMuted bool
	muted      [3]bool // by the focus, by Kind
	level      uint8
	wanted     colibri.ReceiverVideoConstraints

	mu    sync.Mutex // the snapshot
	snap  Stats
	media *peer.Peer // of the current session
}

// Join connects, joins the room and returns when the room shows the participant as present; media
// follows by itself as soon as somebody else is there. ctx bounds the joining only.
func Join(ctx context.Context, cfg Config) (*Participant, error) {
	u, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	p := &Participant{
		cfg: cfg, log: cfg.Log, base: u,
		net: &peer.Network{Detour: cfg.Detour}, ledger: &peer.Ledger{},
		box: newMailbox(), joined: make(chan struct{}), done: make(chan struct{}),
		iqs: map[string]func(*xmpp.Element){}, level: cfg.Send.Level,
		audioMuted: cfg.Send.AudioMuted, videoMuted: cfg.Send.VideoMuted,
	}
	life, cancel := context.WithCancel(context.Background())
	p.cancel, p.closing = cancel, life.Done()
	p.setTarget()
	minusOne, any := -1, int64(-1)
	p.wanted = colibri.ReceiverVideoConstraints{LastN: &minusOne, AssumedBandwidthBps: &any}
	if cfg.Constraints != nil {
		p.wanted = *cfg.Constraints
	}
	p.snap.Marks.Started = time.Now()
	if err := p.start(ctx, life); err != nil {
		p.cancel()
		return nil, err
	}
	select {
	case <-p.joined:
		return p, nil
	case <-p.done:
		p.Close()
		return nil, p.err
	case <-ctx.Done():
		p.Close()
		return nil, ctx.Err()
	}
}

func (p *Participant) setTarget() {
	ws := *p.base
	switch ws.Scheme {
	case "https", "wss":
		ws.Scheme = "wss"
	default:
		ws.Scheme = "ws"
	}
	ws.Path = strings.TrimSuffix(ws.Path, "/") + "/xmpp-websocket"
	query := url.Values{"room": {p.cfg.Room}}
	if p.cfg.Token != "" {
		query.Set("token", p.cfg.Token)
	}
	p.target = target{
		ws: ws.String(), query: query, domain: p.cfg.Domain, cut: newCutter(),
		dialer: websocket.Dialer{TLSClientConfig: p.cfg.TLS, HandshakeTimeout: writeTimeout},
	}
	p.http.Transport = &http.Transport{TLSClientConfig: p.cfg.TLS, DisableKeepAlives: true}
}

// start does what comes before the participant has a goroutine of its own; that one lives until life ends.
func (p *Participant) start(ctx, life context.Context) error {
	address, err := jid.New(p.cfg.Room, p.cfg.MUC, "")
	if err != nil {
		return fmt.Errorf("%w: room: %w", ErrConfig, err)
	}
	p.room.address = address
	if p.cfg.HTTPRequest {
		if err := p.requestByHTTP(ctx); err != nil {
			return err
		}
	}
	link, n, err := p.target.dial(ctx, "", 0)
	if err != nil {
		return err
	}
	p.stream.began(link, n)
	p.room.nick = endpointID(p.stream.jid)
	p.snap.ID, p.snap.JID = p.room.nick, p.stream.jid.String()
	p.snap.Marks.Bound = time.Now()
	if p.cfg.Send.Colour == "" {
		p.cfg.Send.Colour = clip.Colours[int(p.room.nick[0]+p.room.nick[7])%len(clip.Colours)]
	}
	p.log = p.log.With("endpoint", p.room.nick)
	early := n.Early()
	p.box.post(func() {
		for _, e := range early {
			p.stanza(e)
		}
		p.arrive()
	})
	p.read(life, link)
	p.wg.Go(func() { p.run(life) })
	return nil
}

// endpointID is the id that the stock client takes: the first group of a UUID, else eight random digits.
func endpointID(j jid.JID) string {
	const digits = "0123456789abcdef"
	if l := j.Local(); len(l) >= 8 && strings.Trim(l[:8], digits) == "" {
		return l[:8]
	}
	b := make([]byte, 8)
	for i := range b {
		b[i] = digits[rand.IntN(len(digits))]
	}
	return string(b)
}

// read starts the reader of a socket; it ends with the socket.
func (p *Participant) read(ctx context.Context, l *link) {
	p.wg.Go(func() {
		defer close(l.done)
		for {
			e, err := l.read()
			if err != nil {
				p.box.post(func() { p.lost(ctx, l, err) })
				return
			}
			p.box.post(func() { p.receive(l, e) })
		}
	})
}

const (
	pingEvery     = 10 * time.Second
	maxPings      = 2
	statsInterval = 10 * time.Second
)

// run is the participant's goroutine.
func (p *Participant) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for !p.over {
		select {
		case <-p.box.wake:
			for _, f := range p.box.take() {
				f()
			}
		case now := <-ticker.C:
			p.tick(now)
		case <-ctx.Done():
			p.end(ErrClosed)
		}
	}
	p.box.close() // those that wait for an answer are woken by done
	p.endSession()
	if l := p.stream.link; l != nil {
		_ = l.raw.Close()
	}
	p.cancel()
	close(p.done)
}

// end makes run return with this reason; the first one counts.
func (p *Participant) end(err error) {
	if !p.over {
		p.over, p.err = true, err
		p.event(Event{Kind: Ended, Err: err})
	}
}

// tick pings and reports.
func (p *Participant) tick(now time.Time) {
	if l := p.stream.link; l != nil && now.Sub(p.stream.heard) >= pingEvery {
		if p.pings >= maxPings {
			l.reset()
			return
		}
		p.pings++
		p.stream.heard = now // the next one in ten seconds
		p.request("get", p.cfg.Domain, xmpp.New(xmpp.NSPing, "ping"), nil)
	}
	if s := p.session; s != nil && s.open && now.Sub(p.lastStats) >= statsInterval {
		p.lastStats = now
		p.sendStats()
	}
}

// receive takes an element from a socket.
func (p *Participant) receive(l *link, e *xmpp.Element) {
	if p.stream.link != l {
		return
	}
	p.pings = 0
	stanza, err := p.stream.received(e)
	if err != nil {
		l.reset()
		return
	}
	if stanza {
		p.stanza(e)
	}
}

// send sends a stanza; a broken socket is noticed by its reader.
func (p *Participant) send(e *xmpp.Element) {
	if err := p.stream.send(e); err != nil {
		p.log.Debug("send", "err", err)
		if l := p.stream.link; l != nil {
			l.reset()
		}
	}
}

// request sends an iq; answer, which may be nil, is called with the result or error.
func (p *Participant) request(typ, to string, payload *xmpp.Element, answer func(*xmpp.Element)) {
	p.lastIQ++
	id := fmt.Sprintf("iq%d:sendIQ", p.lastIQ)
	if answer != nil {
		p.iqs[id] = answer
	}
	p.send(xmpp.IQ(typ, id, "", to, payload))
}

// lost handles the end of a socket: resume, or give up.
func (p *Participant) lost(ctx context.Context, l *link, err error) {
	if p.stream.link != l || p.over {
		return
	}
	_ = l.raw.Close()
	p.stream.link = nil
	p.log.Debug("socket lost", "err", err)
	p.event(Event{Kind: SocketLost, Err: err})
	if p.stream.smID == "" {
		p.end(fmt.Errorf("%w: %w", ErrConnection, err))
		return
	}
	previous, handled := p.stream.smID, p.stream.handled
	p.wg.Go(func() {
		wait := p.cfg.ResumeAfter
		for range 3 { // as often, and about as patiently, as the stock client
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait *= 2
			try, cancel := context.WithTimeout(ctx, writeTimeout)
			l, n, e := p.target.dial(try, previous, handled)
			cancel()
			if err = e; err == nil {
				if !p.box.post(func() { p.resume(ctx, l, n) }) {
					_ = l.raw.Close()
				}
				return
			}
		}
		p.box.post(func() { p.end(fmt.Errorf("%w: %w", ErrConnection, err)) })
	})
}

// resume goes on with the stream on a new socket.
func (p *Participant) resume(ctx context.Context, l *link, n *xmpp.Negotiation) {
	h, ok := n.Resumed()
	if !ok {
		_ = l.raw.Close()
		p.end(fmt.Errorf("%w: the session was not resumed", ErrConnection))
		return
	}
	if err := p.stream.resumed(l, h); err != nil {
		_ = l.raw.Close()
		p.end(fmt.Errorf("%w: %w", ErrConnection, err))
		return
	}
	p.pings = 0
	p.update(func(s *Stats) { s.Resumptions++ })
	p.event(Event{Kind: Resumed})
	p.read(ctx, l)
}

// do runs f on the participant's goroutine and returns its error.
func (p *Participant) do(f func() error) error {
	result := make(chan error, 1)
	if !p.box.post(func() { result <- f() }) {
		return ErrClosed
	}
	select {
	case err := <-result:
		return err
	case <-p.done:
		select {
		case err := <-result:
			return err
		default:
			return ErrClosed
		}
	}
}

// Close ends the participant without leaving the room, waits for its goroutines and is safe to call
// twice. A shard keeps it in the room until its session has expired; see Leave.
func (p *Participant) Close() {
	p.cancel()
	p.target.cut.close()
	p.wg.Wait()
}

// Done is closed when the participant has ended, whoever ended it; Err says why.
func (p *Participant) Done() <-chan struct{} { return p.done }

// Err returns why the participant ended, nil while it has not.
func (p *Participant) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}
