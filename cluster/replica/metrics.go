package replica

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are a follower's.
type metrics struct {
	registry
	connected                           prometheus.Gauge
	commits, resets, breaks, diskErrors prometheus.Counter
}

func newMetrics(r prometheus.Registerer, replica *Replica) (*metrics, error) {
	m := &metrics{
		registry:  registry{registerer: r},
		connected: gauge("replica", "connected", "1 while a source answers, else 0."),
		commits:   counter("replica", "commits_total", "Commits applied."),
		resets:    counter("replica", "resets_total", "Whole states applied."),
		breaks:    counter("replica", "breaks_total", "Streams that ended before the replica did."),
		diskErrors: counter("replica", "persist_errors_total",
			"Writes that the disk refused: what they held is served from memory and fetched anew after a restart."),
	}
	revision := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "iapmesh", Subsystem: "replica", Name: "revision_index", Help: "Index of the revision served.",
	}, func() float64 { return float64(replica.Revision().Index) })
	return m, m.register(m.connected, m.commits, m.resets, m.breaks, m.diskErrors, revision)
}

// serverMetrics are a control node's.
type serverMetrics struct {
	registry
	followers    prometheus.Gauge
	sent, resets prometheus.Counter
}

func newServerMetrics(r prometheus.Registerer) (*serverMetrics, error) {
	m := &serverMetrics{
		registry:  registry{registerer: r},
		followers: gauge("follow", "followers", "Followers connected."),
		sent:      counter("follow", "commits_sent_total", "Commits sent to followers."),
		resets:    counter("follow", "resets_sent_total", "Whole states sent to followers."),
	}
	return m, m.register(m.followers, m.sent, m.resets)
}

func gauge(subsystem, name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "iapmesh", Subsystem: subsystem, Name: name, Help: help})
}

func counter(subsystem, name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "iapmesh", Subsystem: subsystem, Name: name, Help: help})
}

// registry remembers what to take out again. A nil registerer takes nothing in.
type registry struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector
}

func (r *registry) register(collectors ...prometheus.Collector) error {
	if r.registerer == nil {
		return nil
	}
	for _, c := range collectors {
		if err := r.registerer.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
		r.collectors = append(r.collectors, c)
	}
	return nil
}

func (r *registry) unregister() {
	for _, c := range r.collectors {
		r.registerer.Unregister(c)
	}
}
