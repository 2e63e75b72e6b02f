package signaling

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of a shard. Where a value means the same as in Jicofo it has Jicofo's name, so
// that existing dashboards work; the others begin with plenum_shard. No label names a room or a person.
type metrics struct {
	conferencesCreated prometheus.Counter
	requests           prometheus.Counter
	requestsNew        prometheus.Counter
	participants       prometheus.Counter
	lostBridges        prometheus.Counter
	conferenceSeconds  prometheus.Counter

	stanzas    *prometheus.CounterVec // by kind: presence, message, iq
	refusals   *prometheus.CounterVec // by reason
	deliveries prometheus.Counter
	lost       prometheus.Counter   // deliveries to nobody
	step       prometheus.Histogram // seconds from taking a batch of letters to having sent everything
	joins      prometheus.Counter
	panics     prometheus.Counter

	hall atomic.Pointer[hall] // for what is counted when asked
}

// newMetrics makes the metrics and registers them; reg may be nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		conferencesCreated: counter("jitsi_jicofo_conferences_created_total", "The number of conferences created since start."),
		requests:           counter("jitsi_jicofo_conference_requests_total", "Number of conference requests received."),
		requestsNew:        counter("jitsi_jicofo_conference_requests_new_total", "Number of conference requests received for new conferences."),
		participants:       counter("jitsi_jicofo_participants_total", "The total number of participants since start."),
		lostBridges:        counter("jitsi_jicofo_bridge_selector_lost_bridges_total", "Number of bridges which disconnected unexpectedly."),
		conferenceSeconds:  counter("plenum_shard_conference_seconds_total", "Duration of completed conferences in seconds."),
		deliveries:         counter("plenum_shard_deliveries_total", "Stanzas handed to sessions by rooms."),
		lost:               counter("plenum_shard_deliveries_lost_total", "Stanzas for sessions that do not exist any more or take nothing."),
		panics:             counter("plenum_shard_room_panics_total", "Rooms that ended by a programming error."),
		joins:              counter("plenum_shard_joins_total", "People and services that entered a room."),
		stanzas: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "plenum_shard_stanzas_total",
			Help: "Stanzas that came to rooms."}, []string{"kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "plenum_shard_refusals_total",
			Help: "Stanzas that did not reach a room."}, []string{"reason"}),
		step: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "plenum_shard_step_seconds",
			Help:    "Time a room takes for a batch of events, sending included.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 4, 9)}),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, read func(h *hall) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if h := m.hall.Load(); h != nil {
				return read(h)
			}
			return 0
		})
	}
	reg.MustRegister(m.conferencesCreated, m.requests, m.requestsNew, m.participants, m.lostBridges, m.conferenceSeconds,
		m.deliveries, m.lost, m.joins, m.panics, m.stanzas, m.refusals, m.step,
		gauge("jitsi_jicofo_conferences", "Running count of conferences.", func(h *hall) float64 { return float64(h.sizes().conferences) }),
		gauge("jitsi_jicofo_participants_current", "The current number of participants.", func(h *hall) float64 { return float64(h.sizes().people) }),
		gauge("jitsi_jicofo_largest_conference", "The current largest conference.", func(h *hall) float64 { return float64(h.sizes().largest) }),
		gauge("plenum_shard_rooms_alone", "Rooms with one person in them.", func(h *hall) float64 { return float64(h.sizes().alone) }),
		gauge("jitsi_jicofo_participants_pairs", "The number of pairs of participants (the sum of n*(n-1) for each conference).",
			func(h *hall) float64 { return float64(h.sizes().pairs) }),
		gauge("jitsi_jicofo_bridge_selector_bridge_count", "The current number of bridges.",
			func(h *hall) float64 { return float64(len(h.cfg.Fleet.Bridges(time.Now()))) }),
		gauge("jitsi_jicofo_bridge_selector_bridge_count_operational", "The current number of operational bridges.", func(h *hall) float64 {
			n := 0
			for _, b := range h.cfg.Fleet.Bridges(time.Now()) {
				if !b.Failed && !b.ShuttingDown {
					n++
				}
			}
			return float64(n)
		}),
		gauge("jitsi_jicofo_bridge_selector_bridge_version_count", "The current number of different bridge versions.", func(h *hall) float64 {
			versions := map[string]bool{}
			for _, b := range h.cfg.Fleet.Bridges(time.Now()) {
				versions[b.Version] = true
			}
			return float64(len(versions))
		}),
		gauge("jitsi_jicofo_jibri_instances", "Current number of jibri instances", func(h *hall) float64 { return h.countInstances(recorderBrewery, false) }),
		gauge("jitsi_jicofo_jibri_instances_available", "Current number of available (not in use) jibri instances",
			func(h *hall) float64 { return h.countInstances(recorderBrewery, true) }),
		gauge("plenum_shard_gateways", "Jigasi instances, gateways to the telephone.", func(h *hall) float64 { return h.countInstances(gatewayBrewery, false) }),
		gauge("plenum_shard_gateways_available", "Jigasi instances that take calls.", func(h *hall) float64 { return h.countInstances(gatewayBrewery, true) }),
	)
	return m
}
