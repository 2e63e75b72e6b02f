package overlay

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics publishes the status.
type metrics struct{ status func() *Status }

func perPath(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("plenum_overlay_"+name, help, []string{"plane", "peer"}, nil)
}

var (
	pathUp        = perPath("path_up", "1 when probes to the peer are answered.")
	pathRTT       = perPath("path_rtt_seconds", "Smoothed round trip to the peer.")
	pathLoss      = perPath("path_loss_ratio", "Share of the last 64 probes without an answer.")
	pathMTU       = perPath("path_mtu_bytes", "Largest packet that reaches the peer in one piece.")
	pathRelayed   = perPath("path_relayed", "1 when another host carries the packets.")
	pathHandshake = perPath("path_handshake_age_seconds", "Time since the last handshake with the peer.")
	planeUp       = prometheus.NewDesc("plenum_overlay_up", "1 when the plane's device and backend work.", []string{"plane", "backend"}, nil)
	planeNAT      = prometheus.NewDesc("plenum_overlay_nat", "1 for the kind of NAT in front of this host.", []string{"plane", "kind"}, nil)
	certLeft      = prometheus.NewDesc("plenum_overlay_certificate_seconds", "Time until this host's certificate ends.", []string{"plane"}, nil)
	hostsKnown    = prometheus.NewDesc("plenum_overlay_hosts", "Hosts in the roster, revoked ones left out.", nil, nil)
	recordsBad    = prometheus.NewDesc("plenum_overlay_records_refused_total", "Records of peers refused.", []string{"reason"}, nil)
	guardDropped  = prometheus.NewDesc("plenum_overlay_guard_dropped_packets", "Packets that the guard kept inside since it was last applied.", nil, nil)
	problemsNow   = prometheus.NewDesc("plenum_overlay_problems", "Problems that /status lists.", nil, nil)
)

// Describe implements prometheus.Collector. It names nothing, because to collect is to ask the engine, which
// at the time of registration does not answer yet.
func (m metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m metrics) Collect(out chan<- prometheus.Metric) {
	s := m.status()
	if s == nil {
		return
	}
	now := time.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name, p := range s.Planes {
		gauge(planeUp, truth(p.Up), string(name), p.Backend)
		gauge(planeNAT, 1, string(name), string(p.NAT))
		if !p.Until.IsZero() {
			gauge(certLeft, p.Until.Sub(now).Seconds(), string(name))
		}
	}
	for _, p := range s.Paths {
		labels := []string{string(p.Plane), p.Host}
		gauge(pathUp, truth(p.Up), labels...)
		gauge(pathRTT, p.RTT.Seconds(), labels...)
		gauge(pathLoss, p.Loss, labels...)
		gauge(pathMTU, float64(p.MTU), labels...)
		gauge(pathRelayed, truth(p.Route == Relayed), labels...)
		if !p.Handshake.IsZero() {
			gauge(pathHandshake, now.Sub(p.Handshake).Seconds(), labels...)
		}
	}
	for reason, n := range s.Refused {
		out <- prometheus.MustNewConstMetric(recordsBad, prometheus.CounterValue, float64(n), reason)
	}
	gauge(hostsKnown, float64(s.Hosts))
	gauge(guardDropped, float64(s.Dropped))
	gauge(problemsNow, float64(len(s.Problems)))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
