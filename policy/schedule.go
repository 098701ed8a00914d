package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // every node must know the same zones, whatever its image ships

	"github.com/iapmesh/iapmesh/internal/fault"
)

var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // by time.Weekday; never written

// schedule is a compiled Schedule: minutes from and to of the days that it begins on.
type schedule struct {
	name     string
	location *time.Location
	days     [7]bool
	from, to int // to may exceed a day's minutes: past midnight
}

const day = 24 * 60

// active reports whether the schedule holds at t, by the wall clock of its zone.
func (s *schedule) active(t time.Time) bool {
	t = t.In(s.location)
	minute, today := t.Hour()*60+t.Minute(), int(t.Weekday())
	return s.days[today] && minute >= s.from && minute < s.to ||
		s.days[(today+6)%7] && minute+day >= s.from && minute+day < s.to
}

func compileSchedule(in Schedule) (*schedule, error) {
	out := &schedule{name: in.Name, to: day}
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fault.New(fault.Invalid, "schedule %s: %s", in.Name, fmt.Sprintf(format, args...)))
	}
	if err := checkName(in.Name); err != nil {
		bad("name: %v", err)
	}
	loc, err := time.LoadLocation(in.TimeZone)
	switch {
	case in.TimeZone == "" || in.TimeZone == "Local":
		bad("time zone: name one, such as Europe/Paris or UTC")
	case err != nil:
		bad("time zone %.60q is not known", in.TimeZone)
	}
	out.location = loc
	for _, d := range in.Days {
		first, last, ranged := strings.Cut(d, "-")
		if !ranged {
			last = first
		}
		a, b := slices.Index(weekdays[:], first), slices.Index(weekdays[:], last)
		if a < 0 || b < 0 {
			bad("day %.20q: write mon, tue, wed, thu, fri, sat, sun or a range such as mon-fri", d)
			continue
		}
		for ; a != b; a = (a + 1) % 7 {
			out.days[a] = true
		}
		out.days[b] = true
	}
	if len(in.Days) == 0 {
		out.days = [7]bool{true, true, true, true, true, true, true}
	}
	switch {
	case (in.From == "") != (in.To == ""):
		bad("from and to go together")
	case in.From != "":
		from, err1 := parseMinute(in.From)
		to, err2 := parseMinute(in.To)
		if err := errors.Join(err1, err2); err != nil {
			bad("%v", err)
		}
		if from == to && err1 == nil && err2 == nil {
			bad("from and to are the same: leave both out for the whole day")
		}
		if to < from {
			to += day
		}
		out.from, out.to = from, to
	}
	return out, errors.Join(problems...)
}

func parseMinute(s string) (int, error) {
	if s == "24:00" {
		return day, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%.20q is no time of day: write 09:00", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}
