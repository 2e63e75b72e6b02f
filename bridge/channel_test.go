package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pion/webrtc/v3"

	"plenum/bridge/conference"
	"plenum/wire/colibri"
)

// page is a client with a colibri WebSocket.
type page struct {
	t    *testing.T
	conn *websocket.Conn
	url  string
}

// join creates an endpoint and returns the URL of its WebSocket.
func join(t *testing.T, b *Bridge, meeting, id, more string) string {
	t.Helper()
	create := ""
	if !hasConference(b, meeting) {
		create = " create='true'"
	}
	answer := mustModify(t, b, modify+`meeting-id='`+meeting+`'`+create+`>`+strings.Replace(newEndpoint(id), "create='true'", "create='true' "+more, 1)+`</conference-modify>`)
	return answer.Endpoints[0].Transport.ICE.WebSockets[0]
}

func hasConference(b *Bridge, meeting string) bool {
	for _, l := range b.control.conferences() {
		if l.meeting.id == meeting {
			return true
		}
	}
	return false
}

func open(t *testing.T, url string) *page {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	p := &page{t, conn, url}
	p.want("ServerHello")
	return p
}

func (p *page) say(text string) {
	p.t.Helper()
	if err := p.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		p.t.Fatal(err)
	}
}

// next returns the next message and its class.
func (p *page) next() (class, text string) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, b, err := p.conn.ReadMessage()
	if err != nil {
		p.t.Fatalf("no message: %v", err)
	}
	var m struct {
		Class string `json:"colibriClass"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		p.t.Fatalf("%s: %v", b, err)
	}
	return m.Class, string(b)
}

// want skips to the next message of a class and returns it.
func (p *page) want(class string) string {
	p.t.Helper()
	for {
		if c, text := p.next(); c == class {
			return text
		}
	}
}

// sync returns once the bridge has handled all that was said, with the classes of what it told meanwhile.
func (p *page) sync() (classes []string) {
	p.t.Helper()
	p.say(`{"colibriClass":"ClientHello"}`)
	for {
		c, _ := p.next()
		if c == "ServerHello" {
			return classes
		}
		classes = append(classes, c)
	}
}

const cameraOf = `<sources><media-source type='audio' id='ID-a0'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='BASE1' name='ID-a0'/></media-source>` +
	`<media-source type='video' id='ID-v0'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='BASE2' name='ID-v0' videoType='camera'/></media-source></sources>`

func signal(t *testing.T, b *Bridge, meeting, id, base string) {
	t.Helper()
	mustModify(t, b, modify+`meeting-id='`+meeting+`'><endpoint id='`+id+`'>`+strings.NewReplacer("ID", id, "BASE", base).Replace(cameraOf)+`</endpoint></conference-modify>`)
}

func TestWebSocketRefusals(t *testing.T) {
	b := start(t, nil)
	good := join(t, b, "m1", "aaaa1111", "")
	cut := strings.LastIndex(good, "=")
	for _, tc := range []struct {
		url  string
		want int
	}{
		{good, http.StatusSwitchingProtocols},
		{good[:cut] + "=wrong", http.StatusForbidden},
		{good[:strings.Index(good, "?")], http.StatusForbidden},
		{strings.Replace(good, "aaaa1111", "bbbb2222", 1), http.StatusForbidden},
		{strings.Replace(good, "jvb1", "jvb2", 1), http.StatusNotFound},
		{strings.Replace(good, "colibri-ws", "colibri", 1), http.StatusNotFound},
		{strings.Replace(good, "/aaaa1111", "", 1), http.StatusNotFound},
	} {
		conn, r, err := websocket.DefaultDialer.Dial(tc.url, nil)
		if conn != nil {
			conn.Close()
		}
		if r == nil || r.StatusCode != tc.want {
			t.Errorf("%s: %v, %v; want %d", tc.url, r, err, tc.want)
		}
	}
}

// TestBurst checks the state that a client is told when its channel opens, and its order.
func TestBurst(t *testing.T) {
	b := start(t, nil)
	ann := open(t, join(t, b, "m1", "aaaa1111", ""))
	signal(t, b, "m1", "aaaa1111", "1")
	signal(t, b, "m1", "aaaa1111", "1")
	url := join(t, b, "m1", "bbbb2222", "")
	signal(t, b, "m1", "bbbb2222", "2")
	bob := open(t, url)
	order := map[string]int{"SenderSourceConstraints": 1, "ForwardedSources": 2, "VideoSourcesMap": 3, "AudioSourcesMap": 4, "EndpointConnectivityStatusChangeEvent": 5, "DominantSpeakerEndpointChangeEvent": 6}
	classes := bob.sync()
	last := 0
	for _, c := range classes {
		if order[c] < last {
			t.Errorf("burst out of order: %v", classes)
		}
		last = order[c]
	}
	if len(classes) < 2 || classes[0] != "SenderSourceConstraints" {
		t.Errorf("burst %v", classes)
	}

	// A first wish makes the sender send, and the receiver is told what it gets.
	bob.say(`{"colibriClass":"ReceiverVideoConstraints","assumedBandwidthBps":-1,"lastN":-1}`)
	for {
		if text := ann.want("SenderSourceConstraints"); strings.Contains(text, `"maxHeight":180`) {
			if !strings.Contains(text, `"sourceName":"aaaa1111-v0"`) {
				t.Errorf("%s", text)
			}
			break
		}
	}

	// A new socket replaces the old one and is told everything again.
	again := open(t, url)
	if classes := again.sync(); len(classes) < 2 {
		t.Errorf("after reconnecting %v", classes)
	}
	for {
		_, _, err := bob.conn.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				t.Errorf("old socket: %v", err)
			}
			break
		}
	}

	// Expiry closes with 1001.
	mustModify(t, b, modify+`meeting-id='m1'><endpoint id='bbbb2222' expire='true'/></conference-modify>`)
	for {
		_, _, err := again.conn.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseGoingAway) {
				t.Errorf("socket of an expired endpoint: %v", err)
			}
			break
		}
	}
}

func TestChannelSurvives(t *testing.T) {
	b := start(t, nil)
	p := open(t, join(t, b, "m1", "aaaa1111", ""))
	p.sync()
	big := strings.Repeat("x", 1<<20)
	for _, text := range []string{
		"", "{", "null", "[]", `"x"`, "\x00\xff", `{"colibriClass":7}`, `{"colibriClass":""}`,
		`{"colibriClass":"NoSuchClass","x":1}`,
		`{"colibriClass":"ReceiverVideoConstraints","lastN":"many"}`,
		`{"colibriClass":"ReceiverVideoConstraints","lastN":-1,"noSuchField":{"a":[1]}}`,
		`{"colibriClass":"ReceiverVideoConstraints","defaultConstraints":null,"constraints":{"a":null}}`,
		`{"colibriClass":"ReceiverVideoConstraints","lastN":99999999999999999999}`,
		`{"colibriClass":"LastNChangedEvent","lastN":-7}`,
		`{"colibriClass":"SourceVideoTypeMessage","sourceName":"zzzz-v9","videoType":"NOVEL"}`,
		`{"colibriClass":"VideoTypeMessage","videoType":"DESKTOP"}`,
		`{"colibriClass":"ReceiverAudioSubscription","mode":"Exclude","list":["x"]}`,
		`{"colibriClass":"ServerHello"}`, `{"colibriClass":"ForwardedSources","forwardedSources":["x"]}`,
		`{"colibriClass":"EndpointMessage","to":"deadbeef","msgPayload":1}`,
		`{"colibriClass":"EndpointMessage","msgPayload":"` + big + `"}`,
		strings.Repeat("[", 100000),
	} {
		p.say(text)
	}
	if err := p.conn.WriteMessage(websocket.BinaryMessage, []byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if got := p.sync(); len(got) != 0 {
		t.Errorf("answers to nonsense: %v", got)
	}
}

func TestEndpointMessages(t *testing.T) {
	b := start(t, nil)
	ann := open(t, join(t, b, "m1", "aaaa1111", ""))
	bob := open(t, join(t, b, "m1", "bbbb2222", ""))
	cid := open(t, join(t, b, "m1", "cccc3333", ""))
	vic := open(t, join(t, b, "m1", "dddd4444", "muc-role='visitor'"))
	other := open(t, join(t, b, "m2", "eeee5555", ""))
	for _, p := range []*page{ann, bob, cid, vic, other} {
		p.sync()
	}

	ann.say(`{"colibriClass":"EndpointMessage","msgPayload":{"hello":"all"},"to":"","from":"bbbb2222"}`)
	want := `{"colibriClass":"EndpointMessage","to":"","from":"aaaa1111","msgPayload":{"hello":"all"}}`
	for _, p := range []*page{bob, cid, vic} {
		if got := p.want("EndpointMessage"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	ann.say(`{"colibriClass":"EndpointMessage","msgPayload":1,"to":"bbbb2222"}`)
	ann.say(`{"colibriClass":"EndpointMessage","msgPayload":2,"to":"nobody"}`)
	vic.say(`{"colibriClass":"EndpointMessage","msgPayload":3,"to":""}`)
	ann.sync()
	vic.sync()
	if got := bob.want("EndpointMessage"); got != `{"colibriClass":"EndpointMessage","to":"bbbb2222","from":"aaaa1111","msgPayload":1}` {
		t.Errorf("got %s", got)
	}
	for _, p := range []*page{ann, bob, cid, other} {
		if got := p.sync(); len(got) != 0 {
			t.Errorf("stray messages %v", got)
		}
	}

	ann.say(`{"colibriClass":"EndpointStats","from":"x","bitrate":{"download":1},"connectionQuality":100}`)
	for _, p := range []*page{bob, cid, vic} {
		if got := p.want("EndpointStats"); got != `{"colibriClass":"EndpointStats","from":"aaaa1111","bitrate":{"download":1},"connectionQuality":100}` {
			t.Errorf("got %s", got)
		}
	}
}

func TestEndpointStatsInLargeConference(t *testing.T) {
	b := start(t, nil)
	var pages []*page
	for i := range maxStatsEndpoints + 1 {
		pages = append(pages, open(t, join(t, b, "m1", fmt.Sprintf("e%02d", i), "")))
	}
	var l *live
	for _, x := range b.control.conferences() {
		l = x
	}
	set := func(speakers []string, views map[string][]string) {
		done := make(chan struct{})
		l.do(func(time.Time) { l.speakers, l.views = speakers, views; close(done) })
		<-done
	}
	for _, p := range pages {
		p.sync()
	}
	const report = `{"colibriClass":"EndpointStats","connectionQuality":100}`
	count := func() (n int) {
		pages[0].say(report)
		pages[0].sync()
		for _, p := range pages[1:] {
			for _, c := range p.sync() {
				if c == "EndpointStats" {
					n++
				}
			}
		}
		return n
	}
	set(nil, map[string][]string{"e01": {"e00"}, "e02": {"e05"}})
	if n := count(); n != 1 {
		t.Errorf("%d got the report of somebody whom one sees", n)
	}
	set([]string{"e00"}, nil)
	if n := count(); n != maxStatsEndpoints {
		t.Errorf("%d got the report of a speaker", n)
	}
}

// TestFloods: a client that floods and one that reads nothing do not hold up the others.
func TestFloods(t *testing.T) {
	b := start(t, nil)
	flood := open(t, join(t, b, "m1", "aaaa1111", ""))
	bob := open(t, join(t, b, "m1", "bbbb2222", ""))
	open(t, join(t, b, "m1", "cccc3333", "")) // never reads again
	flood.sync()
	bob.sync()
	cid := b.control.conferences()[0].endpoint("cccc3333")
	before := b.metrics.socketSent.Load()
	small := `{"colibriClass":"EndpointMessage","to":"cccc3333"}`
	large := `{"colibriClass":"EndpointMessage","msgPayload":"` + strings.Repeat("x", 100<<10) + `","to":"cccc3333"}`
	begin := time.Now()
	for i := range forwardBurst {
		flood.say(small)
		if i%10 == 0 {
			flood.say(large)
			bob.sync()
		}
	}
	flood.sync()
	if n, most := b.metrics.socketSent.Load()-before, 2*forwardBurst+int64(time.Since(begin).Seconds()*forwardRate); n > most {
		t.Errorf("%d messages passed on, at most %d were to be", n, most)
	}
	cid.channel.mu.Lock()
	s := cid.channel.socket
	cid.channel.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.bytes > maxOutboundBytes/2 || len(s.queue) > maxOutboundMessages/2 {
			t.Errorf("%d messages, %d bytes wait", len(s.queue), s.bytes)
		}
	}
}

// TestSlowSocket fills the queue of a socket whose writer does not get on.
func TestSlowSocket(t *testing.T) {
	b := start(t, nil)
	p := open(t, join(t, b, "m1", "aaaa1111", ""))
	p.sync()
	e := b.control.conferences()[0].endpoint("aaaa1111")
	e.channel.mu.Lock()
	s := newSocket(e.channel.socket.conn) // without a writer
	e.channel.mu.Unlock()
	forward := 0
	for range 2 * maxOutboundMessages {
		if s.send([]byte("x"), false) {
			forward++
		}
	}
	if forward != maxOutboundMessages/2 || s.code != 0 {
		t.Errorf("%d messages of others taken, code %d", forward, s.code)
	}
	state := 0
	for range 2 * maxOutboundMessages {
		if s.send([]byte("x"), true) {
			state++
		}
	}
	if state != maxOutboundMessages/2 || s.code != websocket.CloseTryAgainLater || len(s.queue) != 0 {
		t.Errorf("%d messages of the state taken, code %d, %d kept", state, s.code, len(s.queue))
	}
}

// TestRepair: what a data channel has no room for is told again.
func TestRepair(t *testing.T) {
	b := start(t, nil)
	url := join(t, b, "m1", "aaaa1111", "")
	signal(t, b, "m1", "aaaa1111", "1")
	c := &b.control.conferences()[0].endpoint("aaaa1111").channel
	lost := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.lost }
	c.dataOpen(true) // says the transport, and then takes nothing
	eventually(t, "state is lost", lost)
	p := open(t, url)
	p.sync()
	eventually(t, "repaired", func() bool { return !lost() })
	if got := p.want("SenderSourceConstraints"); !strings.Contains(got, "aaaa1111-v0") {
		t.Errorf("%s", got)
	}
}

func TestBucket(t *testing.T) {
	var k bucket
	now := time.Now()
	for i := range forwardBurst {
		if !k.take(1, now) {
			t.Fatalf("refused after %d", i)
		}
	}
	if k.take(1, now) {
		t.Error("no limit")
	}
	if now = now.Add(time.Second / forwardRate); !k.take(1, now) || k.take(1, now) {
		t.Error("rate")
	}
}

// TestDataChannel is a real WebRTC client on the SCTP channel.
func TestDataChannel(t *testing.T) {
	b := start(t, nil)
	join(t, b, "m1", "aaaa1111", "")
	url := join(t, b, "m1", "bbbb2222", "")
	e := b.control.conferences()[0].endpoint("aaaa1111")
	c := newClientAs(t, webrtc.DTLSRoleClient)
	if err := e.peer.setRemote(c.join(t, e.peer.describe(), false)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.opened:
	case <-time.After(10 * time.Second):
		t.Fatal("the channel does not open")
	}
	c.channel.SendText(`{"colibriClass":"ClientHello"}`)
	next := func() string {
		select {
		case m := <-c.message:
			return m
		case <-time.After(5 * time.Second):
			t.Fatal("no message")
			return ""
		}
	}
	var got []string
	for m := next(); ; m = next() {
		if strings.Contains(m, "ServerHello") {
			break
		}
		got = append(got, m)
	}
	if len(got) == 0 || !strings.Contains(got[0], "SenderSourceConstraints") && !strings.Contains(got[0], "ForwardedSources") {
		t.Errorf("before the answer to ClientHello: %v", got)
	}

	bob := open(t, url)
	bob.sync()
	bob.say(`{"colibriClass":"EndpointMessage","to":"aaaa1111","x":1}`)
	if m := next(); m != `{"colibriClass":"EndpointMessage","to":"aaaa1111","from":"bbbb2222","x":1}` {
		t.Errorf("%s", m)
	}
	c.channel.SendText(`{"colibriClass":"EndpointMessage","to":"bbbb2222","x":2}`)
	if m := bob.want("EndpointMessage"); m != `{"colibriClass":"EndpointMessage","to":"bbbb2222","from":"aaaa1111","x":2}` {
		t.Errorf("%s", m)
	}
	eventually(t, "the transport counts as connected", func() bool { return e.connected.Load() && e.heard.Load() != 0 })
	before := e.peer.describe()
	answer := mustModify(t, b, modify+`meeting-id='m1'><endpoint id='aaaa1111'><transport ice-restart='true'/></endpoint></conference-modify>`)
	if tr := answer.Endpoints[0].Transport; tr == nil || tr.ICE.Ufrag == before.Ufrag || tr.ICE.Generation != 1 || tr.ICE.Fingerprints[0].Setup != "passive" {
		t.Errorf("a restart is answered with %+v", tr)
	}
	c.channel.SendText(`{"colibriClass":"EndpointMessage","to":"bbbb2222","x":3}`)
	if m := bob.want("EndpointMessage"); m != `{"colibriClass":"EndpointMessage","to":"bbbb2222","from":"aaaa1111","x":3}` {
		t.Errorf("%s", m)
	}
}

func TestMessagesOnTheWire(t *testing.T) {
	for _, tc := range []struct {
		m    colibri.Message
		want string
	}{
		{colibri.VideoSourcesMap{MappedSources: mapped([]conference.Mapping{{Source: "b-v0", Owner: "b", SSRC: 1, RTX: 2, VideoType: "CAMERA"}})},
			`{"colibriClass":"VideoSourcesMap","mappedSources":[{"source":"b-v0","owner":"b","ssrc":1,"rtx":2,"videoType":"CAMERA"}]}`},
		{colibri.AudioSourcesMap{MappedSources: mapped([]conference.Mapping{{Source: "b-a0", Owner: "b", SSRC: 1}})},
			`{"colibriClass":"AudioSourcesMap","mappedSources":[{"source":"b-a0","owner":"b","ssrc":1}]}`},
		{colibri.ForwardedSources{}, `{"colibriClass":"ForwardedSources","forwardedSources":[]}`},
		{colibri.EndpointConnectivityStatusChangeEvent{Endpoint: "b"}, `{"colibriClass":"EndpointConnectivityStatusChangeEvent","endpoint":"b","active":"false"}`},
	} {
		got, err := json.Marshal(tc.m)
		if err != nil || !bytes.Equal(got, []byte(tc.want)) {
			t.Errorf("%s, %v", got, err)
		}
	}
	var tooLarge error
	if _, tooLarge = colibri.ParseMessage(make([]byte, maxMessage+1)); !errors.Is(tooLarge, colibri.ErrMessageTooLarge) {
		t.Errorf("the limits differ: %v", tooLarge)
	}
}
