package audit

import (
	"crypto/sha256"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/iapmesh/iapmesh/internal/fault"
)

// Hash is a SHA-256 hash: of a leaf, of an inner node, or the root of a tree.
type Hash = [sha256.Size]byte

// LeafHash is RFC 6962's hash of a leaf: SHA-256(0x00 ‖ body).
func LeafHash(body []byte) Hash {
	h := sha256.New()
	h.Write([]byte{rfc6962.RFC6962LeafHashPrefix})
	h.Write(body)
	var sum Hash
	h.Sum(sum[:0])
	return sum
}

// Tree is an RFC 6962 tree that grows by leaves and remembers no more than the hashes along its right edge. The zero Tree is not
// usable: NewTree makes one.
type Tree struct {
	r *compact.Range
}

// NewTree returns an empty tree.
func NewTree() *Tree {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	return &Tree{r: f.NewEmptyRange(0)}
}

// RestoreTree returns the tree of a size whose right edge Edge once returned. The edge proves nothing by itself: only a root that is
// then found in a signed checkpoint shows that it was right.
func RestoreTree(size uint64, edge []Hash) (*Tree, error) {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	hashes := make([][]byte, len(edge))
	for i := range edge {
		hashes[i] = edge[i][:]
	}
	r, err := f.NewRange(0, size, hashes)
	if err != nil {
		return nil, fault.New(fault.Invalid, "audit tree of %d leaves: %w", size, err)
	}
	return &Tree{r: r}, nil
}

// Append adds a leaf.
func (t *Tree) Append(leaf Hash) {
	if err := t.r.Append(leaf[:], nil); err != nil {
		panic(err) // only a range made of the wrong number of hashes can fail, and RestoreTree refuses that
	}
}

// Size is the number of leaves.
func (t *Tree) Size() uint64 { return t.r.End() }

// Root is the root hash; that of the empty tree is SHA-256 of nothing.
func (t *Tree) Root() Hash {
	root, err := t.r.GetRootHash(nil)
	if err != nil {
		panic(err) // only a range that does not begin at 0 has no root
	}
	if root == nil {
		root = rfc6962.DefaultHasher.EmptyRoot()
	}
	return Hash(root)
}

// Edge returns the hashes along the right edge, from the largest complete subtree to the smallest: at most 64.
func (t *Tree) Edge() []Hash {
	hashes := t.r.Hashes()
	edge := make([]Hash, len(hashes))
	for i := range hashes {
		edge[i] = Hash(hashes[i])
	}
	return edge
}

// Clone returns a tree that grows apart from t.
func (t *Tree) Clone() *Tree {
	clone, err := RestoreTree(t.Size(), slices.Clone(t.Edge()))
	if err != nil {
		panic(err) // t's own edge has the right length
	}
	return clone
}
