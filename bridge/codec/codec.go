// Package codec says what a media packet is: which codec, whether a key frame begins in it, which temporal layer
// it belongs to, and where the numbers stand that must be rewritten when it is forwarded. It reads payload
// descriptors and the dependency descriptor, never the media behind them (which may be end-to-end encrypted),
// save the ten clear bytes of a VP8 key frame.
package codec

import "strings"

// A Codec is a payload format that the bridge knows by name.
type Codec uint8

const (
	Unknown Codec = iota
	Opus
	VP8
	VP9
	H264
	AV1
	RED
	RTX
)

var names = [...]string{Unknown: "", Opus: "opus", VP8: "VP8", VP9: "VP9", H264: "H264", AV1: "AV1", RED: "red", RTX: "rtx"}

// Parse returns the codec of an encoding name as in SDP, in any case.
func Parse(name string) Codec {
	for c, n := range names {
		if n != "" && strings.EqualFold(n, name) {
			return Codec(c)
		}
	}
	return Unknown
}

func (c Codec) String() string { return names[c] }

// Numbering says which numbers a frame carries beside RTP's, and so how it can be rewritten and thinned.
type Numbering uint8

const (
	// Plain frames carry none: one encoding passes as it is.
	Plain Numbering = iota
	// ByPicture is VP8 with picture ids.
	ByPicture
	// ByDescriptor is any codec with a dependency descriptor.
	ByDescriptor
)

// A Frame is what one packet says about the frame that it is part of.
type Frame struct {
	Codec     Codec
	Numbering Numbering
	Start     bool // first packet of the frame
	Key       bool // first packet of a frame that needs no other one, and with it everything to begin decoding
	Height    int  // smaller dimension in pixels where this packet tells it, else 0

	Picture    Picture    // Numbering ByPicture
	Descriptor Descriptor // Numbering ByDescriptor
}

// TID is the temporal layer of the frame, 0 when unknown.
func (f *Frame) TID() int {
	switch f.Numbering {
	case ByPicture:
		return int(f.Picture.TID)
	case ByDescriptor:
		return int(f.Descriptor.TID)
	}
	return 0
}

// AudioLevel reads the audio level extension (RFC 6464): 0 loud to 127 silent, in -dBov.
func AudioLevel(ext []byte) (level uint8, ok bool) {
	if len(ext) == 0 {
		return 127, false
	}
	return ext[0] & 0x7f, true
}
