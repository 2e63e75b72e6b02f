package conference

import "plenum/bridge/project"

// level makes the packets of a frame equally long, so that each receiver's can be one segmented send. Encoders cut
// a frame into equal parts that differ by the byte of a remainder; the shorter ones get one byte of RTP padding
// (RFC 3550 §5.1), in the room that the authentication tag has left behind them. The last packet of a frame may be
// shorter anyway. Histories have the packets as they came.
func level(batch []project.Packet) {
	for i := 0; i < len(batch); {
		longest, end := 0, i
		for ; end < len(batch) && sameFrame(&batch[i], &batch[end]); end++ {
			longest = max(longest, len(batch[end].RTP.Payload))
		}
		for ; i < end-1; i++ {
			r := &batch[i].RTP
			n := len(r.Data)
			if len(r.Payload) != longest-1 || len(r.Header)+len(r.Payload) != n || cap(r.Data) == n {
				continue
			}
			r.Data[: n+1 : n+1][n] = 1
			batch[i].Padded = true
		}
		i = end
	}
}

func sameFrame(a, b *project.Packet) bool {
	return a.Encoding == b.Encoding && a.RTP.Timestamp() == b.RTP.Timestamp()
}
