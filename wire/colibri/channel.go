package colibri

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// maxMessageBytes is what clients offer as the longest message of a data channel (a=max-message-size).
const maxMessageBytes = 256 << 10

// maxNames limits the lists and maps of sources in one message.
const maxNames = 4096

var (
	// ErrMessage is returned for a channel message that is not a JSON object with a colibriClass, or whose
	// fields have wrong types. A bridge drops it and keeps the channel.
	ErrMessage = errors.New("malformed channel message")
	// ErrMessageTooLarge is returned for a message above 256 KiB or one that names too many sources.
	ErrMessageTooLarge = errors.New("channel message too large")
)

// A Message is one message of the bridge channel. json.Marshal gives its wire form, colibriClass first.
type Message interface {
	// Class returns the value of colibriClass.
	Class() string
}

// From clients.
type (
	// ClientHello is answered with ServerHello.
	ClientHello struct{}

	// ReceiverVideoConstraints says what a client wants to see. What is absent stays as it was: nil, but
	// not empty, lists and maps.
	ReceiverVideoConstraints struct {
		LastN               *int                        `json:"lastN,omitzero"` // -1: no limit
		SelectedSources     []string                    `json:"selectedSources,omitzero"`
		OnStageSources      []string                    `json:"onStageSources,omitzero"`
		DefaultConstraints  *VideoConstraints           `json:"defaultConstraints,omitzero"`
		Constraints         map[string]VideoConstraints `json:"constraints,omitzero"`         // by source name
		AssumedBandwidthBps *int64                      `json:"assumedBandwidthBps,omitzero"` // -1: measured
	}

	// LastNChangedEvent sets lastN alone.
	LastNChangedEvent struct {
		LastN int `json:"lastN"`
	}

	// SourceVideoTypeMessage says what a video source shows now. Parsed, the type is lower case: camera,
	// desktop, desktop_high_fps, none, disabled.
	SourceVideoTypeMessage struct {
		SourceName string `json:"sourceName"`
		VideoType  string `json:"videoType"`
		EndpointID string `json:"endpointId,omitempty"` // between bridges
	}

	// VideoTypeMessage is SourceVideoTypeMessage of old clients, about their first video source.
	VideoTypeMessage struct {
		VideoType string `json:"videoType"`
	}

	// ReceiverAudioSubscription says which audio a client wants: Exclude wins over Include, that over All.
	ReceiverAudioSubscription struct {
		All     bool     `json:"all"`
		Include []string `json:"include,omitempty"`
		Exclude []string `json:"exclude,omitempty"`
	}
)

// From clients to clients, through the bridge.
type (
	// EndpointMessage goes to one endpoint, or to all when To is empty. The bridge sets From.
	EndpointMessage struct {
		To, From string
		Fields   []Field // all others as they came
	}

	// EndpointStats is a client's report on its connection. The bridge sets From.
	EndpointStats struct {
		From   string
		Fields []Field // all others as they came
	}
)

// From bridges.
type (
	// ServerHello is the first message on a WebSocket, and the answer to ClientHello.
	ServerHello struct {
		Version string `json:"version,omitempty"`
	}

	// SenderSourceConstraints is the largest height that anybody wants of a source; 0 means none, -1 any.
	SenderSourceConstraints struct {
		SourceName string `json:"sourceName"`
		MaxHeight  int    `json:"maxHeight"`
	}

	// ForwardedSources lists the video sources that a client gets, in the order of allocation.
	ForwardedSources struct {
		ForwardedSources []string `json:"forwardedSources"`
	}

	// DominantSpeakerEndpointChangeEvent says who speaks and who spoke before.
	DominantSpeakerEndpointChangeEvent struct {
		DominantSpeakerEndpoint string   `json:"dominantSpeakerEndpoint"`
		PreviousSpeakers        []string `json:"previousSpeakers"`
		Silence                 bool     `json:"silence"`
	}

	// EndpointConnectivityStatusChangeEvent says whether the bridge hears an endpoint.
	EndpointConnectivityStatusChangeEvent struct {
		Endpoint string `json:"endpoint"`
		Active   bool   `json:"active,string"` // a string on the wire
	}

	// ConnectionStats is the estimate of a client's downlink.
	ConnectionStats struct {
		EstimatedDownlinkBandwidth int64 `json:"estimatedDownlinkBandwidth"` // bit/s
	}

	// VideoSourcesMap says on which SSRCs a client gets which video sources. It lists what is new.
	VideoSourcesMap struct {
		MappedSources []MappedSource `json:"mappedSources"`
	}

	// AudioSourcesMap is the same for audio.
	AudioSourcesMap struct {
		MappedSources []MappedSource `json:"mappedSources"`
	}

	// An Unknown is a message of a class that is not listed here.
	Unknown struct{ Name string }
)

// VideoConstraints is a limit on one source; -1 means none.
type VideoConstraints struct {
	MaxHeight    int     `json:"maxHeight"` // of the smaller dimension; 0 means not at all
	MaxFrameRate float64 `json:"maxFrameRate"`
}

// A MappedSource is one entry of a map. Audio has neither RTX nor VideoType.
type MappedSource struct {
	Source    string `json:"source"`
	Owner     string `json:"owner"`
	SSRC      uint32 `json:"ssrc"`
	RTX       uint32 `json:"rtx,omitempty"`
	VideoType string `json:"videoType,omitempty"` // upper case
	MID       string `json:"mid,omitempty"`
}

// A Field is one member of a JSON object as it came.
type Field struct {
	Name  string
	Value json.RawMessage
}

func (ClientHello) Class() string                        { return "ClientHello" }
func (ReceiverVideoConstraints) Class() string           { return "ReceiverVideoConstraints" }
func (LastNChangedEvent) Class() string                  { return "LastNChangedEvent" }
func (SourceVideoTypeMessage) Class() string             { return "SourceVideoTypeMessage" }
func (VideoTypeMessage) Class() string                   { return "VideoTypeMessage" }
func (ReceiverAudioSubscription) Class() string          { return "ReceiverAudioSubscription" }
func (EndpointMessage) Class() string                    { return "EndpointMessage" }
func (EndpointStats) Class() string                      { return "EndpointStats" }
func (ServerHello) Class() string                        { return "ServerHello" }
func (SenderSourceConstraints) Class() string            { return "SenderSourceConstraints" }
func (ForwardedSources) Class() string                   { return "ForwardedSources" }
func (DominantSpeakerEndpointChangeEvent) Class() string { return "DominantSpeakerEndpointChangeEvent" }
func (EndpointConnectivityStatusChangeEvent) Class() string {
	return "EndpointConnectivityStatusChangeEvent"
}
func (ConnectionStats) Class() string { return "ConnectionStats" }
func (VideoSourcesMap) Class() string { return "VideoSourcesMap" }
func (AudioSourcesMap) Class() string { return "AudioSourcesMap" }
func (u Unknown) Class() string       { return u.Name }

// ParseMessage reads one message and returns a pointer to one of the structs above: *Unknown for another
// class. Unknown fields are ignored. The result shares no memory with b.
func ParseMessage(b []byte) (Message, error) {
	if len(b) > maxMessageBytes {
		return nil, ErrMessageTooLarge
	}
	// What is passed on must not break the socket of who gets it.
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("utf-8: %w", ErrMessage)
	}
	var head struct {
		Class string `json:"colibriClass"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Class == "" {
		return nil, ErrMessage
	}
	m := byClass(head.Class)
	if m == nil {
		return &Unknown{head.Class}, nil
	}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", head.Class, ErrMessage)
	}
	return m, finish(m)
}

func byClass(class string) Message {
	switch class {
	case "ReceiverVideoConstraints":
		return new(ReceiverVideoConstraints)
	case "EndpointStats":
		return new(EndpointStats)
	case "EndpointMessage":
		return new(EndpointMessage)
	case "SourceVideoTypeMessage":
		return new(SourceVideoTypeMessage)
	case "LastNChangedEvent":
		return new(LastNChangedEvent)
	case "ReceiverAudioSubscription":
		return new(ReceiverAudioSubscription)
	case "VideoTypeMessage":
		return new(VideoTypeMessage)
	case "ClientHello":
		return new(ClientHello)
	case "ServerHello":
		return new(ServerHello)
	case "SenderSourceConstraints":
		return new(SenderSourceConstraints)
	case "ForwardedSources":
		return new(ForwardedSources)
	case "DominantSpeakerEndpointChangeEvent":
		return new(DominantSpeakerEndpointChangeEvent)
	case "EndpointConnectivityStatusChangeEvent":
		return new(EndpointConnectivityStatusChangeEvent)
	case "ConnectionStats":
		return new(ConnectionStats)
	case "VideoSourcesMap":
		return new(VideoSourcesMap)
	case "AudioSourcesMap":
		return new(AudioSourcesMap)
	}
	return nil
}

// finish brings what was read into canonical form and refuses what is too long.
func finish(m Message) error {
	switch m := m.(type) {
	case *ReceiverVideoConstraints:
		if max(len(m.SelectedSources), len(m.OnStageSources), len(m.Constraints)) > maxNames {
			return ErrMessageTooLarge
		}
	case *ReceiverAudioSubscription:
		if max(len(m.Include), len(m.Exclude)) > maxNames {
			return ErrMessageTooLarge
		}
	case *SourceVideoTypeMessage:
		m.VideoType = strings.ToLower(m.VideoType)
	case *VideoTypeMessage:
		m.VideoType = strings.ToLower(m.VideoType)
	}
	return nil
}

// tagged writes a message: its class, then the fields of v, which has those of m and no methods.
func tagged(m Message, v any) ([]byte, error) {
	fields, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	b := append([]byte(`{"colibriClass":"`), m.Class()...)
	b = append(b, '"')
	if len(fields) > len("{}") {
		b = append(b, ',')
	}
	return append(b, fields[1:]...), nil
}

func (m ClientHello) MarshalJSON() ([]byte, error) { return tagged(m, struct{}{}) }

func (m ReceiverVideoConstraints) MarshalJSON() ([]byte, error) {
	type fields ReceiverVideoConstraints
	return tagged(m, fields(m))
}

func (m LastNChangedEvent) MarshalJSON() ([]byte, error) {
	type fields LastNChangedEvent
	return tagged(m, fields(m))
}

func (m SourceVideoTypeMessage) MarshalJSON() ([]byte, error) {
	type fields SourceVideoTypeMessage
	return tagged(m, fields(m))
}

func (m VideoTypeMessage) MarshalJSON() ([]byte, error) {
	type fields VideoTypeMessage
	return tagged(m, fields(m))
}

func (m ReceiverAudioSubscription) MarshalJSON() ([]byte, error) {
	type fields ReceiverAudioSubscription
	return tagged(m, fields(m))
}

func (m ServerHello) MarshalJSON() ([]byte, error) {
	type fields ServerHello
	return tagged(m, fields(m))
}

func (m SenderSourceConstraints) MarshalJSON() ([]byte, error) {
	type fields SenderSourceConstraints
	return tagged(m, fields(m))
}

func (m ForwardedSources) MarshalJSON() ([]byte, error) {
	type fields ForwardedSources
	m.ForwardedSources = list(m.ForwardedSources)
	return tagged(m, fields(m))
}

func (m DominantSpeakerEndpointChangeEvent) MarshalJSON() ([]byte, error) {
	type fields DominantSpeakerEndpointChangeEvent
	m.PreviousSpeakers = list(m.PreviousSpeakers)
	return tagged(m, fields(m))
}

func (m EndpointConnectivityStatusChangeEvent) MarshalJSON() ([]byte, error) {
	type fields EndpointConnectivityStatusChangeEvent
	return tagged(m, fields(m))
}

func (m ConnectionStats) MarshalJSON() ([]byte, error) {
	type fields ConnectionStats
	return tagged(m, fields(m))
}

func (m VideoSourcesMap) MarshalJSON() ([]byte, error) {
	type fields VideoSourcesMap
	m.MappedSources = list(m.MappedSources)
	return tagged(m, fields(m))
}

func (m AudioSourcesMap) MarshalJSON() ([]byte, error) {
	type fields AudioSourcesMap
	m.MappedSources = list(m.MappedSources)
	return tagged(m, fields(m))
}

// list makes an absent list an empty one: the client expects an array.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// UnmarshalJSON takes numbers that are not whole, and null as none.
func (c *VideoConstraints) UnmarshalJSON(b []byte) error {
	var v struct{ MaxHeight, MaxFrameRate *float64 }
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*c = VideoConstraints{-1, -1}
	if v.MaxHeight != nil {
		c.MaxHeight = int(math.Max(-1, math.Min(*v.MaxHeight, math.MaxInt32)))
	}
	if v.MaxFrameRate != nil {
		c.MaxFrameRate = math.Max(-1, *v.MaxFrameRate)
	}
	return nil
}

// MarshalJSON leaves out a frame rate that does not limit.
func (c VideoConstraints) MarshalJSON() ([]byte, error) {
	if c.MaxFrameRate < 0 {
		return json.Marshal(struct {
			MaxHeight int `json:"maxHeight"`
		}{c.MaxHeight})
	}
	type fields VideoConstraints
	return json.Marshal(fields(c))
}

// UnmarshalJSON also reads the older form with mode and list.
func (m *ReceiverAudioSubscription) UnmarshalJSON(b []byte) error {
	var v struct {
		All     bool
		Include []string
		Exclude []string
		Mode    string
		List    []string
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*m = ReceiverAudioSubscription{v.All, v.Include, v.Exclude}
	switch strings.ToLower(v.Mode) {
	case "all":
		m.All = true
	case "include":
		m.Include = v.List
	case "exclude":
		m.All, m.Exclude = true, v.List
	}
	return nil
}

// UnmarshalJSON keeps the fields that the bridge does not read. A to or from that is not a string is none.
func (m *EndpointMessage) UnmarshalJSON(b []byte) error {
	fields, err := split(b)
	if err != nil {
		return err
	}
	m.To, m.From = take(&fields, "to"), take(&fields, "from")
	m.Fields = fields
	return nil
}

func (m EndpointMessage) MarshalJSON() ([]byte, error) {
	b := []byte(`{"colibriClass":"EndpointMessage"`)
	b = appendString(append(b, `,"to":`...), m.To)
	if m.From != "" {
		b = appendString(append(b, `,"from":`...), m.From)
	}
	return appendFields(b, m.Fields), nil
}

// UnmarshalJSON keeps the fields that the bridge does not read.
func (m *EndpointStats) UnmarshalJSON(b []byte) error {
	fields, err := split(b)
	if err != nil {
		return err
	}
	m.From = take(&fields, "from")
	m.Fields = fields
	return nil
}

func (m EndpointStats) MarshalJSON() ([]byte, error) {
	b := []byte(`{"colibriClass":"EndpointStats"`)
	if m.From != "" {
		b = appendString(append(b, `,"from":`...), m.From)
	}
	return appendFields(b, m.Fields), nil
}

// split returns the members of an object in order, but the class.
func split(b []byte) ([]Field, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, ErrMessage
	}
	var fields []Field
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, ErrMessage
		}
		f := Field{Name: t.(string)}
		if err := d.Decode(&f.Value); err != nil {
			return nil, ErrMessage
		}
		if f.Name != "colibriClass" {
			fields = append(fields, f)
		}
	}
	return fields, nil
}

// take removes all fields of this name and returns the value of the last one.
func take(fields *[]Field, name string) string {
	var s string
	kept := (*fields)[:0]
	for _, f := range *fields {
		if f.Name != name {
			kept = append(kept, f)
		} else if json.Unmarshal(f.Value, &s) != nil {
			s = ""
		}
	}
	*fields = kept
	return s
}

func appendFields(b []byte, fields []Field) []byte {
	for _, f := range fields {
		b = append(b, ',')
		b = appendString(b, f.Name)
		b = append(b, ':')
		b = append(b, f.Value...)
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic("colibri: string: " + err.Error()) // json.Marshal takes any string
	}
	return append(b, q...)
}
