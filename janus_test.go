//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"plenum/signaling/client/thin"
)

// startJanus runs Debian's Janus with nothing but the videoroom, and has everybody in one of its rooms. Janus takes no
// header extensions here and gives none, which is less work than others have.
func startJanus(ctx context.Context, e *thin.Engine, s costScenario) (*process, error) {
	path, err := exec.LookPath("janus")
	if err != nil {
		return nil, fmt.Errorf("%w: apt-get install janus", err)
	}
	if netip.MustParseAddr(*costAddr).IsLoopback() {
		return nil, errors.New("janus does not serve loopback addresses: give one of this machine's others with -cost.addr")
	}
	dir, err := os.MkdirTemp("", "plenum-janus")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	port, err := unusedPort()
	if err != nil {
		return nil, err
	}
	disabled := func(kind, but string) string {
		all, _ := filepath.Glob("/usr/lib/*/janus/" + kind + "/*.so")
		var names []string
		for _, p := range all {
			if name := filepath.Base(p); name != but {
				names = append(names, name)
			}
		}
		return strings.Join(names, ",")
	}
	for name, text := range map[string]string{
		"janus.jcfg": fmt.Sprintf(`general: { debug_level = 2, session_timeout = 0 }
nat: { ice_enforce_list = %q, ice_ignore_list = "vmnet" }
media: { ipv6 = false }
plugins: { disable = %q }
transports: { disable = %q }
`, *costAddr, disabled("plugins", "libjanus_videoroom.so"), disabled("transports", "libjanus_websockets.so")),
		"janus.transport.websockets.jcfg": fmt.Sprintf("general: { ws = true, ws_port = %d, ws_ip = \"127.0.0.1\" }\nadmin: { admin_ws = false }\n", port),
		"janus.plugin.videoroom.jcfg":     "general: { }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	p, err := start(serverCPU, path, "--configs-folder", dir, "--disable-colors", "--log-file", filepath.Join(dir, "log"), "--disable-stdout")
	if err != nil {
		return nil, err
	}
	j := &janus{waiting: map[string]chan janusMessage{}, up: map[uint64]chan struct{}{}}
	dialer := websocket.Dialer{Subprotocols: []string{"janus-protocol"}}
	for {
		if j.conn, _, err = dialer.DialContext(ctx, fmt.Sprintf("ws://127.0.0.1:%d", port), nil); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return p, errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	go j.read() // ends with Janus
	return p, j.join(ctx, e, s)
}

func unusedPort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// A janus is a session with Janus, over its WebSocket.
type janus struct {
	conn    *websocket.Conn
	session uint64

	mu      sync.Mutex
	n       int
	waiting map[string]chan janusMessage
	up      map[uint64]chan struct{} // by handle, closed when media can flow
}

type janusMessage struct {
	Janus       string `json:"janus"`
	Transaction string `json:"transaction"`
	Sender      uint64 `json:"sender"`
	Data        struct {
		ID uint64 `json:"id"`
	} `json:"data"`
	Error  any `json:"error"`
	Plugin struct {
		Data struct {
			Error string `json:"error"`
		} `json:"data"`
	} `json:"plugindata"`
	JSEP struct {
		SDP string `json:"sdp"`
	} `json:"jsep"`
}

func (j *janus) read() {
	for {
		var m janusMessage
		if err := j.conn.ReadJSON(&m); err != nil {
			j.mu.Lock()
			for _, c := range j.waiting {
				c <- janusMessage{Error: err.Error()}
			}
			clear(j.waiting)
			j.mu.Unlock()
			return
		}
		j.mu.Lock()
		switch c := j.waiting[m.Transaction]; {
		case m.Janus == "webrtcup":
			if up := j.up[m.Sender]; up != nil {
				close(up)
				delete(j.up, m.Sender)
			}
		case m.Janus == "error" && m.Transaction == "": // not even read
			for _, c := range j.waiting {
				c <- m
			}
			clear(j.waiting)
		case m.Janus == "ack" || c == nil:
		default:
			delete(j.waiting, m.Transaction)
			c <- m
		}
		j.mu.Unlock()
	}
}

// ask sends a request and waits for what answers it.
func (j *janus) ask(ctx context.Context, request map[string]any) (janusMessage, error) {
	c := make(chan janusMessage, 1)
	j.mu.Lock()
	j.n++
	id := strconv.Itoa(j.n)
	j.waiting[id] = c
	request["transaction"] = id
	if j.session != 0 {
		request["session_id"] = j.session
	}
	text, err := json.Marshal(request)
	if err == nil {
		err = j.conn.WriteMessage(websocket.TextMessage, text)
	}
	j.mu.Unlock()
	if err != nil {
		return janusMessage{}, err
	}
	select {
	case m := <-c:
		if text := m.Plugin.Data.Error; text != "" || m.Error != nil {
			return m, fmt.Errorf("janus: %v %v", m.Error, text)
		}
		return m, nil
	case <-ctx.Done():
		return janusMessage{}, ctx.Err()
	}
}

// attach makes a handle; media can flow when up is closed.
func (j *janus) attach(ctx context.Context) (handle uint64, up chan struct{}, err error) {
	m, err := j.ask(ctx, map[string]any{"janus": "attach", "plugin": "janus.plugin.videoroom"})
	up = make(chan struct{})
	j.mu.Lock()
	j.up[m.Data.ID] = up
	j.mu.Unlock()
	return m.Data.ID, up, err
}

func (j *janus) message(ctx context.Context, handle uint64, body map[string]any, kind, sdp string) (janusMessage, error) {
	request := map[string]any{"janus": "message", "handle_id": handle, "body": body}
	if sdp != "" {
		request["jsep"] = map[string]any{"type": kind, "sdp": sdp}
	}
	return j.ask(ctx, request)
}

const janusRoom = 1

func (j *janus) join(ctx context.Context, e *thin.Engine, s costScenario) error {
	m, err := j.ask(ctx, map[string]any{"janus": "create"})
	if err != nil {
		return err
	}
	j.session = m.Data.ID
	handle, _, err := j.attach(ctx)
	if err != nil {
		return err
	}
	if _, err := j.message(ctx, handle, map[string]any{
		"request": "create", "room": janusRoom, "publishers": 100, "audiocodec": "opus", "videocodec": "vp8", "fir_freq": 0, "notify_joining": false,
		"audiolevel_ext": false, "videoorient_ext": false, "playoutdelay_ext": false, "transport_wide_cc_ext": false,
	}, "", ""); err != nil {
		return err
	}
	publishers := make([]*thin.Participant, len(s.publish))
	for i := range s.publish {
		if publishers[i], err = j.publish(ctx, e, i, &s.publish[i]); err != nil {
			return fmt.Errorf("publisher %d: %w", i, err)
		}
	}
	for i := range s.participants() {
		var feeds []map[string]any
		for k := range s.publish {
			if k != i {
				feeds = append(feeds, map[string]any{"feed": k + 1})
			}
		}
		if len(feeds) == 0 {
			continue
		}
		if err := j.subscribe(ctx, e, feeds); err != nil {
			return fmt.Errorf("subscriber %d: %w", i, err)
		}
	}
	for i, p := range publishers {
		what := s.publish[i]
		what.Bare = true
		if err := p.Publish(what); err != nil {
			return err
		}
	}
	return nil
}

func (j *janus) publish(ctx context.Context, e *thin.Engine, i int, what *thin.Publish) (*thin.Participant, error) {
	p, err := e.NewParticipant()
	if err != nil {
		return nil, err
	}
	handle, up, err := j.attach(ctx)
	if err != nil {
		return nil, err
	}
	var media []string
	if what.Audio {
		media = append(media, janusSection(p, "audio", len(media), "sendonly", 111, "opus/48000/2", p.AudioSSRC()))
	}
	if what.Video > 0 {
		media = append(media, janusSection(p, "video", len(media), "sendonly", 100, "VP8/90000", p.VideoSSRC()))
	}
	m, err := j.message(ctx, handle, map[string]any{"request": "joinandconfigure", "ptype": "publisher", "room": janusRoom, "id": i + 1},
		"offer", janusSDP(media))
	if err != nil {
		return nil, err
	}
	r, err := parseSDP(m.JSEP.SDP)
	if err != nil {
		return nil, err
	}
	r.Controlling = true
	return p, connectUp(ctx, p, r, up)
}

func (j *janus) subscribe(ctx context.Context, e *thin.Engine, feeds []map[string]any) error {
	p, err := e.NewParticipant()
	if err != nil {
		return err
	}
	handle, up, err := j.attach(ctx)
	if err != nil {
		return err
	}
	m, err := j.message(ctx, handle, map[string]any{"request": "join", "ptype": "subscriber", "room": janusRoom, "streams": feeds}, "", "")
	if err != nil {
		return err
	}
	r, err := parseSDP(m.JSEP.SDP)
	if err != nil {
		return err
	}
	var media []string
	for line := range strings.Lines(m.JSEP.SDP) {
		if kind, ok := strings.CutPrefix(line, "m="); ok {
			pt, _ := strconv.Atoi(strings.Fields(kind)[3])
			if strings.HasPrefix(kind, "audio") {
				media = append(media, janusSection(p, "audio", len(media), "recvonly", pt, "opus/48000/2", 0))
			} else {
				media = append(media, janusSection(p, "video", len(media), "recvonly", pt, "VP8/90000", 0))
			}
		}
	}
	if _, err := j.message(ctx, handle, map[string]any{"request": "start"}, "answer", janusSDP(media)); err != nil {
		return err
	}
	return connectUp(ctx, p, r, up)
}

func connectUp(ctx context.Context, p *thin.Participant, r thin.Remote, up chan struct{}) error {
	if err := p.Connect(ctx, r); err != nil {
		return err
	}
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// janusSDP is a description of these sections, in one bundle.
func janusSDP(media []string) string {
	var mids strings.Builder
	for i := range media {
		fmt.Fprintf(&mids, " %d", i)
	}
	return "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE" + mids.String() + "\r\n" + strings.Join(media, "")
}

func janusSection(p *thin.Participant, kind string, mid int, direction string, pt int, codec string, ssrc uint32) string {
	ufrag, pwd, print := p.Credentials()
	at := p.Local()
	feedback := ""
	if kind == "video" {
		feedback = fmt.Sprintf("a=rtcp-fb:%d nack\r\na=rtcp-fb:%d nack pli\r\na=rtcp-fb:%d ccm fir\r\n", pt, pt, pt)
	}
	source := ""
	if ssrc != 0 {
		source = fmt.Sprintf("a=msid:s t%d\r\na=ssrc:%d cname:load\r\n", mid, ssrc)
	}
	return fmt.Sprintf("m=%s 9 UDP/TLS/RTP/SAVPF %d\r\nc=IN IP4 0.0.0.0\r\na=mid:%d\r\na=%s\r\na=rtcp-mux\r\na=ice-ufrag:%s\r\na=ice-pwd:%s\r\n"+
		"a=fingerprint:sha-256 %s\r\na=setup:active\r\na=rtpmap:%d %s\r\n%s%sa=candidate:1 1 udp 2130706431 %s %d typ host\r\na=end-of-candidates\r\n",
		kind, pt, mid, direction, ufrag, pwd, print, pt, codec, feedback, source, at.Addr(), at.Port())
}

// parseSDP finds whom to connect to.
func parseSDP(sdp string) (r thin.Remote, err error) {
	for line := range strings.Lines(sdp) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "a=ice-ufrag:"); ok {
			r.Ufrag = v
		}
		if v, ok := strings.CutPrefix(line, "a=ice-pwd:"); ok {
			r.Pwd = v
		}
		if v, ok := strings.CutPrefix(line, "a=fingerprint:sha-256 "); ok {
			r.Fingerprint = v
		}
		if v, ok := strings.CutPrefix(line, "a=candidate:"); ok && !r.Addr.IsValid() {
			if f := strings.Fields(v); len(f) > 5 && strings.EqualFold(f[2], "udp") {
				r.Addr, err = netip.ParseAddrPort(net.JoinHostPort(f[4], f[5]))
				if err != nil {
					return r, err
				}
			}
		}
		if v, ok := strings.CutPrefix(line, "a=rtpmap:"); ok && strings.HasSuffix(v, "VP8/90000") {
			pt, _, _ := strings.Cut(v, " ")
			n, _ := strconv.ParseUint(pt, 10, 7)
			r.VP8 = uint8(n)
		}
	}
	if !r.Addr.IsValid() || r.Pwd == "" {
		return r, fmt.Errorf("janus: no candidate in its description:\n%s", sdp)
	}
	return r, nil
}
