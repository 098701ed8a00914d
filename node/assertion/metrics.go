package assertion

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	hits, misses prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iapmesh_assertion_cache_hits_total", Help: "Assertions that were used again.",
		}),
		misses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iapmesh_assertion_cache_misses_total", Help: "Assertions that were signed.",
		}),
	}
	if r != nil {
		r.MustRegister(m.hits, m.misses)
	}
	return m
}
