// Package conference is the media of one conference: who is in it, what each one sends, and who is to get it.
// It takes decrypted packets, rewrites them for each receiver that wants them and hands them to that
// receiver's Leg. It has no clock, no goroutine, no lock and no socket: one core goroutine owns a Conference,
// its endpoints and everything below them, and passes the time in.
package conference

import (
	"crypto/rand"
	"io"
	"iter"
	"log/slog"
	"time"

	"plenum/bridge/allocate"
	"plenum/bridge/codec"
	"plenum/bridge/pace"
	"plenum/bridge/packet"
	"plenum/bridge/speaker"
)

// An EndpointID names one participant in its conference, as signalled.
type EndpointID string

// An SSRC is a synchronisation source of RTP (RFC 3550 §3).
type SSRC = uint32

// A Leg is the way to one receiver. A transport implements it.
type Leg interface {
	// SendRTP seals header and payload, which are one RTP packet, and queues it. Both are borrowed for the call.
	// It drops the packet when there is no connection yet.
	SendRTP(header, payload []byte)
	// SendRTCP seals and queues clear RTCP, borrowed for the call.
	SendRTCP(compound []byte)
}

// Events is what clients are told beside media. It is called on the core's goroutine and must not block.
// Slices are borrowed for the call.
type Events interface {
	VideoSourcesMap(to EndpointID, m []Mapping)
	AudioSourcesMap(to EndpointID, m []Mapping)
	ForwardedSources(to EndpointID, names []string)
	SenderSourceConstraints(to EndpointID, source string, maxHeight int)
	DominantSpeaker(to EndpointID, speaker EndpointID, previous []EndpointID, silence bool)
	Connectivity(to, endpoint EndpointID, active bool)
}

// A Mapping says which source a receiver finds on an SSRC.
type Mapping struct {
	Source    string
	Owner     EndpointID
	SSRC, RTX SSRC
	VideoType string // "CAMERA" or "DESKTOP"; empty for audio
	MID       string // empty unless the receiver demultiplexes by mid
}

// Config is what a conference needs; Events is required.
type Config struct {
	Events Events
	// AudioSSRC and VideoSSRC are the bridge's own sources (jvb-a0, jvb-v0), senders of its feedback.
	AudioSSRC, VideoSSRC SSRC
	// Log may be nil.
	Log *slog.Logger
	// Rand makes SSRCs; nil is crypto/rand.
	Rand io.Reader
	// AudioSlots and VideoSlots limit how many sources a rewriting receiver gets at a time. 0 is 50 each.
	AudioSlots, VideoSlots int
	// AudioHold is how long the first packets of a newly announced audio source wait, so that the client has
	// applied the map before them. 0 is 180 ms; they leave with the next packet or tick after it, so within 200 ms.
	AudioHold time.Duration
	// LoudestFrom is how many participants may be in the room while everybody who speaks is heard; in larger rooms the
	// loudest Loudest are, and the dominant speaker. 0 is 25 and 3.
	LoudestFrom, Loudest int
}

// A Conference holds the endpoints of one conference on this bridge.
type Conference struct {
	cfg   Config
	log   *slog.Logger
	stats Stats

	endpoints map[EndpointID]*Endpoint
	order     []*Endpoint        // in order of joining
	sources   map[string]*source // by name

	pending []*source    // that got packets since the last Flush
	nacks   []nackTarget // encodings with gaps since the last Flush

	fed []*Endpoint // that are due transport-wide feedback

	spare    pace.Spare
	ceiling  int64       // bits per second for each receiver; 0 none
	paced    []*Endpoint // that have something to be sent in a few milliseconds
	rebudget []*Endpoint // whose way carries more or less than when their layers were chosen

	speech   speaker.Detector[EndpointID]
	loud     *speaker.Ranking[*source]
	included map[string]int // audio sources that receivers ask for by name, by how many
	dominant EndpointID
	spoken   []*Endpoint // all endpoints in speech order; nil when it has to be made anew

	round       uint64 // counts allocations for one receiver
	stale       bool   // some input of allocation has changed
	next        int    // the receiver that a round of allocation goes on with; 0 is between rounds
	allocatedAt time.Time

	lastMedia   time.Time
	nextTick    time.Time
	followed    time.Time
	nextReports time.Time
	nextSpeaker time.Time
	nextPoll    time.Time
	nextAll     time.Time // allocation without any cause

	scratch scratch
}

type nackTarget struct {
	owner *Endpoint
	enc   *encoding
}

// scratch is working memory that is borrowed for one call at a time.
type scratch struct {
	header    [512]byte
	payload   [packet.MaxBytes + 2]byte
	frame     codec.Frame
	masks     masks
	rtcp      [packet.MaxBytes]byte
	seqs      []uint16
	mappings  []Mapping
	names     []string
	sources   []allocate.Source
	choices   []allocate.Source // of one receiver
	allocator allocate.Allocator
	results   []allocate.Result
	previous  []EndpointID
	reports   []packet.Report

	receivers []*Endpoint
}

// New makes an empty conference.
func New(cfg Config, now time.Time) *Conference {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.AudioSlots <= 0 {
		cfg.AudioSlots = 50
	}
	if cfg.VideoSlots <= 0 {
		cfg.VideoSlots = 50
	}
	if cfg.AudioHold <= 0 {
		cfg.AudioHold = 180 * time.Millisecond
	}
	if cfg.LoudestFrom <= 0 {
		cfg.LoudestFrom = 25
	}
	if cfg.Loudest <= 0 {
		cfg.Loudest = 3
	}
	return &Conference{
		cfg: cfg, log: cfg.Log, loud: speaker.NewRanking[*source](cfg.Loudest), included: map[string]int{},
		endpoints: map[EndpointID]*Endpoint{}, sources: map[string]*source{},
		allocatedAt: now, nextReports: now, nextSpeaker: now, nextPoll: now, nextAll: now,
	}
}

// Endpoint returns the endpoint with that id, or nil.
func (c *Conference) Endpoint(id EndpointID) *Endpoint { return c.endpoints[id] }

// Len is the number of endpoints.
func (c *Conference) Len() int { return len(c.order) }

// Endpoints yields all endpoints in order of joining. The conference must not change meanwhile.
func (c *Conference) Endpoints() iter.Seq[*Endpoint] {
	return func(yield func(*Endpoint) bool) {
		for _, e := range c.order {
			if !yield(e) {
				return
			}
		}
	}
}
