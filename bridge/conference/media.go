package conference

import (
	"time"

	"plenum/bridge/estimate"
)

// Capabilities are what an endpoint announced when it joined.
type Capabilities struct {
	Rewriting bool // ssrc-rewriting: sources come on SSRCs of the bridge's choice, told by maps
	MIDDemux  bool // rtp-mid-demux: packets carry an sdes:mid, maps name it
	Visitor   bool // sends nothing, is not watched for connectivity
}

// Kind tells audio from video.
type Kind uint8

const (
	Audio Kind = iota
	Video
)

// Media is the negotiated side of an endpoint's RTP. The ids are those of the offer and the same for all.
type Media struct {
	PayloadTypes []PayloadType
	Extensions   Extensions
}

// A PayloadType is one negotiated format.
type PayloadType struct {
	PT        uint8
	Codec     string // "opus", "VP8", "VP9", "H264", "AV1", "red", "rtx"; any case
	Clockrate int    // Hz
	RTXFor    uint8  // the payload type that this rtx repairs ("apt"); only with Codec "rtx"
}

// Extensions are the ids of the header extensions that the bridge knows; 0 is not negotiated.
type Extensions struct {
	AudioLevel           uint8 // RFC 6464
	AbsSendTime          uint8
	TransportCC          uint8 // draft-holmer-rmcat-transport-wide-cc-extensions-01
	MID                  uint8 // RFC 9143
	DependencyDescriptor uint8 // AV1 RTP payload specification, appendix A
}

// A Source is one thing that an endpoint sends: a microphone, a camera, a screen.
type Source struct {
	Name      string // "a1b2c3d4-v0"
	Kind      Kind
	VideoType string     // as in SetVideoType; empty is camera
	Encodings []Encoding // low to high; one for audio
}

// An Encoding is one simulcast layer of a source; RTX is 0 when there is none.
type Encoding struct{ SSRC, RTX SSRC }

// AudioSubscription is what a receiver wants to hear: exclude wins over include, include over all.
type AudioSubscription struct {
	All              bool
	Include, Exclude []string // source names
}

// Stats are the counters of a conference since its beginning, and what is in it now. RTP counts are packets and
// bytes of clear RTP.
type Stats struct {
	Endpoints    int
	AudioSources int
	VideoSources int

	PacketsIn, BytesIn   uint64 // RTP received from endpoints
	PacketsOut, BytesOut uint64 // RTP sent to endpoints
	Unsignalled          uint64 // packets dropped because no source has their SSRC
	Malformed            uint64
	Duplicates           uint64 // includes RTX of what had come already
	Silence              uint64 // audio packets dropped as silence
	Quiet                uint64 // audio packets dropped because others in a large room are louder
	Stripped             uint64 // audio packets sent without the redundancy that they came with
	LostIn, ExpectedIn   uint64 // of media packets, by sequence numbers
	Retransmitted        uint64 // RTX packets sent
	RetransmitMissed     uint64 // NACKed packets that were not there any more
	RetransmitRepeated   uint64 // NACKed packets that were under way already
	RTCPDropped          uint64 // compounds beyond what one endpoint may send
	NACKsIn, NACKsOut    uint64 // sequence numbers
	PLIsIn, PLIsOut      uint64
	SpeakerChanges       uint64
	BogusFeedback        uint64 // transport-wide feedback that was malformed or about what was never sent
	Paced                uint64 // RTP packets that waited for their turn
	Probing              uint64 // bytes of padding and repeats sent to probe
	AudioSpeakers        int    // endpoints that sent non-silent audio in the last second
	VideoSenders         int    // endpoints that sent video in the last second

	Details []EndpointStats // one per endpoint, in order of joining; only from Snapshot
}

// EndpointStats is one endpoint in a debug snapshot.
type EndpointStats struct {
	ID                   EndpointID
	Active               bool // connectivity
	PacketsIn, BytesIn   uint64
	PacketsOut, BytesOut uint64
	Sources              []SourceStats
	Forwarded            []ForwardedStats

	// The way to it. Bits per second; math.MaxInt64 while nothing is known.
	Estimate estimate.Stats
	Limit    int64 // what allocation divides among video
	Taken    int64 // of it, by what is forwarded
	Ideal    int64 // what all that is asked for would take
	Beside   int64 // audio and retransmissions
	// Waiting is what the pacer holds back, PaceDelay for how long at most.
	Waiting      int // packets
	WaitingBytes int
	PaceDelay    time.Duration
	Changes      uint64 // of the layers that it gets
}

// SourceStats is one source in a debug snapshot.
type SourceStats struct {
	Name      string
	Receivers int
	MaxHeight int     // asked of the sender
	Bitrates  []int64 // bps per encoding
	Heights   []int
}

// ForwardedStats is one source as one receiver gets it.
type ForwardedStats struct {
	Source   string
	SSRC     SSRC
	Encoding int // -1 nothing
	Target   int // the encoding that it shall get
	Layer    int // of the target: spatial<<3 | temporal
	Height   int // of the target
	Bitrate  int64
	Waiting  bool // for a key frame
	Packets  uint64
}
