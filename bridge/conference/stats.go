package conference

import "time"

// Stats returns the counters and what is in the conference now, without details.
func (c *Conference) Stats() Stats {
	s := c.stats
	s.Endpoints = len(c.order)
	for _, e := range c.order {
		speaks, shows := false, false
		for _, src := range e.sources {
			if src.kind == Audio {
				s.AudioSources++
				speaks = speaks || c.lastMedia.Sub(src.spoke) < time.Second
				continue
			}
			s.VideoSources++
			for _, enc := range src.encodings {
				shows = shows || enc.active
				expected, received := enc.stream.Counts()
				s.ExpectedIn += expected
				if expected > received {
					s.LostIn += expected - received
				}
			}
		}
		if speaks {
			s.AudioSpeakers++
		}
		if shows {
			s.VideoSenders++
		}
	}
	return s
}

// Snapshot is Stats with details for a debug page.
func (c *Conference) Snapshot(now time.Time) Stats {
	s := c.Stats()
	for _, e := range c.order {
		d := EndpointStats{
			ID: e.id, Active: !e.inactive,
			PacketsIn: e.packetsIn, BytesIn: e.bytesIn, PacketsOut: e.packetsOut, BytesOut: e.bytesOut,
		}
		for _, src := range e.sources {
			ss := SourceStats{Name: src.name, Receivers: len(src.takers), MaxHeight: src.maxHeight()}
			for _, enc := range src.encodings {
				ss.Bitrates, ss.Heights = append(ss.Bitrates, enc.bps(now)), append(ss.Heights, enc.heights[enc.spatial-1])
			}
			d.Sources = append(d.Sources, ss)
		}
		if w := &e.down; w.est != nil {
			d.Estimate, d.Limit, d.Taken, d.Ideal, d.Beside = w.est.Stats(), w.limit, w.taken, w.ideal, w.beside.BPS(now)
			d.Waiting, d.WaitingBytes = w.pace.Waiting()
			d.PaceDelay, d.Changes = w.pace.Delay(), w.changes
		}
		for _, o := range e.outputs {
			if o.source == nil {
				continue
			}
			f := ForwardedStats{
				Source: o.name, SSRC: o.ssrc, Encoding: o.stream.Current(), Packets: uint64(o.packets), Waiting: o.stream.Waiting(),
			}
			f.Target, f.Layer = o.stream.Target()
			for _, l := range o.source.layers {
				if l.Index == e.layer(o.source) {
					f.Height, f.Bitrate = l.Height, l.Bitrate
				}
			}
			d.Forwarded = append(d.Forwarded, f)
		}
		s.Details = append(s.Details, d)
	}
	return s
}
