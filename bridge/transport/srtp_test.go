package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"pgregory.net/rapid"
)

var profiles = []Profile{AES128GCM, AES128CMSHA1_80}

var (
	testKey  = []byte("0123456789abcdef")
	testSalt = []byte("salt, salt and pepper")
)

func pair(t testing.TB, p Profile) (*Sealer, *Opener) {
	t.Helper()
	s, err := NewSealer(p, testKey, testSalt[:p.saltBytes()])
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(p, testKey, testSalt[:p.saltBytes()])
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

func oracle(t testing.TB, p Profile) *srtp.Context {
	t.Helper()
	c, err := srtp.CreateContext(testKey, testSalt[:p.saltBytes()], srtp.ProtectionProfile(p),
		srtp.SRTPReplayProtection(1024), srtp.SRTCPReplayProtection(1024))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func header(seq uint16, ssrc uint32) []byte {
	h := make([]byte, 12, 64)
	h[0], h[1] = 0x80, 96
	binary.BigEndian.PutUint16(h[2:], seq)
	binary.BigEndian.PutUint32(h[8:], ssrc)
	return h
}

// The two directions against pion's implementation, with extensions, CSRCs, several SSRCs, loss, reordering
// and the sequence number wrapping.
func TestSRTPAgainstOracle(t *testing.T) {
	for _, p := range profiles {
		t.Run(p.String(), func(t *testing.T) {
			s, o := pair(t, p)
			in, out := oracle(t, p), oracle(t, p)
			r := rand.New(rand.NewPCG(1, 2))
			seqs := map[uint32]uint32{1: 65000, 2: 0, 0xfffffff0: 32000}
			for i := range 6000 {
				ssrc := []uint32{1, 2, 0xfffffff0}[r.IntN(3)]
				seqs[ssrc] += 1 + uint32(r.IntN(60))
				h := header(uint16(seqs[ssrc]), ssrc)
				if i%3 == 0 {
					h[0] |= 0x12 // two CSRCs and an extension
					h = append(h, 1, 2, 3, 4, 5, 6, 7, 8, 0xbe, 0xde, 0, 1, 0x10, 0xff, 0, 0)
				}
				payload := make([]byte, r.IntN(1200))
				for j := range payload {
					payload[j] = byte(r.Uint32())
				}
				clear := append(append([]byte(nil), h...), payload...)

				sealed, err := s.RTP(nil, h, payload)
				if err != nil {
					t.Fatal(err)
				}
				opened, err := out.DecryptRTP(nil, sealed, nil)
				if err != nil || !bytes.Equal(opened, clear) {
					t.Fatalf("packet %d: the oracle cannot read ours: %v", i, err)
				}
				theirs, err := in.EncryptRTP(nil, clear, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(theirs, sealed) {
					t.Fatalf("packet %d: ours %x, the oracle's %x", i, sealed, theirs)
				}
				if got, err := o.RTP(theirs); err != nil || !bytes.Equal(got, clear) {
					t.Fatalf("packet %d: cannot read the oracle's: %v", i, err)
				}

				if i%10 != 0 {
					continue
				}
				report := append([]byte{0x81, 201, 0, 7}, binary.BigEndian.AppendUint32(nil, ssrc)...)
				report = append(report, payload[:min(len(payload), 24)&^3]...)
				sealed, err = s.RTCP(nil, report)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := out.DecryptRTCP(nil, sealed, nil); err != nil || !bytes.Equal(got, report) {
					t.Fatalf("report %d: the oracle cannot read ours: %v", i, err)
				}
				theirs, err = in.EncryptRTCP(nil, report, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := o.RTCP(theirs); err != nil || !bytes.Equal(got, report) {
					t.Fatalf("report %d: cannot read the oracle's: %v", i, err)
				}
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 3711 appendix B.3.
func TestKeyDerivationVector(t *testing.T) {
	s, err := NewSealer(AES128CMSHA1_80, unhex(t, "e1f97a0d3e018be0d64fa32c06de4139"), unhex(t, "0ec675ad498afeebb6960b3aabe6"))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(s.rtp.salt[:]); got != "30cbbc08863d8c85d49db34a9ae1" {
		t.Errorf("salt %s", got)
	}
	// The cipher key is c61e7a93744f39ee10734afe3ff7a087: the first block of its key stream for index 0.
	b := make([]byte, 16)
	s.rtp.xor(b, 0, 0)
	want := make([]byte, 16)
	ref, _ := NewSealer(AES128CMSHA1_80, testKey, testSalt[:14])
	ref.rtp.block = mustAES(t, unhex(t, "c61e7a93744f39ee10734afe3ff7a087"))
	copy(ref.rtp.salt[:], s.rtp.salt[:])
	ref.rtp.xor(want, 0, 0)
	if !bytes.Equal(b, want) {
		t.Errorf("key stream %x, want %x", b, want)
	}
}

// RFC 7714 §16.1.1 and §17.1: the session key is given, so it is put in directly.
func TestGCMVectors(t *testing.T) {
	key, salt := unhex(t, "000102030405060708090a0b0c0d0e0f"), unhex(t, "517569642070726f2071756f")
	put := func(k *keys) {
		k.aead = mustGCM(t, key)
		copy(k.salt[:], salt)
	}
	s, o := pair(t, AES128GCM)
	for _, k := range []*keys{s.rtp, s.rtcp, o.rtp, o.rtcp} {
		put(k)
	}
	h := unhex(t, "8040f17b8041f8d35501a0b2")
	payload := unhex(t, "47616c6c696120657374206f6d6e697320646976697361"+"20696e207061727465732074726573")
	want := unhex(t, "8040f17b8041f8d35501a0b2"+"f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce")
	got, err := s.RTP(nil, h, payload)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("sealed %x, %v", got, err)
	}
	if b, err := o.RTP(got); err != nil || !bytes.Equal(b[12:], payload) {
		t.Errorf("opened %x, %v", b, err)
	}

	report := unhex(t, "81c8000d4d6172734e5450314e545032525450200000042a0000e9304c756e61deadbeefdeadbeefdeadbeefdeadbeefdeadbeef")
	want = unhex(t, "81c8000d4d61727363e94885dcdab67ca727d7662f6b7e997ff5c0f76c06f32dc676a5f1730d6fda4ce09b4686303ded0bb9275bc84aa45896cf4d2fc5abf87245d9eade800005d4")
	s.index = 0x5d3
	got, err = s.RTCP(nil, report)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("sealed report %x, %v", got, err)
	}
	if b, err := o.RTCP(got); err != nil || !bytes.Equal(b, report) {
		t.Errorf("opened report %x, %v", b, err)
	}
}

func TestReplay(t *testing.T) {
	for _, p := range profiles {
		t.Run(p.String(), func(t *testing.T) {
			s, o := pair(t, p)
			seal := func(seq uint16) []byte {
				b, err := s.RTP(nil, header(seq, 7), []byte("payload"))
				if err != nil {
					t.Fatalf("seq %d: %v", seq, err)
				}
				return b
			}
			open := func(b []byte) error { _, err := o.RTP(bytes.Clone(b)); return err }
			first, late := seal(1000), seal(1001)
			if err := open(first); err != nil {
				t.Fatal(err)
			}
			if err := open(first); !errors.Is(err, ErrReplay) {
				t.Errorf("replayed: %v", err)
			}
			for seq := uint16(1002); seq < 1500; seq++ {
				if err := open(seal(seq)); err != nil {
					t.Fatalf("seq %d: %v", seq, err)
				}
			}
			if err := open(late); err != nil {
				t.Errorf("late: %v", err)
			}
			if err := open(late); !errors.Is(err, ErrReplay) {
				t.Errorf("late and replayed: %v", err)
			}
			if err := open(first); !errors.Is(err, ErrReplay) {
				t.Errorf("old: %v", err)
			}
			forged := seal(1500)
			forged[len(forged)-1] ^= 1
			if err := open(forged); !errors.Is(err, ErrAuth) {
				t.Errorf("forged: %v", err)
			}
			forged[len(forged)-1] ^= 1
			if err := open(forged); err != nil {
				t.Errorf("genuine after a forgery: %v", err)
			}
			// The sealer never repeats a number.
			if _, err := s.RTP(nil, header(1400, 7), []byte("other")); !errors.Is(err, ErrReplay) || s.Reused != 1 {
				t.Errorf("sealed a number twice: %v", err)
			}

			report, err := s.RTCP(nil, []byte{0x80, 201, 0, 1, 0, 0, 0, 7})
			if err != nil {
				t.Fatal(err)
			}
			again := bytes.Clone(report)
			if _, err := o.RTCP(report); err != nil {
				t.Error(err)
			}
			if _, err := o.RTCP(again); !errors.Is(err, ErrReplay) {
				t.Errorf("replayed report: %v", err)
			}
		})
	}
}

// Forged packets of many SSRCs leave no trace, genuine ones are bounded.
func TestStreamsBounded(t *testing.T) {
	s, o := pair(t, AES128GCM)
	for ssrc := range uint32(5000) {
		b := append(header(1, ssrc), make([]byte, 100)...)
		if _, err := o.RTP(b); !errors.Is(err, ErrAuth) {
			t.Fatal(err)
		}
	}
	if n := len(o.ssrcs.m); n != 0 {
		t.Errorf("%d streams of forged packets", n)
	}
	for ssrc := range uint32(3 * maxReceived) {
		b, err := s.RTP(nil, header(1, ssrc), []byte("x"))
		if err != nil {
			t.Fatalf("ssrc %d: %v", ssrc, err)
		}
		if _, err := o.RTP(b); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(o.ssrcs.m); n > maxReceived || n < maxReceived*3/4 {
		t.Errorf("%d streams", n)
	}
	if o.ssrcs.m[3*maxReceived-1] == nil || o.ssrcs.m[0] != nil {
		t.Error("not the oldest gave way")
	}
}

// A receiver that stays while ten thousand come and go is sent all of them and those who speak all the time, and no
// number of anybody twice, however much was forgotten of it.
func TestSealedOnceForGood(t *testing.T) {
	s, _ := pair(t, AES128GCM)
	seal := func(seq uint16, ssrc uint32) error {
		_, err := s.RTP(nil, header(seq, ssrc), []byte("x"))
		return err
	}
	const people, constant = 10_000, 1 << 30
	for i := range uint32(people) {
		for kind := range uint32(4) {
			if err := seal(100, 4*i+kind); err != nil {
				t.Fatalf("number %d, source %d: %v", i, kind, err)
			}
		}
		if err := seal(uint16(i), constant); err != nil {
			t.Fatalf("who is there all the time, packet %d: %v", i, err)
		}
	}
	if n := len(s.ssrcs.m); n > maxSent {
		t.Errorf("%d streams", n)
	}
	for i := range uint32(4 * people) {
		if err := seal(100, i); !errors.Is(err, ErrReplay) {
			t.Fatalf("ssrc %d: its number was sealed again: %v", i, err)
		}
		if err := seal(101, i); err != nil {
			t.Fatalf("ssrc %d is back, and refused: %v", i, err)
		}
	}
	small := newStreams(4, 6)
	for ssrc := range uint32(10) {
		if small.get(ssrc) != nil || small.add(ssrc) == nil {
			t.Fatalf("%d refused", ssrc)
		}
	}
	if small.get(10) != nil || small.add(10) != nil {
		t.Error("something was forgotten that may come back")
	}
}

// The window against an obvious one: a set of all indexes seen.
func TestWindowProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s stream
		seen := map[uint64]bool{}
		base := rapid.Uint64Range(0, 1<<20).Draw(t, "base")
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			index := base + rapid.Uint64Range(0, 3000).Draw(t, "offset")
			fresh := s.fresh(index)
			if fresh && seen[index] {
				t.Fatalf("%d is taken for fresh again", index)
			}
			if !fresh && !seen[index] && s.highest-index < windowBits-64 {
				t.Fatalf("%d is refused, highest is %d", index, s.highest)
			}
			if fresh {
				s.take(index)
				seen[index] = true
			}
			if rapid.Bool().Draw(t, "move") {
				base += rapid.Uint64Range(0, 2000).Draw(t, "step")
			}
		}
	})
}

func TestGuess(t *testing.T) {
	for _, test := range []struct {
		highest uint64
		seq     uint16
		want    uint64
	}{
		{5, 6, 6},
		{5, 65530, ^uint64(0)},
		{65535, 0, 65536},
		{65536, 65535, 65535},
		{1<<16 + 10, 9, 1<<16 + 9},
		{3<<16 + 40000, 5, 4<<16 + 5},
		{3<<16 + 5, 40000, 2<<16 + 40000},
	} {
		s := stream{started: true, highest: test.highest}
		if got := s.guess(test.seq); got != test.want {
			t.Errorf("guess(%d) after %d: %d, want %d", test.seq, test.highest, got, test.want)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s, _ := pair(f, AES128GCM)
	b, _ := s.RTP(nil, header(1, 2), []byte("payload"))
	f.Add(b)
	b, _ = s.RTCP(nil, []byte{0x80, 201, 0, 1, 0, 0, 0, 7})
	f.Add(b)
	f.Add([]byte{0x9f, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe, 0xde, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range profiles {
			_, o := pair(t, p)
			if got, err := o.RTP(bytes.Clone(b)); err == nil && headerBytes(got) == 0 {
				t.Error("an opened packet without a header")
			}
			_, _ = o.RTCP(bytes.Clone(b))
		}
		if n := headerBytes(b); n > 0 {
			var h rtp.Header
			if m, err := h.Unmarshal(b); err == nil && m != n {
				t.Errorf("header of %d bytes, the oracle says %d", n, m)
			}
		}
	})
}

func TestSRTPAllocations(t *testing.T) {
	for _, p := range profiles {
		s, o := pair(t, p)
		h, payload := header(0, 7), make([]byte, 1100)
		dst := make([]byte, 0, 1500)
		seq := uint16(0)
		n := testing.AllocsPerRun(2000, func() {
			seq++
			binary.BigEndian.PutUint16(h[2:], seq)
			b, err := s.RTP(dst, h, payload)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.RTP(b); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations to seal and open RTP", p, n)
		}
		report := make([]byte, 64)
		report[0], report[1] = 0x80, 201
		n = testing.AllocsPerRun(2000, func() {
			b, err := s.RTCP(dst, report)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := o.RTCP(b); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%v: %v allocations to seal and open RTCP", p, n)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, p := range profiles {
		for _, size := range []int{100, 1100} {
			name := p.String() + "/" + map[int]string{100: "audio", 1100: "video"}[size]
			b.Run(name+"/ours", func(b *testing.B) {
				s, _ := pair(b, p)
				h, payload, dst := header(0, 7), make([]byte, size), make([]byte, 0, 1500)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					binary.BigEndian.PutUint16(h[2:], uint16(i))
					if _, err := s.RTP(dst, h, payload); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(name+"/pion", func(b *testing.B) {
				c := oracle(b, p)
				clear, dst := append(header(0, 7), make([]byte, size)...), make([]byte, 0, 1500)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					binary.BigEndian.PutUint16(clear[2:], uint16(i))
					if _, err := c.EncryptRTP(dst, clear, nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
