package edge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	asked, changes, errors prometheus.Counter
	bans                   prometheus.Gauge
	servers, weight, until *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer, from Catalog) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "plenum_edge_" + name, Help: help})
	}
	m := &metrics{
		asked:   counter("places_total", "Requests for which HAProxy asked where they belong."),
		changes: counter("changes_total", "Servers that HAProxy was given or that moved."),
		errors:  counter("errors_total", "Times that HAProxy could not be told what it should have."),
		bans:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "plenum_edge_bans", Help: "Prefixes that are kept out."}),
		servers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "plenum_edge_servers",
			Help: "Servers that HAProxy should have."}, []string{"backend"}),
		weight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "plenum_edge_weight",
			Help: "Share of new rooms of a shard, 0 to 1."}, []string{"shard"}),
		until: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "plenum_edge_certificate_until_seconds",
			Help: "End of the certificate that is shown, seconds since 1970."}, []string{"name"}),
	}
	if r != nil {
		r.MustRegister(m.asked, m.changes, m.errors, m.bans, m.servers, m.weight, m.until)
	}
	if c, ok := from.(interface{ Age(time.Time) time.Duration }); ok && r != nil {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "plenum_edge_catalogue_age_seconds",
			Help: "Time since the catalogue last answered; it does so each half minute, changed or not."},
			func() float64 { return c.Age(time.Now()).Seconds() }))
	}
	return m
}
