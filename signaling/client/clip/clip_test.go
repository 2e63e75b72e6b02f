package clip

import "testing"

// TestPictures checks what senders rely on: sizes, one key frame at the start, a loop that keeps the
// temporal pattern, and key frames that tell the pictures apart.
func TestPictures(t *testing.T) {
	for _, colour := range Colours {
		videos := Videos(colour)
		if len(videos) != len(Heights) {
			t.Fatalf("%s: %d sizes", colour, len(videos))
		}
		for i, v := range videos {
			if v.Height != Heights[i] || v.Width*9 != v.Height*16 {
				t.Errorf("%s: size %dx%d", colour, v.Width, v.Height)
			}
			for j, f := range v.Frames {
				if key := f[0]&1 == 0; key != (j == 0) {
					t.Errorf("%s %d: frame %d: key = %v", colour, v.Height, j, key)
				}
			}
			last := len(v.Frames) - 1
			if Temporal(last) != 0 || v.Next(last) != 1 {
				t.Errorf("%s %d: the loop of %d frames breaks the temporal pattern", colour, v.Height, last)
			}
			if got := Recognise(v.Frames[0]); got != v {
				t.Errorf("%s %d: recognised as %+v", colour, v.Height, got)
			}
			if Recognise(v.Frames[1]) != nil {
				t.Errorf("%s %d: a delta frame was recognised", colour, v.Height)
			}
		}
	}
	if Videos("beige") != nil {
		t.Error("a colour that there is not")
	}
}

// TestTone checks the table-of-contents byte: one CELT frame of 20 ms a packet (RFC 6716 section 3.1).
func TestTone(t *testing.T) {
	for i := range 250 {
		f := Tone(i)
		config, code := f[0]>>3, f[0]&3
		if len(f) != toneBytes || config < 16 || config&3 != 3 || code != 0 {
			t.Fatalf("frame %d: %d bytes, configuration %d, code %d", i, len(f), config, code)
		}
	}
}
