package session

import (
	"crypto/ed25519"
	"hash/maphash"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	defaultCacheSize = 1 << 14
	ways             = 8 // entries a bucket
)

// entry is a token whose signature was verified: all but verdict and used never change.
type entry struct {
	hash     uint64
	token    string
	session  *Session          // without lineage, which belongs to a view
	public   ed25519.PublicKey // that verified it
	deadline time.Time         // exp and skew
	verdict  atomic.Pointer[verdict]
	used     atomic.Int64 // Unix seconds
}

// touch notes the use once a second, so that cores do not fight over the line.
func (e *entry) touch(now time.Time) {
	if at := now.Unix(); e.used.Load() != at {
		e.used.Store(at)
	}
}

// cache is a fixed table of buckets, read and written without a lock. A lost race costs one more verification. The hash's seed
// is random, so that nobody outside can aim at a bucket; only tokens that a node of the mesh has signed get in.
type cache struct {
	seed    maphash.Seed
	mask    uint64
	buckets [][ways]atomic.Pointer[entry]
}

func newCache(size int) *cache {
	if size <= 0 {
		size = defaultCacheSize
	}
	n := uint64(1) << bits.Len(uint((size-1)/ways))
	return &cache{seed: maphash.MakeSeed(), mask: n - 1, buckets: make([][ways]atomic.Pointer[entry], n)}
}

func (c *cache) hash(token string) uint64 { return maphash.String(c.seed, token) }

func (c *cache) get(hash uint64, token string) *entry {
	bucket := &c.buckets[hash&c.mask]
	for i := range bucket {
		if e := bucket[i].Load(); e != nil && e.hash == hash && e.token == token {
			return e
		}
	}
	return nil
}

// put replaces the same token, an empty slot, an expired entry, or the one that was used longest ago.
func (c *cache) put(e *entry, now time.Time) {
	e.touch(now)
	bucket := &c.buckets[e.hash&c.mask]
	victim, oldest := 0, int64(0)
	for i := range bucket {
		have := bucket[i].Load()
		if have == nil || have.hash == e.hash || !now.Before(have.deadline) {
			victim = i
			break
		}
		if used := have.used.Load(); i == 0 || used < oldest {
			victim, oldest = i, used
		}
	}
	bucket[victim].Store(e)
}

// all yields every entry.
func (c *cache) all(yield func(*entry) bool) {
	for i := range c.buckets {
		for j := range c.buckets[i] {
			if e := c.buckets[i][j].Load(); e != nil && !yield(e) {
				return
			}
		}
	}
}
