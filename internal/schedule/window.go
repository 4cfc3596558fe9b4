package schedule

import (
	"fmt"
	"time"
	_ "time/tzdata" // a host without zoneinfo must know its windows too

	"nixfleet.dev/nixfleet/api"
)

// MaxDuration is the longest that a maintenance window may be.
const MaxDuration = 366 * 24 * time.Hour

// horizon is how many days next looks ahead: 29 February may be eight years away.
const horizon = 9 * 366

// window is a compiled maintenance window.
type window struct {
	cron     cron
	duration time.Duration
	zone     *time.Location
}

// compile parses w. An empty time zone is UTC.
func compile(w api.MaintenanceWindow) (window, error) {
	c, err := parseCron(w.Cron)
	if err != nil {
		return window{}, err
	}
	if d := w.Duration.Std(); d <= 0 || d > MaxDuration {
		return window{}, fmt.Errorf("duration %s is not above 0s and at most %s", w.Duration, api.Duration(MaxDuration))
	}
	if w.TimeZone == "Local" { // what Go calls the machine's own: it differs from host to host
		return window{}, fmt.Errorf("timeZone %q is not an IANA time zone", w.TimeZone)
	}
	zone, err := time.LoadLocation(w.TimeZone)
	if err != nil {
		return window{}, fmt.Errorf("timeZone %.64q is not an IANA time zone", w.TimeZone)
	}
	return window{cron: c, duration: w.Duration.Std(), zone: zone}, nil
}

// open says whether w opened at or before now, less than its duration ago.
func (w window) open(now time.Time) bool {
	opened := w.last(now)
	return !opened.IsZero() && now.Before(opened.Add(w.duration))
}

// next returns when w opens next after now, or zero where that is not within nine years. It begins a
// day early: clocks that go back over midnight bring the day before once more.
func (w window) next(now time.Time) (found time.Time) {
	day := civil(now.In(w.zone)).AddDate(0, 0, -1)
	for range horizon {
		w.openings(day, func(at time.Time) {
			if at.After(now) {
				found = earliest(found, at)
			}
		})
		if !found.IsZero() {
			return found
		}
		day = day.AddDate(0, 0, 1)
	}
	return time.Time{}
}

// last returns the latest opening of w at or before now; one that closed long ago may be given as zero.
// It begins a day late, for the reason that next begins a day early.
func (w window) last(now time.Time) (found time.Time) {
	day := civil(now.In(w.zone)).AddDate(0, 0, 1)
	for range int(w.duration/(24*time.Hour)) + 4 {
		w.openings(day, func(at time.Time) {
			if !at.After(now) && at.After(found) {
				found = at
			}
		})
		if !found.IsZero() {
			return found
		}
		day = day.AddDate(0, 0, -1)
	}
	return time.Time{}
}

// openings calls yield with every instant at which w opens by the wall clock of day.
func (w window) openings(day time.Time, yield func(time.Time)) {
	if !w.cron.matchesDay(day) {
		return
	}
	for hour := range 24 {
		if w.cron.hour&(1<<hour) == 0 {
			continue
		}
		for minute := range 60 {
			if w.cron.minute&(1<<minute) != 0 {
				w.instants(day.Add(time.Duration(hour)*time.Hour+time.Duration(minute)*time.Minute), yield)
			}
		}
	}
}

// instants calls yield with the instants at which a clock on the wall in w's zone shows wall, which is
// given as if it were UTC. A time that the clocks show twice, going back, counts the first time, and one
// that they skip, going forward, counts at the moment of the change: a nightly window opens once every
// night. But where the hour is *, windows follow elapsed time, as cron jobs do: they open in both passes
// of an hour, and not at all in one that is skipped.
func (w window) instants(wall time.Time, yield func(time.Time)) {
	// No zone changes twice within two days: the offsets of a day before and after are all there are.
	before, after := w.offset(wall.Add(-24*time.Hour)), w.offset(wall.Add(24*time.Hour))
	first, second := wall.Add(-before), wall.Add(-after)
	firstShows, secondShows := w.offset(first) == before, w.offset(second) == after
	switch {
	case firstShows && secondShows && before != after: // shown twice
		yield(first.In(w.zone))
		if w.cron.hourStar {
			yield(second.In(w.zone))
		}
	case firstShows:
		yield(first.In(w.zone))
	case secondShows:
		yield(second.In(w.zone))
	case !w.cron.hourStar: // skipped
		change, _ := first.In(w.zone).ZoneBounds()
		yield(change)
	}
}

// offset returns how far w's zone is ahead of UTC at t.
func (w window) offset(t time.Time) time.Duration {
	_, seconds := t.In(w.zone).Zone()
	return time.Duration(seconds) * time.Second
}

// civil returns the day of t as midnight UTC.
func civil(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
}
