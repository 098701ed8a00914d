// Package policy decides who may do what. It compiles the short form of routes and free Cedar text into one immutable [Set],
// and answers [Set.Decide] from it.
//
// Invariants: deny is the default; forbid overrides; any error while a forbid is evaluated is a deny; a request that is
// incomplete is refused, not evaluated; nothing that fails the strict validator, a cap or a lint becomes part of a Set. The
// package does no I/O, keeps no state between decisions and reads no clock: the time is part of the request.
//
// It leaves to others: canonical paths, proof of identity, age of views, records, metrics.
package policy
