package assertion

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	defaultCacheSize = 1 << 14
	ways             = 8 // entries a bucket
)

// issued is a token and what it says. It never changes.
type issued struct {
	hash                  uint64
	subject               Subject
	audience, issuer, kid string
	token                 string
	until                 time.Time // used again before
}

// cache is a fixed table of buckets, read and written without a lock. A lost race costs one more signature.
type cache struct {
	seed    maphash.Seed
	mask    uint64
	buckets [][ways]atomic.Pointer[issued]
}

func newCache(size int) *cache {
	if size <= 0 {
		size = defaultCacheSize
	}
	n := uint64(1) << bits.Len(uint((size-1)/ways))
	return &cache{seed: maphash.MakeSeed(), mask: n - 1, buckets: make([][ways]atomic.Pointer[issued], n)}
}

func (c *cache) hash(i *issued) uint64 {
	var h maphash.Hash
	h.SetSeed(c.seed)
	h.WriteString(i.subject.Session)
	h.WriteByte(0)
	h.WriteString(i.subject.Identity.Subject)
	h.WriteByte(0)
	h.WriteString(i.audience)
	return h.Sum64()
}

// get returns a token that says exactly what want does, by the same key, and may still be used.
func (c *cache) get(want *issued, now time.Time) *issued {
	bucket := &c.buckets[want.hash&c.mask]
	for n := range bucket {
		have := bucket[n].Load()
		if have != nil && have.hash == want.hash && now.Before(have.until) && have.kid == want.kid && have.issuer == want.issuer &&
			have.audience == want.audience && have.subject.Session == want.subject.Session && same(have.subject.Identity, want.subject.Identity) {
			return have
		}
	}
	return nil
}

// put replaces what said it before, an empty slot, a spent token, or the one that is spent first.
func (c *cache) put(i *issued, now time.Time) {
	bucket := &c.buckets[i.hash&c.mask]
	victim := 0
	var first time.Time
	for n := range bucket {
		have := bucket[n].Load()
		if have == nil || have.hash == i.hash || !now.Before(have.until) {
			victim = n
			break
		}
		if n == 0 || have.until.Before(first) {
			victim, first = n, have.until
		}
	}
	bucket[victim].Store(i)
}
