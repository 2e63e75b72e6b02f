package peer

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// TestDescriptor compares with the first key frame of a recorded browser (320x180, frame 1, one packet).
func TestDescriptor(t *testing.T) {
	want, _ := hex.DecodeString("c000018002044eaaaf2860414d34538a0940404fc02cc0")
	got := descriptor{start: true, end: true, frame: 1, width: 320, height: 180}.append(nil)
	if !bytes.Equal(got, want) {
		t.Errorf("descriptor\n%x, want\n%x", got, want)
	}
	big := descriptor{start: true, end: true, frame: 1, width: 1280, height: 720}.append(nil)
	if bytes.Equal(big, want) || len(big) != len(want) {
		t.Errorf("the resolution is not in %x", big)
	}
	got = descriptor{end: true, template: template(6), frame: 0x1234}.append(nil)
	if want := []byte{0x43, 0x12, 0x34}; !bytes.Equal(got, want) {
		t.Errorf("delta frame: %x, want %x", got, want)
	}
}

func TestVP8Descriptor(t *testing.T) {
	for _, tt := range []struct {
		in   vp8Descriptor
		want string
	}{
		{vp8Descriptor{}, "00"},
		{vp8Descriptor{start: true}, "10"},
		{vp8Descriptor{start: true, discard: true}, "30"},
		{vp8Descriptor{start: true, extended: true, pictureID: 0x1234, tl0: 7, temporal: 1, sync: true}, "90e092340760"},
	} {
		b := tt.in.append(nil)
		if got := hex.EncodeToString(b); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.in, got, tt.want)
		}
		frame, start, ok := parseVP8(append(b, 1, 2, 3))
		if !ok || start != tt.in.start || !bytes.Equal(frame, []byte{1, 2, 3}) {
			t.Errorf("%s: parsed as %x, start %v, ok %v", tt.want, frame, start, ok)
		}
	}
}

func FuzzParseVP8(f *testing.F) {
	f.Add([]byte{0x90, 0xe0, 0x92, 0x34, 7, 0x60, 1})
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, _, ok := parseVP8(b)
		if ok && len(frame) >= len(b) {
			t.Errorf("%x: frame of %d bytes", b, len(frame))
		}
		vp8Size(frame)
	})
}
