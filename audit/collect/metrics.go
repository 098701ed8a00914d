package collect

import "github.com/prometheus/client_golang/prometheus"

// metrics are those of one aggregator.
type metrics struct {
	records, forks, refused prometheus.Counter
	streams                 prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "iapmesh", Subsystem: "audit_aggregator", Name: name, Help: help})
	}
	m := &metrics{
		records: counter("records_total", "Records verified, stored and acknowledged."),
		forks:   counter("forks_total", "Fork alarms: a node has shown two histories of one run."),
		refused: counter("refused_total", "Messages refused: not authentic, not consecutive, or not storable."),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "iapmesh", Subsystem: "audit_aggregator", Name: "streams",
			Help: "Nodes that are shipping now."}),
	}
	if r != nil {
		r.MustRegister(m.records, m.forks, m.refused, m.streams)
	}
	return m
}
