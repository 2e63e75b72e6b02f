package colibri

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"plenum/wire/jingle"
)

// The JSON of the Java bridge. Attributes of payload types, candidates and transports are strings there, but
// numbers from other senders: both are read, strings are written. Absent members are absent, never null.
type (
	jsonModify struct {
		Endpoints []jsonEndpoint   `json:"endpoints,omitempty"`
		Relays    []jsonRelay      `json:"relays,omitempty"`
		Create    bool             `json:"create,omitempty"`
		Expire    bool             `json:"expire,omitempty"`
		RTCStats  *bool            `json:"rtcstats-enabled,omitempty"`
		Connects  *json.RawMessage `json:"connects,omitempty"`
		MeetingID string           `json:"meeting-id"`
		Name      string           `json:"name,omitempty"`
		Fence     *uint64          `json:"fencing-token,omitempty"`
	}

	jsonModified struct {
		Endpoints []jsonEndpoint    `json:"endpoints,omitempty"`
		Relays    []jsonRelay       `json:"relays,omitempty"`
		Sources   []jsonMediaSource `json:"sources,omitzero"`
	}

	jsonEndpoint struct {
		ID           string            `json:"id"`
		Create       bool              `json:"create,omitempty"`
		Expire       bool              `json:"expire,omitempty"`
		Medias       []jsonMedia       `json:"medias,omitempty"`
		Transport    *jsonTransport    `json:"transport,omitempty"`
		Sources      []jsonMediaSource `json:"sources,omitzero"` // empty is not absent
		StatsID      string            `json:"stats-id,omitempty"`
		MUCRole      string            `json:"muc-role,omitempty"`
		ForceMute    *jsonForceMute    `json:"force-mute,omitempty"`
		InitialLastN *jsonLastN        `json:"initial-last-n,omitempty"`
		Capabilities []string          `json:"capabilities,omitempty"`
	}

	jsonRelay struct {
		ID        string         `json:"id"`
		Create    bool           `json:"create,omitempty"`
		Expire    bool           `json:"expire,omitempty"`
		Medias    []jsonMedia    `json:"medias,omitempty"`
		Transport *jsonTransport `json:"transport,omitempty"`
		MeshID    string         `json:"mesh-id,omitempty"`
		Endpoints []jsonEndpoint `json:"endpoints,omitempty"`
	}

	jsonForceMute struct {
		Audio bool `json:"audio"`
		Video bool `json:"video"`
	}

	jsonLastN struct {
		Value int `json:"value"`
	}

	jsonMedia struct {
		Type         string            `json:"type"`
		PayloadTypes []jsonPayloadType `json:"payload-types,omitempty"`
		Extensions   []jsonExtension   `json:"rtp-hdrexts,omitempty"`
		AllowMixed   bool              `json:"extmap-allow-mixed,omitempty"`
	}

	jsonPayloadType struct {
		ID         text           `json:"id"`
		Name       text           `json:"name,omitempty"`
		Clockrate  text           `json:"clockrate,omitempty"`
		Channels   text           `json:"channels,omitempty"`
		Parameters parameters     `json:"parameters,omitempty"`
		Feedback   []jsonFeedback `json:"rtcp-fbs,omitempty"`
	}

	jsonFeedback struct {
		Type    string `json:"type"`
		Subtype string `json:"subtype,omitempty"`
	}

	jsonExtension struct {
		ID  int    `json:"id"`
		URI string `json:"uri"`
	}

	jsonTransport struct {
		ICEControlling bool     `json:"ice-controlling,omitempty"`
		UseUniquePort  bool     `json:"use-unique-port,omitempty"`
		ICERestart     bool     `json:"ice-restart,omitempty"` // the Java bridge has this in XML only
		ICE            *jsonICE `json:"transport,omitempty"`
		SCTP           *struct {
			Port int    `json:"port,omitempty"`
			Role string `json:"role,omitempty"`
		} `json:"sctp,omitempty"`
	}

	jsonICE struct {
		XMLNS        string            `json:"xmlns"`
		Ufrag        text              `json:"ufrag,omitempty"`
		Pwd          text              `json:"pwd,omitempty"`
		Generation   text              `json:"ice-generation,omitempty"`
		Fingerprints []jsonFingerprint `json:"fingerprints,omitempty"`
		Candidates   []jsonCandidate   `json:"candidates,omitempty"`
		WebSockets   []string          `json:"web-sockets,omitempty"`
		RTCPMux      bool              `json:"rtcp-mux,omitempty"`
	}

	jsonFingerprint struct {
		Fingerprint string `json:"fingerprint"`
		Hash        string `json:"hash,omitempty"`
		Setup       string `json:"setup,omitempty"`
		Cryptex     bool   `json:"cryptex,omitempty"`
	}

	jsonCandidate struct {
		Component  text `json:"component,omitempty"`
		Foundation text `json:"foundation,omitempty"`
		Generation text `json:"generation,omitempty"`
		ID         text `json:"id,omitempty"`
		Network    text `json:"network,omitempty"`
		Priority   text `json:"priority,omitempty"`
		Protocol   text `json:"protocol,omitempty"`
		Type       text `json:"type,omitempty"`
		IP         text `json:"ip"`
		Port       text `json:"port,omitempty"`
		RelIP      text `json:"rel-addr,omitempty"`
		RelPort    text `json:"rel-port,omitempty"`
		TCPType    text `json:"tcptype,omitempty"`
	}

	jsonMediaSource struct {
		Type      string       `json:"type"`
		ID        string       `json:"id"`
		Synthetic bool         `json:"synthetic,omitempty"`
		Sources   []jsonSource `json:"sources,omitempty"`
		Groups    []jsonGroup  `json:"ssrc-groups,omitempty"`
	}

	jsonGroup struct {
		Semantics string `json:"semantics"`
		Sources   []ssrc `json:"sources"`
	}
)

// MarshalJSON writes the request as the Java bridge's HTTP interface takes it.
func (m ConferenceModify) MarshalJSON() ([]byte, error) {
	j := jsonModify{
		Endpoints: convert(m.Endpoints, toEndpoint), Relays: convert(m.Relays, toRelay),
		Create: m.Create, Expire: m.Expire, RTCStats: m.RTCStats, MeetingID: m.MeetingID, Name: m.Name, Fence: m.Fence,
	}
	if m.Connects {
		empty := json.RawMessage("[]")
		j.Connects = &empty
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads a request. Unknown members are skipped.
func (m *ConferenceModify) UnmarshalJSON(b []byte) error {
	var j jsonModify
	if err := unmarshal(b, &j); err != nil {
		return err
	}
	*m = ConferenceModify{MeetingID: j.MeetingID, Name: j.Name, Create: j.Create, Expire: j.Expire, RTCStats: j.RTCStats, Connects: j.Connects != nil, Fence: j.Fence}
	var err error
	if m.Endpoints, err = convertBack(j.Endpoints, fromEndpoint); err != nil {
		return err
	}
	if m.Relays, err = convertBack(j.Relays, fromRelay); err != nil {
		return err
	}
	return m.check()
}

// MarshalJSON writes the answer as the Java bridge does.
func (m ConferenceModified) MarshalJSON() ([]byte, error) {
	return json.Marshal(jsonModified{convert(m.Endpoints, toEndpoint), convert(m.Relays, toRelay), toSources(m.Sources)})
}

// UnmarshalJSON reads an answer. Unknown members are skipped.
func (m *ConferenceModified) UnmarshalJSON(b []byte) error {
	var j jsonModified
	if err := unmarshal(b, &j); err != nil {
		return err
	}
	*m = ConferenceModified{}
	var err error
	if m.Endpoints, err = convertBack(j.Endpoints, fromEndpoint); err != nil {
		return err
	}
	if m.Relays, err = convertBack(j.Relays, fromRelay); err != nil {
		return err
	}
	if m.Sources, err = fromSources(j.Sources); err != nil {
		return err
	}
	return m.check()
}

func unmarshal(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func toEndpoint(x Endpoint) jsonEndpoint {
	j := jsonEndpoint{
		ID: x.ID, Create: x.Create, Expire: x.Expire, Medias: convert(x.Media, toMedia), Transport: toTransport(x.Transport),
		Sources: toSources(x.Sources), StatsID: x.StatsID, MUCRole: x.MUCRole, Capabilities: x.Capabilities,
	}
	if f := x.ForceMute; f != nil {
		j.ForceMute = &jsonForceMute{f.Audio, f.Video}
	}
	if x.InitialLastN != nil {
		j.InitialLastN = &jsonLastN{*x.InitialLastN}
	}
	return j
}

func fromEndpoint(j jsonEndpoint) (x Endpoint, err error) {
	x = Endpoint{ID: j.ID, StatsID: j.StatsID, MUCRole: j.MUCRole, Create: j.Create, Expire: j.Expire, Capabilities: j.Capabilities}
	if len(x.Capabilities) == 0 {
		x.Capabilities = nil
	}
	if x.Media, err = convertBack(j.Medias, fromMedia); err != nil {
		return x, err
	}
	if x.Transport, err = fromTransport(j.Transport); err != nil {
		return x, err
	}
	if x.Sources, err = fromSources(j.Sources); err != nil {
		return x, err
	}
	if f := j.ForceMute; f != nil {
		x.ForceMute = &ForceMute{f.Audio, f.Video}
	}
	if j.InitialLastN != nil {
		x.InitialLastN = &j.InitialLastN.Value
	}
	return x, nil
}

func toRelay(x Relay) jsonRelay {
	return jsonRelay{x.ID, x.Create, x.Expire, convert(x.Media, toMedia), toTransport(x.Transport), x.MeshID, convert(x.Endpoints, toEndpoint)}
}

func fromRelay(j jsonRelay) (x Relay, err error) {
	x = Relay{ID: j.ID, MeshID: j.MeshID, Create: j.Create, Expire: j.Expire}
	if x.Media, err = convertBack(j.Medias, fromMedia); err != nil {
		return x, err
	}
	if x.Transport, err = fromTransport(j.Transport); err != nil {
		return x, err
	}
	x.Endpoints, err = convertBack(j.Endpoints, fromEndpoint)
	return x, err
}

func toMedia(m Media) jsonMedia {
	return jsonMedia{m.Type, convert(m.PayloadTypes, toPayloadType), convert(m.Extensions, func(h jingle.HeaderExtension) jsonExtension {
		return jsonExtension{int(h.ID), h.URI}
	}), m.ExtmapAllowMixed}
}

func fromMedia(j jsonMedia) (m Media, err error) {
	m = Media{Type: strings.ToLower(j.Type), ExtmapAllowMixed: j.AllowMixed}
	if m.PayloadTypes, err = convertBack(j.PayloadTypes, fromPayloadType); err != nil {
		return m, err
	}
	m.Extensions, err = convertBack(j.Extensions, func(h jsonExtension) (jingle.HeaderExtension, error) {
		if h.ID < 1 || h.ID > 255 || h.URI == "" {
			return jingle.HeaderExtension{}, malformed("rtp-hdrext")
		}
		return jingle.HeaderExtension{ID: uint8(h.ID), URI: h.URI}, nil
	})
	return m, err
}

func toPayloadType(p jingle.PayloadType) jsonPayloadType {
	return jsonPayloadType{
		decimal(int64(p.ID)), text(p.Name), text(positive(p.Clockrate)), text(positive(p.Channels)), p.Parameters,
		convert(p.Feedback, func(f jingle.Feedback) jsonFeedback { return jsonFeedback(f) }),
	}
}

func fromPayloadType(j jsonPayloadType) (p jingle.PayloadType, err error) {
	var id, clock, channels int64
	err = errors.Join(j.ID.into(&id, 127), j.Clockrate.into(&clock, 1<<31-1), j.Channels.into(&channels, 255))
	if j.ID == "" {
		err = malformed("payload-type")
	}
	if len(j.Parameters) == 0 {
		j.Parameters = nil
	}
	p = jingle.PayloadType{ID: uint8(id), Name: string(j.Name), Clockrate: int(clock), Channels: int(channels), Parameters: j.Parameters}
	for _, f := range j.Feedback {
		p.Feedback = append(p.Feedback, jingle.Feedback(f))
	}
	return p, err
}

func toTransport(t *Transport) *jsonTransport {
	if t == nil {
		return nil
	}
	j := &jsonTransport{ICEControlling: t.ICEControlling, UseUniquePort: t.UseUniquePort, ICERestart: t.ICERestart}
	if t.ICE != nil {
		j.ICE = toICE(*t.ICE)
	}
	if t.SCTP != nil {
		j.SCTP = &struct {
			Port int    `json:"port,omitempty"`
			Role string `json:"role,omitempty"`
		}{t.SCTP.Port, t.SCTP.Role}
	}
	return j
}

func fromTransport(j *jsonTransport) (t *Transport, err error) {
	if j == nil {
		return nil, nil
	}
	t = &Transport{ICEControlling: j.ICEControlling, UseUniquePort: j.UseUniquePort, ICERestart: j.ICERestart}
	if j.ICE != nil {
		if t.ICE, err = fromICE(*j.ICE); err != nil {
			return nil, err
		}
	}
	if j.SCTP != nil {
		if j.SCTP.Port < 0 || j.SCTP.Port > 65535 {
			return nil, malformed("sctp port")
		}
		t.SCTP = &SCTP{j.SCTP.Port, strings.ToLower(j.SCTP.Role)}
	}
	return t, nil
}

func toICE(t jingle.Transport) *jsonICE {
	return &jsonICE{
		XMLNS: jingle.NSICE, Ufrag: text(t.Ufrag), Pwd: text(t.Pwd), Generation: text(positive(t.Generation)), RTCPMux: t.RTCPMux, WebSockets: t.WebSockets,
		Fingerprints: convert(t.Fingerprints, func(f jingle.Fingerprint) jsonFingerprint {
			return jsonFingerprint{f.Value, f.Hash, f.Setup, f.Cryptex}
		}),
		Candidates: convert(t.Candidates, func(c jingle.Candidate) jsonCandidate {
			return jsonCandidate{
				decimal(int64(c.Component)), text(c.Foundation), decimal(int64(c.Generation)), text(c.ID), decimal(int64(c.Network)), decimal(int64(c.Priority)),
				text(c.Protocol), text(c.Type), text(c.IP), decimal(int64(c.Port)), text(c.RelIP), text(positive(c.RelPort)), text(c.TCPType),
			}
		}),
	}
}

func fromICE(j jsonICE) (*jingle.Transport, error) {
	// The limits are those of the XML form, which jingle checks.
	if j.XMLNS != "" && j.XMLNS != jingle.NSICE || len(j.Candidates) > 64 || len(j.Fingerprints) > 8 || len(j.WebSockets) > 8 {
		return nil, malformed("transport")
	}
	var generation int64
	if err := j.Generation.into(&generation, 1<<31-1); err != nil {
		return nil, err
	}
	t := &jingle.Transport{Ufrag: string(j.Ufrag), Pwd: string(j.Pwd), Generation: int(generation), RTCPMux: j.RTCPMux, WebSockets: j.WebSockets}
	if len(t.WebSockets) == 0 {
		t.WebSockets = nil
	}
	for _, f := range j.Fingerprints {
		t.Fingerprints = append(t.Fingerprints, jingle.Fingerprint{Hash: f.Hash, Setup: f.Setup, Value: strings.TrimSpace(f.Fingerprint), Cryptex: f.Cryptex})
	}
	for _, c := range j.Candidates {
		var component, gen, network, priority, port, relPort int64
		err := errors.Join(c.Component.into(&component, 256), c.Generation.into(&gen, 1<<31-1), c.Network.into(&network, 1<<31-1),
			c.Priority.into(&priority, 1<<32-1), c.Port.into(&port, 65535), c.RelPort.into(&relPort, 65535))
		if err != nil || c.IP == "" {
			return nil, malformed("candidate")
		}
		t.Candidates = append(t.Candidates, jingle.Candidate{
			ID: string(c.ID), Foundation: string(c.Foundation), Component: int(component), Generation: int(gen), Network: int(network), Priority: uint32(priority),
			Protocol: string(c.Protocol), Type: string(c.Type), IP: string(c.IP), Port: int(port), RelIP: string(c.RelIP), RelPort: int(relPort), TCPType: string(c.TCPType),
		})
	}
	return t, nil
}

// toSources keeps the difference between no list and an empty one.
func toSources(s *Sources) []jsonMediaSource {
	if s == nil {
		return nil
	}
	return append([]jsonMediaSource{}, convert(s.Media, func(m MediaSource) jsonMediaSource {
		return jsonMediaSource{
			Type: m.Type, ID: m.ID, Synthetic: m.Synthetic, Sources: convert(m.Sources, func(s jingle.Source) jsonSource { return jsonSource(s) }),
			Groups: convert(m.Groups, func(g jingle.SourceGroup) jsonGroup {
				return jsonGroup{g.Semantics, append([]ssrc{}, convert(g.SSRCs, func(s uint32) ssrc { return ssrc(s) })...)}
			}),
		}
	})...)
}

func fromSources(j []jsonMediaSource) (*Sources, error) {
	if j == nil {
		return nil, nil
	}
	s := &Sources{}
	for _, m := range j {
		x := MediaSource{ID: m.ID, Type: strings.ToLower(m.Type), Synthetic: m.Synthetic}
		for _, source := range m.Sources {
			x.Sources = append(x.Sources, jingle.Source(source))
		}
		for _, g := range m.Groups {
			if g.Semantics == "" || len(g.Sources) > 32 {
				return nil, malformed("ssrc-group")
			}
			x.Groups = append(x.Groups, jingle.SourceGroup{Semantics: g.Semantics, SSRCs: convert(g.Sources, func(s ssrc) uint32 { return uint32(s) })})
		}
		s.Media = append(s.Media, x)
	}
	return s, nil
}

// convert maps a list; an empty one becomes nil, which is left out.
func convert[A, B any](list []A, f func(A) B) []B {
	if len(list) == 0 {
		return nil
	}
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}

func convertBack[A, B any](list []A, f func(A) (B, error)) ([]B, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]B, len(list))
	for i, a := range list {
		b, err := f(a)
		if err != nil {
			return nil, err
		}
		out[i] = b
	}
	return out, nil
}

// text is an attribute: a string, or another scalar from senders that know its type.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	switch {
	case len(b) > 0 && b[0] == '"':
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
	case len(b) > 0 && (b[0] == '{' || b[0] == '['):
		return malformed("attribute")
	case string(b) != "null":
		s = string(b)
	}
	*t = text(s)
	return nil
}

func decimal(v int64) text { return text(strconv.FormatInt(v, 10)) }

// into reads a decimal number between 0 and max; an absent one leaves v.
func (t text) into(v *int64, max int64) error {
	if t == "" {
		return nil
	}
	n, err := strconv.ParseInt(string(t), 10, 64)
	if err != nil || n < 0 || n > max {
		return malformed("number")
	}
	*v = n
	return nil
}

// parameters are an object in the order of the list. A parameter without a name is called "null".
type parameters []jingle.Parameter

func (p parameters) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range p {
		if i > 0 {
			b = append(b, ',')
		}
		name := m.Name
		if name == "" {
			name = "null"
		}
		b = appendString(append(appendString(b, name), ':'), m.Value)
	}
	return append(b, '}'), nil
}

func (p *parameters) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	t, err := d.Token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('{') {
		return malformed("parameters")
	}
	*p = nil
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		var v text
		if err := d.Decode(&v); err != nil {
			return err
		}
		name := t.(string)
		if name == "null" {
			name = ""
		}
		if len(*p) == 64 {
			return malformed("parameters")
		}
		*p = append(*p, jingle.Parameter{Name: name, Value: string(v)})
	}
	return nil
}

// ssrc is a number, or a string, or negative where Java took it for signed.
type ssrc uint32

func (s *ssrc) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	if err != nil || v < -1<<31 || v > 1<<32-1 || v == 0 {
		return malformed("ssrc")
	}
	*s = ssrc(uint32(v))
	return nil
}

// jsonSource is a bare number, or an object when there is more to say.
type jsonSource jingle.Source

type jsonSourceFields struct {
	SSRC       ssrc       `json:"ssrc"`
	Name       string     `json:"name,omitempty"`
	VideoType  string     `json:"videoType,omitempty"`
	Parameters parameters `json:"parameters,omitempty"`
}

func (s jsonSource) MarshalJSON() ([]byte, error) {
	if s == (jsonSource{SSRC: s.SSRC}) {
		return json.Marshal(s.SSRC)
	}
	f := jsonSourceFields{SSRC: ssrc(s.SSRC), Name: s.Name, VideoType: s.VideoType}
	if s.MSID != "" {
		f.Parameters = parameters{{Name: "msid", Value: s.MSID}}
	}
	return json.Marshal(f)
}

func (s *jsonSource) UnmarshalJSON(b []byte) error {
	var f jsonSourceFields
	if len(b) > 0 && b[0] != '{' {
		if err := f.SSRC.UnmarshalJSON(b); err != nil {
			return err
		}
	} else if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.SSRC == 0 {
		return malformed("ssrc")
	}
	*s = jsonSource{SSRC: uint32(f.SSRC), Name: f.Name, VideoType: f.VideoType}
	for _, p := range f.Parameters {
		if p.Name == "msid" {
			s.MSID = p.Value
		}
	}
	return nil
}
