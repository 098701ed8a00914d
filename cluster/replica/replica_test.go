package replica_test

import (
	"testing"

	"github.com/iapmesh/iapmesh/cluster/replica"
	"github.com/iapmesh/iapmesh/cluster/store"
	"github.com/iapmesh/iapmesh/cluster/storetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storetest.RunReader(t, func(t *testing.T) storetest.ReaderHarness {
		s := newStore(t)
		cfg := config(t.TempDir(), dial(t, serve(t, replica.ServerConfig{Reader: s})))
		r, stop := open(t, cfg)
		mustWait(t, r, store.Revision{Epoch: 1}) // connected
		return storetest.ReaderHarness{
			Reader: r,
			Commit: s.Commit,
			Reopen: func(t *testing.T) store.Reader {
				stop()
				cfg.Dial = dial(t).Dial // the source is gone
				r, _ := open(t, cfg)
				return r
			},
			Forget: func(t *testing.T) {
				var rev store.Revision
				for range history + 1 {
					rev = mustCommit(t, s, put("forget/it", "now"))
				}
				mustWait(t, r, rev)
			},
			Lag: history + 1,
		}
	})
}
