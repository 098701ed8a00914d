package etcdstore

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are this node's; etcd has its own.
type metrics struct {
	registerer    prometheus.Registerer
	collectors    []prometheus.Collector
	commitSeconds prometheus.Histogram
	reads         prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Store) (*metrics, error) {
	m := &metrics{
		registerer: r,
		commitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "iapmesh", Subsystem: "etcd", Name: "commit_seconds",
			Help:    "Time from a commit's proposal until etcd had acknowledged it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		reads: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "iapmesh", Subsystem: "etcd", Name: "whole_reads_total",
			Help: "How often the whole state was read: at the start, and after etcd had compacted what was not read yet.",
		}),
	}
	index := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "iapmesh", Subsystem: "etcd", Name: "revision_index", Help: "Index of the revision served.",
	}, func() float64 { return float64(s.Revision().Index) })
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.commitSeconds, m.reads, index} {
		if err := r.Register(c); err != nil {
			return m, fmt.Errorf("register metrics: %w", err)
		}
		m.collectors = append(m.collectors, c)
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}
