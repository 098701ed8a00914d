package policy

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cedar-policy/cedar-go/types"
)

// forever is the age of what is not known: older than any limit.
var forever = types.NewDurationFromMillis(math.MaxInt64) // never written

// entities serves what the policies of one slice may ask for; the caller's own entity is made when first asked for.
type entities struct {
	set       *Set
	request   *Request
	needs     needs
	principal types.EntityUID
	route     *types.Entity
	groups    []types.EntityUID
	made      bool
	caller    types.Entity
}

// scratch is memory that decisions reuse: Cedar copies what it is given.
type scratch struct {
	entities                     entities
	context, http, session, time types.RecordMap
	values                       []types.Value
	groups                       []types.EntityUID // the caller's, as far as policies name them
	candidates                   candidates
}

func newScratch() *scratch {
	return &scratch{context: types.RecordMap{}, http: types.RecordMap{}, session: types.RecordMap{}, time: types.RecordMap{}}
}

// release forgets the request and gives the memory back.
func (s *scratch) release(pool *sync.Pool) {
	s.entities = entities{}
	for _, m := range []types.RecordMap{s.context, s.http, s.session, s.time} {
		clear(m)
	}
	clear(s.values[:cap(s.values)])
	clear(s.groups[:cap(s.groups)])
	clear(s.candidates[:cap(s.candidates)])
	s.groups, s.candidates = s.groups[:0], s.candidates[:0]
	pool.Put(s)
}

// Get implements types.EntityGetter. Groups have neither attributes nor parents: they need no entity.
func (e *entities) Get(id types.EntityUID) (types.Entity, bool) {
	switch id.Type {
	case typeUser, typeAnonymous:
		if id != e.principal {
			return types.Entity{}, false
		}
		if !e.made {
			e.caller, e.made = e.callerEntity(), true
		}
		return e.caller, true
	case typeRoute:
		if id == e.route.UID {
			return *e.route, true
		}
		r, ok := e.set.routes[string(id.ID)]
		if !ok {
			return types.Entity{}, false
		}
		return r.entity, true
	case typeZone:
		z, ok := e.set.zones[string(id.ID)]
		return z, ok
	case typeAction:
		a, ok := e.set.actions[string(id.ID)]
		return a, ok
	}
	return types.Entity{}, false
}

func (e *entities) callerEntity() types.Entity {
	r, n := e.request, e.needs
	out := types.Entity{UID: e.principal}
	if r.Anonymous {
		return out
	}
	if n&needGroups != 0 {
		out.Parents = types.NewEntityUIDSet(e.groups...)
	}
	if n&needUser == 0 {
		return out
	}
	attributes := make(types.RecordMap, 3)
	if n&needSuspended != 0 {
		attributes["suspended"] = types.Boolean(r.Suspended)
	}
	// An address with two @ has no domain, and is none.
	if email := cleanEmail(r.Principal.Email); email != "" {
		if n&needEmail != 0 {
			attributes["email"] = types.String(email)
		}
		if domain := cleanDomain(afterAt(email)); n&needDomain != 0 && domain != "" {
			attributes["domain"] = types.String(domain)
		}
	}
	out.Attributes = types.NewRecord(attributes)
	return out
}

func afterAt(email string) string {
	for i := range len(email) {
		if email[i] == '@' {
			return email[i+1:]
		}
	}
	return ""
}

// buildContext makes the part of the context that the slice reads.
func (s *Set) buildContext(r *Request, n needs, tmp *scratch) types.Record {
	context := tmp.context
	if r.Method == "" {
		if n&needPort != 0 {
			context["port"] = types.Long(r.TCPPort)
		}
		if n&needSNI != 0 && r.SNI != "" {
			context["sni"] = types.String(r.SNI)
		}
	} else if n&needHTTP != 0 {
		context["http"] = httpRecord(r, n, tmp)
	}
	if n&needSession != 0 {
		context["session"] = sessionRecord(r, n, tmp)
	}
	if n&needTime != 0 {
		clock := tmp.time
		if n&needNow != 0 {
			clock["now"] = types.NewDatetime(r.Now)
		}
		if n&needActive != 0 {
			active := tmp.values[:0]
			for _, schedule := range s.schedules {
				if schedule.active(r.Now) {
					active = append(active, types.String(schedule.name))
				}
			}
			clock["active"] = types.NewSet(active...)
			tmp.values = active
		}
		context["time"] = types.NewRecord(clock)
	}
	if len(context) == 0 {
		return types.Record{}
	}
	return types.NewRecord(context)
}

func httpRecord(r *Request, n needs, tmp *scratch) types.Record {
	http := tmp.http
	if n&needMethod != 0 {
		http["method"] = types.String(r.Method)
	}
	if n&needHost != 0 {
		http["host"] = types.String(r.Host)
	}
	if n&needPath != 0 {
		http["path"] = types.String(r.Path)
	}
	if n&needUnder != 0 {
		under := tmp.values[:0]
		ancestors(r.Path, func(p string) { under = append(under, types.String(p)) })
		http["under"] = types.NewSet(under...)
		tmp.values = under
	}
	return types.NewRecord(http)
}

func sessionRecord(r *Request, n needs, tmp *scratch) types.Record {
	session := tmp.session
	if n&needIP != 0 {
		ip := r.SourceIP.Unmap().WithZone("")
		session["ip"] = types.IPAddr(netip.PrefixFrom(ip, ip.BitLen()))
	}
	if n&needRegion != 0 {
		session["region"] = uid(typeRegion, r.Region)
	}
	if country := cleanCountry(r.Country); n&needCountry != 0 && country != "" {
		session["country"] = types.String(country)
	}
	if n&needMTLS != 0 {
		session["mtls"] = types.Boolean(r.MTLS)
	}
	if n&needAMR != 0 {
		amr := make([]types.Value, len(r.Principal.AMR))
		for i, a := range r.Principal.AMR {
			amr[i] = types.String(a)
		}
		session["amr"] = types.NewSet(amr...)
	}
	if n&needAuthAge != 0 {
		session["authAge"] = authAge(r)
	}
	// The provider says that several factors were used, not when each was: they are as old as the sign-in.
	if n&needMFAAge != 0 && slices.Contains(r.Principal.AMR, "mfa") && !r.Principal.AuthTime.IsZero() {
		session["mfaAge"] = authAge(r)
	}
	if n&needKeyringAge != 0 {
		session["keyringAge"] = age(r.KeyringAge)
	}
	if n&needDirectoryAge != 0 {
		session["directoryAge"] = age(r.DirectoryAge)
	}
	if d := r.Device; n&needDevice != 0 && d != nil {
		session["device"] = types.NewRecord(types.RecordMap{
			"managed": types.Boolean(d.Managed), "encrypted": types.Boolean(d.Encrypted), "posture": types.Long(d.Posture),
			"os": types.String(d.OS), "osVersion": types.Long(d.OSVersion), "age": age(d.Age),
		})
	}
	return types.NewRecord(session)
}

// age is forever for what is unknown.
func age(d time.Duration) types.Duration {
	if d < 0 {
		return forever
	}
	return types.NewDuration(d)
}

// authAge is zero for a sign-in that a skewed clock puts into the future, forever for none.
func authAge(r *Request) types.Duration {
	if r.Anonymous || r.Principal.AuthTime.IsZero() {
		return forever
	}
	return types.NewDuration(max(0, r.Now.Sub(r.Principal.AuthTime)))
}
