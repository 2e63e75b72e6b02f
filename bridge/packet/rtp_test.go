package packet

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Recorded from Chromium.
const (
	audioPacket   = "90ef7fb8292b0fb5e9bc8a5abede000251000410" + "8d000000" + "78"
	videoKey      = "90e42e436dc60046b532e8dc100000090303581011050200020b17c000018002044eaaaf2860414d34538a0940404fc02cc00000" + "10d012009d012a4001b400"
	paddingPacket = "b06017b700000000f9f78242bede0002510001" + "32580dc700"
)

func TestParseRecorded(t *testing.T) {
	r, err := ParseRTP(unhex(t, audioPacket))
	if err != nil {
		t.Fatal(err)
	}
	if r.PT() != 111 || !r.Marker() || r.Seq() != 0x7fb8 || r.Timestamp() != 0x292b0fb5 || r.SSRC() != 0xe9bc8a5a {
		t.Errorf("audio header: %d %v %x %x %x", r.PT(), r.Marker(), r.Seq(), r.Timestamp(), r.SSRC())
	}
	if got := r.Extension(5); !bytes.Equal(got, []byte{0, 4}) {
		t.Errorf("transport-cc: %x", got)
	}
	if got := r.Extension(1); !bytes.Equal(got, []byte{0x8d}) {
		t.Errorf("level: %x", got)
	}
	if r.Extension(0) != nil || r.Extension(2) != nil || len(r.Payload) != 1 {
		t.Error("what is not there is there")
	}
	r, err = ParseRTP(unhex(t, videoKey))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Extension(11)) != 23 || len(r.Extension(3)) != 3 || len(r.Payload) != 11 {
		t.Errorf("two-byte form: %x %x %x", r.Extension(11), r.Extension(3), r.Payload)
	}
	r, err = ParseRTP(append(unhex(t, paddingPacket), append(make([]byte, 254), 255)...))
	if err != nil || len(r.Payload) != 0 {
		t.Errorf("padding: %v %d", err, len(r.Payload))
	}
}

func TestParseBad(t *testing.T) {
	for _, s := range []string{
		"", "80", "4000000000000000000000ff", "81000000000000000000000000", // too short, version, CSRC missing
		"9000000000000000000000000000", "900000000000000000000000bede0001", // extension missing
		"a00000000000000000000000" + "05", "a00000000000000000000000" + "00", "a00000000000000000000000", // padding
	} {
		if _, err := ParseRTP(unhex(t, s)); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, test := range []struct {
		first, second byte
		rtp, rtcp     bool
	}{{0x80, 111, true, false}, {0x80, 0x80 | 100, true, false}, {0x81, 201, true, true}, {0x8f, 205, true, true}, {22, 0, false, false}, {0, 1, false, false}} {
		b := make([]byte, 20)
		b[0], b[1] = test.first, test.second
		if IsRTP(b) != test.rtp || test.rtp && IsRTCP(b) != test.rtcp {
			t.Errorf("%d %d: %v %v", test.first, test.second, IsRTP(b), IsRTCP(b))
		}
	}
}

func TestHeader(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{
			PT: rapid.Uint8Range(0, 127).Draw(t, "pt"), Marker: rapid.Bool().Draw(t, "marker"),
			Seq: rapid.Uint16().Draw(t, "seq"), Timestamp: rapid.Uint32().Draw(t, "ts"), SSRC: rapid.Uint32().Draw(t, "ssrc"),
		}
		values := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 40), 0, 5).Draw(t, "values")
		wide := slices.ContainsFunc(values, func(v []byte) bool { return !Fits(1, len(v)) })
		prefix := []byte("before")
		b, x := BeginExtensions(h.Append(slices.Clone(prefix)), wide)
		for i, v := range values {
			b = x.Add(b, uint8(i+1), len(v))
			copy(b[len(b)-len(v):], v)
		}
		b = x.End(b, len(prefix))[len(prefix):]
		b = append(b, "payload"...)

		var other rtp.Packet
		if err := other.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
		mine, err := ParseRTP(b)
		if err != nil {
			t.Fatal(err)
		}
		if other.PayloadType != h.PT || other.Marker != h.Marker || other.SequenceNumber != h.Seq || other.Timestamp != h.Timestamp || other.SSRC != h.SSRC || string(other.Payload) != "payload" {
			t.Fatalf("pion reads %v", other.Header)
		}
		if mine.PT() != h.PT || mine.Marker() != h.Marker || mine.Seq() != h.Seq || mine.Timestamp() != h.Timestamp || mine.SSRC() != h.SSRC || string(mine.Payload) != "payload" {
			t.Fatalf("we read %x", mine.Header)
		}
		for i, v := range values {
			if !bytes.Equal(other.GetExtension(uint8(i+1)), v) || !bytes.Equal(mine.Extension(uint8(i+1)), v) {
				t.Fatalf("extension %d: %x, %x, want %x", i+1, other.GetExtension(uint8(i+1)), mine.Extension(uint8(i+1)), v)
			}
		}
	})
}

func TestUnwrap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u Unwrapper
		at := int64(rapid.Uint16().Draw(t, "first")) + 1<<16
		u.Unwrap(uint16(at))
		highest := at
		for _, step := range rapid.SliceOf(rapid.IntRange(-30000, 30000)).Draw(t, "steps") {
			at = highest + int64(step)
			if got := u.Unwrap(uint16(at)); got != at {
				t.Fatalf("%d after %d is %d", at, highest, got)
			}
			highest = max(highest, at)
			if Newer(uint16(at), uint16(highest)) {
				t.Fatalf("%d is newer than the highest", at)
			}
		}
	})
	if !Newer(0, 65535) || Newer(65535, 0) || Newer(7, 7) {
		t.Error("Newer")
	}
}

func TestRTCPAgainstPion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seqs := slices.Sorted(slices.Values(rapid.SliceOfNDistinct(rapid.Uint16Range(0, 2000), 1, 60, rapid.ID).Draw(t, "seqs")))
		shift := rapid.Uint16().Draw(t, "shift")
		for i := range seqs {
			seqs[i] += shift
		}
		b := AppendNACK(nil, 1, 2, seqs)
		var nack rtcp.TransportLayerNack
		if err := nack.Unmarshal(b); err != nil {
			t.Fatal(err)
		}
		var theirs, ours []uint16
		for _, p := range nack.Nacks {
			theirs = append(theirs, p.PacketList()...)
		}
		p, rest, ok := NextRTCP(b)
		if !ok || len(rest) != 0 || p.Sender() != 1 || p.Media() != 2 {
			t.Fatalf("%+v", p)
		}
		for e := p.NACKs(); len(e) > 0; {
			var seq, mask uint16
			seq, mask, e = NACKEntry(e)
			ours = append(ours, seq)
			for i := range uint16(16) {
				if mask>>i&1 != 0 {
					ours = append(ours, seq+i+1)
				}
			}
		}
		if !slices.Equal(theirs, seqs) || !slices.Equal(ours, seqs) {
			t.Fatalf("%v became %v and %v", seqs, theirs, ours)
		}
	})

	var pli rtcp.PictureLossIndication
	if err := pli.Unmarshal(AppendPLI(nil, 3, 4)); err != nil || pli.SenderSSRC != 3 || pli.MediaSSRC != 4 {
		t.Errorf("PLI: %v %v", pli, err)
	}
	info := SenderInfo{SSRC: 5, NTP: 6<<32 | 7, Timestamp: 8, Packets: 9, Octets: 10}
	b := AppendSR(nil, info)
	var sr rtcp.SenderReport
	if err := sr.Unmarshal(b); err != nil || sr.SSRC != 5 || sr.NTPTime != 6<<32|7 || sr.RTPTime != 8 || sr.PacketCount != 9 || sr.OctetCount != 10 {
		t.Errorf("SR: %v %v", sr, err)
	}
	p, _, _ := NextRTCP(b)
	if got, ok := p.SenderInfo(); !ok || got != info {
		t.Errorf("SR: %+v", got)
	}
	reports := []Report{{SSRC: 1, FractionLost: 2, Lost: -3, Highest: 4, Jitter: 5, LastSR: 6, DLSR: 7}, {SSRC: 9, Lost: 1 << 30}}
	b = AppendRR(nil, 8, reports)
	var rr rtcp.ReceiverReport
	if err := rr.Unmarshal(b); err != nil || rr.SSRC != 8 || len(rr.Reports) != 2 || rr.Reports[0].LastSequenceNumber != 4 || rr.Reports[1].TotalLost != 1<<23-1 {
		t.Errorf("RR: %v %v", rr, err)
	}
	p, _, _ = NextRTCP(b)
	reports[1].Lost = 1<<23 - 1
	var got []Report
	p.Reports(func(r Report) { got = append(got, r) })
	if !slices.Equal(got, reports) {
		t.Errorf("RR: %+v", got)
	}
	fir, err := (&rtcp.FullIntraRequest{SenderSSRC: 1, MediaSSRC: 2, FIR: []rtcp.FIREntry{{SSRC: 77, SequenceNumber: 1}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p, _, _ = NextRTCP(fir)
	var asked []uint32
	p.FIRs(func(ssrc uint32) { asked = append(asked, ssrc) })
	if !slices.Equal(asked, []uint32{77}) {
		t.Errorf("FIR: %v", asked)
	}
}

func TestAllocations(t *testing.T) {
	b, out := unhex(t, videoKey), make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		r, err := ParseRTP(b)
		if err != nil {
			t.Fatal(err)
		}
		h, x := BeginExtensions(Header{PT: 100}.Append(out[:0]), true)
		h = x.Add(h, 11, len(r.Extension(11)))
		x.End(h, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzRTP(f *testing.F) {
	for _, s := range []string{audioPacket, videoKey, paddingPacket, "", "bfff00000000000000000000"} {
		f.Add(unhex(f, s), uint8(5))
	}
	f.Fuzz(func(t *testing.T, b []byte, id uint8) {
		r, err := ParseRTP(b)
		if err != nil {
			return
		}
		if len(r.Header)+len(r.Payload) > len(b) || len(r.Header) < 12 {
			t.Fatalf("%d + %d of %d", len(r.Header), len(r.Payload), len(b))
		}
		r.Extension(id)
		r.Seq()
	})
}

func FuzzRTCP(f *testing.F) {
	f.Add(AppendSR(AppendPLI(nil, 1, 2), SenderInfo{}))
	f.Add(AppendRR(AppendNACK(nil, 1, 2, []uint16{1, 5, 90}), 1, []Report{{}}))
	f.Add(unhex(f, "a1c9000181cd00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for n := 0; ; n++ {
			p, rest, ok := NextRTCP(b)
			if !ok {
				return
			}
			if len(rest) >= len(b) || n > 400000 {
				t.Fatal("no progress")
			}
			p.Sender()
			p.Media()
			p.SenderInfo()
			p.Reports(func(Report) {})
			p.FIRs(func(uint32) {})
			for e := p.NACKs(); len(e) >= 4; {
				_, _, e = NACKEntry(e)
			}
			b = rest
		}
	})
}
