package rotate

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/keyring"
)

type metrics struct {
	rotations *prometheus.CounterVec // by sink
	failures  *prometheus.CounterVec // by sink and step
}

func newMetrics(r prometheus.Registerer, of *Rotator) *metrics {
	m := &metrics{
		rotations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_key_rotations_total", Help: "Provisioning keys that this node rotated by their schedule, by kind of sink.",
		}, []string{"sink"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_key_rotation_failures_total", Help: "Attempts at a rotation that failed, by kind of sink and step (find, prepare, propose, sink, complete).",
		}, []string{"sink", "step"}),
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.rotations, m.failures, overdue{of, prometheus.NewDesc(
		"iapmesh_key_rotation_overdue_seconds", "For how long a key that this node rotates has been due; 0: it is not.", []string{"key"}, nil)})
	return m
}

// overdue tells from the view of now, for each job, for how long its key has been due.
type overdue struct {
	*Rotator
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (o overdue) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

// Collect implements prometheus.Collector.
func (o overdue) Collect(ch chan<- prometheus.Metric) {
	keys := o.Keyring()
	if keys == nil {
		return
	}
	for _, j := range o.Jobs {
		seconds := 0.0
		if k, err := current(keys, j.Key); err == nil && k.Rotator == o.Node && keyring.RotationDue(*k, o.Now()) {
			seconds = max(0, o.Now().Sub(keyring.NextRotation(*k)).Seconds())
		}
		ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, seconds, j.Key)
	}
}
