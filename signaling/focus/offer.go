package focus

import (
	"cmp"
	"slices"
	"strconv"

	"plenum/wire/jingle"
)

// Header extensions with the ids that Jicofo gives them.
var (
	extAudioLevel = jingle.HeaderExtension{ID: 1, URI: "urn:ietf:params:rtp-hdrext:ssrc-audio-level"}
	extSendTime   = jingle.HeaderExtension{ID: 3, URI: "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"}
	extTCC        = jingle.HeaderExtension{ID: 5, URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"}
	extMID        = jingle.HeaderExtension{ID: 10, URI: "urn:ietf:params:rtp-hdrext:sdes:mid"}
	extDependency = jingle.HeaderExtension{ID: 11, URI: "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"}
)

// A codec is one video codec with Jicofo's payload types.
type codec struct {
	name       string
	id, rtx    uint8
	parameters []jingle.Parameter
	plainRTX   bool // its RTX is offered without feedback
}

var codecs = []codec{
	{name: "AV1", id: 41, rtx: 42},
	{name: "VP8", id: 100, rtx: 96},
	{name: "H264", id: 107, rtx: 99, plainRTX: true, parameters: []jingle.Parameter{{Name: "profile-level-id", Value: "42e01f;level-asymmetry-allowed=1;packetization-mode=1;"}}},
	{name: "VP9", id: 101, rtx: 97},
}

// media returns the audio and video contents of an offer, without transport. The bridge is told the same.
func (c *Conference) media(f features) []jingle.Content {
	var contents []jingle.Content
	if f.audio {
		contents = append(contents, audioContent(f))
	}
	if f.video {
		contents = append(contents, videoContent(f, c.cfg.VideoCodecs))
	}
	return contents
}

func audioContent(f features) jingle.Content {
	content := jingle.Content{
		Name: "audio", Creator: "initiator", Senders: "both", Media: "audio", MaxPTime: 60, RTCPMux: true, ExtmapAllowMixed: true,
		Extensions: []jingle.HeaderExtension{extAudioLevel},
	}
	opus := jingle.PayloadType{
		ID: 111, Name: "opus", Clockrate: 48000, Channels: 2,
		Parameters: []jingle.Parameter{{Name: "minptime", Value: "10"}, {Name: "useinbandfec", Value: "1"}},
	}
	if f.tcc {
		opus.Feedback = []jingle.Feedback{{Type: "transport-cc"}}
	}
	if f.red {
		content.PayloadTypes = append(content.PayloadTypes,
			jingle.PayloadType{ID: 112, Name: "red", Clockrate: 48000, Channels: 2, Parameters: []jingle.Parameter{{Value: "111/111"}}})
	}
	content.PayloadTypes = append(content.PayloadTypes, opus, jingle.PayloadType{ID: 126, Name: "telephone-event", Clockrate: 8000})
	if f.mid {
		content.Extensions = append(content.Extensions, extMID)
	}
	if f.tcc {
		content.Extensions = append(content.Extensions, extTCC)
	}
	return content
}

func videoContent(f features, names []string) jingle.Content {
	content := jingle.Content{
		Name: "video", Creator: "initiator", Senders: "both", Media: "video", RTCPMux: true, ExtmapAllowMixed: true,
		Extensions: []jingle.HeaderExtension{extDependency},
	}
	nack := []jingle.Feedback{{Type: "ccm", Subtype: "fir"}, {Type: "nack"}, {Type: "nack", Subtype: "pli"}}
	full := nack
	switch {
	case f.tcc:
		full = append(slices.Clip(nack), jingle.Feedback{Type: "transport-cc"})
	case f.remb:
		full = append(slices.Clip(nack), jingle.Feedback{Type: "goog-remb"})
	}
	var retransmissions []jingle.PayloadType
	for _, name := range names {
		k := codecs[slices.IndexFunc(codecs, func(k codec) bool { return k.name == name })]
		content.PayloadTypes = append(content.PayloadTypes, jingle.PayloadType{ID: k.id, Name: k.name, Clockrate: 90000, Parameters: k.parameters, Feedback: full})
		rtx := jingle.PayloadType{
			ID: k.rtx, Name: "rtx", Clockrate: 90000, Feedback: nack,
			Parameters: []jingle.Parameter{{Name: "apt", Value: strconv.Itoa(int(k.id))}},
		}
		if k.plainRTX {
			rtx.Feedback = nil
		}
		retransmissions = append(retransmissions, rtx)
	}
	if f.rtx {
		slices.SortFunc(retransmissions, func(a, b jingle.PayloadType) int { return cmp.Compare(a.ID, b.ID) })
		content.PayloadTypes = append(content.PayloadTypes, retransmissions...)
	}
	if f.mid {
		content.Extensions = append(content.Extensions, extMID)
	}
	content.Extensions = append(content.Extensions, extSendTime)
	if f.tcc {
		content.Extensions = append(content.Extensions, extTCC)
	}
	return content
}

// offer makes the session-initiate. Every content repeats the transport, because the client reads it
// from each; the group only has to be there.
func (c *Conference) offer(p *participant, s *session, t jingle.Transport, sctpPort int) jingle.Session {
	o := jingle.Session{
		Action: jingle.SessionInitiate, SID: s.sid, Initiator: c.cfg.Self.String(),
		Contents: c.media(*p.features), Bridge: &jingle.BridgeSession{ID: s.bridge.id, Region: s.bridge.region},
	}
	if sctpPort != 0 {
		o.Contents = append(o.Contents, jingle.Content{
			Name: "data", Creator: "initiator", Senders: "both", Media: "application", RTCPMux: true,
			SCTP: &jingle.SCTPMap{Port: sctpPort, Protocol: "webrtc-datachannel", Streams: 1024},
		})
	}
	for i := range o.Contents {
		o.Contents[i].Transport = &t
		o.Bundle = append(o.Bundle, o.Contents[i].Name)
	}
	o.Sources = append([]jingle.EndpointSources{s.bridge.feedback}, c.visible(p)...)
	return o
}
