package bridge

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"plenum/bridge/allocate"
	"plenum/bridge/conference"
	"plenum/wire/colibri"
)

const (
	// maxMessage is the longest message that is read from a client. Longer ones are skipped; the channel survives.
	maxMessage = 256 << 10

	// What may wait for a WebSocket. Messages of other clients are dropped from half of it on, so that nobody
	// is talked out of a call; above all of it the socket is closed: its client does not read, and gets
	// the whole state again when it comes back.
	maxOutboundMessages = 512
	maxOutboundBytes    = 4 << 20

	// maxInbound is how many messages of one client may wait for its core. A WebSocket is not read meanwhile;
	// what comes on a data channel beyond it is dropped.
	maxInbound = 64

	// Messages from client to client, per sender, a long one counting once more for each forwardUnit bytes.
	// Remote control of a mouse is the fastest real use.
	forwardRate, forwardBurst = 200, 500
	forwardUnit               = 4 << 10

	// EndpointStats go to everybody in a conference of up to so many; above that those of recent speakers
	// do, and others' to who gets their video.
	maxStatsEndpoints = 20

	pingInterval  = 15 * time.Second
	socketTimeout = 60 * time.Second // without anything, pong included
	writeTimeout  = 10 * time.Second
)

// A channel is the bridge channel of one endpoint: an SCTP data channel, a colibri WebSocket, or both.
// Messages go out on the one that a message came in on last, or that opened last.
type channel struct {
	e       *member
	inbound inbound

	mu     sync.Mutex
	closed bool
	data   bool    // the data channel is open
	socket *socket // nil: none
	onData bool    // answer on the data channel
	lost   bool    // a message did not fit: repeat the state when there is room
}

// inbound limits the messages of one client that wait.
type inbound struct {
	once  sync.Once
	slots chan struct{}
}

func (i *inbound) c() chan struct{} {
	i.once.Do(func() { i.slots = make(chan struct{}, maxInbound) })
	return i.slots
}

// dataOpen is called by the transport when the data channel opens or closes.
func (c *channel) dataOpen(open bool) {
	c.mu.Lock()
	c.data = open
	c.onData = open
	closed := c.closed
	c.mu.Unlock()
	if open && !closed {
		c.e.live.b.log.Debug("data channel open", "endpoint", c.e.id)
		c.opened()
	}
}

// opened makes the engine tell the whole state.
func (c *channel) opened() {
	c.e.do(func(x *conference.Endpoint, now time.Time) { x.ChannelOpened(now) })
}

// dataMessage is called by the transport for each text on the data channel. It does not block.
func (c *channel) dataMessage(text []byte) {
	metrics := c.e.live.b.metrics
	metrics.dataReceived.Add(1)
	select {
	case c.inbound.c() <- struct{}{}:
	default:
		metrics.inboundDropped.Add(1)
		return
	}
	c.mu.Lock()
	c.onData = true
	c.mu.Unlock()
	c.receive(text)
}

// receive takes one message. The caller holds a slot of inbound, which is free again once the core is done.
func (c *channel) receive(text []byte) {
	e := c.e
	e.alive()
	free := func() { <-c.inbound.c() }
	m, err := colibri.ParseMessage(text)
	if err != nil {
		e.live.b.metrics.malformedMessages.Add(1)
		e.live.log.Debug("channel message dropped", "endpoint", e.id, "err", err)
		free()
		return
	}
	if !e.live.do(func(now time.Time) {
		defer free()
		if e.engine != nil {
			e.handle(m, len(text), now)
		}
	}) {
		free()
	}
}

// handle carries out one message of the client, which was size bytes long, on the core.
func (e *member) handle(m colibri.Message, size int, now time.Time) {
	x := e.engine
	x.Heard(now)
	switch m := m.(type) {
	case *colibri.ClientHello:
		e.channel.sendMessage(colibri.ServerHello{})
	case *colibri.ReceiverVideoConstraints:
		x.SetConstraints(requestOf(m), now)
	case *colibri.LastNChangedEvent:
		x.SetLastN(m.LastN, now)
	case *colibri.SourceVideoTypeMessage:
		x.SetVideoType(m.SourceName, m.VideoType, now)
	case *colibri.VideoTypeMessage:
		x.SetVideoType(e.id+"-v0", m.VideoType, now)
	case *colibri.ReceiverAudioSubscription:
		x.SetAudioSubscription(conference.AudioSubscription{All: m.All, Include: m.Include, Exclude: m.Exclude}, now)
	case *colibri.EndpointMessage:
		if e.visitor || !e.forwards.take(1+size/forwardUnit, now) {
			return
		}
		m.From = e.id
		e.forward(m, m.To)
	case *colibri.EndpointStats:
		if e.visitor || !e.forwards.take(1+size/forwardUnit, now) {
			return
		}
		m.From = e.id
		e.forwardStats(m)
	}
}

// forward sends m to one endpoint of the conference, or to all others.
func (e *member) forward(m colibri.Message, to string) {
	b, err := json.Marshal(m)
	if err != nil {
		return
	}
	e.live.mu.RLock()
	defer e.live.mu.RUnlock()
	if to != "" {
		if r := e.live.endpoints[to]; r != nil {
			r.channel.send(b, false)
		}
		return
	}
	for _, r := range e.live.endpoints {
		if r != e {
			r.channel.send(b, false)
		}
	}
}

// forwardStats sends m to all others, in a large conference to those that see or hear the sender in front.
func (e *member) forwardStats(m *colibri.EndpointStats) {
	l := e.live
	if l.conf.Len() <= maxStatsEndpoints || slices.Contains(l.speakers, e.id) {
		e.forward(m, "")
		return
	}
	for id, r := range l.views {
		if slices.Contains(r, e.id) && id != e.id {
			e.forward(m, id)
		}
	}
}

func requestOf(m *colibri.ReceiverVideoConstraints) allocate.Request {
	r := allocate.Request{LastN: m.LastN, AssumedBandwidth: m.AssumedBandwidthBps}
	if m.SelectedSources != nil {
		r.SelectedSources = &m.SelectedSources
	}
	if m.OnStageSources != nil {
		r.OnStageSources = &m.OnStageSources
	}
	if d := m.DefaultConstraints; d != nil {
		c := allocate.Constraint(*d)
		r.Default = &c
	}
	if m.Constraints != nil {
		r.Constraints = make(map[string]allocate.Constraint, len(m.Constraints))
		for name, c := range m.Constraints {
			r.Constraints[name] = allocate.Constraint(c)
		}
	}
	return r
}

// sendMessage sends m, which is part of the state that the client must know.
func (c *channel) sendMessage(m colibri.Message) {
	b, err := json.Marshal(m)
	if err != nil {
		c.e.live.log.Error("channel message", "class", m.Class(), "err", err)
		return
	}
	c.send(b, true)
}

// send sends one message, which may be shared by many receivers, and never blocks. Without a channel it is
// dropped: the state is told when one opens. If there is no room, a message of the state makes the whole
// state be repeated later; others are lost.
func (c *channel) send(b []byte, state bool) {
	metrics := c.e.live.b.metrics
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case c.data && (c.onData || c.socket == nil):
		if err := c.e.peer.sendMessage(b); err != nil {
			metrics.outboundDropped.Add(1)
			c.lost = c.lost || state
			return
		}
		metrics.dataSent.Add(1)
	case c.socket != nil:
		if !c.socket.send(b, state) {
			metrics.outboundDropped.Add(1)
			return
		}
		metrics.socketSent.Add(1)
	}
}

// repair repeats the state if a part of it was lost.
func (c *channel) repair() {
	c.mu.Lock()
	lost := c.lost && !c.closed
	c.lost = false
	c.mu.Unlock()
	if lost {
		c.opened()
	}
}

// close ends the channel because its endpoint is gone.
func (c *channel) close() {
	c.mu.Lock()
	c.closed = true
	s := c.socket
	c.socket = nil
	c.mu.Unlock()
	if s != nil {
		s.close(websocket.CloseGoingAway, "endpoint closed")
	}
}

// open reports which transports the channel has.
func (c *channel) open() (data, socket bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.data, c.socket != nil
}

// A socket is one colibri WebSocket. Its reader runs in the HTTP handler, its writer in a goroutine of that.
type socket struct {
	conn *websocket.Conn
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	queue  [][]byte
	bytes  int
	code   int // not 0: close with it after the queue
	reason string
}

func newSocket(conn *websocket.Conn) *socket {
	return &socket{conn: conn, wake: make(chan struct{}, 1)}
}

// send queues b and reports whether it is going to be sent. What is not part of the state is dropped first.
func (s *socket) send(b []byte, state bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	share := 2
	if state {
		share = 1
	}
	full := len(s.queue) >= maxOutboundMessages/share || s.bytes+len(b) > maxOutboundBytes/share
	switch {
	case s.code != 0 || full && !state:
		return false
	case full:
		s.queue, s.bytes, s.code, s.reason = nil, 0, websocket.CloseTryAgainLater, "too slow"
		s.conn.NetConn().SetWriteDeadline(time.Now()) // the writer may be stuck
	default:
		s.queue = append(s.queue, b)
		s.bytes += len(b)
	}
	s.signal()
	return !full
}

// close says goodbye after what is queued.
func (s *socket) close(code int, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.code == 0 {
		s.code, s.reason = code, reason
	}
	s.signal()
}

func (s *socket) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write sends what is queued and pings, until the socket is closed by either side.
func (s *socket) write(done <-chan struct{}) {
	defer s.conn.Close()
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	for {
		s.mu.Lock()
		queue, code, reason := s.queue, s.code, s.reason
		s.queue, s.bytes = nil, 0
		s.mu.Unlock()
		for _, b := range queue {
			s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if s.conn.WriteMessage(websocket.TextMessage, b) != nil {
				return
			}
		}
		if code != 0 {
			s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(time.Second))
			return
		}
		select {
		case <-s.wake:
		case <-done:
			return
		case <-ping.C:
			if s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)) != nil {
				return
			}
		}
	}
}

// ChannelHandler serves the colibri WebSockets of this bridge, at /colibri-ws/BRIDGE-ID/CONFERENCE/ENDPOINT?pwd=.
// A wrong path or bridge is 404; an unknown conference or endpoint, or a wrong password, is 403.
func (b *Bridge) ChannelHandler() http.Handler { return http.HandlerFunc(b.serveChannel) }

var upgrader = websocket.Upgrader{
	HandshakeTimeout: 10 * time.Second, // buffers are those of the HTTP server, which it holds anyway
	// Pages come from the shard's or the edge's name; the password says who may.
	CheckOrigin: func(*http.Request) bool { return true },
}

func (b *Bridge) serveChannel(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if len(parts) != 4 || parts[0] != "colibri-ws" || parts[1] != b.cfg.RelayID {
		http.NotFound(w, r)
		return
	}
	e := b.control.endpoint(parts[2], parts[3])
	if e == nil || subtle.ConstantTimeCompare([]byte(e.secret), []byte(r.URL.Query().Get("pwd"))) != 1 {
		http.Error(w, "no such endpoint, or wrong password", http.StatusForbidden)
		return
	}
	if !b.sockets.add() {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	defer b.sockets.done()
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	e.channel.serve(conn)
}

// serve runs one socket to its end.
func (c *channel) serve(conn *websocket.Conn) {
	s := newSocket(conn)
	hello, _ := json.Marshal(colibri.ServerHello{})
	s.send(hello, true)

	c.mu.Lock()
	closed, old := c.closed, c.socket
	if !closed {
		c.socket, c.onData = s, false
	}
	c.mu.Unlock()
	if old != nil {
		old.close(websocket.CloseNormalClosure, "replaced")
	}
	var writer sync.WaitGroup
	done := make(chan struct{})
	writer.Go(func() { s.write(done) })
	if closed {
		s.close(websocket.CloseGoingAway, "endpoint closed")
	} else {
		c.opened()
		c.read(s)
	}

	close(done)
	writer.Wait()
	c.mu.Lock()
	if c.socket == s {
		c.socket = nil
	}
	c.mu.Unlock()
}

// read takes messages from a socket until it ends.
func (c *channel) read(s *socket) {
	metrics := c.e.live.b.metrics
	alive := func() { s.conn.SetReadDeadline(time.Now().Add(socketTimeout)) }
	s.conn.SetPongHandler(func(string) error { alive(); return nil })
	for {
		alive()
		kind, r, err := s.conn.NextReader()
		if err != nil {
			var ce *websocket.CloseError
			if errors.As(err, &ce) {
				metrics.socketClosed.Add(1)
			} else {
				metrics.socketBroken.Add(1)
			}
			return
		}
		text, err := io.ReadAll(io.LimitReader(r, maxMessage+1))
		if err != nil {
			metrics.socketBroken.Add(1)
			return
		}
		metrics.socketReceived.Add(1)
		if kind != websocket.TextMessage || len(text) > maxMessage {
			metrics.malformedMessages.Add(1)
			continue // NextReader skips the rest
		}
		c.mu.Lock()
		c.onData = false
		c.mu.Unlock()
		c.inbound.c() <- struct{}{} // the core takes what it has been given, so this ends
		c.receive(text)
	}
}

// alive notes a sign of life of the client.
func (e *member) alive() { e.heard.Store(e.live.b.cfg.Now().UnixNano()) }

// Events of the engine; they come on the core.

func (l *live) tell(to conference.EndpointID, m colibri.Message) {
	if e := l.endpoint(string(to)); e != nil {
		e.channel.sendMessage(m)
	}
}

// VideoSourcesMap implements conference.Events.
func (l *live) VideoSourcesMap(to conference.EndpointID, m []conference.Mapping) {
	l.tell(to, colibri.VideoSourcesMap{MappedSources: mapped(m)})
}

// AudioSourcesMap implements conference.Events.
func (l *live) AudioSourcesMap(to conference.EndpointID, m []conference.Mapping) {
	l.tell(to, colibri.AudioSourcesMap{MappedSources: mapped(m)})
}

func mapped(m []conference.Mapping) []colibri.MappedSource {
	out := make([]colibri.MappedSource, len(m))
	for i, x := range m {
		out[i] = colibri.MappedSource{Source: x.Source, Owner: string(x.Owner), SSRC: x.SSRC, RTX: x.RTX, VideoType: x.VideoType, MID: x.MID}
	}
	return out
}

// ForwardedSources implements conference.Events.
func (l *live) ForwardedSources(to conference.EndpointID, names []string) {
	var owners []string
	for _, name := range names {
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			owners = append(owners, name[:i])
		}
	}
	l.views[string(to)] = owners
	l.tell(to, colibri.ForwardedSources{ForwardedSources: names})
}

// SenderSourceConstraints implements conference.Events.
func (l *live) SenderSourceConstraints(to conference.EndpointID, source string, maxHeight int) {
	l.tell(to, colibri.SenderSourceConstraints{SourceName: source, MaxHeight: maxHeight})
}

// DominantSpeaker implements conference.Events.
func (l *live) DominantSpeaker(to, speaker conference.EndpointID, previous []conference.EndpointID, silence bool) {
	names := make([]string, len(previous), len(previous)+1)
	for i, p := range previous {
		names[i] = string(p)
	}
	l.speakers = append(names, string(speaker))
	l.tell(to, colibri.DominantSpeakerEndpointChangeEvent{DominantSpeakerEndpoint: string(speaker), PreviousSpeakers: names, Silence: silence})
}

// Connectivity implements conference.Events.
func (l *live) Connectivity(to, endpoint conference.EndpointID, active bool) {
	switch { // each change is told to everybody, once to the subject
	case to == endpoint && active:
		l.b.metrics.reconnected.Add(1)
	case to == endpoint:
		l.b.metrics.disconnected.Add(1)
	}
	l.tell(to, colibri.EndpointConnectivityStatusChangeEvent{Endpoint: string(endpoint), Active: active})
}

// A bucket limits a rate: so many at once, then forwardRate a second.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(n int, now time.Time) bool {
	if b.last.IsZero() {
		b.tokens = forwardBurst
	} else {
		b.tokens = min(forwardBurst, b.tokens+now.Sub(b.last).Seconds()*forwardRate)
	}
	b.last = now
	if b.tokens < float64(n) {
		return false
	}
	b.tokens -= float64(n)
	return true
}
