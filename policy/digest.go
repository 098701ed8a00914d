package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// digestDocument is what the digest covers: the content, in one order, without places in files.
type digestDocument struct {
	Version   int              `json:"version"`
	Routes    []digestRoute    `json:"routes"`
	Zones     []digestZone     `json:"zones"`
	Policies  []digestPolicy   `json:"policies"`
	Schedules []digestSchedule `json:"schedules"`
	Regions   []string         `json:"regions"`
}

type digestRoute struct {
	Name        string            `json:"name"`
	Zone        string            `json:"zone"`
	Sensitivity int64             `json:"sensitivity"`
	Regions     []string          `json:"regions"`
	Tags        map[string]string `json:"tags"`
	Allow       []Item            `json:"allow"`
	Deny        []Item            `json:"deny"`
}

type digestZone struct {
	Name    string   `json:"name"`
	Parents []string `json:"parents"`
	Allow   []Item   `json:"allow"`
	Deny    []Item   `json:"deny"`
}

type digestPolicy struct{ Name, Cedar string }

type digestSchedule struct {
	Name, TimeZone string
	Days           []string
	From, To       string
}

// digest hashes a valid source. encoding/json sorts maps and escapes injectively, so equal hashes mean equal content.
func digest(src Source) ([32]byte, error) {
	d := digestDocument{Version: 1, Regions: sorted(src.Regions)}
	for _, r := range src.Routes {
		d.Routes = append(d.Routes, digestRoute{r.Name, r.Zone, r.Sensitivity, sorted(r.Regions), nonNil(r.Tags), list(r.Allow), list(r.Deny)})
	}
	for _, z := range src.Zones {
		d.Zones = append(d.Zones, digestZone{z.Name, sorted(z.Parents), list(z.Allow), list(z.Deny)})
	}
	for _, p := range src.Policies {
		d.Policies = append(d.Policies, digestPolicy{p.Name, p.Cedar})
	}
	for _, s := range src.Schedules {
		d.Schedules = append(d.Schedules, digestSchedule{s.Name, s.TimeZone, sorted(s.Days), s.From, s.To})
	}
	slices.SortFunc(d.Routes, func(a, b digestRoute) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Zones, func(a, b digestZone) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Policies, func(a, b digestPolicy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Schedules, func(a, b digestSchedule) int { return cmp.Compare(a.Name, b.Name) })
	b, err := json.Marshal(d)
	if err != nil {
		return [32]byte{}, fmt.Errorf("hash policies: %w", err)
	}
	return sha256.Sum256(b), nil
}

func sorted(in []string) []string {
	out := append([]string{}, in...)
	slices.Sort(out)
	return slices.Compact(out)
}

func list(in []Item) []Item { return append([]Item{}, in...) }

func nonNil(in map[string]string) map[string]string {
	if in == nil {
		return map[string]string{}
	}
	return maps.Clone(in)
}
