package colibri

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

func ptr[T any](v T) *T { return &v }

// The values of the recorded stanzas in testdata, and of shorter ones from the same recording.
var modifies = []struct {
	name, xml string
	want      ConferenceModify
}{
	{"create", "create.xml", ConferenceModify{
		MeetingID: "00000000-0000-4000-8000-000000000004", Name: "golden@conference.meet.local", Create: true, RTCStats: ptr(false),
		Endpoints: []Endpoint{{
			ID: "bbbb2222", StatsID: "Zed-xyz", Create: true,
			Media: []Media{
				{"video", []jingle.PayloadType{
					video(41, "AV1", nil, feedback), video(100, "VP8", nil, feedback),
					video(107, "H264", []jingle.Parameter{{Name: "profile-level-id", Value: "42e01f;level-asymmetry-allowed=1;packetization-mode=1;"}}, feedback),
					video(101, "VP9", nil, feedback),
					video(42, "rtx", apt("41"), feedback[:3]), video(96, "rtx", apt("100"), feedback[:3]),
					video(97, "rtx", apt("101"), feedback[:3]), video(99, "rtx", apt("107"), nil),
				}, []jingle.HeaderExtension{
					{ID: 11, URI: "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"},
					{ID: 3, URI: "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"},
					{ID: 5, URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"},
				}, true},
				{"audio", []jingle.PayloadType{
					{ID: 111, Name: "opus", Clockrate: 48000, Channels: 2, Parameters: []jingle.Parameter{{Name: "minptime", Value: "10"}, {Name: "useinbandfec", Value: "1"}}, Feedback: feedback[3:]},
					{ID: 126, Name: "telephone-event", Clockrate: 8000},
				}, []jingle.HeaderExtension{
					{ID: 1, URI: "urn:ietf:params:rtp-hdrext:ssrc-audio-level"},
					{ID: 5, URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"},
				}, true},
			},
			Transport: &Transport{ICEControlling: true, SCTP: &SCTP{}}, Sources: &Sources{}, Capabilities: []string{SourceNames, SSRCRewriting},
		}},
	}},
	{"update", "update.xml", ConferenceModify{
		MeetingID: "00000000-0000-4000-8000-000000000004",
		Endpoints: []Endpoint{{
			ID: "bbbb2222", StatsID: "Zed-xyz",
			Transport: &Transport{ICE: &jingle.Transport{Ufrag: "UEeD", Pwd: "xXGhjX6K46yHs8ruBCqG9ngL", RTCPMux: true,
				Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "active", Value: "A4:D1:76" + strings.Repeat(":5C", 29)}}}},
			Sources: &Sources{[]MediaSource{
				{ID: "bbbb2222-a0", Type: "audio", Sources: []jingle.Source{{SSRC: 3864528772, Name: "bbbb2222-a0"}}},
				{ID: "bbbb2222-v0", Type: "video", Sources: cameras(3027853102, 2049468128, 601493784, 658210161, 3071637025, 3373117573),
					Groups: []jingle.SourceGroup{
						{Semantics: "FID", SSRCs: []uint32{3027853102, 2049468128}}, {Semantics: "SIM", SSRCs: []uint32{3027853102, 601493784, 658210161}},
						{Semantics: "FID", SSRCs: []uint32{601493784, 3071637025}}, {Semantics: "FID", SSRCs: []uint32{658210161, 3373117573}},
					}},
			}},
		}},
	}},
	{"force mute", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'><endpoint id='cccc3333'><force-mute audio='true'/></endpoint><endpoint id='bbbb2222'><force-mute/></endpoint></conference-modify>`,
		ConferenceModify{MeetingID: "m", Endpoints: []Endpoint{{ID: "cccc3333", ForceMute: &ForceMute{Audio: true}}, {ID: "bbbb2222", ForceMute: &ForceMute{}}}}},
	{"restart", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'><endpoint id='aaaa1111' stats-id='Zed-xyz'><transport ice-restart='true'/></endpoint></conference-modify>`,
		ConferenceModify{MeetingID: "m", Endpoints: []Endpoint{{ID: "aaaa1111", StatsID: "Zed-xyz", Transport: &Transport{ICERestart: true}}}}},
	{"expire", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m' expire='true'><endpoint xmlns='jitsi:colibri2' id='bbbb2222' expire='true'/></conference-modify>`,
		ConferenceModify{MeetingID: "m", Expire: true, Endpoints: []Endpoint{{ID: "bbbb2222", Expire: true}}}},
	{"relay", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'><relay id='jvb2' create='true' mesh-id='0'><media type='audio'/><transport ice-controlling='true' use-unique-port='true'><sctp role='client'/></transport>` +
		`<endpoints><endpoint id='aaaa1111' create='true'><sources/><capability name='source-names'/></endpoint></endpoints></relay></conference-modify>`,
		ConferenceModify{MeetingID: "m", Relays: []Relay{{ID: "jvb2", MeshID: "0", Create: true, Media: []Media{{Type: "audio"}},
			Transport: &Transport{ICEControlling: true, UseUniquePort: true, SCTP: &SCTP{Role: "client"}},
			Endpoints: []Endpoint{{ID: "aaaa1111", Create: true, Sources: &Sources{}, Capabilities: []string{SourceNames}}}}}}},
	{"connects", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'><connects><connect url='wss://x.example/y' protocol='mediajson' type='recorder'/></connects><foo/></conference-modify>`,
		ConferenceModify{MeetingID: "m", Connects: true}},
	{"visitor", `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'><endpoint id='a' muc-role='visitor'><initial-last-n value='0'/></endpoint></conference-modify>`,
		ConferenceModify{MeetingID: "m", Endpoints: []Endpoint{{ID: "a", MUCRole: "visitor", InitialLastN: ptr(0)}}}},
}

var feedback = []jingle.Feedback{{Type: "ccm", Subtype: "fir"}, {Type: "nack"}, {Type: "nack", Subtype: "pli"}, {Type: "transport-cc"}}

func video(id uint8, name string, p []jingle.Parameter, f []jingle.Feedback) jingle.PayloadType {
	return jingle.PayloadType{ID: id, Name: name, Clockrate: 90000, Parameters: p, Feedback: f}
}

func apt(id string) []jingle.Parameter { return []jingle.Parameter{{Name: "apt", Value: id}} }

func cameras(ssrcs ...uint32) (s []jingle.Source) {
	for _, ssrc := range ssrcs {
		s = append(s, jingle.Source{SSRC: ssrc, Name: "bbbb2222-v0", VideoType: "camera"})
	}
	return s
}

// payload parses an element, or the payload of an iq in testdata.
func payload(t testing.TB, s string) *xmpp.Element {
	t.Helper()
	if strings.HasSuffix(s, ".xml") {
		b, err := os.ReadFile("testdata/" + s)
		if err != nil {
			t.Fatal(err)
		}
		s = string(b)
	}
	e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if e.IsStanza() {
		return e.First()
	}
	return e
}

func TestModify(t *testing.T) {
	for _, c := range modifies {
		got, err := ParseModify(payload(t, c.xml))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.name, diff)
		}
		again, err := ParseModify(payload(t, c.want.Element().String()))
		if err != nil {
			t.Errorf("%s: written: %v", c.name, err)
		} else if diff := cmp.Diff(c.want, again); diff != "" {
			t.Errorf("%s: written: -want +got\n%s", c.name, diff)
		}
		b, err := json.Marshal(c.want)
		if err != nil {
			t.Fatal(err)
		}
		var fromJSON ConferenceModify
		if err := json.Unmarshal(b, &fromJSON); err != nil {
			t.Errorf("%s: %s: %v", c.name, b, err)
		} else if diff := cmp.Diff(c.want, fromJSON); diff != "" {
			t.Errorf("%s: as JSON: -want +got\n%s", c.name, diff)
		}
	}
}

func TestModified(t *testing.T) {
	want := ConferenceModified{
		Endpoints: []Endpoint{{ID: "bbbb2222", Transport: &Transport{
			ICE: &jingle.Transport{Ufrag: "2ing91k7t9ibqn", Pwd: "6ad0qpqm4fimvev6gblko6o50l", RTCPMux: true,
				Candidates: []jingle.Candidate{{ID: "5fef70c676b8250a04d2a8133", Foundation: "1", Component: 1, Priority: 2130706431,
					Protocol: "udp", Type: "host", IP: "10.99.0.11", Port: 10000}},
				Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "actpass", Value: "D4:2B:3B" + strings.Repeat(":5C", 29)}}},
			SCTP: &SCTP{Port: 5000, Role: "server"},
		}}},
		Sources: &Sources{[]MediaSource{
			{ID: "jvb-a0", Type: "audio", Sources: []jingle.Source{{SSRC: 3743242118, Name: "jvb-a0"}}},
			{ID: "jvb-v0", Type: "video", Sources: []jingle.Source{{SSRC: 394596374, Name: "jvb-v0"}}},
		}},
	}
	got, err := ParseModified(payload(t, "created.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	again, err := ParseModified(payload(t, want.Element().String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("written: -want +got\n%s", diff)
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var fromJSON ConferenceModified
	if err := json.Unmarshal(b, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, fromJSON); diff != "" {
		t.Errorf("as JSON: -want +got\n%s", diff)
	}
}

// TestJSON compares with the shape that the Java bridge reads and writes, whatever the order of members.
func TestJSON(t *testing.T) {
	for file, v := range map[string]any{"create.json": new(ConferenceModify), "created.json": new(ConferenceModified)} {
		b, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		out, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var want, got any
		if err := errors.Join(json.Unmarshal(b, &want), json.Unmarshal(out, &got)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", file, diff)
		}
	}
	// Numbers where we write strings, and SSRCs as Java prints them.
	var m ConferenceModify
	if err := json.Unmarshal([]byte(`{"meeting-id":"m","endpoints":[{"id":"a","new":1,"medias":[{"type":"AUDIO","payload-types":[{"id":111,"name":"opus","clockrate":48000,"parameters":{"minptime":10}}]}],
		"transport":{"transport":{"xmlns":"urn:xmpp:jingle:transports:ice-udp:1","ufrag":"u","ice-generation":1,"candidates":[{"ip":"10.0.0.1","port":10000,"priority":4294967295}]}},
		"sources":[{"type":"audio","id":"a-a0","sources":["7",-1,{"ssrc":"9"}]}]}]}`), &m); err != nil {
		t.Fatal(err)
	}
	want := ConferenceModify{MeetingID: "m", Endpoints: []Endpoint{{
		ID:        "a",
		Media:     []Media{{Type: "audio", PayloadTypes: []jingle.PayloadType{{ID: 111, Name: "opus", Clockrate: 48000, Parameters: []jingle.Parameter{{Name: "minptime", Value: "10"}}}}}},
		Transport: &Transport{ICE: &jingle.Transport{Ufrag: "u", Generation: 1, Candidates: []jingle.Candidate{{IP: "10.0.0.1", Port: 10000, Priority: 1<<32 - 1}}}},
		Sources:   &Sources{[]MediaSource{{ID: "a-a0", Type: "audio", Sources: []jingle.Source{{SSRC: 7}, {SSRC: 1<<32 - 1}, {SSRC: 9}}}}},
	}}}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestMalformed(t *testing.T) {
	for _, s := range []string{
		`<conference-modify xmlns='jitsi:colibri2'/>`, `<conference-modify meeting-id='m'/>`, `<conference-modified xmlns='jitsi:colibri2'/>`,
		modify(`<endpoint create='true'/>`), modify(`<relay/>`), modify(`<endpoint id='a'><media type='text'/></endpoint>`),
		modify(`<endpoint id='a'><initial-last-n value='x'/></endpoint>`), modify(`<endpoint id='a'><transport><sctp port='65536'/></transport></endpoint>`),
		modify(`<endpoint id='a'><transport><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1'><candidate port='1'/></transport></transport></endpoint>`),
		modify(`<endpoint id='a'><sources><media-source type='audio'/></sources></endpoint>`),
		modify(`<endpoint id='a'><sources><media-source type='audio' id='a-a0'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='0'/></media-source></sources></endpoint>`),
		modify(`<endpoint id='a'><media type='audio'><payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='128'/></media></endpoint>`),
		modify(`<relay id='r'><endpoints><endpoint id='a'><initial-last-n/></endpoint></endpoints></relay>`),
		modify(strings.Repeat(`<endpoint id='a' expire='true'/>`, maxEndpoints+1)),
	} {
		if m, err := ParseModify(payload(t, s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.200s: %+v, %v", s, m, err)
		}
	}
	for _, s := range []string{
		`[]`, `{}`, `{"meeting-id":1}`, `{"meeting-id":"m","endpoints":{}}`, `{"meeting-id":"m","endpoints":[{}]}`, `{"meeting-id":"m","endpoints":[{"id":"a","sources":[{"id":"x"}]}]}`,
		`{"meeting-id":"m","endpoints":[{"id":"a","medias":[{"type":"audio","payload-types":[{"name":"opus"}]}]}]}`,
		`{"meeting-id":"m","endpoints":[{"id":"a","medias":[{"type":"audio","rtp-hdrexts":[{"id":0,"uri":"x"}]}]}]}`,
		`{"meeting-id":"m","endpoints":[{"id":"a","transport":{"transport":{"xmlns":"other"}}}]}`, `{"meeting-id":"m","endpoints":[{"id":"a","transport":{"sctp":{"port":-1}}}]}`,
		`{"meeting-id":"m","endpoints":[{"id":"a","sources":[{"id":"x","type":"audio","sources":[0]}]}]}`, `{"meeting-id":"m","endpoints":[{"id":"a","sources":[{"id":"x","type":"audio","sources":[{}]}]}]}`,
	} {
		var m ConferenceModify
		if err := json.Unmarshal([]byte(s), &m); err == nil {
			t.Errorf("%s: %+v", s, m)
		} else if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func modify(inner string) string {
	return `<conference-modify xmlns='jitsi:colibri2' meeting-id='m'>` + inner + `</conference-modify>`
}

func TestErrors(t *testing.T) {
	for _, e := range []Error{{Reason: ConferenceNotFound}, {Reason: UnknownEndpoint, Endpoint: "cccc3333"}} {
		reply := xmpp.ErrorReply(xmpp.IQ("get", "1", "a", "b"), xmpp.StanzaError{Condition: xmpp.ItemNotFound, App: e.Elements()})
		parsed, err := xmpp.Parse([]byte(reply.String()), xmpp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		stanza, _ := xmpp.ParseError(parsed)
		if got, ok := ParseError(stanza); !ok || got != e {
			t.Errorf("%+v, %v, want %+v", got, ok, e)
		}
	}
	if _, ok := ParseError(xmpp.StanzaError{Condition: xmpp.Conflict}); ok {
		t.Error("a conflict of another kind")
	}
}

func TestStats(t *testing.T) {
	want := Stats{{"stress_level", "0.13"}, {"drain", "false"}, {"relay_id", "b0"}}
	got, err := ParseStats(payload(t, want.Element().String()))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got.Value("drain") != "false" || got.Value("region") != "" {
		t.Error("Value")
	}
	if _, err := ParseStats(xmpp.New("", "stats")); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func FuzzParseModify(f *testing.F) {
	for _, c := range modifies {
		f.Add(payload(f, c.xml).String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := xmpp.Parse([]byte(s), xmpp.Limits{})
		if err != nil {
			return
		}
		m, err := ParseModify(e)
		if err != nil {
			return
		}
		again, err := ParseModify(payload(t, m.Element().String()))
		if err != nil {
			t.Fatalf("%s: %v", m.Element(), err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzUnmarshalModify(f *testing.F) {
	for _, c := range modifies {
		b, err := json.Marshal(c.want)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again ConferenceModify
		if json.Unmarshal(b, &m) != nil {
			return
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatal(diff)
		}
	})
}
