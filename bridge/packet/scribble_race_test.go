//go:build race

package packet

import (
	"bytes"
	"testing"
)

// What was released is not there any more: in a batch that has been handled, and in an outbox that was sent.
func TestScribble(t *testing.T) {
	gone := bytes.Repeat([]byte{0xdb}, 4)
	var batch Batch
	batch.N = 2
	for i := range 3 {
		b := &batch.Bufs[i]
		b.Data = append(b.Space()[:0], 1, 2, 3, 4)
	}
	batch.Release()
	if a, b, c := batch.Bufs[0].Data, batch.Bufs[1].Data, batch.Bufs[2].Data; !bytes.Equal(a, gone) || !bytes.Equal(b, gone) || bytes.Equal(c, gone) {
		t.Errorf("a batch of two leaves %x, %x and %x", a, b, c)
	}
	var out Outbox
	out.Commit(Path{}, append(out.Reserve(4), 1, 2, 3, 4))
	data := out.Datagrams[0].Data
	out.Reset()
	if !bytes.Equal(data, gone) {
		t.Errorf("an outbox leaves %x", data)
	}
}
