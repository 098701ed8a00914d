package control

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the leader's; on other nodes they stand still, or at zero.
type metrics struct {
	everywhere prometheus.Histogram
}

func newMetrics(c *Controller) *metrics {
	m := &metrics{everywhere: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "iapmesh_receipt_everywhere_seconds", Help: "From a rotation or revocation to the moment at which every node had it.",
		Buckets: []float64{0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 1800, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600},
	})}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iapmesh_receipts_open", Help: "Rotations and revocations that not every node has yet, on the leader.",
	}, func() float64 { n, _ := c.openReceipts(); return float64(n) })
	oldest := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "iapmesh_receipts_oldest_open_seconds", Help: "Age of the oldest rotation or revocation that not every node has yet, on the leader.",
	}, func() float64 { _, age := c.openReceipts(); return age.Seconds() })
	if c.Registerer != nil {
		c.Registerer.MustRegister(m.everywhere, open, oldest)
	}
	return m
}

// openReceipts counts them, with the age of the oldest; a node that does not lead has none.
func (c *Controller) openReceipts() (n int, oldest time.Duration) {
	v := c.Source.Load()
	if term, _ := c.Leading(); term == 0 || v == nil {
		return 0, 0
	}
	now := c.Now()
	for _, r := range v.Keyring.Receipts {
		oldest = max(oldest, now.Sub(r.At))
	}
	return len(v.Keyring.Receipts), oldest
}
