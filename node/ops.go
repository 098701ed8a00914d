package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
	"github.com/iapmesh/iapmesh/keyring/seal"
)

// serveOps serves /healthz, /readyz and /metrics where an operator's own tools reach them: loopback, unless he says otherwise.
func (a *assembly) serveOps(ctx context.Context) error {
	a.registry.MustRegister(newNodeMetrics(a)...)
	a.registry.MustRegister(newCustodyMetrics(a)...)
	if a.config.Listen.Ops == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", a.config.Listen.Ops)
	if err != nil {
		return fault.New(fault.Unavailable, "listen.ops: %w", err)
	}
	a.closers = append(a.closers, func() { l.Close() })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.unready()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	a.base = append(a.base, part{"ops", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}})
	return nil
}

// unready says why the node should get no traffic: empty if it should.
func (a *assembly) unready() []string {
	var why []string
	v := a.source.Load()
	if v == nil {
		return []string{"no view of the mesh yet"}
	}
	n := v.Keyring.Nodes[a.id.public.NodeID]
	switch {
	case n == nil:
		why = append(why, "the mesh does not know this node")
	case !n.Trusted():
		why = append(why, "this node is "+string(n.State))
	}
	select {
	case <-a.standing.settled:
	default:
		why = append(why, "this node has not learned yet whether the mesh still trusts it")
	}
	if err := a.spool.Healthy(); err != nil {
		why = append(why, "audit: "+err.Error())
	}
	if p := a.source.Problem(); p != "" {
		why = append(why, "the newest configuration is not in force: "+p)
	}
	if a.config.HasRole(keyring.RoleProxy) && n != nil {
		if v.Keyring.ActiveSessionKey(n.ID) == nil {
			why = append(why, "no session key signs yet")
		}
		for _, name := range []string{keyring.AudienceProxies, keyring.AssertAudience(n.Region, n.RouteSelector)} {
			if audience := v.Keyring.Audiences[name]; audience == nil || !seal.IsMember(*audience, n.ID) { // as where it was released just now
				why = append(why, "this node cannot open the secrets of audience "+name+" yet")
			}
		}
	}
	return why
}

func answer(w http.ResponseWriter, why []string) {
	w.Header().Set("Content-Type", "application/json")
	status := map[string]any{"status": "ok"}
	if len(why) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		status = map[string]any{"status": "unavailable", "reasons": why}
	}
	_ = json.NewEncoder(w).Encode(status) // whoever asked has gone
}

// newNodeMetrics are those of the node as a whole.
func newNodeMetrics(a *assembly) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("iapmesh_view_age_seconds", "How old this node's view of the mesh is at most; -1 if that is not known.", func() float64 {
			age, known := a.freshness.Age()
			if !known {
				return -1
			}
			return age.Seconds()
		}),
		gauge("iapmesh_view_revision_epoch", "Epoch of the revision that this node serves.", func() float64 { return float64(a.source.Served().Epoch) }),
		gauge("iapmesh_view_revision_index", "Index of the revision that this node serves.", func() float64 { return float64(a.source.Served().Index) }),
		gauge("iapmesh_certificate_expiry_timestamp_seconds", "When this node's certificate expires.", func() float64 {
			return float64(a.cert.Certificate().Leaf.NotAfter.Unix())
		}),
		gauge("iapmesh_configuration_problem", "1 while the newest configuration cannot be put in force on this node.", func() float64 {
			if a.source.Problem() != "" {
				return 1
			}
			return 0
		}),
		gauge("iapmesh_restoration_unconfirmed", "1 while the mesh was restored and no operator has confirmed it: nobody signs in or joins.", func() float64 {
			if v := a.source.Load(); v != nil && v.Keyring.Unconfirmed() != nil {
				return 1
			}
			return 0
		}),
		gauge("iapmesh_provisioning_key_expiry_timestamp_seconds", "When the next provisioning key that can still be used expires; 0 if there is none.", a.nextKeyExpiry),
	}
}

func (a *assembly) nextKeyExpiry() float64 {
	v := a.source.Load()
	if v == nil {
		return 0
	}
	var next time.Time
	for _, k := range v.Keyring.Keys {
		if k.State == keyring.KeyActive && (next.IsZero() || k.ExpiresAt.Before(next)) {
			next = k.ExpiresAt
		}
	}
	if next.IsZero() {
		return 0
	}
	return float64(next.Unix())
}
