// Package codec says what a media packet is: which codec, whether a key frame begins in it, which spatial and
// temporal layer it belongs to, and where the numbers stand that must be rewritten when it is forwarded. It reads
// payload descriptors and the dependency descriptor, never the media behind them (which may be end-to-end
// encrypted), save the ten clear bytes of a VP8 key frame and the types of H264's units.
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
	// ByLayers is VP9 with picture ids: what depends on what is in the payload descriptor.
	ByLayers
	// ByDescriptor is any codec with a dependency descriptor.
	ByDescriptor
)

// MaxSpatial is how many spatial layers one encoding may have, MaxTID the highest temporal one.
const (
	MaxSpatial = 4
	MaxTID     = 7
)

// Layers is a set of layers to receive: bit sid<<3|tid stands for the spatial layer sid and the temporal layers up
// to tid of it, with all that is needed to decode them.
type Layers uint32

// Has reports whether layer, sid<<3|tid, is in the set.
func (l Layers) Has(layer int) bool { return l>>layer&1 != 0 }

// A Frame is what one packet says about the frame that it is part of.
type Frame struct {
	Codec     Codec
	Numbering Numbering
	Start     bool // first packet of the frame
	End       bool // last packet of the frame, where there are spatial layers: of the frame of this one
	Key       bool // first packet of a frame that needs no other one, and with it everything to begin decoding

	// Spatial is how many spatial layers are being sent, where this packet tells it, else 0; Heights are their
	// smaller dimensions in pixels, 0 unknown.
	Spatial uint8
	Heights [MaxSpatial]uint16

	// Present are the layers whose receivers need the frame; Switch are those that a receiver who can decode the
	// frame may go on with. Numbering ByLayers and ByDescriptor.
	Present, Switch Layers

	Picture    Picture    // Numbering ByPicture and ByLayers
	Descriptor Descriptor // Numbering ByDescriptor
}

// SID is the spatial layer of the frame, 0 when unknown.
func (f *Frame) SID() int {
	switch f.Numbering {
	case ByLayers:
		return int(f.Picture.SID)
	case ByDescriptor:
		return int(f.Descriptor.SID)
	}
	return 0
}

// TID is the temporal layer of the frame, 0 when unknown.
func (f *Frame) TID() int {
	switch f.Numbering {
	case ByPicture, ByLayers:
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
