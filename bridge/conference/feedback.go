package conference

import (
	"time"

	"plenum/bridge/packet"
)

// ReceiveRTCP takes one decrypted compound from the endpoint. It ends here, save that what a receiver asks for is
// asked of the sender, and sender reports are passed on, mapped.
func (e *Endpoint) ReceiveRTCP(b []byte, now time.Time) {
	c := e.c
	e.heard = now
	if !e.mayReport(now) {
		c.stats.RTCPDropped++
		return
	}
	for {
		p, rest, ok := packet.NextRTCP(b)
		if !ok {
			return
		}
		b = rest
		switch p.Type {
		case packet.TypeSR:
			if sr, ok := p.SenderInfo(); ok {
				e.senderReport(sr, now)
			}
		case packet.TypePSF:
			switch p.Format {
			case packet.FormatPLI:
				c.keyAsked(e.outputs[p.Media()], now)
			case packet.FormatFIR:
				p.FIRs(func(ssrc uint32) { c.keyAsked(e.outputs[ssrc], now) })
			case packet.FormatREMB:
				if bps, ok := p.REMB(); ok && e.down.est != nil {
					e.down.est.REMB(bps, now)
					e.rebudget(now)
				}
			}
		case packet.TypeRTPF:
			switch p.Format {
			case packet.FormatNACK:
				e.answer(e.outputs[p.Media()], p.NACKs(), now)
			case packet.FormatTransportCC:
				d := &e.down
				back := d.est != nil && d.est.Silent()
				if d.est == nil || !d.est.Feedback(p.Body, now) {
					c.stats.BogusFeedback++
					continue
				}
				if back { // pictures need not wait any more than on a new connection
					d.since, d.patient = now, 0
				}
				e.rebudget(now)
			}
		}
	}
}

const (
	// The compounds that one endpoint may send in a burst, and per second. A browser sends some fifty.
	rtcpBurst  = 400
	rtcpPerSec = 800
)

// mayReport bounds the work that one endpoint can make.
func (e *Endpoint) mayReport(now time.Time) bool {
	if spent := now.Sub(e.rtcpFilled); spent > 0 {
		if n := int(min(spent, time.Second) * rtcpPerSec / time.Second); n > 0 {
			e.rtcpBudget = min(rtcpBurst, e.rtcpBudget+n)
			e.rtcpFilled = now
		}
	}
	if e.rtcpBudget == 0 {
		return false
	}
	e.rtcpBudget--
	return true
}

// senderReport notes a sender report and passes it to everybody who gets that encoding.
func (e *Endpoint) senderReport(sr packet.SenderInfo, now time.Time) {
	s, ok := e.streams[sr.SSRC]
	if !ok || s.rtx {
		return
	}
	s.source.encodings[s.encoding].stream.SenderReport(sr, now)
	for _, o := range s.source.takers {
		if o.stream.Current() == s.encoding {
			o.report(now)
		}
	}
}

func (c *Conference) keyAsked(o *output, now time.Time) {
	c.stats.PLIsIn++
	if o == nil || o.source == nil || o.kind != Video {
		return
	}
	encoding := o.stream.Current()
	if encoding < 0 || o.stream.Waiting() {
		encoding, _ = o.stream.Target()
	}
	o.source.keys.Ask(max(encoding, 0))
	c.askKey(o.source, now)
}

// answer retransmits what a NACK names.
func (e *Endpoint) answer(o *output, entries []byte, now time.Time) {
	if o == nil || o.kind != Video {
		return
	}
	if spent := now.Sub(e.rtxFilled); spent > 0 {
		e.rtxBudget = min(rtxBurst, e.rtxBudget+int(min(spent, time.Second)*rtxPerSec/time.Second))
		e.rtxFilled = now
	}
	for len(entries) >= 4 {
		seq, mask, rest := packet.NACKEntry(entries)
		entries = rest
		e.c.stats.NACKsIn++
		o.resend(seq, now)
		for i := uint16(1); mask != 0; i, mask = i+1, mask>>1 {
			if mask&1 != 0 {
				e.c.stats.NACKsIn++
				o.resend(seq+i, now)
			}
		}
	}
}

func (c *Conference) sendFeedback(e *Endpoint, now time.Time) {
	if !e.feedback.Due(now) {
		return
	}
	for e.feedback.Pending() {
		if b := e.feedback.Append(c.scratch.rtcp[:0], c.cfg.VideoSSRC, now); len(b) > 0 {
			e.leg.SendRTCP(b)
		}
	}
}

// sendReports sends an endpoint the reception reports of what it sends.
func (c *Conference) sendReports(e *Endpoint, now time.Time) {
	reports := c.scratch.reports[:0]
	for _, src := range e.sources {
		for _, enc := range src.encodings {
			if r, ok := enc.stream.Report(now); ok {
				reports = append(reports, r)
			}
		}
	}
	c.scratch.reports = reports
	for len(reports) > 0 {
		n := min(len(reports), packet.MaxReports)
		e.leg.SendRTCP(packet.AppendRR(c.scratch.rtcp[:0], c.cfg.VideoSSRC, reports[:n]))
		reports = reports[n:]
	}
}
