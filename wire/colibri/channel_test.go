package colibri

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Messages as recorded between a client and the Java bridge.
var messages = []struct {
	wire string
	want Message
}{
	{`{"colibriClass":"ClientHello"}`, &ClientHello{}},
	{`{"colibriClass":"ReceiverVideoConstraints","lastN":-1,"assumedBandwidthBps":-1}`, &ReceiverVideoConstraints{LastN: ptr(-1), AssumedBandwidthBps: ptr(int64(-1))}},
	{`{"colibriClass":"ReceiverVideoConstraints","lastN":-1,"selectedSources":[],"onStageSources":["bbbb2222-v0"],"defaultConstraints":{"maxHeight":180},"constraints":{"bbbb2222-v0":{"maxHeight":720}}}`,
		&ReceiverVideoConstraints{LastN: ptr(-1), OnStageSources: []string{"bbbb2222-v0"}, SelectedSources: []string{}, DefaultConstraints: &VideoConstraints{180, -1},
			Constraints: map[string]VideoConstraints{"bbbb2222-v0": {720, -1}}}},
	{`{"colibriClass":"ReceiverVideoConstraints","constraints":{"a-v0":{"maxHeight":0,"maxFrameRate":15.5}}}`,
		&ReceiverVideoConstraints{Constraints: map[string]VideoConstraints{"a-v0": {0, 15.5}}}},
	{`{"colibriClass":"ReceiverVideoConstraints","constraints":{}}`, &ReceiverVideoConstraints{Constraints: map[string]VideoConstraints{}}},
	{`{"colibriClass":"LastNChangedEvent","lastN":20}`, &LastNChangedEvent{20}},
	{`{"colibriClass":"SourceVideoTypeMessage","sourceName":"bbbb2222-v0","videoType":"camera"}`, &SourceVideoTypeMessage{SourceName: "bbbb2222-v0", VideoType: "camera"}},
	{`{"colibriClass":"SourceVideoTypeMessage","sourceName":"bbbb2222-v0","videoType":"none","endpointId":"bbbb2222"}`, &SourceVideoTypeMessage{"bbbb2222-v0", "none", "bbbb2222"}},
	{`{"colibriClass":"VideoTypeMessage","videoType":"desktop"}`, &VideoTypeMessage{"desktop"}},
	{`{"colibriClass":"ReceiverAudioSubscription","all":true,"exclude":["a-a0"]}`, &ReceiverAudioSubscription{All: true, Exclude: []string{"a-a0"}}},
	{`{"colibriClass":"EndpointMessage","to":"","from":"aaaa1111","msgPayload":{"hello":"all"}}`,
		&EndpointMessage{From: "aaaa1111", Fields: []Field{{"msgPayload", json.RawMessage(`{"hello":"all"}`)}}}},
	{`{"colibriClass":"EndpointStats","from":"aaaa1111","bitrate":{"download":126},"serverRegion":null}`,
		&EndpointStats{"aaaa1111", []Field{{"bitrate", json.RawMessage(`{"download":126}`)}, {"serverRegion", json.RawMessage(`null`)}}}},
	{`{"colibriClass":"ServerHello"}`, &ServerHello{}},
	{`{"colibriClass":"ServerHello","version":"1.0"}`, &ServerHello{"1.0"}},
	{`{"colibriClass":"SenderSourceConstraints","sourceName":"aaaa1111-v0","maxHeight":0}`, &SenderSourceConstraints{"aaaa1111-v0", 0}},
	{`{"colibriClass":"ForwardedSources","forwardedSources":[]}`, &ForwardedSources{[]string{}}},
	{`{"colibriClass":"ForwardedSources","forwardedSources":["bbbb2222-v0","cccc3333-v0"]}`, &ForwardedSources{[]string{"bbbb2222-v0", "cccc3333-v0"}}},
	{`{"colibriClass":"DominantSpeakerEndpointChangeEvent","dominantSpeakerEndpoint":"bbbb2222","previousSpeakers":[],"silence":false}`,
		&DominantSpeakerEndpointChangeEvent{"bbbb2222", []string{}, false}},
	{`{"colibriClass":"EndpointConnectivityStatusChangeEvent","endpoint":"bbbb2222","active":"false"}`, &EndpointConnectivityStatusChangeEvent{"bbbb2222", false}},
	{`{"colibriClass":"ConnectionStats","estimatedDownlinkBandwidth":2501000}`, &ConnectionStats{2501000}},
	{`{"colibriClass":"VideoSourcesMap","mappedSources":[{"source":"cccc3333-v0","owner":"cccc3333","ssrc":2108374569,"rtx":1754551072,"videoType":"CAMERA"}]}`,
		&VideoSourcesMap{[]MappedSource{{"cccc3333-v0", "cccc3333", 2108374569, 1754551072, "CAMERA", ""}}}},
	{`{"colibriClass":"AudioSourcesMap","mappedSources":[{"source":"cccc3333-a0","owner":"cccc3333","ssrc":174114512}]}`,
		&AudioSourcesMap{[]MappedSource{{Source: "cccc3333-a0", Owner: "cccc3333", SSRC: 174114512}}}},
}

func TestMessages(t *testing.T) {
	for _, c := range messages {
		got, err := ParseMessage([]byte(c.wire))
		if err != nil {
			t.Errorf("%s: %v", c.wire, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.wire, diff)
		}
		if !strings.Contains(c.wire, `"`+got.Class()+`"`) {
			t.Errorf("%s: class %s", c.wire, got.Class())
		}
		if b, err := json.Marshal(c.want); err != nil || string(b) != c.wire {
			t.Errorf("%s, %v, want\n%s", b, err, c.wire)
		}
	}
}

func TestParseMessageIsLenient(t *testing.T) {
	for _, c := range []struct {
		wire string
		want Message
	}{
		{`{"colibriClass":"NewThing","x":1}`, &Unknown{"NewThing"}},
		{` {"x":[1,2],"lastN":5,"colibriClass":"LastNChangedEvent"} `, &LastNChangedEvent{5}},
		{`{"colibriClass":"SourceVideoTypeMessage","sourceName":"a-v0","videoType":"DESKTOP_HIGH_FPS"}`, &SourceVideoTypeMessage{SourceName: "a-v0", VideoType: "desktop_high_fps"}},
		{`{"colibriClass":"ReceiverVideoConstraints","lastN":null,"defaultConstraints":{"maxHeight":179.5,"maxFrameRate":null},"constraints":{"a":{"maxHeight":1e99},"b":{},"c":{"maxHeight":-7}}}`,
			&ReceiverVideoConstraints{DefaultConstraints: &VideoConstraints{179, -1}, Constraints: map[string]VideoConstraints{"a": {1<<31 - 1, -1}, "b": {-1, -1}, "c": {-1, -1}}}},
		{`{"colibriClass":"ReceiverAudioSubscription","mode":"Exclude","list":["a-a0"]}`, &ReceiverAudioSubscription{All: true, Exclude: []string{"a-a0"}}},
		{`{"colibriClass":"ReceiverAudioSubscription","mode":"Include","list":["a-a0"]}`, &ReceiverAudioSubscription{Include: []string{"a-a0"}}},
		{`{"colibriClass":"ReceiverAudioSubscription","mode":"All"}`, &ReceiverAudioSubscription{All: true}},
		{`{"colibriClass":"EndpointMessage","from":"forged","to":7,"from":"again"}`, &EndpointMessage{From: "again", Fields: []Field{}}},
	} {
		got, err := ParseMessage([]byte(c.wire))
		if err != nil {
			t.Errorf("%s: %v", c.wire, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.wire, diff)
		}
	}
}

func TestParseMessageRefuses(t *testing.T) {
	names := `["x"` + strings.Repeat(`,"x"`, maxNames) + `]`
	for _, c := range []struct {
		wire string
		want error
	}{
		{``, ErrMessage}, {`null`, ErrMessage}, {`[]`, ErrMessage}, {`{}`, ErrMessage}, {`{"colibriClass":7}`, ErrMessage}, {`{"colibriClass":"EndpointMessage"`, ErrMessage},
		{`{"colibriClass":"LastNChangedEvent","lastN":"x"}`, ErrMessage}, {"{\"colibriClass\":\"EndpointMessage\",\"m\":\"\xff\"}", ErrMessage},
		{`{"colibriClass":"EndpointMessage"}{}`, ErrMessage}, {`{"colibriClass":"ReceiverVideoConstraints","constraints":{"a":7}}`, ErrMessage},
		{`{"colibriClass":"ReceiverVideoConstraints","selectedSources":` + names + `}`, ErrMessageTooLarge},
		{`{"colibriClass":"ReceiverAudioSubscription","include":` + names + `}`, ErrMessageTooLarge},
		{`{"colibriClass":"EndpointMessage","m":"` + strings.Repeat("x", maxMessageBytes) + `"}`, ErrMessageTooLarge},
	} {
		if m, err := ParseMessage([]byte(c.wire)); !errors.Is(err, c.want) {
			t.Errorf("%.100s: %v, %v", c.wire, m, err)
		}
	}
}

func TestAbsentListsAreEmpty(t *testing.T) {
	for m, want := range map[Message]string{
		&ForwardedSources{}: `{"colibriClass":"ForwardedSources","forwardedSources":[]}`,
		&VideoSourcesMap{}:  `{"colibriClass":"VideoSourcesMap","mappedSources":[]}`,
		&AudioSourcesMap{}:  `{"colibriClass":"AudioSourcesMap","mappedSources":[]}`,
		&DominantSpeakerEndpointChangeEvent{DominantSpeakerEndpoint: "a"}: `{"colibriClass":"DominantSpeakerEndpointChangeEvent","dominantSpeakerEndpoint":"a","previousSpeakers":[],"silence":false}`,
	} {
		if b, err := json.Marshal(m); err != nil || string(b) != want {
			t.Errorf("%s, %v, want %s", b, err, want)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, c := range messages {
		f.Add([]byte(c.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			return
		}
		if _, ok := m.(*Unknown); ok {
			return
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("%#v: %v", m, err)
		}
		again, err := ParseMessage(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		out2, err := json.Marshal(again)
		if err != nil || string(out) != string(out2) {
			t.Fatalf("%s becomes %s, %v", out, out2, err)
		}
	})
}
