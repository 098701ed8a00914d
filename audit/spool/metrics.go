package spool

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of one spool.
type metrics struct {
	records, refused, gaps prometheus.Counter
	fsync, commits         prometheus.Histogram
	poisoned               prometheus.Gauge
	lag                    prometheus.Gauge
}

func newMetrics(s *Spool) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "iapmesh", Subsystem: "audit_spool", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "iapmesh", Subsystem: "audit_spool", Name: name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "iapmesh", Subsystem: "audit_spool", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16)})
	}
	m := &metrics{
		records:  counter("records_total", "Records made durable."),
		refused:  counter("refused_total", "Records refused because the spool was full, poisoned or closed."),
		gaps:     counter("gaps_total", "Requests served without a record, by routes with on_failure: serve."),
		fsync:    histogram("fsync_seconds", "Time of one sync of a segment."),
		commits:  histogram("commit_seconds", "Time of one group commit: writing, hashing and syncing."),
		poisoned: gauge("poisoned", "1 if a write or a sync has failed: nothing is recorded until restart."),
		lag:      gauge("ship_lag_seconds", "Age of the oldest record that no aggregator has acknowledged, when the shipper last looked."),
	}
	if s.cfg.Registerer == nil {
		return m
	}
	gaugeFunc := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "iapmesh", Subsystem: "audit_spool", Name: name, Help: help}, f)
	}
	s.cfg.Registerer.MustRegister(m.records, m.refused, m.gaps, m.fsync, m.commits, m.poisoned, m.lag,
		gaugeFunc("depth_records", "Durable records that no aggregator has acknowledged.", func() float64 { return float64(s.Depth()) }),
		gaugeFunc("bytes", "Size of the segments on disk.", func() float64 { return float64(s.Bytes()) }))
	return m
}
