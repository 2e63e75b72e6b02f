package rooms

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ownerMetrics are what operators see of ownership. No label has a room's name; those of rooms that were split have what
// it is called in logs.
type ownerMetrics struct {
	lost, split prometheus.Counter
	splits      splits
}

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
	reg.MustRegister(m.lost, m.split, &m.splits,
		gauge("plenum_shard_rooms_owned", "Rooms that this shard owns, those included that nobody has opened yet.", func() float64 { return float64(c.Rooms()) }),
		gauge("plenum_shard_lease_seconds", "Time until the lease of all rooms ends; negative when it is over.", func() float64 {
			return (c.right.Load().lease - c.cfg.now()).Seconds()
		}),
		gauge("plenum_shard_ownership", "What this shard may do: 0 nothing, 1 keep who is there, 2 everything.", func() float64 {
			r, now := c.right.Load(), c.cfg.now()
			return float64(r.power(r.life, r.session, now))
		}))
}

const (
	splitMemory = 10 * time.Minute // how long a split that was found and mended is shown
	maxSplits   = 50               // that are shown by name
)

// splits are the rooms that were found open on another shard lately. They are one again when they are found, so what is
// shown is what was.
type splits struct {
	mu    sync.Mutex
	found []foundSplit // oldest first
}

type foundSplit struct {
	room string        // in logs
	age  time.Duration // how long it may have been open twice
	at   time.Time
}

func (s *splits) add(room string, age time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = append(s.found, foundSplit{room, age, time.Now()})
}

var (
	splitRooms = prometheus.NewDesc("plenum_shard_split_rooms", "Rooms found open on another shard as well in the last ten minutes.", nil, nil)
	splitAge   = prometheus.NewDesc("plenum_shard_split_age_seconds",
		"For how long, at most, such a room was open twice; room is what it is called in this shard's log.", []string{"room"}, nil)
)

// Describe is prometheus.Collector's.
func (s *splits) Describe(all chan<- *prometheus.Desc) { all <- splitRooms; all <- splitAge }

// Collect is prometheus.Collector's.
func (s *splits) Collect(all chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.found) > 0 && time.Since(s.found[0].at) > splitMemory {
		s.found = s.found[1:]
	}
	all <- prometheus.MustNewConstMetric(splitRooms, prometheus.GaugeValue, float64(len(s.found)))
	oldest := map[string]time.Duration{}
	for _, f := range s.found {
		if _, there := oldest[f.room]; there || len(oldest) < maxSplits {
			oldest[f.room] = max(oldest[f.room], f.age)
		}
	}
	for room, age := range oldest {
		all <- prometheus.MustNewConstMetric(splitAge, prometheus.GaugeValue, age.Seconds(), room)
	}
}
