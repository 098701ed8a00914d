package session

import "github.com/prometheus/client_golang/prometheus"

type verifierMetrics struct {
	hits, misses prometheus.Counter
	refused      *prometheus.CounterVec // by reason
}

func newVerifierMetrics(r prometheus.Registerer) *verifierMetrics {
	m := &verifierMetrics{
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iapmesh_session_cache_hits_total", Help: "Session tokens whose signature had been verified before.",
		}),
		misses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iapmesh_session_cache_misses_total", Help: "Session tokens whose signature was verified, or refused before that.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_session_refused_total", Help: "Tokens refused, by reason.",
		}, []string{"reason"}),
	}
	register(r, m.hits, m.misses, m.refused)
	return m
}

type liveMetrics struct {
	open  *prometheus.GaugeVec   // by kind
	ended *prometheus.CounterVec // by reason
}

func newLiveMetrics(r prometheus.Registerer) *liveMetrics {
	m := &liveMetrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "iapmesh_live_open", Help: "Requests and streams that are open now, by kind.",
		}, []string{"kind"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_live_ended_total", Help: "Requests and streams that were ended because they no longer held, by reason.",
		}, []string{"reason"}),
	}
	register(r, m.open, m.ended)
	return m
}

type keyMetrics struct {
	minted   prometheus.Counter
	announce *prometheus.CounterVec // by result
}

func newKeyMetrics(r prometheus.Registerer) *keyMetrics {
	m := &keyMetrics{
		minted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "iapmesh_session_minted_total", Help: "Session tokens minted by this node.",
		}),
		announce: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_session_key_announcements_total", Help: "Announcements of this node's session keys, by result.",
		}, []string{"result"}),
	}
	register(r, m.minted, m.announce)
	return m
}

func register(r prometheus.Registerer, cs ...prometheus.Collector) {
	if r != nil {
		r.MustRegister(cs...)
	}
}
