package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/node/state"
)

// newCustodyMetrics are those of what the mesh holds in common, by this node's view.
func newCustodyMetrics(a *assembly) []prometheus.Collector {
	gauge := func(name, help string, value func(*state.View) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			v := a.source.Load()
			if v == nil {
				return 0
			}
			return value(v)
		})
	}
	return []prometheus.Collector{
		gauge("iapmesh_authority_expiry_timestamp_seconds", "When the certificate authority that issues expires; 0 if none does.", func(v *state.View) float64 {
			if active := v.Keyring.ActiveAuthority(); active != nil {
				return float64(active.Certificate.NotAfter.Unix())
			}
			return 0
		}),
		gauge("iapmesh_authorities", "Certificate authorities that the mesh knows: at 4, none can be made before one is forgotten.", func(v *state.View) float64 {
			return float64(len(v.Keyring.Authorities))
		}),
		gauge("iapmesh_gossip_ring_phase", "How far a change of the gossip key is: 0 steady, 1 install, 2 use.", func(v *state.View) float64 {
			switch v.Keyring.GossipRing.Phase {
			case keyring.RingInstall:
				return 1
			case keyring.RingUse:
				return 2
			}
			return 0
		}),
		gauge("iapmesh_gossip_ring_since_timestamp_seconds", "When the phase of the gossip ring began; 0 if that is not known.", func(v *state.View) float64 {
			return unixOrZero(v.Keyring.GossipRing.Since)
		}),
		gauge("iapmesh_audience_key_oldest_timestamp_seconds", "When the oldest audience key was made, of those that this node can open; 0 if there is none.", func(v *state.View) float64 {
			var oldest time.Time
			for _, audience := range v.Keyring.Audiences {
				if oldest.IsZero() || audience.RotatedAt.Before(oldest) {
					oldest = audience.RotatedAt
				}
			}
			return unixOrZero(oldest)
		}),
	}
}

func unixOrZero(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}
