package client

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"plenum/signaling/client/peer"
	"plenum/wire/jingle"
)

// ErrOffer is returned for an offer that lacks what media needs.
var ErrOffer = errors.New("unusable offer")

// Header extensions that we speak.
const (
	extAudioLevel  = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	extMID         = "urn:ietf:params:rtp-hdrext:sdes:mid"
	extSendTime    = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
	extTransportCC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
	extDescriptor  = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
)

// Contents of a bridge session have these names.
const (
	contentAudio = "audio"
	contentVideo = "video"
	contentData  = "data"
)

// A track is one of our sources: its name, kind and SSRCs.
type track struct {
	name      string
	msid      string
	video     bool
	encodings []peer.Encoding // low to high; audio has one without RTX
}

// remote turns an offer into what a peer needs. The first transport counts: a bundle repeats it.
func remote(offer *jingle.Session) (peer.Description, error) {
	t := offer.Transport()
	if t == nil || t.Pwd == "" || len(t.Fingerprints) == 0 {
		return peer.Description{}, fmt.Errorf("no transport: %w", ErrOffer)
	}
	f := t.Fingerprints[0]
	d := peer.Description{Ufrag: t.Ufrag, Pwd: t.Pwd, Hash: f.Hash, Fingerprint: f.Value, Setup: f.Setup}
	for _, c := range t.Candidates {
		if strings.EqualFold(c.Protocol, "udp") {
			d.Candidates = append(d.Candidates, peer.Candidate{
				IP: c.IP, Port: c.Port, Type: c.Type, Foundation: c.Foundation, Priority: c.Priority,
			})
		}
	}
	if data := offer.Content(contentData); data != nil && data.SCTP != nil {
		d.SCTP = data.SCTP.Port
	}
	return d, nil
}

// media collects the numbers of an offer, as far as the features that we announced allow them.
func media(offer *jingle.Session, cfg *Config) peer.Media {
	m := peer.Media{Video: map[uint8]string{}, RTX: map[uint8]uint8{}}
	for _, c := range offer.Contents {
		for _, p := range c.PayloadTypes {
			switch name := strings.ToLower(p.Name); {
			case c.Media == contentAudio && name == "opus":
				m.Opus = p.ID
			case c.Media == contentVideo && name == "rtx":
				if apt, err := strconv.ParseUint(p.Parameter("apt"), 10, 7); err == nil && !cfg.NoRTX {
					m.RTX[p.ID] = uint8(apt)
				}
			case c.Media == contentVideo:
				m.Video[p.ID] = name
				if name == "vp8" {
					m.VP8 = p.ID
				}
			}
		}
		for _, e := range c.Extensions {
			switch e.URI {
			case extAudioLevel:
				m.AudioLevel = e.ID
			case extMID:
				m.MID = e.ID
			case extSendTime:
				m.AbsSendTime = e.ID
			case extTransportCC:
				if !cfg.NoTransportCC {
					m.TransportCC = e.ID
				}
			case extDescriptor:
				m.Descriptor = e.ID
			}
		}
	}
	return m
}

// accept is our answer to an offer: everything of it that we understand, our transport without
// candidates, and our tracks. from is the focus' occupant address, self our own.
func accept(offer *jingle.Session, from, self string, local peer.Description, tracks []track, cfg *Config) jingle.Session {
	s := jingle.Session{
		Action: jingle.SessionAccept, SID: offer.SID, Initiator: from, Responder: self, Trace: offer.Trace,
	}
	for _, c := range offer.Contents {
		s.Bundle = append(s.Bundle, c.Name)
		answer := jingle.Content{
			Creator: "responder", Name: c.Name,
			Transport: &jingle.Transport{
				Ufrag: local.Ufrag, Pwd: local.Pwd,
				Fingerprints: []jingle.Fingerprint{{Hash: local.Hash, Setup: local.Setup, Value: local.Fingerprint}},
			},
		}
		if c.Name == contentData {
			if c.SCTP != nil {
				answer.SCTP = &jingle.SCTPMap{Port: c.SCTP.Port, Protocol: c.SCTP.Protocol}
			}
			s.Contents = append(s.Contents, answer)
			continue
		}
		answer.Senders, answer.Media = "both", c.Media
		answer.RTCPMux, answer.ExtmapAllowMixed = c.RTCPMux, c.ExtmapAllowMixed
		answer.PayloadTypes = payloadTypes(c, cfg)
		answer.Extensions = extensions(c, cfg)
		if c.Name == contentVideo && cfg.InitialLastN != nil {
			answer.InitialLastN = cfg.InitialLastN
		}
		for _, t := range tracks {
			if t.video == (c.Media == contentVideo) {
				sources, groups := t.sources()
				answer.Sources = append(answer.Sources, sources...)
				answer.Groups = append(answer.Groups, groups...)
			}
		}
		s.Contents = append(s.Contents, answer)
	}
	return s
}

// payloadTypes answers with what was offered. We receive every codec, since we only count, but H264's
// parameters are repeated in the form that browsers give them.
func payloadTypes(c jingle.Content, cfg *Config) []jingle.PayloadType {
	var out []jingle.PayloadType
	for _, p := range c.PayloadTypes {
		switch name := strings.ToLower(p.Name); {
		case name == "red" || name == "ulpfec":
			continue
		case name == "rtx":
			if cfg.NoRTX {
				continue
			}
			p.Feedback = nil
		}
		if c.Media == contentVideo && p.Channels == 0 {
			p.Channels = 1
		}
		p.Feedback = slices.DeleteFunc(slices.Clone(p.Feedback), func(f jingle.Feedback) bool {
			return f.Type == "transport-cc" && cfg.NoTransportCC
		})
		out = append(out, p)
	}
	return out
}

func extensions(c jingle.Content, cfg *Config) []jingle.HeaderExtension {
	var out []jingle.HeaderExtension
	for _, e := range c.Extensions {
		switch e.URI {
		case extAudioLevel, extMID, extSendTime, extDescriptor:
			out = append(out, e)
		case extTransportCC:
			if !cfg.NoTransportCC {
				out = append(out, e)
			}
		}
	}
	return out
}

// sources lists a track as clients do: each primary with its RTX, then FID of the first, SIM, the other FIDs.
func (t *track) sources() ([]jingle.Source, []jingle.SourceGroup) {
	var sources []jingle.Source
	var groups []jingle.SourceGroup
	sim := jingle.SourceGroup{Semantics: "SIM"}
	add := func(ssrc uint32) {
		s := jingle.Source{SSRC: ssrc, Name: t.name, MSID: t.msid}
		if t.video {
			s.VideoType = "camera"
		}
		sources = append(sources, s)
	}
	for _, e := range t.encodings {
		add(e.SSRC)
		sim.SSRCs = append(sim.SSRCs, e.SSRC)
		if e.RTX != 0 {
			add(e.RTX)
			groups = append(groups, jingle.SourceGroup{Semantics: "FID", SSRCs: []uint32{e.SSRC, e.RTX}})
		}
	}
	if len(sim.SSRCs) > 1 {
		groups = slices.Insert(groups, min(1, len(groups)), sim)
	}
	return sources, groups
}

// announced lists the sources that an offer or a source-add brings, for receivers without rewriting and
// for the bridge's own.
func announced(s *jingle.Session) []peer.Source {
	var out []peer.Source
	for _, e := range s.Sources {
		out = append(out, grouped(e.Owner, peer.Audio, e.Audio)...)
		out = append(out, grouped(e.Owner, peer.Video, e.Video)...)
	}
	return out
}

// grouped turns SSRCs into sources, with the RTX of a FID group beside its primary.
func grouped(owner string, kind peer.Kind, m jingle.MediaSources) []peer.Source {
	rtx, repairs := map[uint32]uint32{}, map[uint32]bool{}
	for _, g := range m.Groups {
		if g.Semantics == "FID" && len(g.SSRCs) == 2 {
			rtx[g.SSRCs[0]] = g.SSRCs[1]
			repairs[g.SSRCs[1]] = true
		}
	}
	var out []peer.Source
	for _, s := range m.Sources {
		if !repairs[s.SSRC] {
			out = append(out, peer.Source{Kind: kind, Name: s.Name, Owner: owner, SSRC: s.SSRC, RTX: rtx[s.SSRC], VideoType: s.VideoType})
		}
	}
	return out
}
