// Package jingle is the Jingle of Jitsi: sessions between the focus and a client, ICE-UDP transports,
// DTLS fingerprints, RTP descriptions and media sources, plain and JSON-encoded. It turns elements
// into values and back and keeps no state.
package jingle

// A PayloadType is one <payload-type/> of an RTP description (XEP-0167).
type PayloadType struct {
	ID         uint8
	Name       string // as signalled: "opus", "VP8", "rtx"
	Clockrate  int    // Hz
	Channels   int    // 0 when not signalled
	Parameters []Parameter
	Feedback   []Feedback
}

// A Parameter is one format parameter; Name is empty for parameters without a name.
type Parameter struct{ Name, Value string }

// A Feedback is one <rtcp-fb/> (XEP-0293): "nack", or "nack" with subtype "pli".
type Feedback struct{ Type, Subtype string }

// A HeaderExtension is one <rtp-hdrext/> (XEP-0294).
type HeaderExtension struct {
	ID  uint8
	URI string
}

// A Transport is an ICE-UDP transport (XEP-0176) with the DTLS fingerprint (XEP-0320) in it.
type Transport struct {
	Ufrag, Pwd   string
	Generation   int // ice-generation of a restart; 0 when absent
	RTCPMux      bool
	Candidates   []Candidate
	Fingerprints []Fingerprint
	WebSockets   []string // URLs of the bridge channel
}

// A Candidate is one ICE candidate; RelIP and RelPort are set for srflx, prflx and relay only.
type Candidate struct {
	ID, Foundation string
	Component      int
	Generation     int
	Network        int
	Priority       uint32
	Protocol       string // "udp"
	Type           string // "host", "srflx", "prflx", "relay"
	IP             string
	Port           int
	RelIP          string
	RelPort        int
	TCPType        string
}

// A Fingerprint is the hash of a DTLS certificate with the setup role (RFC 4145).
type Fingerprint struct {
	Hash, Setup, Value string // "sha-256", "actpass", "AB:CD:…"
	Cryptex            bool
}

// A Source is one SSRC of one media source.
type Source struct {
	SSRC      uint32
	Name      string // "a1b2c3d4-v0"
	VideoType string // "camera", "desktop"; empty for audio
	MSID      string
}

// A SourceGroup ties SSRCs together: "SIM" lists the encodings low to high, "FID" a primary and its RTX.
type SourceGroup struct {
	Semantics string
	SSRCs     []uint32
}
