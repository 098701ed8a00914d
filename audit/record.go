package audit

import (
	"encoding/json"
	"time"

	"github.com/iapmesh/iapmesh/internal/fault"
	"github.com/iapmesh/iapmesh/internal/revision"
)

// MaxBody is the longest encoded record in bytes. Clip makes any record fit.
const MaxBody = 64 << 10

// Kind says what a record reports.
type Kind string

// The kinds of records.
const (
	KindDecision   Kind = "decision"   // a request was allowed or denied
	KindOutcome    Kind = "outcome"    // what became of it: status, bytes, latency; DecisionID names its decision
	KindSignIn     Kind = "sign_in"    // a session began
	KindSignOut    Kind = "sign_out"   // a session was ended by its user
	KindJoin       Kind = "join"       // a node asked to join; Detail holds the key and the result
	KindRotation   Kind = "rotation"   // a provisioning, signing or CA key changed its state
	KindRevocation Kind = "revocation" // something is refused from now on
	KindAdmin      Kind = "admin"      // an operator's call
	KindGap        Kind = "gap"        // records that could not be kept; Gap counts them
	KindRefusals   Kind = "refusals"   // unauthenticated refusals of one source in one minute; Refusals counts them
	KindRun        Kind = "run"        // leaf 0 of a run; Detail names the run before it, its size and its root
)

// The values of Record.Decision.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Record is one leaf of a node's tree: who asked for what, what was decided, by which policies, on which view. Zero fields are left out
// of its JSON. The field names map onto OCSF API Activity (class 6003) on export.
type Record struct {
	Kind      Kind      `json:"kind"`
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id,omitempty"`
	TraceID   string    `json:"trace_id,omitempty"`

	Route       string `json:"route,omitempty"`
	Method      string `json:"method,omitempty"`
	Host        string `json:"host,omitempty"`
	Path        string `json:"path,omitempty"`
	SourceIP    string `json:"source_ip,omitempty"`
	Destination string `json:"destination,omitempty"` // the upstream, or the application's address
	Actor       Actor  `json:"actor,omitzero"`

	Decision  string   `json:"decision,omitempty"` // Allow or Deny
	Reason    string   `json:"reason,omitempty"`
	Policies  []string `json:"policies,omitempty"`    // ids of the policies that determined the decision
	Manifest  string   `json:"manifest,omitempty"`    // hex SHA-256 of the configuration decided by
	Revision  Revision `json:"revision,omitzero"`     // of the view decided on
	ViewAgeMS int64    `json:"view_age_ms,omitempty"` // how old that view was
	Node      string   `json:"node,omitempty"`
	Region    string   `json:"region,omitempty"`
	Hop       int      `json:"hop,omitempty"` // 0 at the node that the user reached, 1 after a mesh hop

	Status          int     `json:"status,omitempty"`
	BytesIn         int64   `json:"bytes_in,omitempty"`
	BytesOut        int64   `json:"bytes_out,omitempty"`
	DurationMS      float64 `json:"duration_ms,omitempty"`
	UpstreamReceipt string  `json:"upstream_receipt,omitempty"` // what the application said it did, if it says so
	DecisionID      ID      `json:"decision_id,omitzero"`       // outcome: the decision it belongs to

	Gap      *Span             `json:"gap,omitempty"`
	Refusals *Span             `json:"refusals,omitempty"`
	Detail   map[string]string `json:"detail,omitempty"` // joins, rotations, admin calls, runs
}

// Actor is who a record is about, and by which keys that was believed.
type Actor struct {
	Subject                string `json:"subject,omitempty"` // <idp>/<subject>
	Email                  string `json:"email,omitempty"`
	SessionID              string `json:"session_id,omitempty"`
	ProvisioningKey        string `json:"provisioning_key,omitempty"`         // under which the serving node joined
	MintingProvisioningKey string `json:"minting_provisioning_key,omitempty"` // under which the node joined that minted the session
	MintingNode            string `json:"minting_node,omitempty"`
	SigningKID             string `json:"signing_kid,omitempty"` // of the key that signed the session
}

// Span counts events that have no record of their own: From is the time of the first, To of the last.
type Span struct {
	Count  uint64    `json:"count"`
	Reason string    `json:"reason,omitempty"`
	From   time.Time `json:"from,omitzero"`
	To     time.Time `json:"to,omitzero"`
	Route  string    `json:"route,omitempty"`
}

// Revision is a revision.Revision that is "epoch.index" in JSON.
type Revision revision.Revision

// IsZero reports whether r names no state.
func (r Revision) IsZero() bool { return r == Revision{} }

func (r Revision) String() string { return revision.Revision(r).String() }

// MarshalText is epoch.index.
func (r Revision) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (r *Revision) UnmarshalText(b []byte) error {
	v, err := revision.Parse(string(b))
	*r = Revision(v)
	return err
}

// Decode reads the body of a frame. Fields that it does not know are ignored, so that an older reader can read a newer node's
// trail; what is proved is the body's bytes, never their decoding.
func Decode(body []byte) (Record, error) {
	if len(body) > MaxBody {
		return Record{}, fault.New(fault.Invalid, "audit record: %d bytes, at most %d", len(body), MaxBody)
	}
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return Record{}, fault.New(fault.Invalid, "audit record: %w", err)
	}
	return r, nil
}

// Privileged reports whether the record may use the room that a spool reserves: gaps, runs, denials and revocations.
func (r *Record) Privileged() bool {
	switch r.Kind {
	case KindGap, KindRun, KindRevocation:
		return true
	}
	return r.Decision == Deny
}
