package client

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/signaling/client/peer"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// golden reads the session-initiate that Jicofo sent to a real client.
func golden(t *testing.T) *jingle.Session {
	t.Helper()
	b, err := os.ReadFile("testdata/session-initiate.xml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := xmpp.Parse(b, xmpp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := jingle.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

func TestRemote(t *testing.T) {
	offer := golden(t)
	d, err := remote(offer)
	if err != nil {
		t.Fatal(err)
	}
	if d.Ufrag != "2ing91k7t9ibqn" || d.Pwd != "6ad0qpqm4fimvev6gblko6o50l" || d.Setup != "actpass" || d.Hash != "sha-256" || d.SCTP != 5000 {
		t.Errorf("%+v", d)
	}
	if want := []peer.Candidate{{IP: "10.99.0.11", Port: 10000, Type: "host", Foundation: "1", Priority: 2130706431}}; !cmp.Equal(d.Candidates, want) {
		t.Error(cmp.Diff(want, d.Candidates))
	}
	want := peer.Media{
		Opus: 111, VP8: 100,
		Video:      map[uint8]string{41: "av1", 100: "vp8", 107: "h264", 101: "vp9"},
		RTX:        map[uint8]uint8{42: 41, 96: 100, 97: 101, 99: 107},
		AudioLevel: 1, AbsSendTime: 3, TransportCC: 5, Descriptor: 11,
	}
	if got := media(offer, &Config{}); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	if got := media(offer, &Config{NoTransportCC: true, NoRTX: true}); got.TransportCC != 0 || len(got.RTX) != 0 {
		t.Errorf("refused, but used: %+v", got)
	}
	if _, err := remote(&jingle.Session{}); err == nil {
		t.Error("an offer without transport was accepted")
	}
}

// TestAccept checks the answer where servers read it: SSRCs, groups, transport, no candidates.
func TestAccept(t *testing.T) {
	offer := golden(t)
	tracks := []track{
		{name: "bbbb2222-a0", msid: "bbbb2222-audio-0-1 t-1", encodings: []peer.Encoding{{SSRC: 1}}},
		{name: "bbbb2222-v0", msid: "bbbb2222-video-0-1 t-1", video: true, encodings: []peer.Encoding{{SSRC: 10, RTX: 11}, {SSRC: 20, RTX: 21}, {SSRC: 30, RTX: 31}}},
	}
	local := peer.Description{Ufrag: "u", Pwd: "p", Hash: "sha-256", Fingerprint: "AB:CD", Setup: "active"}
	answer := accept(offer, "golden@conference.meet.local/focus", "b@meet.local/r", local, tracks, &Config{})
	text := answer.Element().String()
	for _, want := range []string{
		`action='session-accept'`, `initiator='golden@conference.meet.local/focus'`, `responder='b@meet.local/r'`,
		`trace_id='00000000000000000000000000000000'`, `setup='active'`, `streams='0'`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if strings.Contains(text, "<candidate") {
		t.Error("the answer has candidates")
	}
	e, err := xmpp.Parse([]byte(text), xmpp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := jingle.Parse(e)
	if err != nil {
		t.Fatal(err)
	}
	video := got.Content("video")
	if want := []jingle.SourceGroup{
		{Semantics: "FID", SSRCs: []uint32{10, 11}}, {Semantics: "SIM", SSRCs: []uint32{10, 20, 30}},
		{Semantics: "FID", SSRCs: []uint32{20, 21}}, {Semantics: "FID", SSRCs: []uint32{30, 31}},
	}; !cmp.Equal(video.Groups, want) {
		t.Error(cmp.Diff(want, video.Groups))
	}
	if len(video.Sources) != 6 || video.Sources[0].Name != "bbbb2222-v0" || video.Sources[0].VideoType != "camera" {
		t.Errorf("sources %+v", video.Sources)
	}
	if audio := got.Content("audio"); len(audio.Sources) != 1 || audio.Sources[0].SSRC != 1 || audio.Sources[0].VideoType != "" {
		t.Errorf("sources %+v", audio.Sources)
	}
	if !video.ExtmapAllowMixed || !video.RTCPMux || len(video.Extensions) != 3 {
		t.Errorf("video %+v", video)
	}
}

func TestAnnounced(t *testing.T) {
	got := announced(golden(t))
	want := []peer.Source{
		{Kind: peer.Audio, Name: "jvb-a0", Owner: "jvb", SSRC: 3743242118},
		{Kind: peer.Video, Name: "jvb-v0", Owner: "jvb", SSRC: 394596374, VideoType: "camera"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestCaps compares with the hash that the real client sent for the same features.
func TestCaps(t *testing.T) {
	cfg := Config{Rewriting: true}
	if got := capsHash(cfg.features()); got != "+mpajJhafj8jFogLBKsPbQfMgzU=" {
		t.Errorf("hash %s of %q", got, cfg.features())
	}
}
