package audit

import (
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

// The lengths, in bytes, that Clip leaves of a path and of any other string, and the number of policies and details.
const (
	clipPath   = 2048
	clipString = 192
	clipList   = 16
)

// Clip returns the record with its strings and lists cut so that it encodes in less than MaxBody: a hostile path must not stand in the
// way of its own record. What was cut ends in "…+N", N being the number of bytes that are missing.
func (r Record) Clip() Record {
	for _, s := range []*string{
		(*string)(&r.Kind), &r.RequestID, &r.TraceID, &r.Route, &r.Method, &r.Host, &r.SourceIP, &r.Destination, &r.Decision, &r.Reason,
		&r.Manifest, &r.Node, &r.Region, &r.UpstreamReceipt, &r.DecisionID.Node, &r.DecisionID.Run,
		&r.Actor.Subject, &r.Actor.Email, &r.Actor.SessionID, &r.Actor.ProvisioningKey, &r.Actor.MintingProvisioningKey,
		&r.Actor.MintingNode, &r.Actor.SigningKID,
	} {
		*s = clip(*s, clipString)
	}
	r.Path = clip(r.Path, clipPath)
	if n := len(r.Policies); n > 0 {
		kept := make([]string, 0, clipList+1)
		for _, p := range r.Policies[:min(n, clipList)] {
			kept = append(kept, clip(p, 64))
		}
		if n > clipList {
			kept = append(kept, "…+"+strconv.Itoa(n-clipList))
		}
		r.Policies = kept
	}
	for _, s := range []**Span{&r.Gap, &r.Refusals} {
		if *s != nil {
			cut := **s
			cut.Reason, cut.Route = clip(cut.Reason, clipString), clip(cut.Route, clipString)
			*s = &cut
		}
	}
	if r.Detail != nil {
		kept := make(map[string]string, clipList)
		for _, k := range slices.Sorted(maps.Keys(r.Detail)) {
			if len(kept) == clipList {
				break
			}
			kept[clip(k, 32)] = clip(r.Detail[k], 64)
		}
		r.Detail = kept
	}
	return r
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	cut := n
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…+" + strconv.Itoa(len(s)-cut)
}
