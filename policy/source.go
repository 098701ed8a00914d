package policy

// Source is everything that one generation of policy is made of. Order does not matter: two sources with the same content
// have the same [Set.Digest], wherever they were read from.
type Source struct {
	Routes    []Route
	Policies  []CedarPolicy
	Zones     []Zone
	Schedules []Schedule
	Regions   []string // the regions that the mesh has; empty: not known, and not checked
}

// Route is what policy knows of a route: its attributes as Cedar's Route entity, and its short form.
type Route struct {
	Name        string
	Zone        string // optional; must be in Source.Zones
	Sensitivity int64
	Regions     []string
	Tags        map[string]string
	Allow, Deny []Item
	File        string // for messages only, as Line
	Line        int
}

// Zone groups routes; it may lie in others. Its items hold for every route in it, however deep.
type Zone struct {
	Name        string
	Parents     []string
	Allow, Deny []Item
	File        string
	Line        int
}

// CedarPolicy is a text in the full language: one policy or several, each with an @id that is unique in the mesh.
type CedarPolicy struct {
	Name  string
	Cedar string
	File  string // for messages only, as Line
	Line  int    // of the text's first line in File; 0: unknown
}

// Schedule names weekly hours in a time zone. While it is active its name is in context.time.active.
type Schedule struct {
	Name     string
	TimeZone string   // IANA name: Europe/Paris
	Days     []string // mon … sun, or ranges: mon-fri; empty: every day
	From, To string   // 15:04, To exclusive, 24:00 allowed; To before From runs past midnight; both empty: all day
}
