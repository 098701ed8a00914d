package audit

import (
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendJSON appends the record's JSON to b: the fields in the order of the struct, Detail by sorted key, no white space, times in
// UTC. The same record always gives the same bytes. What encoding/json reads from it is the same record, except that bytes that
// are no UTF-8 become U+FFFD, and a number that is not finite or a time outside years 1 to 9999 becomes zero.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, `{"kind":`...)
	b = AppendString(b, string(r.Kind))
	b = appendTime(append(b, `,"time":`...), r.Time)
	b = appendField(b, `,"request_id":`, r.RequestID)
	b = appendField(b, `,"trace_id":`, r.TraceID)
	b = appendField(b, `,"route":`, r.Route)
	b = appendField(b, `,"method":`, r.Method)
	b = appendField(b, `,"host":`, r.Host)
	b = appendField(b, `,"path":`, r.Path)
	b = appendField(b, `,"source_ip":`, r.SourceIP)
	b = appendField(b, `,"destination":`, r.Destination)
	if r.Actor != (Actor{}) {
		b = r.Actor.append(append(b, `,"actor":`...))
	}
	b = appendField(b, `,"decision":`, r.Decision)
	b = appendField(b, `,"reason":`, r.Reason)
	if len(r.Policies) > 0 {
		b = append(b, `,"policies":[`...)
		for i, p := range r.Policies {
			if i > 0 {
				b = append(b, ',')
			}
			b = AppendString(b, p)
		}
		b = append(b, ']')
	}
	b = appendField(b, `,"manifest":`, r.Manifest)
	if !r.Revision.IsZero() {
		b = strconv.AppendUint(append(b, `,"revision":"`...), r.Revision.Epoch, 10)
		b = strconv.AppendUint(append(b, '.'), r.Revision.Index, 10)
		b = append(b, '"')
	}
	b = appendInt(b, `,"view_age_ms":`, r.ViewAgeMS)
	b = appendField(b, `,"node":`, r.Node)
	b = appendField(b, `,"region":`, r.Region)
	b = appendInt(b, `,"hop":`, int64(r.Hop))
	b = appendInt(b, `,"status":`, int64(r.Status))
	b = appendInt(b, `,"bytes_in":`, r.BytesIn)
	b = appendInt(b, `,"bytes_out":`, r.BytesOut)
	if r.DurationMS != 0 && !math.IsNaN(r.DurationMS) && !math.IsInf(r.DurationMS, 0) {
		b = strconv.AppendFloat(append(b, `,"duration_ms":`...), r.DurationMS, 'g', -1, 64)
	}
	b = appendField(b, `,"upstream_receipt":`, r.UpstreamReceipt)
	if !r.DecisionID.IsZero() {
		b = append(b, `,"decision_id":"`...)
		b = append(appendEscaped(b, r.DecisionID.Node), '/')
		b = append(appendEscaped(b, r.DecisionID.Run), '/')
		b = append(strconv.AppendUint(b, r.DecisionID.Seq, 10), '"')
	}
	if r.Gap != nil {
		b = r.Gap.append(append(b, `,"gap":`...))
	}
	if r.Refusals != nil {
		b = r.Refusals.append(append(b, `,"refusals":`...))
	}
	if len(r.Detail) > 0 {
		b = appendDetail(append(b, `,"detail":`...), r.Detail)
	}
	return append(b, '}')
}

func (a *Actor) append(b []byte) []byte {
	start := len(b)
	b = appendField(b, `,"subject":`, a.Subject)
	b = appendField(b, `,"email":`, a.Email)
	b = appendField(b, `,"session_id":`, a.SessionID)
	b = appendField(b, `,"provisioning_key":`, a.ProvisioningKey)
	b = appendField(b, `,"minting_provisioning_key":`, a.MintingProvisioningKey)
	b = appendField(b, `,"minting_node":`, a.MintingNode)
	b = appendField(b, `,"signing_kid":`, a.SigningKID)
	b[start] = '{' // in place of the first comma: the caller knows that a field is set
	return append(b, '}')
}

func (s *Span) append(b []byte) []byte {
	b = strconv.AppendUint(append(b, `{"count":`...), s.Count, 10)
	b = appendField(b, `,"reason":`, s.Reason)
	if !s.From.IsZero() {
		b = appendTime(append(b, `,"from":`...), s.From)
	}
	if !s.To.IsZero() {
		b = appendTime(append(b, `,"to":`...), s.To)
	}
	b = appendField(b, `,"route":`, s.Route)
	return append(b, '}')
}

func appendDetail(b []byte, detail map[string]string) []byte {
	keys := make([]string, 0, len(detail))
	for k := range detail {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i == 0 {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = AppendString(append(AppendString(b, k), ':'), detail[k])
	}
	return append(b, '}')
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return AppendString(append(b, name...), value)
}

func appendInt(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendInt(append(b, name...), value, 10)
}

func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	if y := t.Year(); y < 1 || y > 9999 {
		t = time.Time{}
	}
	b = append(b, '"')
	return append(t.AppendFormat(b, time.RFC3339Nano), '"')
}

// AppendString appends s as the JSON string that a record holds it as.
func AppendString(b []byte, s string) []byte {
	return append(appendEscaped(append(b, '"'), s), '"')
}

// appendEscaped escapes what JSON demands, and U+2028 and U+2029 no more than that: a record is never pasted into a script.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			b = append(b, s[start:i]...)
			b = append(b, "\ufffd"...)
			start = i + 1
		}
		i += size
	}
	return append(b, s[start:]...)
}
