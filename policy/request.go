package policy

import (
	"net/netip"
	"time"

	"github.com/iapmesh/iapmesh/internal/identity"
)

// Request is one question to a [Set]. The zero value is refused.
//
// It is an HTTP request if Method is set, a TCP connection if TCPPort is; both or neither is incomplete.
type Request struct {
	Principal identity.Identity // empty if Anonymous
	Anonymous bool
	Suspended bool // refused whatever the policies say

	Route  string // the route's name, as in Source
	Method string // as sent: methods are case-sensitive
	Host   string // lower case, without port
	Path   string // canonical: absolute, no dot segments, no empty segments, no query

	TCPPort int
	SNI     string // optional

	SourceIP     netip.Addr // IPv4-mapped addresses are unmapped
	Region       string     // where the request is served
	Country      string     // ISO 3166-1 alpha-2; anything else counts as absent
	MTLS         bool       // the client proved a certificate
	Device       *Device    // nil: nothing is known
	Now          time.Time
	KeyringAge   time.Duration // negative: unknown, which counts as infinitely old
	DirectoryAge time.Duration // the same
}

// Device is what is known of the client's device.
type Device struct {
	Managed   bool
	Encrypted bool
	Posture   int64
	OS        string
	OSVersion int64
	Age       time.Duration // since the device last reported
}

// Decision is the answer to a Request.
type Decision struct {
	Allow    bool
	Policies []string // ids that determined it, sorted: permits of an allow; forbids, also failed ones, of a deny
	Errors   []string // "id: message" of policies that could not be evaluated, sorted
	Reason   string   // short, for people and the record
}
