package main

import (
	"errors"
	"strings"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/keyring"
)

// explainJoin says what to do about a node that was not let in.
func explainJoin(err error) error {
	var format keyring.KeyFormatError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &format):
		return hint(err, "The key is cut, mistyped or none at all: check it with \"iapmesh key inspect --file FILE\".")
	case !strings.HasPrefix(err.Error(), "join"):
		return err
	}
	switch fault.KindOf(err) {
	case fault.Exhausted:
		return hint(err, "Ask an administrator for another key: iapmesh key issue.")
	case fault.Denied:
		if strings.Contains(err.Error(), "awaits the approval of another administrator") {
			return hint(err, "Ask that administrator's colleague to look at the key and approve it (iapmesh key approve), then start this node again.")
		}
		return hint(err, "Ask an administrator what the key allows (iapmesh key show ID), or for another one (iapmesh key issue).")
	case fault.Unauthenticated:
		return hint(err, "Either the addresses of --join lead to another mesh than the key's, or something between here and there terminates TLS, or the mesh does not know the key.")
	case fault.Unavailable:
		return hint(err, "Check that a control node listens at the addresses of --join, and that a firewall lets this machine through.")
	}
	return err
}
