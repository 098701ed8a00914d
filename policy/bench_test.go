package policy_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go"

	"github.com/iapmesh/iapmesh/policy"
)

// thousandByFive is the budget's case: 1,000 routes with five policies each, in 20 zones.
func thousandByFive(t testing.TB) policy.Source {
	t.Helper()
	src := policy.Source{
		Regions:   []string{"eu-west", "us-east", "ap-south"},
		Schedules: []policy.Schedule{{Name: "office", TimeZone: "Europe/Paris", Days: []string{"mon-fri"}, From: "09:00", To: "18:00"}},
	}
	for z := range 20 {
		src.Zones = append(src.Zones, policy.Zone{Name: fmt.Sprintf("zone%d", z)})
	}
	for i := range 1000 {
		src.Routes = append(src.Routes, policy.Route{
			Name: fmt.Sprintf("route%d", i), Zone: fmt.Sprintf("zone%d", i%20), Sensitivity: int64(i % 5), Regions: []string{"eu-west"}, File: "mesh.yaml", Line: i,
			Allow: items(t, fmt.Sprintf(`[{groups: [okta/eng, okta/team%d], methods: read, paths: [/api/, =/healthz]}, {groups: [okta/admins], ips: [10.0.0.0/8]}, {domains: [example.com], hours: office, mfa: 1h}]`, i)),
			Deny:  items(t, `[{countries_not: [FR, DE]}, {paths: [/admin/], methods: write}]`),
		})
	}
	return src
}

func BenchmarkDecide1000x5(b *testing.B) {
	s := compile(b, thousandByFive(b))
	r := anaReads(func(r *policy.Request) { r.Route = "route500" })
	if d := s.Decide(r); !d.Allow {
		b.Fatalf("got %+v", d)
	}
	b.Run("indexed", func(b *testing.B) {
		b.ReportAllocs()
		began := cpuTime(b)
		for b.Loop() {
			s.Decide(r)
		}
		b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op")
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				s.Decide(r)
			}
		})
	})
	b.Run("naive", func(b *testing.B) { // what the index saves: every policy of the mesh, for each request
		all := cedar.NewPolicySet()
		for _, id := range s.IDs() {
			p, _ := s.Policy(id)
			var parsed cedar.Policy
			if err := parsed.UnmarshalCedar([]byte(p.Cedar)); err != nil {
				b.Fatal(err)
			}
			all.Add(cedar.PolicyID(id), &parsed)
		}
		req := cedar.Request{
			Principal: cedar.NewEntityUID("User", "okta/ana"), Action: cedar.NewEntityUID("Action", "GET"), Resource: cedar.NewEntityUID("Route", "route500"),
		}
		b.ResetTimer()
		for b.Loop() {
			cedar.Authorize(all, cedar.EntityMap{}, req)
		}
	})
}

// cpuTime is what the process has used: on a busy machine it says more than the clock does. The collector is included.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkCompile(b *testing.B) {
	src := thousandByFive(b)
	b.ReportAllocs()
	for b.Loop() {
		compile(b, src)
	}
}
