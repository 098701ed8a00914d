package enroll

import "github.com/prometheus/client_golang/prometheus"

func newAttempts() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iapmesh_join_attempts_total",
		Help: "Attempts to join that this node terminated, by result: admitted, or the kind of the refusal.",
	}, []string{"result"})
}
