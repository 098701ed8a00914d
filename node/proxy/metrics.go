package proxy

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec // by route, code and decision
	seconds  *prometheus.HistogramVec
	decide   prometheus.Histogram
	streams  prometheus.Gauge
	upstream *prometheus.CounterVec // by route and reason
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_requests_total", Help: "Requests answered, by route, status code and decision (allow, deny, or none where nothing was decided).",
		}, []string{"route", "code", "decision"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "iapmesh_request_seconds", Help: "Time from a request's head to the end of its answer, streams left out.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route"}),
		decide: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "iapmesh_decide_seconds", Help: "Time that a decision took, its record's place in the spool included.",
			Buckets: []float64{.000002, .000005, .00001, .00002, .00005, .0001, .0005, .001, .01},
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "iapmesh_open_streams", Help: "WebSockets, server-sent events and gRPC streams that are open now.",
		}),
		upstream: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "iapmesh_upstream_errors_total", Help: "Requests that an application did not answer, by route and reason.",
		}, []string{"route", "reason"}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.decide, m.streams, m.upstream)
	}
	return m
}

// done counts a request that is over.
func (m *metrics) done(x *exchange, status int, took time.Duration) {
	if x.route == nil {
		m.requests.WithLabelValues("", strconv.Itoa(status), "none").Inc()
		return
	}
	if status == 200 && x.decision == decisionAllow {
		x.route.usual.Inc()
	} else {
		m.requests.WithLabelValues(x.route.route.Name, strconv.Itoa(status), x.decision).Inc()
	}
	if !x.stream {
		x.route.seconds.Observe(took.Seconds())
	}
}

// rateSeconds is how long RPS looks back.
const rateSeconds = 10

// meter counts requests in seconds, without a lock: a count at the turn of a second may be lost.
type meter struct {
	seconds [16]struct{ second, count atomic.Int64 }
}

func (m *meter) add(now time.Time) {
	second := now.Unix()
	s := &m.seconds[second&15]
	if at := s.second.Load(); at != second && s.second.CompareAndSwap(at, second) {
		s.count.Store(0)
	}
	s.count.Add(1)
}

// rate is the mean of the last whole seconds.
func (m *meter) rate(now time.Time) float64 {
	var sum int64
	for i := range m.seconds {
		s := &m.seconds[i]
		if age := now.Unix() - s.second.Load(); age >= 1 && age <= rateSeconds {
			sum += s.count.Load()
		}
	}
	return float64(sum) / rateSeconds
}
