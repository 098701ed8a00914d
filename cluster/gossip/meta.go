package gossip

import (
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/iapmesh/iapmesh/internal/fault"
	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

// maxMeta is what memberlist carries of a member's own words, in bytes.
const maxMeta = 512

// Self is what a node says of itself.
type Self struct {
	NodeID    string
	Region    string
	Roles     []iapmeshv1.Role
	MeshAddr  string // host:port
	ProxyAddr string // host:port
	Version   string
}

// State is whether a member is there.
type State string

// The states of a member.
const (
	Alive State = "alive"
	Dead  State = "dead" // no longer answers
	Left  State = "left" // said good-bye
)

// Member is a node as a pool sees it. All of it is hearsay.
type Member struct {
	Self
	Addr  netip.AddrPort // gossip
	State State
	Pool  string
}

func (s Self) encode() ([]byte, error) {
	b, err := proto.Marshal(&iapmeshv1.GossipMeta{
		NodeId: s.NodeID, Region: s.Region, Roles: s.Roles, MeshAddress: s.MeshAddr, ProxyAddress: s.ProxyAddr, Version: s.Version,
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "gossip: encode own data: %w", err)
	}
	if _, err := decodeMeta(b); err != nil {
		return nil, err
	}
	return b, nil
}

// decodeMeta reads what a member says of itself.
func decodeMeta(b []byte) (Self, error) {
	if len(b) > maxMeta {
		return Self{}, fault.New(fault.Invalid, "gossip: %d bytes of member's data, at most %d", len(b), maxMeta)
	}
	var meta iapmeshv1.GossipMeta
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &meta); err != nil {
		return Self{}, fault.New(fault.Invalid, "gossip: member's data: %w", err)
	}
	if len(meta.Roles) > 8 {
		return Self{}, fault.New(fault.Invalid, "gossip: %d roles of a member, at most 8", len(meta.Roles))
	}
	for _, field := range []struct {
		name, value string
		limit       int
		required    bool
	}{
		{"node id", meta.NodeId, 63, true},
		{"region", meta.Region, 63, true},
		{"mesh address", meta.MeshAddress, 261, false},
		{"proxy address", meta.ProxyAddress, 261, false},
		{"version", meta.Version, 64, false},
	} {
		if field.required && field.value == "" || len(field.value) > field.limit || !printable(field.value) {
			return Self{}, fault.New(fault.Invalid, "gossip: member's %s %.80q: want printable ASCII without spaces, at most %d bytes",
				field.name, field.value, field.limit)
		}
	}
	return Self{
		NodeID: meta.NodeId, Region: meta.Region, Roles: slices.Clip(meta.Roles),
		MeshAddr: meta.MeshAddress, ProxyAddr: meta.ProxyAddress, Version: meta.Version,
	}, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
