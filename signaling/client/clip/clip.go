// Package clip holds the small recordings that a headless participant sends: VP8 pictures in six colours
// and three sizes, and Opus frames. They were encoded once by libvpx and libopus, so that any decoder,
// a browser's too, shows and plays them. The package has no state; all returned memory is shared and
// must not be modified. generate.sh made the files.
//
// Every picture is one colour with a white square going round in four seconds. The streams have three
// temporal layers (pattern 0 2 1 2) and are error resilient: frame 0 is the only key frame, and frames
// 1…60 bring the square back to where it started, so they can be repeated after each other for minutes
// without another key frame.
package clip

import (
	"embed"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// FrameInterval is the time between two frames of a picture.
const FrameInterval = time.Second / 15

// AudioInterval is what one Opus frame lasts.
const AudioInterval = 20 * time.Millisecond

// Colours lists the colours that there are, in the order in which New participants take them.
var Colours = []string{"red", "green", "blue", "yellow", "magenta", "cyan"}

// Heights lists the sizes that there are, low to high.
var Heights = []int{180, 360, 720}

//go:embed *.ivf tone.opus60
var files embed.FS

// A Video is one encoded picture. Frames[0] is the key frame.
type Video struct {
	Colour        string
	Width, Height int
	Frames        [][]byte
}

// Next returns the frame that follows frame i when no key frame is wanted.
func (v *Video) Next(i int) int {
	if i++; i < len(v.Frames) {
		return i
	}
	return 1
}

// Temporal returns the temporal layer of frame i.
func Temporal(i int) int { return [4]int{0, 2, 1, 2}[i%4] }

// Silence is the Opus frame that browsers send while muted (three bytes of comfort noise).
var Silence = []byte{0xf8, 0xff, 0xfe}

const (
	toneBytes = 60 // constant bitrate, 24 kbit/s
	ivfHeader = 32
	ivfFrame  = 12
	keyPrefix = 48 // bytes of a key frame that tell all pictures apart
)

type library struct {
	videos map[string][]*Video // by colour, low to high
	byKey  map[[keyPrefix]byte]*Video
	tone   [][]byte
}

var load = sync.OnceValue(func() *library {
	l := &library{videos: map[string][]*Video{}, byKey: map[[keyPrefix]byte]*Video{}}
	for _, colour := range Colours {
		for _, height := range Heights {
			b, err := files.ReadFile(fmt.Sprintf("%s-%d.ivf", colour, height))
			if err != nil {
				panic("clip: " + err.Error())
			}
			v := parse(b)
			v.Colour = colour
			l.videos[colour] = append(l.videos[colour], v)
			l.byKey[[keyPrefix]byte(v.Frames[0])] = v
		}
	}
	tone, err := files.ReadFile("tone.opus60")
	if err != nil {
		panic("clip: " + err.Error())
	}
	for ; len(tone) >= toneBytes; tone = tone[toneBytes:] {
		l.tone = append(l.tone, tone[:toneBytes:toneBytes])
	}
	return l
})

// Videos returns the sizes of a colour, low to high, or nil for a colour that there is not.
func Videos(colour string) []*Video { return load().videos[colour] }

// Tone returns the i-th Opus frame of an endless tone of 440 Hz.
func Tone(i int) []byte {
	t := load().tone
	return t[i%len(t)]
}

// Recognise tells which of our pictures a VP8 frame starts. It takes the beginning of a key frame,
// at least 48 bytes without RTP's payload descriptor, and returns nil for anything else.
func Recognise(frame []byte) *Video {
	if len(frame) < keyPrefix {
		return nil
	}
	return load().byKey[[keyPrefix]byte(frame)]
}

// parse reads an IVF file of ours; it panics when the embedded file is damaged.
func parse(b []byte) *Video {
	if len(b) < ivfHeader || string(b[:4]) != "DKIF" {
		panic("clip: not an ivf file")
	}
	v := &Video{
		Width:  int(binary.LittleEndian.Uint16(b[12:])),
		Height: int(binary.LittleEndian.Uint16(b[14:])),
	}
	for b = b[ivfHeader:]; len(b) >= ivfFrame; {
		n := int(binary.LittleEndian.Uint32(b))
		v.Frames = append(v.Frames, b[ivfFrame:ivfFrame+n:ivfFrame+n])
		b = b[ivfFrame+n:]
	}
	return v
}
