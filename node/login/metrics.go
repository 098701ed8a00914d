package login

import "github.com/prometheus/client_golang/prometheus"

const resultOK = "ok"

type metrics struct {
	signIns  *prometheus.CounterVec   // by provider and result
	seconds  *prometheus.HistogramVec // by provider
	handoffs *prometheus.CounterVec   // by result
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		signIns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_sign_ins_total",
			Help: "Sign-ins at the sign-in host, by provider and result: ok, reused (of a session there), refused, blocked, failed, provider_unavailable.",
		}, []string{"provider", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "iapmesh_sign_in_seconds", Help: "From leaving for the identity provider to the session, the user's own time included.",
			Buckets: []float64{0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600},
		}, []string{"provider"}),
		handoffs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_handoffs_total", Help: "Tickets that were brought to a route's host, by result.",
		}, []string{"result"}),
	}
	if r != nil {
		r.MustRegister(m.signIns, m.seconds, m.handoffs)
	}
	return m
}
