package conference

import (
	"time"

	"plenum/bridge/estimate"
)

// A Path is what is known of the way to one endpoint.
type Path struct {
	Bitrate int64         // bit/s that it carries
	RTT     time.Duration // to feedback
	Loss    float64       // lately, 0 to 1
}

// Paths calls f for each endpoint whose way is known. It costs next to nothing.
func (c *Conference) Paths(f func(id EndpointID, p Path)) {
	for _, e := range c.order {
		if e.down.est == nil {
			continue
		}
		if s := e.down.est.Stats(); s.Bitrate < estimate.Unlimited && s.Source != "" {
			f(e.id, Path{Bitrate: s.Bitrate, RTT: s.RTT, Loss: s.Loss})
		}
	}
}
