package node

import (
	"net"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// addresses are those by which others reach the node: what advertise says, else what it listens on.
func (c *Config) addresses() (keyring.Addresses, error) {
	var out keyring.Addresses
	for _, a := range []struct {
		field, advertise, listen string
		into                     *string
	}{
		{"mesh", c.Advertise.Mesh, c.Listen.Mesh, &out.Mesh},
		{"gossip", c.Advertise.Gossip, c.Listen.Gossip, &out.Gossip},
		{"proxy", c.Advertise.Proxy, c.Listen.Proxy, &out.Proxy},
	} {
		*a.into = a.advertise
		if a.advertise != "" || a.listen == "" {
			continue
		}
		host, _, err := net.SplitHostPort(a.listen)
		if err != nil {
			return out, fault.New(fault.Invalid, "listen.%s: %w", a.field, err)
		}
		if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
			return out, fault.New(fault.Invalid, "advertise.%s: is required, because listen.%s %s names no address that others can reach", a.field, a.field, a.listen)
		}
		*a.into = a.listen
	}
	return out, nil
}
