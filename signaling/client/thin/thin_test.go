//go:build linux

package thin

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/srtp/v3"
	"go.uber.org/goleak"
)

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// start runs an engine until the test ends.
func start(t *testing.T, cfg Config) *Engine {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	cfg.CPU = -1
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { e.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		goleak.VerifyNone(t, ignore)
	})
	return e
}

// Two participants with each other's keys: everything that one sends is counted, opened and timed at the other.
func TestParticipants(t *testing.T) {
	for _, gro := range []bool{false, true} {
		e := start(t, Config{GRO: gro})
		var p [2]*Participant
		for i := range p {
			var err error
			if p[i], err = e.NewParticipant(); err != nil {
				t.Fatal(err)
			}
		}
		k := [2]Key{{fill(16, 1), fill(12, 2)}, {fill(16, 3), fill(12, 4)}}
		if err := p[0].Publish(Publish{Audio: true}); err != ErrNotConnected {
			t.Errorf("published nowhere: %v", err)
		}
		for i := range p {
			if err := p[i].Keys(p[1-i].Local(), k[i], k[1-i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := p[0].Publish(Publish{Audio: true, Video: 1_500_000, Seed: 7}); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		var c Count
		for c = e.Count(); c.Packets < 300; c = e.Count() {
			if time.Now().After(deadline) {
				t.Fatalf("%+v", c)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if c.Lost != 0 || c.Bad != 0 || c.Opened < c.Packets/40 || c.Streams != 2 || c.Senders != 1 {
			t.Errorf("%+v", c)
		}
		if c.Audio.Max == 0 || c.Video.P50 == 0 || c.Video.P50 > 10*time.Second {
			t.Errorf("delays %+v", c)
		}
		e.Reset()
		if c := e.Count(); c.Packets > 100 || c.Sent > 100 {
			t.Errorf("after Reset: %+v", c)
		}
		// What never comes is counted as lost.
		p[0].e.publishing.Lock()
		p[0].e.tracks[1].seq += 10
		p[0].e.publishing.Unlock()
		for c = e.Count(); c.Lost != 10; c = e.Count() {
			if time.Now().After(deadline) {
				t.Fatalf("%+v", c)
			}
			time.Sleep(10 * time.Millisecond)
		}
		p[1].Close()
	}
}

// Sealed packets are those of an independent implementation.
func TestSRTP(t *testing.T) {
	key, salt := fill(16, 1), fill(12, 2)
	other, err := srtp.CreateContext(key, salt, srtp.ProtectionProfileAeadAes128Gcm)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]*crypt
	for i, label := range []byte{0, 3} {
		k, err := derive(key, salt, label)
		if err != nil {
			t.Fatal(err)
		}
		if c[i], err = newCrypt(k); err != nil {
			t.Fatal(err)
		}
	}
	plain := append([]byte{0x80, 111, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9}, "hello"...)
	sealed := c[0].sealRTP(append(make([]byte, 0, 100), plain...), 12, 5)
	if got, err := other.DecryptRTP(nil, sealed, nil); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("RTP: %x, %v", got, err)
	}
	if got, err := c[0].openRTP(sealed, 12, 5); err != nil || string(got) != "hello" {
		t.Errorf("RTP: %q, %v", got, err)
	}
	report := []byte{0x80, 201, 0, 1, 0, 0, 0, 9}
	report = append(report, 0x81, 206, 0, 2, 0, 0, 0, 9, 0, 0, 0, 1)
	out := c[1].sealRTCP(nil, report)
	if got, err := other.DecryptRTCP(nil, out, nil); err != nil || !bytes.Equal(got, report) {
		t.Errorf("RTCP: %x, %v", got, err)
	}
	if got := c[1].openRTCP(out); !bytes.Equal(got, report) {
		t.Errorf("RTCP: %x", got)
	}
	if c[1].openRTCP(out) != nil {
		t.Error("an opened packet opens again")
	}
}

// An independent parser reads the feedback: which numbers came, and when.
func TestFeedback(t *testing.T) {
	var a arrivals
	var want []int64 // µs, by number from 65530 on; -1: lost
	now := int64(1_700_000_000_000_000)
	for i := range 40 {
		now += 700
		if i == 20 {
			now += 200_000
		}
		if i%7 == 3 {
			want = append(want, -1)
			continue
		}
		a.add(uint16(65530+i), now)
		want = append(want, now)
	}
	a.add(65529, now) // was before the beginning
	var p rtcp.TransportLayerCC
	b := a.feedback(nil, 1, 2)
	if err := p.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	if p.SenderSSRC != 1 || p.MediaSSRC != 2 || p.BaseSequenceNumber != 65530 || p.PacketStatusCount != 40 {
		t.Fatalf("%+v", p)
	}
	at := int64(p.ReferenceTime) * 64000
	var symbols []uint16
	for _, c := range p.PacketChunks {
		symbols = append(symbols, c.(*rtcp.StatusVectorChunk).SymbolList...)
	}
	deltas := p.RecvDeltas
	for i, w := range want {
		if w < 0 {
			if symbols[i] != 0 {
				t.Errorf("%d came", i)
			}
			continue
		}
		at += deltas[0].Delta
		deltas = deltas[1:]
		if d := at - w%(1<<24*64000); d > 0 || d < -250 {
			t.Errorf("%d came %d µs off", i, d)
		}
	}
	if b := a.feedback(nil, 1, 2); len(b) != 0 {
		t.Errorf("feedback about nothing: %x", b)
	}
}

// Receiver reports say what is missing, since the last and in all.
func TestReport(t *testing.T) {
	var s stream
	for seq := range uint16(100) {
		if seq%4 != 1 {
			s.arrive(seq+65500, 1)
		}
	}
	r := s.report(nil, 5)
	if ssrc, lost, total := binary.BigEndian.Uint32(r), r[4], binary.BigEndian.Uint32(r[4:])&0xffffff; ssrc != 5 || lost != 64 || total != 25 {
		t.Errorf("%d: %d/256, %d", ssrc, lost, total)
	}
	if s.lost() != 25 {
		t.Error(s.lost())
	}
	s.reset()
	if s.lost() != 0 || s.arrive((65500+100)&0xffff, 1) != 65600 {
		t.Errorf("%+v", s)
	}
	if r = s.report(nil, 5); r[4] != 0 || r[7] != 25 {
		t.Errorf("second report %x", r)
	}
}

func TestTransportSeq(t *testing.T) {
	for _, h := range [][]byte{
		{0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xbe, 0xde, 0, 2, 0x32, 1, 2, 3, 0x51, 7, 9, 0},
		{0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 2, 3, 1, 9, 0, 5, 2, 7, 9},
	} {
		if seq, ok := transportSeq(h, headerBytes(h)); !ok || seq != 0x709 {
			t.Errorf("%x: %x", h, seq)
		}
	}
	if _, ok := transportSeq([]byte{0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 12); ok {
		t.Error("found what is not there")
	}
}

// Whatever a bridge sends must not end a load.
func FuzzTake(f *testing.F) {
	f.Add([]byte{0x90, 111, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9, 0xbe, 0xde, 0, 1, 0x51, 7, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17})
	f.Add([]byte{0x80, 200, 0, 6, 0, 0, 0, 1})
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	e, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	p, err := e.NewParticipant()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(p.Close)
	k := Key{fill(16, 1), fill(12, 2)}
	if err := p.Keys(p.Local(), k, k); err != nil {
		f.Fatal(err)
	}
	p.feedback, p.rtcpIn = true, p.in
	f.Fuzz(func(_ *testing.T, b []byte) {
		p.take(bytes.Clone(b), 1)
		p.control(b)
	})
}
