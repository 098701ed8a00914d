package gossip

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	members  *prometheus.GaugeVec
	messages *prometheus.CounterVec
	refused  *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		members: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "iapmesh_gossip_members",
			Help: "Members that gossip knows of, this node included, by pool and state (alive, dead, left).",
		}, []string{"pool", "state"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_gossip_messages_total",
			Help: "Messages by what became of them: sent, accepted, refused, duplicate, dropped, malformed.",
		}, []string{"result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_gossip_refused_total",
			Help: "Packets and streams refused before decryption, by reason: label, malformed, streams (too many open), packets (too many waiting).",
		}, []string{"reason"}),
	}
}

func (m *metrics) register(r prometheus.Registerer, pools []*pool) error {
	if r == nil {
		return nil
	}
	all := []prometheus.Collector{m.members, m.messages, m.refused}
	for _, p := range pools {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "iapmesh_gossip_health_score",
			Help:        "How far this node falls behind gossip's own deadlines: 0 is healthy, 7 the worst.",
			ConstLabels: prometheus.Labels{"pool": p.name},
		}, p.health))
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register gossip metrics: %w", err)
		}
	}
	return nil
}
