package transport

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"plenum/bridge/packet"
	"plenum/bridge/udp"
)

// BenchmarkForward is what this package and udp cost for one packet to each of n receivers: opened once, sealed
// n times, sent in runs of six packets, one video frame, to each.
func BenchmarkForward(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			sockets, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), 1)
			if err != nil {
				b.Fatal(err)
			}
			defer sockets[0].Close()
			var sinks [2]*udp.Socket // two, so that no run is longer than a frame
			for i := range sinks {
				s, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), 1)
				if err != nil {
					b.Fatal(err)
				}
				defer s[0].Close()
				sinks[i] = s[0]
			}
			reader := udp.NewReader(new(packet.Batch))
			from := newBench(b)
			legs := make([]*bench, n)
			var out packet.Outbox
			for i := range legs {
				legs[i] = newBench(b)
				legs[i].cfg.Outbox = &out
				legs[i].Transport.path.Remote = sinks[i%2].Local()
			}
			sender := udp.NewSender()
			var burst [6]packet.Buf
			payload, h := make([]byte, 1100), header(0, 7)
			seq := uint16(0)
			b.ReportAllocs()
			for b.Loop() {
				for i := range burst {
					seq++
					binary.BigEndian.PutUint16(h[2:], seq)
					burst[i].Path = from.path
					burst[i].Data, err = from.sealer.RTP(burst[i].Space()[:0], h, payload)
					if err != nil {
						b.Fatal(err)
					}
					if k := from.Receive(&burst[i], from.now); k != RTP {
						b.Fatal(k)
					}
				}
				for _, l := range legs {
					for i := range burst {
						l.SendRTP(burst[i].Data[:12], burst[i].Data[12:])
					}
				}
				sender.Flush(&out, sockets)
				for _, s := range sinks { // part of the figure: loopback's receivers are ours
					for n := 1; n > 0; {
						if n, err = reader.Read(s, 0); err != nil {
							b.Fatal(err)
						}
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n*len(burst)), "ns/forwarded")
			b.ReportMetric(float64(sender.Datagrams)/float64(sender.Messages), "datagrams/send")
		})
	}
}
