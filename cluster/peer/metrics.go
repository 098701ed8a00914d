package peer

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	handshakes *prometheus.CounterVec
	duration   prometheus.Histogram
	open       *prometheus.GaugeVec
	ended      *prometheus.CounterVec
	evicted    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_peer_handshakes_total",
			Help: "Handshakes on the mesh port, by protocol (none: unknown) and result (ok, or the kind of refusal).",
		}, []string{"proto", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "iapmesh_peer_handshake_duration_seconds",
			Help:    "Time from accept to the end of a handshake that succeeded.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "iapmesh_peer_connections",
			Help: "Open inbound connections on the mesh port, by protocol.",
		}, []string{"proto"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_peer_connections_ended_total",
			Help: "Inbound connections ended because the view no longer admits the peer, by protocol.",
		}, []string{"proto"}),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_peer_evicted_total",
			Help: "Connections ended or refused because a bound was reached, by bound.",
		}, []string{"bound"}),
	}
	return m, register(r, m.handshakes, m.duration, m.open, m.ended, m.evicted)
}

type dialMetrics struct {
	dials *prometheus.CounterVec
	ended *prometheus.CounterVec
}

func newDialMetrics(r prometheus.Registerer) (*dialMetrics, error) {
	m := &dialMetrics{
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_peer_dials_total",
			Help: "Handshakes with other nodes' mesh ports, by protocol and result (ok, or the kind of refusal).",
		}, []string{"proto", "result"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_peer_dialed_connections_ended_total",
			Help: "Dialed connections ended because the view no longer admits the peer, by protocol.",
		}, []string{"proto"}),
	}
	return m, register(r, m.dials, m.ended)
}

func register(r prometheus.Registerer, all ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register peer metrics: %w", err)
		}
	}
	return nil
}
