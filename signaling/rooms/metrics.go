package rooms

import "github.com/prometheus/client_golang/prometheus"

// ownerMetrics are what operators see of ownership. No label names a room.
type ownerMetrics struct{ lost, split prometheus.Counter }

func (m *ownerMetrics) register(c *Consul, reg prometheus.Registerer) {
	m.lost = prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_shard_rooms_lost_total", Help: "Rooms that ended here because their lease did."})
	m.split = prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_shard_rooms_split_total",
		Help: "Rooms that were open on another shard as well, found when Consul was back; the people here went there."})
	if reg == nil {
		return
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	reg.MustRegister(m.lost, m.split,
		gauge("plenum_shard_rooms_owned", "Rooms that this shard owns, those included that nobody has opened yet.", func() float64 { return float64(c.Rooms()) }),
		gauge("plenum_shard_lease_seconds", "Time until the lease of all rooms ends; negative when it is over.", func() float64 {
			return (c.right.Load().lease - c.cfg.now()).Seconds()
		}),
		gauge("plenum_shard_ownership", "What this shard may do: 0 nothing, 1 keep who is there, 2 everything.", func() float64 {
			r, now := c.right.Load(), c.cfg.now()
			return float64(r.power(r.life, r.session, now))
		}))
}
