package conference

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"plenum/bridge/packet"
)

type noLeg struct{ n int }

func (l *noLeg) SendRTP(header, payload []byte) { l.n++ }
func (l *noLeg) SendRTCP([]byte)                {}

// sealLeg does what a transport does at least: AEAD_AES_128_GCM into an arena.
type sealLeg struct {
	aead  cipher.AEAD
	nonce [12]byte
	arena []byte
	n     int
}

func newSealLeg() *sealLeg {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &sealLeg{aead: aead, arena: make([]byte, 0, 64<<10)}
}

func (l *sealLeg) SendRTP(header, payload []byte) {
	l.n++
	if cap(l.arena)-len(l.arena) < 2000 {
		l.arena = l.arena[:0]
	}
	binary.BigEndian.PutUint64(l.nonce[4:], uint64(l.n))
	at := len(l.arena)
	out := append(l.arena, header...)
	l.arena = l.aead.Seal(out, l.nonce[:], payload, out[at:])
}
func (l *sealLeg) SendRTCP([]byte) {}

// oneToMany is a conference of one sender and n receivers that get its camera at 720p and its microphone.
func oneToMany(t testing.TB, n int, leg func() Leg) (*room, *client) {
	r := newRoom(t)
	alice := r.joinWith("alice", &noLeg{}, true)
	for i := range n {
		r.joinWith(EndpointID(fmt.Sprint("r", i)), leg(), true)
	}
	for e := range r.c.Endpoints() {
		e.SetConstraints(want(720), r.now)
	}
	// A first second: slots, key frames, histories.
	for i := range 60 {
		r.pass(33 * time.Millisecond)
		alice.frame(2, 6, i%20 == 0) // more than one key frame, for allocation goes by parts
		alice.audio(30)
		r.flush()
	}
	return r, alice
}

// load fills bufs with one frame of six packets and an audio packet.
func load(c *client, bufs []packet.Buf) {
	for i := range 6 {
		b := c.videoPacket(2, i == 0, i == 5, false, 1042)
		bufs[i].Data = append(bufs[i].Space()[:0], b...)
	}
	b := c.audioPacket(30, 200)
	bufs[6].Data = append(bufs[6].Space()[:0], b...)
}

func benchmarkForward(b *testing.B, leg func() Leg) {
	r, alice := oneToMany(b, 100, leg)
	bufs := make([]packet.Buf, 7)
	b.ReportAllocs()
	sent := r.c.stats.PacketsOut
	for b.Loop() {
		b.StopTimer()
		load(alice, bufs)
		r.now = r.now.Add(33 * time.Millisecond)
		b.StartTimer()
		for i := range bufs {
			alice.e.ReceiveRTP(&bufs[i], r.now)
		}
		r.c.Flush(r.now)
	}
	n := r.c.stats.PacketsOut - sent
	if n != uint64(b.N)*700 {
		b.Fatalf("%d packets for %d batches", n, b.N)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
}

func BenchmarkForward(b *testing.B) {
	b.Run("projected", func(b *testing.B) { benchmarkForward(b, func() Leg { return &noLeg{} }) })
	b.Run("sealed", func(b *testing.B) { benchmarkForward(b, func() Leg { return newSealLeg() }) })
}

func TestForwardDoesNotAllocate(t *testing.T) {
	r, alice := oneToMany(t, 20, func() Leg { return &noLeg{} })
	bufs := make([]packet.Buf, 7)
	sent := r.c.stats.PacketsOut
	if n := testing.AllocsPerRun(200, func() {
		r.now = r.now.Add(33 * time.Millisecond)
		for i := range 6 {
			alice.write(&bufs[i], 2, i == 0, i == 5)
		}
		alice.writeAudio(&bufs[6], 30)
		for i := range bufs {
			alice.e.ReceiveRTP(&bufs[i], r.now)
		}
		r.c.Flush(r.now)
		r.c.Tick(r.now)
	}); n != 0 {
		t.Errorf("a batch allocates %v times", n)
	}
	if got := r.c.stats.PacketsOut - sent; got != 201*7*20 {
		t.Errorf("%d packets went out", got)
	}
}

// Everybody of 500 wants everybody; one operation is one round for all of them.
func BenchmarkAllocate(b *testing.B) {
	r := newRoom(b)
	var all []*client
	for i := range 500 {
		r.now = r.now.Add(20 * time.Millisecond)
		c := r.joinWith(EndpointID(fmt.Sprint("e", i)), &noLeg{}, true)
		c.e.SetConstraints(want(180), r.now)
		all = append(all, c)
	}
	for _, c := range all[:40] {
		c.frame(0, 2, true)
		r.flush()
	}
	r.log = nil
	b.ReportAllocs()
	for b.Loop() {
		r.c.allocate(r.c.order, r.now)
	}
}
