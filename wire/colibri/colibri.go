// Package colibri is the language between a focus and a bridge, colibri2 as XML and as the JSON of the
// bridge's HTTP interface, and that between a client and its bridge, the messages of the bridge channel.
// It turns bytes into values and back; what a request does is the bridge's business.
package colibri

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// Namespaces.
const (
	NS       = "jitsi:colibri2"
	NSStats  = "http://jitsi.org/protocol/colibri"     // of <stats/>
	NSHealth = "http://jitsi.org/protocol/healthcheck" // of <healthcheck/>
)

// Capabilities of an endpoint.
const (
	SourceNames    = "source-names" // mandatory
	SSRCRewriting  = "ssrc-rewriting"
	MIDDemux       = "rtp-mid-demux"
	PrivateAddress = "private-address-connectivity"
)

// Reasons of an Error.
const (
	ConferenceNotFound      = "conference_not_found"
	ConferenceAlreadyExists = "conference_already_exists"
	FeatureNotImplemented   = "feature_not_implemented"
	GracefulShutdown        = "graceful_shutdown"
	UnknownEndpoint         = "unknown_endpoint"
	Unspecified             = "unspecified"
)

// ErrMalformed is returned for a request that lacks what it must have, in XML and in JSON alike. A bridge
// answers it with bad-request.
var ErrMalformed = errors.New("malformed colibri2")

// Limits on one request, far above what a focus sends.
const (
	maxEndpoints    = 1024
	maxRelays       = 64
	maxMedia        = 8
	maxPayloadTypes = 128
	maxExtensions   = 64
	maxMediaSources = 256
	maxSources      = 128
	maxCapabilities = 64
	maxIDBytes      = 256
)

// A ConferenceModify is one request to a bridge.
type ConferenceModify struct {
	MeetingID      string
	Name           string // bare JID of the room; only with Create
	Create, Expire bool
	RTCStats       *bool // rtcstats-enabled; nil means absent, which counts as true
	// Fence is plenum's own, fencing-token: it grows with each shard that owns the room, and a bridge refuses an
	// older owner's requests. nil means absent, as from a Jicofo; other bridges skip it.
	Fence     *uint64
	Endpoints []Endpoint
	Relays    []Relay
	Connects  bool // asks for recorders or transcribers, which are not described further
}

// An Endpoint is one participant on the bridge. Absent parts of a request leave what is as it is.
type Endpoint struct {
	ID, StatsID, MUCRole string
	Create, Expire       bool
	Media                []Media
	Transport            *Transport
	Sources              *Sources
	ForceMute            *ForceMute
	Capabilities         []string
	InitialLastN         *int
}

// A Relay is another bridge of the same conference.
type Relay struct {
	ID, MeshID     string
	Create, Expire bool
	Media          []Media
	Transport      *Transport
	Endpoints      []Endpoint // those behind it
}

// Media is what may be sent as one kind of media, "audio" or "video".
type Media struct {
	Type             string
	PayloadTypes     []jingle.PayloadType
	Extensions       []jingle.HeaderExtension
	ExtmapAllowMixed bool
}

// A Transport asks for or describes how an endpoint or relay is reached.
type Transport struct {
	ICEControlling, UseUniquePort, ICERestart bool
	ICE                                       *jingle.Transport
	SCTP                                      *SCTP
}

// SCTP asks for data channels. Port 0 and the empty role are absent; in an answer the port is there.
type SCTP struct {
	Port int
	Role string // "client" or "server"
}

// Sources is a full list of sources: it replaces the one before.
type Sources struct{ Media []MediaSource }

// A MediaSource is one source with its encodings.
type MediaSource struct {
	ID, Type  string // "a1b2c3d4-v0", "video"
	Synthetic bool   // made by a service, for example translated speech
	Sources   []jingle.Source
	Groups    []jingle.SourceGroup
}

// ForceMute drops the media of an endpoint. Both values count each time.
type ForceMute struct{ Audio, Video bool }

// A ConferenceModified is a bridge's answer.
type ConferenceModified struct {
	Endpoints []Endpoint
	Relays    []Relay
	Sources   *Sources // the bridge's own feedback sources
}

// Has reports whether the endpoint lists a capability.
func (e Endpoint) Has(capability string) bool { return slices.Contains(e.Capabilities, capability) }

// An Error is what a colibri2 error answer says beside its condition.
type Error struct {
	Reason   string // one of the constants above
	Endpoint string // the unknown endpoint
}

// Elements returns the application conditions for an xmpp.StanzaError. The endpoint stands beside the error.
func (e Error) Elements() []*xmpp.Element {
	out := []*xmpp.Element{xmpp.New(NS, "error", "reason", e.Reason)}
	if e.Endpoint != "" {
		out = append(out, xmpp.New(NS, "endpoint", "id", e.Endpoint))
	}
	return out
}

// ParseError returns the colibri2 part of a stanza error, and whether there is one.
func ParseError(s xmpp.StanzaError) (Error, bool) {
	var e Error
	found := false
	for _, a := range s.App {
		switch {
		case a.Is(NS, "error"):
			e.Reason, found = a.Attr("reason"), true
		case a.Is(NS, "endpoint"):
			e.Endpoint = a.Attr("id")
		}
	}
	return e, found
}

func malformed(what string) error { return fmt.Errorf("%s: %w", what, ErrMalformed) }

// check holds what both forms of a request must keep to.
func (m ConferenceModify) check() error {
	if m.MeetingID == "" || len(m.MeetingID) > maxIDBytes || len(m.Name) > 4*maxIDBytes {
		return malformed("meeting-id or name")
	}
	return checkEntities(m.Endpoints, m.Relays)
}

func (m ConferenceModified) check() error {
	if err := m.Sources.check(); err != nil {
		return err
	}
	return checkEntities(m.Endpoints, m.Relays)
}

func checkEntities(endpoints []Endpoint, relays []Relay) error {
	if len(endpoints) > maxEndpoints || len(relays) > maxRelays {
		return malformed("endpoints or relays")
	}
	for _, e := range endpoints {
		if err := e.check(); err != nil {
			return err
		}
	}
	for _, r := range relays {
		if r.ID == "" || len(r.ID) > maxIDBytes || len(r.Endpoints) > maxEndpoints {
			return malformed("relay")
		}
		if err := checkMedia(r.Media); err != nil {
			return err
		}
		for _, e := range r.Endpoints {
			if err := e.check(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e Endpoint) check() error {
	if e.ID == "" || len(e.ID) > maxIDBytes || len(e.StatsID) > maxIDBytes || len(e.Capabilities) > maxCapabilities {
		return malformed("endpoint")
	}
	if err := checkMedia(e.Media); err != nil {
		return err
	}
	return e.Sources.check()
}

func checkMedia(media []Media) error {
	if len(media) > maxMedia {
		return malformed("media")
	}
	for _, m := range media {
		if !isKind(m.Type) || len(m.PayloadTypes) > maxPayloadTypes || len(m.Extensions) > maxExtensions {
			return malformed("media")
		}
	}
	return nil
}

func (s *Sources) check() error {
	if s == nil {
		return nil
	}
	if len(s.Media) > maxMediaSources {
		return malformed("sources")
	}
	for _, m := range s.Media {
		if m.ID == "" || len(m.ID) > maxIDBytes || !isKind(m.Type) || len(m.Sources) > maxSources || len(m.Groups) > maxSources {
			return malformed("media-source")
		}
	}
	return nil
}

func isKind(s string) bool { return s == "audio" || s == "video" }

// isTrue reads an attribute of XML Schema's type boolean.
func isTrue(s string) bool { return s == "true" || s == "1" }

// flag writes an attribute that is absent when false.
func flag(v bool) string {
	if v {
		return "true"
	}
	return ""
}

func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(n)
}
