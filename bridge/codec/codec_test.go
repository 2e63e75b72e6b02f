package codec

import (
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseNames(t *testing.T) {
	for name, want := range map[string]Codec{"opus": Opus, "OPUS": Opus, "vp8": VP8, "VP9": VP9, "H264": H264, "AV1": AV1, "red": RED, "rtx": RTX, "": Unknown, "x": Unknown} {
		if got := Parse(name); got != want {
			t.Errorf("Parse(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestVP8(t *testing.T) {
	const key320x180 = "d012009d012a4001b400" // frame tag with P=0, start code, size
	for _, test := range []struct {
		name, hex string
		want      Frame
		bad       bool
	}{
		{name: "empty", bad: true},
		{name: "Chromium's key frame", hex: "10" + key320x180, want: Frame{Codec: VP8, Start: true, Key: true, Spatial: 1, Heights: [MaxSpatial]uint16{180}}},
		{name: "Chromium's delta frame", hex: "30b1100000", want: Frame{Codec: VP8, Start: true}},
		{name: "continued", hex: "00" + key320x180, want: Frame{Codec: VP8}},
		{name: "second partition", hex: "11" + key320x180, want: Frame{Codec: VP8}},
		{name: "key frame cut short", hex: "10d012009d012a4001b4", want: Frame{Codec: VP8, Start: true}},
		{name: "7 bits", hex: "90802a" + "b1100000", want: Frame{Codec: VP8, Numbering: ByPicture, Start: true, Picture: Picture{ID: 42, IDAt: 2}}},
		{name: "all", hex: "90e0" + "9234" + "07" + "a0" + "b1", want: Frame{Codec: VP8, Numbering: ByPicture, Start: true,
			Picture: Picture{ID: 0x1234, Wide: true, TL0: 7, TID: 2, Sync: true, IDAt: 2, TL0At: 4}}},
		{name: "key index only", hex: "901f1f", want: Frame{Codec: VP8, Start: true}},
		{name: "picture id missing", hex: "9080", bad: true},
		{name: "picture id half", hex: "908080", bad: true},
		{name: "TL0 missing", hex: "90c001", bad: true},
		{name: "TID missing", hex: "9020", bad: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f Frame
			ok := ParseVP8(unhex(t, test.hex), &f)
			if ok == test.bad {
				t.Fatalf("ok = %v", ok)
			}
			if ok && f != test.want {
				t.Fatalf("got %+v\nwant %+v", f, test.want)
			}
		})
	}
}

func TestRewritePicture(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"90e092340740b1", "90e0ffff0940b1"},
		{"90802ab1", "90807fb1"},
		{"10b1", "10b1"},
	} {
		b := unhex(t, test.in)
		var f Frame
		ParseVP8(b, &f)
		RewritePicture(b, &f.Picture, 0x7fff, 9)
		if got := hex.EncodeToString(b); got != test.want {
			t.Errorf("%s became %s, want %s", test.in, got, test.want)
		}
	}
}

// Chromium's descriptor on the first packet of a VP8 key frame, L1T3, as recorded.
const recorded = "c000018002044eaaaf2860414d34538a0940404fc02cc0"

func TestDescriptorRecorded(t *testing.T) {
	var r DescriptorReader
	var f Frame
	d := &f.Descriptor
	if err := r.Read(unhex(t, recorded), &f); err != nil {
		t.Fatal(err)
	}
	want := Frame{
		Present: 1<<32 - 1, Switch: 1<<32 - 1, Spatial: 1, Heights: [MaxSpatial]uint16{180},
		Descriptor: Descriptor{Start: true, End: true, Frame: 1, HasStructure: true, Templates: d.Templates},
	}
	if f != want {
		t.Fatalf("got %+v\nwant %+v", f, want)
	}
	if r.s.targets != 3 || r.s.chains != 0 {
		t.Fatalf("targets %d, chains %d, want 3 and 0", r.s.targets, r.s.chains)
	}
	for tid := range 3 {
		if dt := r.s.byLayer[tid]; int(r.s.target[dt].tid) != tid {
			t.Errorf("layers up to %d are in target %d, which has up to %d", tid, dt, r.s.target[dt].tid)
		}
	}
	// Every template's frames are present exactly from their own temporal layer on.
	for i := range r.s.templates {
		l := &r.s.layer[i]
		if want := Layers(0xff << l.tid & 0xff * 0x01010101); l.presentL != want {
			t.Errorf("template %d of layer %d is present in %032b, want %032b", i, l.tid, l.presentL, want)
		}
	}
	// A delta frame on two packets, the second recorded behind the bridge.
	if err := r.Read(unhex(t, "c50006"), &f); err != nil {
		t.Fatal(err)
	}
	if !d.Start || !d.End || d.Frame != 6 || d.Template != 5 || d.HasStructure {
		t.Fatalf("delta: %+v", d)
	}
}

func TestDescriptorRewriteRecorded(t *testing.T) {
	// What the original bridge made of its first packet: frame number 5, the same template ids.
	b := unhex(t, recorded)
	RewriteDescriptor(b, 4, 0)
	if got := hex.EncodeToString(b); got != "c000058002044eaaaf2860414d34538a0940404fc02cc0" {
		t.Fatalf("got %s", got)
	}
	for offset := range uint8(64) {
		b := unhex(t, recorded)
		RewriteDescriptor(b, 0xffff, offset)
		var r DescriptorReader
		var f Frame
		d := &f.Descriptor
		if err := r.Read(b, &f); err != nil {
			t.Fatal(err)
		}
		if d.Template != offset || d.TemplateOffset != offset || d.Frame != 0 || f.Heights[0] != 180 || d.TID != 0 {
			t.Fatalf("offset %d: %+v", offset, d)
		}
		delta := []byte{0xc5, 0, 6}
		RewriteDescriptor(delta, 0, offset)
		if err := r.Read(delta, &f); err != nil || d.Template != (offset+5)&63 {
			t.Fatalf("offset %d: delta %+v, %v", offset, d, err)
		}
	}
}

func TestDescriptorWritten(t *testing.T) {
	// L3T3-like: spatial layers raise the target that is chosen for a temporal one.
	s := Written{
		Offset: 61, Targets: 4,
		Templates: []WrittenTemplate{
			{SID: 0, TID: 0, DTIs: "SSSS"}, {SID: 0, TID: 0, DTIs: "SRRR", FDiffs: []int{4}},
			{SID: 0, TID: 1, DTIs: "-S-R", FDiffs: []int{2}},
			{SID: 1, TID: 0, DTIs: "--SR", FDiffs: []int{1, 16}},
		},
		Protected: []int{0, 0, 1, 1}, Chains: 2, Sizes: [][2]int{{320, 180}, {640, 360}},
	}
	b := s.Append(nil, Head{Start: true, Template: 61, Frame: 0xfffe})
	var r DescriptorReader
	var f Frame
	d := &f.Descriptor
	if err := r.Read(b, &f); err != nil {
		t.Fatal(err)
	}
	if !d.HasStructure || d.TemplateOffset != 61 || d.Templates != 4 || f.Spatial != 2 || f.Heights != [MaxSpatial]uint16{180, 360} || d.FDiffs != 0 || d.Frame != 0xfffe || !d.Start || d.End {
		t.Fatalf("%+v", d)
	}
	for _, test := range []struct {
		template        uint8
		sid, tid        uint8
		fdiffs          uint8
		present, canGo8 Layers
	}{
		// Targets are, from 0 on: S0T0, S0T1, S1T0, S1T1.
		{62, 0, 0, 1, 0xffffffff, 0x00000001},
		{63, 0, 1, 1, 0xfefefefe, 0x000000fe},
		{0, 1, 0, 2, 0xffffff00, 0x01010100},
	} {
		if err := r.Read([]byte{test.template, 0, 1}, &f); err != nil {
			t.Fatal(err)
		}
		if d.SID != test.sid || d.TID != test.tid || d.FDiffs != test.fdiffs || f.Present != test.present || f.Switch != test.canGo8 {
			t.Errorf("template %d: %+v", test.template, d)
		}
	}
	if err := r.Read([]byte{1, 0, 1}, &f); !errors.Is(err, ErrNoStructure) {
		t.Errorf("an unknown template: %v", err)
	}
	// Custom fields replace the template's.
	b = AppendCustom(nil, Head{Template: 62, Frame: 7}, "---S", []int{3})
	if err := r.Read(b, &f); err != nil || d.FDiffs != 1 || f.Present != 0xfefefe00 || f.Switch != 0xfefefe00 {
		t.Errorf("custom: %+v %v", d, err)
	}
}

func TestDescriptorBad(t *testing.T) {
	full := unhex(t, recorded)
	for n := range len(full) {
		var r DescriptorReader
		var f Frame
		if err := r.Read(full[:n], &f); err == nil {
			t.Errorf("%d bytes of %d were accepted", n, len(full))
		}
	}
	var r DescriptorReader
	var f Frame
	d := &f.Descriptor
	if err := r.Read([]byte{0xc5, 0, 9}, &f); !errors.Is(err, ErrNoStructure) || d.Frame != 9 || !d.Start {
		t.Errorf("before a structure: %+v, %v", d, err)
	}
}

func TestReader(t *testing.T) {
	var r Reader
	var f Frame
	key, delta := unhex(t, "10d012009d012a4001b400"), unhex(t, "30b1100000")
	r.Read(VP8, key, unhex(t, recorded), 1, &f)
	if !f.Key || f.Numbering != ByDescriptor || f.Heights[0] != 180 || f.Codec != VP8 {
		t.Fatalf("key: %+v", f)
	}
	r.Read(VP8, delta, unhex(t, "c50006"), 2, &f)
	if f.Key || !f.Start || f.Numbering != ByDescriptor || f.TID() == 0 {
		t.Fatalf("delta: %+v", f)
	}
	r.Read(VP8, key, nil, 3, &f)
	if !f.Key || f.Numbering != Plain {
		t.Fatalf("no descriptor: %+v", f)
	}
	r.Read(H264, delta, nil, 4, &f)
	if !f.Start || f.Key || f.Numbering != Plain {
		t.Fatalf("H264: %+v", f)
	}
	r.Read(H264, delta, nil, 4, &f)
	if f.Start {
		t.Fatal("a frame starts twice")
	}
	var fresh Reader
	fresh.Read(VP8, delta, unhex(t, "c50006"), 1, &f)
	if f.Key || f.Present != 1<<32-1 || f.Descriptor.Frame != 6 {
		t.Fatalf("before a structure: %+v", f)
	}
	if n := testing.AllocsPerRun(100, func() { r.Read(VP8, key, full, 1, &f) }); n != 0 {
		t.Errorf("Read allocates %v times", n)
	}
}

var full, _ = hex.DecodeString(recorded)

func FuzzVP8(f *testing.F) {
	for _, s := range []string{"", "10d012009d012a4001b400", "90e092340740b1", "90802ab1", "9020"} {
		f.Add(unhex(f, s), uint16(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, id uint16, tl0 uint8) {
		var one, two Frame
		if !ParseVP8(b, &one) {
			return
		}
		RewritePicture(b, &one.Picture, id, tl0)
		if !ParseVP8(b, &two) {
			t.Fatal("the rewritten descriptor does not parse")
		}
		p := one.Picture
		if p.IDAt != 0 {
			p.ID = id & 0x7f
			if p.Wide {
				p.ID = id & 0x7fff
			}
		}
		if p.TL0At != 0 {
			p.TL0 = tl0
		}
		if two.Picture != p || two.Start != one.Start || two.Key != one.Key || two.Heights != one.Heights {
			t.Fatalf("%+v became %+v", one, two)
		}
	})
}

func FuzzDescriptor(f *testing.F) {
	f.Add(full, full[:3], uint16(1), uint8(1))
	f.Add([]byte{0xc5, 0, 6}, full, uint16(1), uint8(63))
	f.Add(AppendCustom(nil, Head{Template: 2}, "S-R", []int{1, 300}), full, uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, a, b []byte, frame uint16, template uint8) {
		var r DescriptorReader
		var f Frame
		d := &f.Descriptor
		r.Read(a, &f)
		f = Frame{}
		err := r.Read(b, &f)
		if errors.Is(err, ErrDescriptor) {
			return
		}
		before := *d
		all := f
		r2 := r
		RewriteDescriptor(b, frame, template)
		f = Frame{}
		err2 := r2.Read(b, &f)
		if d.Frame != before.Frame+frame || d.Template != (before.Template+template)&63 || d.Start != before.Start || d.End != before.End {
			t.Fatalf("%+v became %+v", before, d)
		}
		if before.HasStructure && err == nil {
			d.Frame, d.Template, d.TemplateOffset = before.Frame, before.Template, before.TemplateOffset
			if err2 != nil || f != all {
				t.Fatalf("%+v became %+v, %v", all, f, err2)
			}
			for layer := range 32 {
				masked := AppendMasked([]byte("x"), b, layer)[1:]
				f = Frame{}
				if err := r2.Read(masked, &f); err != nil {
					t.Fatalf("%x became %x: %v", b, masked, err)
				}
				if f.Spatial > max(1, uint8(layer>>3)+1) && len(masked) > len(b) || f.Present != all.Present || f.Switch != all.Switch || d.FDiffs != before.FDiffs {
					t.Fatalf("layer %d: %+v became %+v", layer, all, f)
				}
			}
		}
	})
}

func TestVP9(t *testing.T) {
	all := func(tid int, sids ...int) (l Layers) {
		for _, s := range sids {
			l |= Layers(0xff<<tid&0xff) << (8 * s)
		}
		return l
	}
	for _, test := range []struct {
		name, hex string
		want      Frame
		bad       bool
	}{
		{name: "empty", bad: true},
		{name: "key of three layers", hex: "aa" + "9234" + "10" + "07" + "50" + "014000b4" + "02800168" + "050002d0" + "82", want: Frame{
			Codec: VP9, Numbering: ByLayers, Start: true, Key: true, Spatial: 3, Heights: [MaxSpatial]uint16{180, 360, 720},
			Present: all(0, 0, 1, 2, 3), Switch: all(0, 0), Picture: Picture{ID: 0x1234, Wide: true, TL0: 7, IDAt: 1, TL0At: 4}}},
		{name: "second layer of it", hex: "ac" + "9234" + "13" + "07" + "82", want: Frame{
			Codec: VP9, Numbering: ByLayers, Start: true, End: true, Present: all(0, 1, 2, 3), Switch: all(0, 1),
			Picture: Picture{ID: 0x1234, Wide: true, TL0: 7, SID: 1, IDAt: 1, TL0At: 4}}},
		{name: "delta, highest layer", hex: "ed" + "9235" + "44" + "08" + "82", want: Frame{
			Codec: VP9, Numbering: ByLayers, Start: true, End: true, Present: all(2, 2), Switch: 1 << (8*2 + 2),
			Picture: Picture{ID: 0x1235, Wide: true, TL0: 8, TID: 2, SID: 2, IDAt: 1, TL0At: 4}}},
		{name: "flexible, two references", hex: "f8" + "2a" + "00" + "03" + "04" + "82", want: Frame{
			Codec: VP9, Numbering: ByLayers, Start: true, Present: all(0, 0, 1, 2, 3), Switch: 1, Picture: Picture{ID: 42, IDAt: 1}}},
		{name: "no picture id", hex: "0c82", want: Frame{Codec: VP9, Start: true, End: true, Key: true, Present: all(0, 0, 1, 2, 3), Switch: 1}},
		{name: "references without end", hex: "f82a00030303030303030303030303", bad: true},
		{name: "picture id missing", hex: "80", bad: true},
		{name: "picture id half", hex: "8080", bad: true},
		{name: "layers missing", hex: "a02a", bad: true},
		{name: "TL0 missing", hex: "a02a00", bad: true},
		{name: "fifth spatial layer", hex: "a02a0800", bad: true},
		{name: "references missing", hex: "f82a00", bad: true},
		{name: "sizes missing", hex: "8a2a50014000b4", bad: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f Frame
			ok := ParseVP9(unhex(t, test.hex), &f)
			if ok == test.bad {
				t.Fatalf("ok = %v: %+v", ok, f)
			}
			if ok && f != test.want {
				t.Fatalf("got %+v\nwant %+v", f, test.want)
			}
		})
	}
}

func TestH264Key(t *testing.T) {
	for _, test := range []struct {
		name, hex string
		start     bool
		want      bool
	}{
		{"sets and a picture", "78" + "0004" + "67424014" + "0002" + "68ce" + "0003" + "65b800", true, true},
		{"set alone", "67424014", false, true},
		{"IDR, first piece, alone", "7c85b800", true, true},
		{"IDR after its sets", "7c85b800", false, false},
		{"IDR, second piece", "7c05b800", true, false},
		{"IDR whole", "65b800", true, true},
		{"delta", "419a00", true, false},
		{"delta in pieces", "5c81", true, false},
		{"delta aggregated", "58" + "0002" + "419a", true, false},
		{"aggregate cut short", "78" + "0009" + "6742", true, false},
		{"aggregate of nothing", "78" + "0000" + "6742", true, false},
		{"one byte", "67", true, false},
		{"empty", "", true, false},
	} {
		if got := keyH264(unhex(t, test.hex), test.start); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestAV1Key(t *testing.T) {
	for hex, want := range map[string]bool{"18" + "0a": true, "10" + "32": false, "98" + "0a": false, "18": false, "": false} {
		if got := keyAV1(unhex(t, hex)); got != want {
			t.Errorf("%q: %v", hex, got)
		}
	}
}

// The mask of a masked descriptor is there, whether there was one before or not, and nothing else changes.
func TestAppendMasked(t *testing.T) {
	s := Written{
		Targets: 4, Chains: 2, Protected: []int{0, 0, 1, 1}, Sizes: [][2]int{{320, 180}, {640, 360}},
		Templates: []WrittenTemplate{
			{SID: 0, TID: 0, DTIs: "SSSS"}, {SID: 0, TID: 1, DTIs: "-S-R", FDiffs: []int{2}},
			{SID: 1, TID: 0, DTIs: "--SR", FDiffs: []int{1}}, {SID: 1, TID: 1, DTIs: "---S", FDiffs: []int{1}},
		},
	}
	b := s.Append(nil, Head{Start: true, Frame: 9})
	for _, test := range []struct {
		layer   int
		mask    uint32
		spatial uint8
	}{{0, 1, 1}, {7, 3, 1}, {8, 5, 2}, {31, 15, 2}} {
		once := AppendMasked(nil, b, 31)
		for _, in := range [][]byte{b, once} {
			out := AppendMasked(nil, in, test.layer)
			var r DescriptorReader
			var f Frame
			if err := r.Read(out, &f); err != nil || f.Spatial != test.spatial || f.Descriptor.Frame != 9 || !f.Descriptor.HasStructure {
				t.Fatalf("layer %d: %+v, %v", test.layer, f, err)
			}
			// Straight behind the structure, which is all but the last, padded, byte of b.
			bits := bitReader{b: out, at: 29}
			new(structure).read(&bits)
			if got := bits.read(4); got != test.mask || out[3]&0x40 == 0 {
				t.Errorf("layer %d: mask %04b, want %04b", test.layer, got, test.mask)
			}
		}
	}
	for _, b := range [][]byte{full, {0xc5, 0, 6}, {}} { // one spatial layer; no structure
		if got := AppendMasked(nil, b, 0); string(got) != string(b) {
			t.Errorf("%x became %x", b, got)
		}
	}
}

func FuzzVP9(f *testing.F) {
	for _, s := range []string{"", "aa92341007" + "50" + "014000b402800168050002d082", "f82a00030482", "ed923544088200"} {
		f.Add(unhex(f, s), uint16(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, id uint16, tl0 uint8) {
		var one, two Frame
		if !ParseVP9(b, &one) {
			return
		}
		RewritePicture(b, &one.Picture, id, tl0)
		if !ParseVP9(b, &two) {
			t.Fatal("the rewritten descriptor does not parse")
		}
		want := one
		if p := &want.Picture; p.IDAt != 0 {
			p.ID = id & 0x7f
			if p.Wide {
				p.ID = id & 0x7fff
			}
		}
		if want.Picture.TL0At != 0 {
			want.Picture.TL0 = tl0
		}
		if two != want {
			t.Fatalf("%+v became %+v", one, two)
		}
	})
}

func FuzzReader(f *testing.F) {
	f.Add(uint8(H264), []byte("x\x00\x04gB@\x14\x00\x02h\xce"), []byte{})
	f.Add(uint8(AV1), []byte{0x18, 0x0a}, full)
	f.Add(uint8(VP9), []byte{0x0c, 0x82}, full)
	f.Fuzz(func(t *testing.T, c uint8, payload, descriptor []byte) {
		var r Reader
		var one Frame
		for range 2 {
			r.Read(Codec(c%8), payload, descriptor, 1, &one)
			if one.SID() >= MaxSpatial || one.TID() > MaxTID || one.Spatial > MaxSpatial {
				t.Fatalf("%+v", one)
			}
		}
	})
}
