//go:build linux

package thin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/gorilla/websocket"

	"plenum/wire/colibri"
	"plenum/wire/jingle"
)

// ErrBridge is wrapped by what a bridge refuses or leaves out.
var ErrBridge = errors.New("bridge")

// maxAnswer bounds what a bridge may answer, in bytes.
const maxAnswer = 1 << 20

// A Room is one conference on a bridge, driven over its private HTTP as a focus would.
type Room struct {
	// NoChannel leaves the bridge channel out: sound comes without one.
	NoChannel bool

	e       *Engine
	url     string // of the conferences
	meeting string

	mu      sync.Mutex
	created bool
	own     map[uint32]bool // the bridge's feedback sources
}

// NewRoom names a conference; the first Join creates it. url is the bridge's private HTTP.
func (e *Engine) NewRoom(url, meeting string) *Room {
	return &Room{e: e, url: url + "/colibri/v2/conferences", meeting: meeting, own: map[uint32]bool{}}
}

// A View is what a participant wants to see; the zero value is everything as large as it is.
type View struct {
	// OnStage are source names that come in full size; the others come as thumbnails of 180 lines then.
	OnStage []string
}

// Join adds an endpoint, connects a participant to it and opens its bridge channel. What it will publish is
// signalled now; Publish begins.
func (r *Room) Join(ctx context.Context, id string, what Publish, view View) (*Participant, error) {
	p, err := r.e.NewParticipant()
	if err != nil {
		return nil, err
	}
	if err := r.join(ctx, p, id, what, view); err != nil {
		p.Close()
		return nil, fmt.Errorf("participant %s: %w", id, err)
	}
	return p, nil
}

func (r *Room) join(ctx context.Context, p *Participant, id string, what Publish, view View) error {
	r.mu.Lock() // one after the other: the first creates
	endpoint := colibri.Endpoint{
		ID: id, StatsID: "Thin-" + id, Create: true, Media: negotiated(),
		Transport:    &colibri.Transport{ICEControlling: true},
		Capabilities: []string{colibri.SourceNames, colibri.SSRCRewriting},
	}
	if r.NoChannel { // nobody could tell it what is rewritten
		endpoint.Capabilities = []string{colibri.SourceNames}
	}
	answer, err := r.modify(ctx, !r.created, endpoint)
	if r.created && err != nil && strings.Contains(err.Error(), "conference_not_found") { // all had left
		answer, err = r.modify(ctx, true, endpoint)
	}
	r.created = r.created || err == nil
	if err == nil && answer.Sources != nil {
		for _, m := range answer.Sources.Media {
			for _, s := range m.Sources {
				r.own[s.SSRC] = true
			}
		}
	}
	own := maps.Clone(r.own) // which the engine reads while others join
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if len(answer.Endpoints) != 1 || answer.Endpoints[0].Transport == nil || answer.Endpoints[0].Transport.ICE == nil {
		return fmt.Errorf("%w: no transport in the answer", ErrBridge)
	}
	theirs := answer.Endpoints[0].Transport.ICE
	remote, print, err := reachable(theirs)
	if err != nil {
		return err
	}
	if _, err := r.modify(ctx, false, colibri.Endpoint{
		ID: id,
		Transport: &colibri.Transport{ICE: &jingle.Transport{
			Ufrag: p.agent.ufrag, Pwd: p.agent.pwd, RTCPMux: true,
			Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "active", Value: r.e.id.fingerprint}},
		}},
		Sources: p.sources(id, what),
	}); err != nil {
		return err
	}
	r.e.receiving.Lock()
	p.ignore = own
	r.e.receiving.Unlock()
	if err := p.Connect(ctx, Remote{Addr: remote, Ufrag: theirs.Ufrag, Pwd: theirs.Pwd, Fingerprint: print}); err != nil {
		return err
	}
	if r.NoChannel {
		return nil
	}
	if len(theirs.WebSockets) == 0 {
		return fmt.Errorf("%w: no WebSocket is offered", ErrBridge)
	}
	return p.open(ctx, theirs.WebSockets[0], view)
}

// reachable is the first usable candidate of a bridge, with its fingerprint.
func reachable(t *jingle.Transport) (at netip.AddrPort, fingerprint string, err error) {
	for _, f := range t.Fingerprints {
		if f.Hash == "sha-256" {
			fingerprint = f.Value
		}
	}
	for _, c := range t.Candidates {
		if ip, err := netip.ParseAddr(c.IP); err == nil && ip.Is4() && c.Type == "host" && c.Protocol == "udp" {
			return netip.AddrPortFrom(ip, uint16(c.Port)), fingerprint, nil
		}
	}
	return at, "", fmt.Errorf("%w: no IPv4 candidate", ErrBridge)
}

// Leave expires an endpoint.
func (r *Room) Leave(ctx context.Context, id string) error {
	_, err := r.modify(ctx, false, colibri.Endpoint{ID: id, Expire: true})
	return err
}

func (r *Room) modify(ctx context.Context, create bool, e colibri.Endpoint) (colibri.ConferenceModified, error) {
	var answer colibri.ConferenceModified
	m := colibri.ConferenceModify{MeetingID: r.meeting, Create: create, Endpoints: []colibri.Endpoint{e}}
	method, url := http.MethodPatch, r.url+"/"+r.meeting
	if create {
		m.Name = r.meeting + "@conference.localhost"
		method, url = http.MethodPost, r.url
	}
	body, err := json.Marshal(m)
	if err != nil {
		return answer, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer, err
	}
	if resp.StatusCode != http.StatusOK {
		return answer, fmt.Errorf("%w: %s: %s", ErrBridge, resp.Status, text)
	}
	return answer, json.Unmarshal(text, &answer)
}

// negotiated is what a stock client under Jitsi Meet negotiates, as far as we use it.
func negotiated() []colibri.Media {
	feedback := []jingle.Feedback{{Type: "transport-cc"}}
	video := append(feedback, jingle.Feedback{Type: "ccm", Subtype: "fir"}, jingle.Feedback{Type: "nack"}, jingle.Feedback{Type: "nack", Subtype: "pli"})
	tcc := jingle.HeaderExtension{ID: tccExt, URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"}
	return []colibri.Media{
		{Type: "audio", PayloadTypes: []jingle.PayloadType{{ID: opusPT, Name: "opus", Clockrate: 48000, Channels: 2, Feedback: feedback}},
			Extensions: []jingle.HeaderExtension{{ID: levelExt, URI: "urn:ietf:params:rtp-hdrext:ssrc-audio-level"}, tcc}},
		{Type: "video", PayloadTypes: []jingle.PayloadType{
			{ID: vp8PT, Name: "VP8", Clockrate: 90000, Feedback: video},
			{ID: rtxPT, Name: "rtx", Clockrate: 90000, Parameters: []jingle.Parameter{{Name: "apt", Value: "100"}}},
		}, Extensions: []jingle.HeaderExtension{
			{ID: absTimeExt, URI: "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"}, tcc,
			{ID: descriptorExt, URI: "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"},
		}},
	}
}

func (p *Participant) sources(id string, what Publish) *colibri.Sources {
	s := &colibri.Sources{}
	if what.Audio {
		name := id + "-a0"
		s.Media = append(s.Media, colibri.MediaSource{ID: name, Type: "audio", Sources: []jingle.Source{{SSRC: p.AudioSSRC(), Name: name}}})
	}
	if what.Video > 0 {
		name := VideoName(id)
		s.Media = append(s.Media, colibri.MediaSource{
			ID: name, Type: "video",
			Sources: []jingle.Source{{SSRC: p.VideoSSRC(), Name: name, VideoType: "camera"}, {SSRC: p.RetransmitSSRC(), Name: name, VideoType: "camera"}},
			Groups:  []jingle.SourceGroup{{Semantics: "FID", SSRCs: []uint32{p.VideoSSRC(), p.RetransmitSSRC()}}},
		})
	}
	return s
}

// VideoName is the source name of an endpoint's picture.
func VideoName(id string) string { return id + "-v0" }

// open dials the bridge channel and says what a stock client says first. What comes over it is read and dropped.
func (p *Participant) open(ctx context.Context, url string, view View) error {
	conn, _, err := websocket.DefaultDialer.DialContext(ctx, url, nil)
	if err != nil {
		return fmt.Errorf("bridge channel: %w", err)
	}
	all, thumbnail, last := colibri.VideoConstraints{MaxHeight: 2160, MaxFrameRate: -1}, colibri.VideoConstraints{MaxHeight: 180, MaxFrameRate: -1}, -1
	c := colibri.ReceiverVideoConstraints{LastN: &last, DefaultConstraints: &all}
	if len(view.OnStage) > 0 {
		c.DefaultConstraints, c.OnStageSources, c.Constraints = &thumbnail, view.OnStage, map[string]colibri.VideoConstraints{}
		for _, name := range view.OnStage {
			c.Constraints[name] = all
		}
	}
	b, err := json.Marshal(c)
	if err == nil {
		err = conn.WriteMessage(websocket.TextMessage, b)
	}
	if err != nil {
		conn.Close()
		return fmt.Errorf("bridge channel: %w", err)
	}
	p.channel = conn
	p.reads.Go(func() {
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	})
	return nil
}
