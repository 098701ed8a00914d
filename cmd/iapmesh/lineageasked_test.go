package main

import (
	"fmt"
	"testing"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// However long a chain is, the key that was meant is counted.
func TestTheKeyThatWasMeantIsAskedAbout(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ keys, meant, want, first int }{
		{3, 2, 3, 0}, {4, 0, 4, 0}, {10, 9, 4, 6}, {10, 0, 4, 0}, {10, 5, 4, 3},
	} {
		l := &iapmeshv1.Lineage{Key: fmt.Sprint(tc.meant)}
		for i := range tc.keys {
			l.Keys = append(l.Keys, &iapmeshv1.KeyLineage{Key: &iapmeshv1.ProvisioningKey{Id: fmt.Sprint(i)}})
		}
		asked := askedOf(l, 4)
		if len(asked) != tc.want || asked[0].Key.Id != fmt.Sprint(tc.first) {
			t.Errorf("of %d keys, %d meant: %d from %s on", tc.keys, tc.meant, len(asked), asked[0].Key.Id)
		}
		found := false
		for _, k := range asked {
			found = found || k.Key.Id == l.Key
		}
		if !found {
			t.Errorf("of %d keys, the one that was meant (%d) is not among those asked about", tc.keys, tc.meant)
		}
	}
}
