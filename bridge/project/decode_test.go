package project

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp/codecs"

	"plenum/bridge/codec"
	"plenum/bridge/packet"
)

// decoders are what the recordings are decoded with: those of browsers, where ffmpeg has them.
var decoders = map[string]struct {
	codec  codec.Codec
	ffmpeg string
}{
	"vp8": {codec.VP8, "libvpx"}, "vp9": {codec.VP9, "libvpx-vp9"}, "h264": {codec.H264, "h264"},
	"av1": {codec.AV1, "libdav1d"}, "av1full": {codec.AV1, "libdav1d"},
}

// A unit is what a decoder gets at once: all packets of one timestamp.
type unit struct {
	encoding int
	in, out  uint32 // timestamps
	sid      int    // the highest
	payloads [][]byte
}

// TestDecoder has a real decoder behind a receiver whose layers change all the time: it reports no error, and shows exactly
// the pictures that it would show if it had got that encoding, or layer, from the beginning.
func TestDecoder(t *testing.T) {
	for _, r := range recordings {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			in := load(t, r.name)
			truth := references(t, r.name, in)
			total := 0
			for seed := range uint64(6) {
				out, switches := switching(in, rand.New(rand.NewPCG(seed, 7)), false)
				total += switches
				if n, err := compare(t, r.name, out, truth); n > 0 || err != "" {
					t.Errorf("seed %d: %d of %d pictures are others than sent, decoder: %s", seed, n, len(out), err)
				}
			}
			if total < 15 {
				t.Errorf("only %d switches", total)
			}
			// This would find a switch at the wrong place.
			out, _ := switching(in, rand.New(rand.NewPCG(1, 7)), true)
			if n, err := compare(t, r.name, out, truth); n == 0 && err == "" {
				t.Error("nobody notices layers that change anywhere")
			}
		})
	}
}

// TestSpatialSwitch asks for another spatial layer behind each key picture. Down it goes at once where layers depend on each
// other in every picture (L3T3), so that the lowest is there, and not before the next key picture where they do so in key
// pictures alone (L3T3_KEY). Up it goes with neither: a picture of the higher layer needs the one before it.
func TestSpatialSwitch(t *testing.T) {
	for _, x := range []struct {
		name       string
		first, now int // spatial layers
		free       bool
	}{
		{"av1full", 2, 0, true}, {"av1full", 1, 0, true}, {"av1", 2, 0, false}, {"vp9", 2, 0, false},
		{"av1full", 0, 2, false}, {"av1", 0, 2, false}, {"vp9", 0, 2, false},
	} {
		t.Run(fmt.Sprint(x.name, x.first, x.now), func(t *testing.T) {
			t.Parallel()
			in := load(t, x.name)
			s := Stream{Clock: 90000}
			var out []unit
			var key uint32 // timestamp of the key picture
			waiting := 0
			for i := range in {
				p := in[i]
				layer := x.now
				if p.Frame.Key {
					key = p.RTP.Timestamp()
				}
				if p.RTP.Timestamp() == key {
					layer = x.first
				}
				s.SetTarget(0, layer<<3|2)
				var o Output
				if !s.Accept(&p, &o) {
					continue
				}
				payload := slices.Clone(p.RTP.Payload)
				Rewrite(payload, &p.Frame, o.Offsets)
				out = put(out, &p, o.Timestamp, payload)
				if p.RTP.Timestamp() != key && s.Waiting() {
					waiting++
				}
			}
			switched := 0
			for _, u := range out {
				if u.sid == x.now {
					switched++
				}
			}
			if x.free && (switched < len(out)/2 || waiting > 0) || !x.free && (switched > 0 || waiting < len(out)/2) {
				t.Errorf("%d of %d pictures of the other layer, %d sent while waiting for a key picture", switched, len(out), waiting)
			}
			if n, err := compare(t, x.name, out, references(t, x.name, in)); n > 0 || err != "" {
				t.Errorf("%d of %d pictures are others than sent, decoder: %s", n, len(out), err)
			}
		})
	}
}

// load reads a recording.
func load(t *testing.T, name string) (all []Packet) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".rtp")
	if err != nil {
		t.Fatal(err)
	}
	var readers [3]codec.Reader
	var seqs [3]packet.Unwrapper
	var began [3]bool // with a key frame
	for len(b) > 0 {
		n, encoding, at := int(binary.BigEndian.Uint16(b)), int(b[2]), time.Duration(binary.BigEndian.Uint16(b[3:]))*time.Millisecond
		r, err := packet.ParseRTP(b[5 : 5+n])
		if err != nil {
			t.Fatal(err)
		}
		b = b[5+n:]
		p := Packet{RTP: r, Seq: seqs[encoding].Unwrap(r.Seq()), Encoding: encoding, Arrival: start.Add(at)}
		readers[encoding].Read(decoders[name].codec, r.Payload, r.Extension(descriptorID), r.Timestamp(), &p.Frame)
		if began[encoding] = began[encoding] || p.Frame.Key; began[encoding] {
			all = append(all, p)
		}
	}
	return all
}

// references decodes each encoding, and each spatial layer of it with all below, whole: a hash for each picture.
func references(t *testing.T, name string, in []Packet) map[[3]int]string {
	t.Helper()
	truth := map[[3]int]string{}
	for encoding := range 3 {
		for sid := range 3 {
			var units []unit
			found := false
			for _, p := range in {
				if p.Encoding == encoding && p.Frame.SID() <= sid {
					units = put(units, &p, p.RTP.Timestamp(), slices.Clone(p.RTP.Payload))
					found = found || p.Frame.SID() == sid
				}
			}
			if !found {
				continue
			}
			hashes, err := decode(t, name, units)
			if err != "" || len(hashes) != len(units) {
				t.Fatalf("encoding %d, layer %d itself: %d pictures of %d: %s", encoding, sid, len(hashes), len(units), err)
			}
			for i, h := range hashes {
				truth[[3]int{encoding, sid, int(units[i].in)}] = h
			}
		}
	}
	return truth
}

// switching sends a recording to one receiver whose target changes about every tenth packet; anywhere instead of by the
// rules if asked for.
func switching(in []Packet, rnd *rand.Rand, anywhere bool) (out []unit, switches int) {
	s := Stream{Clock: 90000}
	simulcast := slices.ContainsFunc(in, func(p Packet) bool { return p.Encoding > 0 })
	encoding, layer := 0, 0
	last := -1
	for i := range in {
		if i == 0 || rnd.IntN(10) == 0 {
			layer = rnd.IntN(3)
			if simulcast {
				encoding = rnd.IntN(3)
			} else {
				layer |= rnd.IntN(3) << 3
			}
			s.SetTarget(encoding, layer)
		}
		p := in[i]
		var o Output
		if anywhere {
			if p.Encoding != encoding || p.Frame.SID() > layer>>3 {
				continue
			}
			o.Timestamp = uint32(p.Arrival.Sub(start).Milliseconds())
		} else if !s.Accept(&p, &o) {
			continue
		}
		payload := slices.Clone(p.RTP.Payload)
		if !anywhere {
			Rewrite(payload, &p.Frame, o.Offsets)
		}
		out = put(out, &p, o.Timestamp, payload)
		if now := p.Encoding<<3 | int(o.Offsets.Layer>>3); now != last {
			last = now
			switches++
		}
	}
	return out, switches
}

// put adds a packet to the last unit, or begins one.
func put(units []unit, p *Packet, out uint32, payload []byte) []unit {
	if n := len(units); n == 0 || units[n-1].out != out {
		units = append(units, unit{encoding: p.Encoding, in: p.RTP.Timestamp(), out: out})
	}
	u := &units[len(units)-1]
	u.sid = max(u.sid, p.Frame.SID())
	u.payloads = append(u.payloads, payload)
	return units
}

// compare decodes units and counts those that show something else than they should, or nothing.
func compare(t *testing.T, name string, units []unit, truth map[[3]int]string) (wrong int, report string) {
	t.Helper()
	hashes, report := decode(t, name, units)
	for i, u := range units {
		if i >= len(hashes) || hashes[i] != truth[[3]int{u.encoding, u.sid, int(u.in)}] {
			wrong++
		}
	}
	return wrong + max(len(hashes)-len(units), 0), report
}

// decode has ffmpeg decode units, and returns a hash for each picture, and what it complains of.
func decode(t *testing.T, name string, units []unit) (hashes []string, report string) {
	t.Helper()
	path, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Fatal("this test needs a real decoder: apt-get install ffmpeg, or run make test, which does it")
	}
	var b []byte
	file := filepath.Join(t.TempDir(), "in.ivf")
	d := decoders[name]
	if d.codec == codec.H264 {
		file = filepath.Join(filepath.Dir(file), "in.h264")
		for _, u := range units {
			b = append(b, 0, 0, 0, 1, 9, 0xf0) // access unit delimiter
			b = append(b, depacketize(d.codec, u)...)
		}
	} else {
		fourcc := map[codec.Codec]string{codec.VP8: "VP80", codec.VP9: "VP90", codec.AV1: "AV01"}[d.codec]
		b = fmt.Appendf(b, "DKIF\x00\x00\x20\x00%s", fourcc)
		b = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, 960), 540)
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, 90000), 1)
		b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
		for _, u := range units {
			frame := depacketize(d.codec, u)
			b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
			b = binary.LittleEndian.AppendUint64(b, uint64(u.out-units[0].out))
			b = append(b, frame...)
		}
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), path, "-v", "error", "-xerror", "-err_detect", "explode", "-threads", "1", "-c:v", d.ffmpeg, "-i", file,
		"-vsync", "passthrough", "-autoscale", "0", "-f", "framemd5", "-")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		fmt.Fprintf(&stderr, "ffmpeg: %v", err)
	}
	for line := range strings.Lines(stdout.String()) {
		if f := strings.Split(strings.TrimSpace(line), ","); len(f) == 6 && !strings.HasPrefix(line, "#") {
			hashes = append(hashes, strings.TrimSpace(f[5]))
		}
	}
	return hashes, strings.TrimSpace(stderr.String())
}

// depacketize makes of a unit what a decoder takes. It is not ours, so that both cannot be wrong in the same way.
func depacketize(c codec.Codec, u unit) (frame []byte) {
	var one interface{ Unmarshal([]byte) ([]byte, error) }
	switch c {
	case codec.VP8:
		one = &codecs.VP8Packet{}
	case codec.VP9:
		one = &codecs.VP9Packet{}
	case codec.H264:
		one = &codecs.H264Packet{}
	case codec.AV1:
		one = &codecs.AV1Depacketizer{}
		frame = []byte{0x12, 0} // temporal delimiter
	}
	for _, p := range u.payloads {
		b, err := one.Unmarshal(p)
		if err != nil {
			return append(frame, "not to be read"...)
		}
		frame = append(frame, b...)
	}
	return frame
}
