package raftstore

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are this member's: gauges read State when they are scraped.
type metrics struct {
	registerer    prometheus.Registerer
	collectors    []prometheus.Collector
	commitSeconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, s *Store) (*metrics, error) {
	gauge := func(name, help string, value func(State) float64) prometheus.Collector {
		opts := prometheus.GaugeOpts{Namespace: "iapmesh", Subsystem: "raft", Name: name, Help: help}
		return prometheus.NewGaugeFunc(opts, func() float64 { return value(s.State()) })
	}
	m := &metrics{registerer: r, commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "iapmesh", Subsystem: "raft", Name: "commit_seconds",
		Help:    "Time from a commit's proposal on the leader until it was applied there.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	})}
	m.collectors = []prometheus.Collector{
		m.commitSeconds,
		gauge("is_leader", "1 while this member leads, else 0.", func(st State) float64 {
			if st.Role == "leader" {
				return 1
			}
			return 0
		}),
		gauge("term", "The current raft term.", func(st State) float64 { return float64(st.Term) }),
		gauge("applied_index", "Index of the last log entry applied to the state.", func(st State) float64 { return float64(st.AppliedIndex) }),
		gauge("last_contact_seconds", "Time since the leader was heard; 0 on the leader, -1 if never.", func(st State) float64 {
			if st.LastContact < 0 {
				return -1
			}
			return st.LastContact.Seconds()
		}),
	}
	if r == nil {
		return m, nil
	}
	for i, c := range m.collectors {
		if err := r.Register(c); err != nil {
			m.collectors = m.collectors[:i]
			return m, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}
