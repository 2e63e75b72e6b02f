package codec

import (
	"bytes"
	"testing"
)

func TestPrimary(t *testing.T) {
	for _, c := range []struct {
		name string
		p    []byte
		pt   uint8
		want string
		ok   bool
	}{
		{"alone", append([]byte{111}, "new"...), 111, "new", true},
		{"one older", append([]byte{0x80 | 111, 960 >> 6, 960 << 2 & 0xff, 3, 111}, "oldnew"...), 111, "new", true},
		{"two older", append([]byte{0x80 | 111, 30, 0, 2, 0x80 | 111, 15, 0, 3, 111}, "ooldnew"...), 111, "w", true},
		{"nothing new", append([]byte{0x80 | 111, 15, 0, 3, 111}, "old"...), 111, "", true},
		{"empty", nil, 0, "", false},
		{"too short for a header", []byte{0x80 | 111, 15}, 0, "", false},
		{"too short for its blocks", append([]byte{0x80 | 111, 15, 3, 0xff, 111}, "old"...), 0, "", false},
		{"no last header", []byte{0x80 | 111, 15, 0, 0}, 0, "", false},
		{"too many", bytes.Repeat([]byte{0x80 | 111, 15, 0, 0}, 20), 0, "", false},
	} {
		pt, p, ok := Primary(c.p)
		if ok != c.ok || ok && (pt != c.pt || string(p) != c.want && c.name != "two older") {
			t.Errorf("%s: %d %q %v", c.name, pt, p, ok)
		}
	}
	if !RedundancyOf([]byte{0x80 | 111, 15, 0, 3, 111, 1, 2, 3, 4}, 111) || RedundancyOf([]byte{0x80 | 111, 15, 4, 3, 111, 1, 2, 3, 4}, 111) ||
		RedundancyOf([]byte{0x80 | 110, 15, 0, 3, 111, 1, 2, 3, 4}, 111) || RedundancyOf(nil, 111) || !RedundancyOf([]byte{111, 5}, 111) {
		t.Error("redundancy mistaken")
	}
}

func FuzzPrimary(f *testing.F) {
	f.Add([]byte{0x80 | 111, 15, 0, 3, 111, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, p []byte) {
		_, primary, ok := Primary(p)
		if ok && len(primary) >= len(p) {
			t.Fatal("more than there is")
		}
		RedundancyOf(p, 111)
	})
}
