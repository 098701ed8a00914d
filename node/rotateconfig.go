package node

import (
	"errors"
	"fmt"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/node/sink"
)

// Rotate says that this node makes the successors of a key whose schedule names it, and where it puts their secrets. The mesh knows the
// schedule; the sink is known here alone.
type Rotate struct {
	Key  string      `yaml:"key"` // name, or id of the key or of one before it
	Sink sink.Config `yaml:"sink"`
}

// maxRotate bounds how many keys one node rotates.
const maxRotate = 64

func (c *Config) validateRotate() []error {
	var errs []error
	if len(c.Rotate) > maxRotate {
		errs = append(errs, fault.New(fault.Invalid, "rotate: %d keys, at most %d", len(c.Rotate), maxRotate))
	}
	seen := map[string]bool{}
	for i, r := range c.Rotate {
		field := fmt.Sprintf("rotate[%d]", i)
		switch {
		case r.Key == "" || len(r.Key) > 80:
			errs = append(errs, fault.New(fault.Invalid, "%s.key: want a key's name or id", field))
		case seen[r.Key]:
			errs = append(errs, fault.New(fault.Invalid, "%s.key %q: is there twice", field, r.Key))
		}
		seen[r.Key] = true
		errs = append(errs, r.Sink.Validate(field+".sink"))
	}
	return errs
}

// Check says what this machine lacks for a valid configuration to work, as far as that can be seen offline.
func (c *Config) Check() error {
	var errs []error
	for i, r := range c.Rotate {
		errs = append(errs, r.Sink.Check(fmt.Sprintf("rotate[%d].sink", i)))
	}
	return errors.Join(errs...)
}
