package udp

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"plenum/bridge/packet"
)

// RTCP arrives beside, everything else where it did, and each SSRC at one socket.
func TestSplit(t *testing.T) {
	for _, n := range []int{1, 3} {
		media := listen(t, loopbacks[0], n)
		feedback, err := Split(media)
		if err != nil {
			t.Skip(err) // an old kernel
		}
		for _, s := range feedback {
			defer s.Close()
		}
		if _, err := Listen(media[0].Local(), 1); !errors.Is(err, ErrInUse) {
			t.Errorf("second bind: %v", err)
		}
		all := append(append([]*Socket(nil), media...), feedback...)
		from := listen(t, loopbacks[0], 1)[0]
		want := 0
		send := func(second byte, ssrc uint32) {
			b := make([]byte, 40)
			b[0], b[1] = 0x80, second
			binary.BigEndian.PutUint32(b[8:], ssrc)
			if second >= 192 && second <= 223 {
				binary.BigEndian.PutUint32(b[4:], ssrc)
			}
			if err := from.SendTo(b, media[0].Local()); err != nil {
				t.Fatal(err)
			}
			want++
		}
		for ssrc := range uint32(20) {
			for _, second := range []byte{0, 1, 100, 111, 100 | 0x80, 191, 192, 200, 205, 223, 224, 254} {
				send(second, ssrc)
			}
		}
		if err := from.SendTo([]byte{22}, media[0].Local()); err != nil { // too short to say what it is
			t.Fatal(err)
		}
		want++
		at := map[uint32]int{}
		got := 0
		for i, s := range all {
			batch := new(packet.Batch)
			r := NewReader(batch)
			for {
				count, err := r.Read(s, 0)
				if err != nil {
					t.Fatal(err)
				}
				if count == 0 {
					break
				}
				got += count
				for _, b := range batch.Bufs[:count] {
					if len(b.Data) < 12 {
						continue
					}
					rtcp := b.Data[1] >= 192 && b.Data[1] <= 223
					if rtcp != (i >= n) {
						t.Errorf("%d of %d: second byte %d came to socket %d", n, n, b.Data[1], i)
					}
					ssrc := binary.BigEndian.Uint32(b.Data[8:])
					if old, ok := at[ssrc]; ok && old != i%n {
						t.Errorf("SSRC %d came to sockets %d and %d", ssrc, old, i%n)
					}
					at[ssrc] = i % n
				}
			}
		}
		if got != want {
			t.Errorf("%d of %d arrived", got, want)
		}
	}
}

func TestWatch(t *testing.T) {
	s := listen(t, loopbacks[0], 1)
	p, err := NewPoller(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := s[0].SendTo([]byte("x"), s[0].Local()); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{false, true, false} {
		if err := p.Watch(s[0], 0, on); err != nil {
			t.Fatal(err)
		}
		ready, err := p.Wait(10 * time.Millisecond)
		if err != nil || (len(ready) == 1) != on {
			t.Errorf("watched %v: ready %v, %v", on, ready, err)
		}
	}
}
