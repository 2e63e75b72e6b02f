package edge

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVarint(t *testing.T) {
	for _, v := range []uint64{0, 1, 239, 240, 241, 2287, 2288, 264431, 264432, 33818863, 1 << 40, 1<<63 + 5} {
		b := appendVarint(nil, v)
		d := decoder{b: b}
		if got := d.varint(); got != v || d.failed || len(d.b) != 0 {
			t.Errorf("%d: % x reads as %d, %d bytes left", v, b, got, len(d.b))
		}
	}
	// From HAProxy's own description: 240 begins the second byte, 2288 the third.
	for v, size := range map[uint64]int{239: 1, 240: 2, 2287: 2, 2288: 3, 264431: 3, 264432: 4} {
		if n := len(appendVarint(nil, v)); n != size {
			t.Errorf("%d takes %d bytes, want %d", v, n, size)
		}
	}
}

func TestMessages(t *testing.T) {
	b := append(appendText(nil, "place"), 3)
	b = appendValue(appendText(b, "path"), "/quiet")
	b = append(appendText(b, "src"), typeIPv4, 192, 0, 2, 1)
	b = append(appendText(b, "query"), typeNull)
	got, err := parseMessages(b)
	want := []message{{"place", map[string]string{"path": "/quiet"}}}
	if err != nil || !cmp.Equal(got, want, cmp.AllowUnexported(message{})) {
		t.Errorf("got %v, %v", got, err)
	}
	for n := 1; n < len(b); n++ {
		if _, err := parseMessages(b[:n]); err == nil {
			t.Errorf("cut after %d of %d bytes: no error", n, len(b))
		}
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(frame{kind: haproxyHello, payload: appendHello(nil)}.append(nil))
	f.Add(frame{kind: haproxyNotify, stream: 5, frame: 1, payload: appendValue(appendText(append(appendText(nil, "place"), 1), "path"), "/a")}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := readFrame(bytes.NewReader(b), make([]byte, maxFrame))
		if err != nil {
			return
		}
		again, err := readFrame(bytes.NewReader(in.append(nil)), make([]byte, maxFrame))
		if err != nil || again.kind != in.kind || again.stream != in.stream || again.frame != in.frame || !bytes.Equal(again.payload, in.payload) {
			t.Errorf("%+v reads again as %+v, %v", in, again, err)
		}
		_, _ = parseMessages(in.payload)
	})
}
