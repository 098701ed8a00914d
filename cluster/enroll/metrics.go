package enroll

import "github.com/prometheus/client_golang/prometheus"

func newAttempts() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iapmesh_join_attempts_total",
		Help: "Attempts to join that this node terminated, by result: admitted, or the kind of the refusal.",
	}, []string{"result"})
}

func newRevocations() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "iapmesh_key_revocations_by_holder_total",
		Help: "Requests to revoke a provisioning key by whoever holds it that this node terminated, by result: revoked, already, or the kind of the refusal.",
	}, []string{"result"})
}
