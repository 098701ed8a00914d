package policy

import (
	"slices"
	"unicode/utf8"

	"github.com/cedar-policy/cedar-go/types"
)

// names checks everything that others refer to, and makes the entities: schedules, regions, zones, routes.
func (c *compiler) names() {
	for _, in := range c.src.Schedules {
		s, err := compileSchedule(in)
		c.problems = append(c.problems, flatten(err)...)
		if _, twice := c.schedules[in.Name]; twice {
			c.bad("schedule "+in.Name, "is there twice")
		}
		c.schedules[in.Name] = s
		c.set.schedules = append(c.set.schedules, s)
	}
	for _, r := range c.src.Regions {
		if err := checkName(r); err != nil {
			c.bad("region", "%v", err)
		}
		if c.set.regions == nil {
			c.set.regions = map[string]bool{}
		}
		c.set.regions[r] = true
	}
	policies := map[string]bool{}
	for _, p := range c.src.Policies {
		if err := checkName(p.Name); err != nil {
			c.bad(location(p.File, p.Line, 0)+": policy", "name: %v", err)
		} else if policies[p.Name] {
			c.bad(location(p.File, p.Line, 0)+": policy "+p.Name, "is there twice")
		}
		policies[p.Name] = true
	}
	c.zoneEntities()
	c.routeEntities()
}

func (c *compiler) zoneEntities() {
	parents := map[string][]string{}
	for _, z := range c.src.Zones {
		place := location(z.File, z.Line, 0) + ": zone " + z.Name
		if err := checkName(z.Name); err != nil {
			c.bad(place, "name: %v", err)
		}
		if _, twice := parents[z.Name]; twice {
			c.bad(place, "is there twice")
		}
		parents[z.Name] = z.Parents
	}
	for _, z := range c.src.Zones {
		place := location(z.File, z.Line, 0) + ": zone " + z.Name
		for _, p := range z.Parents {
			if _, ok := parents[p]; !ok {
				c.bad(place, "parent: no zone %.60q%s", p, suggest(p, sortedKeys(parents)))
			}
		}
		above := zonesAbove(z.Parents, parents)
		if slices.Contains(above, z.Name) {
			c.bad(place, "lies in itself")
		}
		c.set.zones[z.Name] = types.Entity{UID: uid(typeZone, z.Name), Parents: zoneSet(above)}
	}
}

func (c *compiler) routeEntities() {
	parents := map[string][]string{}
	for _, z := range c.src.Zones {
		parents[z.Name] = z.Parents
	}
	for _, r := range c.src.Routes {
		place := location(r.File, r.Line, 0) + ": route " + r.Name
		if err := checkName(r.Name); err != nil {
			c.bad(place, "name: %v", err)
		}
		if _, twice := c.set.routes[r.Name]; twice {
			c.bad(place, "is there twice")
		}
		e := types.Entity{UID: uid(typeRoute, r.Name)}
		if r.Zone != "" {
			if _, ok := parents[r.Zone]; !ok {
				c.bad(place, "no zone %.60q%s", r.Zone, suggest(r.Zone, sortedKeys(parents)))
			}
			e.Parents = zoneSet(zonesAbove([]string{r.Zone}, parents))
		}
		regions := make([]types.Value, 0, len(r.Regions))
		for _, region := range r.Regions {
			if c.set.regions != nil && !c.set.regions[region] {
				c.bad(place, "no region %.60q%s", region, suggest(region, sortedKeys(c.set.regions)))
			}
			regions = append(regions, uid(typeRegion, region))
		}
		e.Attributes = types.NewRecord(types.RecordMap{"sensitivity": types.Long(r.Sensitivity), "regions": types.NewSet(regions...)})
		tags := types.RecordMap{}
		for k, v := range r.Tags {
			if !utf8.ValidString(k) || !utf8.ValidString(v) { // two of them could hash to the same digest
				c.bad(place, "tag %.60q: no UTF-8", k)
			}
			tags[types.String(k)] = types.String(v)
		}
		e.Tags = types.NewRecord(tags)
		c.set.routes[r.Name] = &route{entity: e}
	}
}

// zonesAbove lists the start zones and all that they lie in, each once, cycles or not.
func zonesAbove(start []string, parents map[string][]string) []string {
	var out []string
	todo := slices.Clone(start)
	for len(todo) > 0 {
		z := todo[0]
		todo = todo[1:]
		if !slices.Contains(out, z) {
			out = append(out, z)
			todo = append(todo, parents[z]...)
		}
	}
	return out
}

func zoneSet(names []string) types.EntityUIDSet {
	ids := make([]types.EntityUID, len(names))
	for i, n := range names {
		ids[i] = uid(typeZone, n)
	}
	return types.NewEntityUIDSet(ids...)
}
