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
		{name: "Chromium's key frame", hex: "10" + key320x180, want: Frame{Codec: VP8, Start: true, Key: true, Height: 180}},
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

func TestRewriteVP8(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"90e092340740b1", "90e0ffff0940b1"},
		{"90802ab1", "90807fb1"},
		{"10b1", "10b1"},
	} {
		b := unhex(t, test.in)
		var f Frame
		ParseVP8(b, &f)
		RewriteVP8(b, &f.Picture, 0x7fff, 9)
		if got := hex.EncodeToString(b); got != test.want {
			t.Errorf("%s became %s, want %s", test.in, got, test.want)
		}
	}
}

// Chromium's descriptor on the first packet of a VP8 key frame, L1T3, as recorded.
const recorded = "c000018002044eaaaf2860414d34538a0940404fc02cc0"

func TestDescriptorRecorded(t *testing.T) {
	var r DescriptorReader
	var d Descriptor
	if err := r.Read(unhex(t, recorded), &d); err != nil {
		t.Fatal(err)
	}
	want := Descriptor{
		Start: true, End: true, Frame: 1, Present: 0xff, Switch: 0xff,
		HasStructure: true, Templates: d.Templates, Height: 180,
	}
	if d != want {
		t.Fatalf("got %+v\nwant %+v", d, want)
	}
	if r.s.targets != 3 || r.s.chains != 0 {
		t.Fatalf("targets %d, chains %d, want 3 and 0", r.s.targets, r.s.chains)
	}
	for tid := range 3 {
		if dt := r.s.byTID[tid]; int(r.s.target[dt].tid) != tid {
			t.Errorf("layers up to %d are in target %d, which has up to %d", tid, dt, r.s.target[dt].tid)
		}
	}
	// Every template's frames are present exactly from their own temporal layer on.
	for i := range r.s.templates {
		l := &r.s.layer[i]
		if want := uint8(0xff << l.tid); l.presentT != want {
			t.Errorf("template %d of layer %d is present in %08b, want %08b", i, l.tid, l.presentT, want)
		}
	}
	// A delta frame on two packets, the second recorded behind the bridge.
	if err := r.Read(unhex(t, "c50006"), &d); err != nil {
		t.Fatal(err)
	}
	if !d.Start || !d.End || d.Frame != 6 || d.Template != 5 || d.HasStructure {
		t.Fatalf("delta: %+v", d)
	}
	t.Logf("templates %d, template 5: tid %d, present %08b, switch %08b, fdiffs %d", r.s.templates, d.TID, d.Present, d.Switch, d.FDiffs)
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
		var d Descriptor
		if err := r.Read(b, &d); err != nil {
			t.Fatal(err)
		}
		if d.Template != offset || d.TemplateOffset != offset || d.Frame != 0 || d.Height != 180 || d.TID != 0 {
			t.Fatalf("offset %d: %+v", offset, d)
		}
		delta := []byte{0xc5, 0, 6}
		RewriteDescriptor(delta, 0, offset)
		if err := r.Read(delta, &d); err != nil || d.Template != (offset+5)&63 {
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
	var d Descriptor
	if err := r.Read(b, &d); err != nil {
		t.Fatal(err)
	}
	if !d.HasStructure || d.TemplateOffset != 61 || d.Templates != 4 || d.Height != 360 || d.FDiffs != 0 || d.Frame != 0xfffe || !d.Start || d.End {
		t.Fatalf("%+v", d)
	}
	for _, test := range []struct {
		template        uint8
		sid, tid        uint8
		fdiffs          uint8
		present, canGo8 uint8
	}{
		// TID 0 is target 2 (both spatial layers), TID 1 and up is target 3.
		{62, 0, 0, 1, 0xff, 0x00},
		{63, 0, 1, 1, 0xfe, 0x00},
		{0, 1, 0, 2, 0xff, 0x01},
	} {
		if err := r.Read([]byte{test.template, 0, 1}, &d); err != nil {
			t.Fatal(err)
		}
		if d.SID != test.sid || d.TID != test.tid || d.FDiffs != test.fdiffs || d.Present != test.present || d.Switch != test.canGo8 {
			t.Errorf("template %d: %+v", test.template, d)
		}
	}
	if err := r.Read([]byte{1, 0, 1}, &d); !errors.Is(err, ErrNoStructure) {
		t.Errorf("an unknown template: %v", err)
	}
	// Custom fields replace the template's.
	b = AppendCustom(nil, Head{Template: 62, Frame: 7}, "---S", []int{3})
	if err := r.Read(b, &d); err != nil || d.FDiffs != 1 || d.Present != 0xfe || d.Switch != 0xfe {
		t.Errorf("custom: %+v %v", d, err)
	}
}

func TestDescriptorBad(t *testing.T) {
	full := unhex(t, recorded)
	for n := range len(full) {
		var r DescriptorReader
		var d Descriptor
		if err := r.Read(full[:n], &d); err == nil {
			t.Errorf("%d bytes of %d were accepted", n, len(full))
		}
	}
	var r DescriptorReader
	var d Descriptor
	if err := r.Read([]byte{0xc5, 0, 9}, &d); !errors.Is(err, ErrNoStructure) || d.Frame != 9 || !d.Start {
		t.Errorf("before a structure: %+v, %v", d, err)
	}
}

func TestReader(t *testing.T) {
	var r Reader
	var f Frame
	key, delta := unhex(t, "10d012009d012a4001b400"), unhex(t, "30b1100000")
	r.Read(VP8, key, unhex(t, recorded), 1, &f)
	if !f.Key || f.Numbering != ByDescriptor || f.Height != 180 || f.Codec != VP8 {
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
	if f.Key || f.Descriptor.Present != 0xff || f.Descriptor.Frame != 6 {
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
		RewriteVP8(b, &one.Picture, id, tl0)
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
		if two.Picture != p || two.Start != one.Start || two.Key != one.Key || two.Height != one.Height {
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
		var d Descriptor
		r.Read(a, &d)
		err := r.Read(b, &d)
		if errors.Is(err, ErrDescriptor) {
			return
		}
		before := d
		r2 := r
		RewriteDescriptor(b, frame, template)
		err2 := r2.Read(b, &d)
		if d.Frame != before.Frame+frame || d.Template != (before.Template+template)&63 || d.Start != before.Start || d.End != before.End {
			t.Fatalf("%+v became %+v", before, d)
		}
		if before.HasStructure && err == nil {
			d.Frame, d.Template, d.TemplateOffset = before.Frame, before.Template, before.TemplateOffset
			if err2 != nil || d != before {
				t.Fatalf("%+v became %+v, %v", before, d, err2)
			}
		}
	})
}
