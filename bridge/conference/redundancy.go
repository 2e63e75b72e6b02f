package conference

import (
	"time"

	"plenum/bridge/codec"
	"plenum/bridge/project"
)

const (
	// A source's redundant audio is taken apart after so many packets that were what they seem: what is encrypted end
	// to end is none of our business, and does not look like it for long.
	redSure = 20
	// Redundancy goes to receivers that lose more than redFrom, and for redFor after.
	redFrom = 0.01
	redFor  = 10 * time.Second
)

// redundancy is what is known of one source's redundant audio (RFC 2198).
type redundancy struct {
	seen   int
	opaque bool // some packet was not what it should be: none is taken apart any more
}

// read looks at a packet of redundant audio of e, and notes in it what a receiver without need for redundancy gets.
func (r *redundancy) read(e *Endpoint, p *project.Packet) {
	if r.opaque {
		return
	}
	pt, plain, ok := codec.Primary(p.RTP.Payload)
	if !ok || pt > 127 || e.formats[pt].codec != codec.Opus || !codec.RedundancyOf(p.RTP.Payload, pt) {
		r.opaque = true
		return
	}
	if r.seen < redSure {
		r.seen++
		return
	}
	if len(plain) > 0 {
		p.Plain, p.PlainPT = plain, pt
	}
}

// redundant reports whether the endpoint gets redundant audio as it came: it must know the format, and lose something. Of
// one of whom nothing is known it is not said that it does not.
func (e *Endpoint) redundant(p *project.Packet) bool {
	if e.formats[p.RTP.PT()].codec != codec.RED {
		return false
	}
	d := &e.down
	if d.est == nil || !d.est.Known() {
		return true
	}
	if d.est.Loss() > redFrom {
		d.lossy = p.Arrival
	}
	return !d.lossy.IsZero() && p.Arrival.Sub(d.lossy) < redFor
}
