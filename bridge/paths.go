package bridge

import (
	"time"

	"plenum/bridge/conference"
	"plenum/wire/colibri"
)

const (
	// tellEvery is how often a client hears what its way from the bridge carries.
	tellEvery = 10 * time.Second
	// lossy is the share of lost packets from which an endpoint counts as having a bad connection.
	lossy = 0.1
)

// paths sums up the ways to endpoints.
type paths struct {
	Known, Lossy int
	Loss         float64       // sum of shares
	RTT          time.Duration // sum
}

func (p *paths) add(q paths) {
	p.Known += q.Known
	p.Lossy += q.Lossy
	p.Loss += q.Loss
	p.RTT += q.RTT
}

func (p paths) loss() float64 { return p.Loss / float64(max(1, p.Known)) }

// rtt is in milliseconds.
func (p paths) rtt() float64 { return p.RTT.Seconds() * 1000 / float64(max(1, p.Known)) }

// lossOverall weighs the loss of both directions by their packets.
func (s *snapshot) lossOverall() float64 {
	if all := s.PacketRateIn + s.PacketRateOut; all > 0 {
		return (s.LossIn*s.PacketRateIn + s.Paths.loss()*s.PacketRateOut) / all
	}
	return 0
}

// lookAtPaths sums up the ways to the conference's endpoints, and tells these now and then. It runs on the core.
func (l *live) lookAtPaths(now time.Time) {
	var sum paths
	tell := now.Sub(l.told) >= tellEvery
	if tell {
		l.told = now
	}
	l.conf.Paths(func(id conference.EndpointID, p conference.Path) {
		sum.Known++
		sum.Loss += p.Loss
		sum.RTT += p.RTT
		if p.Loss > lossy {
			sum.Lossy++
		}
		if tell {
			l.tell(id, colibri.ConnectionStats{EstimatedDownlinkBandwidth: p.Bitrate})
		}
	})
	l.paths.Store(&sum)
}
