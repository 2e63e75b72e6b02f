package client

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"plenum/signaling/client/peer"
	"plenum/wire/colibri"
)

// onChannel says what a stock client says first on a channel (traces, bridge channel A 3).
func (p *Participant) onChannel(s *session, open bool) {
	if p.session != s || s.open == open {
		return
	}
	s.open = open
	if !open {
		p.event(Event{Kind: ChannelClosed})
		return
	}
	p.update(func(s *Stats) { s.Marks.Channel = time.Now() })
	p.lastStats = time.Now()
	p.sendVideoType(s)
	p.say(s, p.wanted)
	p.event(Event{Kind: ChannelOpen})
}

// sendVideoType tells the bridge whether our picture is there.
func (p *Participant) sendVideoType(s *session) {
	for _, t := range s.tracks {
		if !t.video {
			continue
		}
		typ := "camera"
		if p.videoMuted {
			typ = "none"
		}
		p.say(s, colibri.SourceVideoTypeMessage{SourceName: t.name, VideoType: typ})
	}
}

// say sends one message; on a channel that is closing it is lost, as in a browser.
func (p *Participant) say(s *session, m colibri.Message) {
	b, err := json.Marshal(m)
	if err != nil {
		p.log.Debug("channel", "err", err)
		return
	}
	p.sayText(s, b)
}

func (p *Participant) sayText(s *session, b []byte) {
	var err error
	if s.socket != nil {
		err = s.socket.send(b)
	} else {
		err = s.peer.SendMessage(b)
	}
	if err != nil {
		p.log.Debug("channel", "err", err)
	}
}

// sendStats is the stock client's periodic report, which bridges pass on.
func (p *Participant) sendStats() {
	p.sayText(p.session, []byte(`{"colibriClass":"EndpointStats","bitrate":{"download":0,"upload":0,"audio":{"download":0,"upload":0},`+
		`"video":{"download":0,"upload":0}},"connectionQuality":100,"jvbRTT":1,"maxEnabledResolution":720,`+
		`"packetLoss":{"download":0,"total":0,"upload":0},"serverRegion":null}`))
}

var endpointStats = []byte(`{"colibriClass":"EndpointStats"`)

// onChannelMessage acts on what the bridge says.
func (p *Participant) onChannelMessage(s *session, b []byte) {
	if p.session != s {
		return
	}
	if bytes.HasPrefix(b, endpointStats) { // many, and nothing in them concerns us
		p.update(func(s *Stats) { s.ChannelMessages++ })
		return
	}
	m, err := colibri.ParseMessage(b)
	if err != nil {
		p.event(Event{Kind: BadMessage, Err: err, Text: string(b)})
		return
	}
	p.update(func(s *Stats) { s.ChannelMessages++ })
	switch m := m.(type) {
	case *colibri.VideoSourcesMap:
		s.peer.Map(mapped(peer.Video, m.MappedSources)...)
	case *colibri.AudioSourcesMap:
		s.peer.Map(mapped(peer.Audio, m.MappedSources)...)
	case *colibri.SenderSourceConstraints:
		s.peer.Constrain(m.SourceName, m.MaxHeight)
		p.update(func(s *Stats) { s.MaxHeight[m.SourceName] = m.MaxHeight })
	case *colibri.ForwardedSources:
		p.update(func(s *Stats) { s.Forwarded = m.ForwardedSources })
	case *colibri.DominantSpeakerEndpointChangeEvent:
		p.update(func(s *Stats) { s.Speaker = m.DominantSpeakerEndpoint })
	case *colibri.EndpointConnectivityStatusChangeEvent:
		p.update(func(s *Stats) {
			s.Inactive = slices.DeleteFunc(slices.Clone(s.Inactive), func(id string) bool { return id == m.Endpoint })
			if !m.Active {
				s.Inactive = append(s.Inactive, m.Endpoint)
			}
		})
	case *colibri.ConnectionStats:
		p.update(func(s *Stats) { s.Downlink = m.EstimatedDownlinkBandwidth })
	}
	p.event(Event{Kind: ChannelMessage, Message: m, Text: string(b)})
}

func mapped(kind peer.Kind, entries []colibri.MappedSource) []peer.Source {
	var out []peer.Source
	for _, e := range entries {
		out = append(out, peer.Source{
			Kind: kind, Name: e.Source, Owner: e.Owner, SSRC: e.SSRC, RTX: e.RTX, VideoType: e.VideoType,
		})
	}
	return out
}

// A channelSocket is the colibri WebSocket of one session. It reconnects after 1, 2, 4 … 60 s, as the
// stock client does, until it is closed.
type channelSocket struct {
	cancel context.CancelFunc
	done   chan struct{}
	conn   *websocket.Conn // owned by the participant's goroutine
}

// openSocket starts the channel socket of a session.
func (p *Participant) openSocket(s *session, url string) {
	ctx, cancel := context.WithCancel(context.Background())
	s.socket = &channelSocket{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.socket.done)
		for wait := time.Second; ; wait = min(2*wait, time.Minute) {
			if p.serveSocket(ctx, s, url) {
				wait = time.Second
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}()
}

// serveSocket connects and reads until the connection ends; it reports whether there was one.
func (p *Participant) serveSocket(ctx context.Context, s *session, url string) bool {
	dialer := websocket.Dialer{
		TLSClientConfig: p.cfg.TLS, HandshakeTimeout: writeTimeout,
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return p.target.cut.wrap(c), nil
		},
	}
	conn, _, err := dialer.DialContext(ctx, url, nil)
	if err != nil {
		p.log.Debug("channel socket", "err", err)
		return false
	}
	conn.SetReadLimit(256 << 10)
	stop := context.AfterFunc(ctx, func() {
		bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		_ = conn.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second))
		_ = conn.Close()
	})
	defer stop()
	defer conn.Close()
	p.box.post(func() {
		s.socket.conn = conn
		p.onChannel(s, true)
	})
	for {
		typ, b, err := conn.ReadMessage()
		if err != nil {
			break
		}
		if typ == websocket.TextMessage {
			p.box.post(func() { p.onChannelMessage(s, b) })
		}
	}
	p.box.post(func() {
		s.socket.conn = nil
		p.onChannel(s, false)
	})
	return true
}

func (c *channelSocket) send(b []byte) error {
	if c.conn == nil {
		return peer.ErrNoChannel
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.conn.WriteMessage(websocket.TextMessage, b)
}

// close ends the socket and waits for its goroutine, which only posts and never waits for us.
func (c *channelSocket) close() {
	c.cancel()
	<-c.done
}
