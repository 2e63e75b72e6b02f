package peer

import (
	"time"

	"github.com/pion/rtcp"
)

const (
	tccEvery    = 100 * time.Millisecond
	reportEvery = time.Second
	bridgeOwner = "jvb" // its own sources carry probing only
)

// feedback returns the RTCP that is due, each a compound that begins with a receiver report.
func (p *Peer) feedback(now time.Time) [][]rtcp.Packet {
	l := p.cfg.Ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	in := &p.in
	var out []rtcp.Packet
	report := &rtcp.ReceiverReport{SSRC: in.ssrc}
	if now.Sub(in.reports) >= reportEvery {
		in.reports = now
		for _, s := range in.streams {
			if r, ok := s.reception(now); ok && len(report.Reports) < 31 {
				report.Reports = append(report.Reports, r)
			}
		}
	}
	for _, s := range in.streams {
		if s.video == nil || s.of != nil {
			continue
		}
		s.video.advance(s.rec, now)
		if s.rec.Source.Owner == bridgeOwner {
			continue
		}
		if seqs := s.video.lost(now); len(seqs) > 0 {
			in.nacks += uint64(len(seqs))
			out = append(out, &rtcp.TransportLayerNack{
				SenderSSRC: in.ssrc, MediaSSRC: s.ssrc, Nacks: rtcp.NackPairsFromSequenceNumbers(seqs),
			})
		}
		if s.started && now.Sub(s.lastAt) < pliEvery && s.video.pictureLost(now) {
			in.plis++
			out = append(out, &rtcp.PictureLossIndication{SenderSSRC: in.ssrc, MediaSSRC: s.ssrc})
		}
	}
	if in.tcc && now.Sub(in.tccLast) >= tccEvery {
		in.tcc, in.tccLast = false, now
		in.tccSent++
		out = append(out, in.arrivals.BuildFeedbackPacket()...)
	}
	if len(out) == 0 && len(report.Reports) == 0 {
		return nil
	}
	return [][]rtcp.Packet{append([]rtcp.Packet{report}, out...)}
}

// reception is the report block of one stream (RFC 3550 section 6.4.1); ok is false when nothing came
// since the last one.
func (s *stream) reception(now time.Time) (rtcp.ReceptionReport, bool) {
	if !s.started || s.received == s.priorRec {
		return rtcp.ReceptionReport{}, false
	}
	expected := s.highest - s.first + 1
	lost := expected - s.received
	interval := expected - s.priorExp
	fraction := int64(0)
	if gone := interval - (s.received - s.priorRec); gone > 0 && interval > 0 {
		fraction = gone << 8 / interval
	}
	s.priorExp, s.priorRec = expected, s.received
	r := rtcp.ReceptionReport{
		SSRC: s.ssrc, FractionLost: uint8(min(fraction, 255)), TotalLost: uint32(min(max(lost, 0), 0x7fffff)),
		LastSequenceNumber: uint32(s.highest), Jitter: uint32(s.jitter),
	}
	if !s.srAt.IsZero() {
		r.LastSenderReport = s.srNTP
		r.Delay = uint32(now.Sub(s.srAt) * 65536 / time.Second)
	}
	return r, true
}
