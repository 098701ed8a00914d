package audit

import "time"

// StandDown is a node's word that it has stopped to serve because the mesh has put it out: what it decided until then is in its trail
// before.
type StandDown struct {
	Seq    uint64
	At     time.Time // when it stopped
	PutOut time.Time // since when it is quarantined or revoked, or has departed, by its own record
}

const actionStandDown = "node.stand-down"

// NewStandDown is the record of a StandDown. state says as what the node was put out, reason why.
func NewStandDown(state, reason string, putOut time.Time) *Record {
	return &Record{Kind: KindRevocation, Reason: reason, Detail: map[string]string{
		"action": actionStandDown, "state": state, "put_out": putOut.UTC().Format(time.RFC3339Nano),
	}}
}

func (r *Record) standDown() (putOut time.Time, ok bool) {
	if r.Kind != KindRevocation || r.Detail["action"] != actionStandDown {
		return time.Time{}, false
	}
	putOut, err := time.Parse(time.RFC3339Nano, r.Detail["put_out"])
	return putOut, err == nil
}
