package schedule

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
)

func at(t testing.TB, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func opens(cron, duration, zone string) api.MaintenanceWindow {
	d, err := time.ParseDuration(duration)
	if err != nil {
		panic(err)
	}
	return api.MaintenanceWindow{Cron: cron, Duration: api.Duration(d), TimeZone: zone}
}

func TestWindowsOpenAndClose(t *testing.T) {
	for name, test := range map[string]struct {
		window api.MaintenanceWindow
		open   []string
		closed []string
	}{
		"every Saturday night in Paris": {
			opens("0 2 * * 6", "4h", "Europe/Paris"),
			[]string{"2026-11-28T01:00:00Z", "2026-11-28T04:59:59Z", "2026-07-04T00:00:00Z", "2026-07-04T03:59:59Z"},
			[]string{"2026-11-28T00:59:59Z", "2026-11-28T05:00:00Z", "2026-11-27T02:00:00Z", "2026-07-03T23:59:59Z", "2026-07-04T04:00:00Z"},
		},
		"over midnight": {
			opens("30 23 * * *", "1h", ""),
			[]string{"2026-12-31T23:30:00Z", "2027-01-01T00:29:59Z"},
			[]string{"2026-12-31T23:29:59Z", "2027-01-01T00:30:00Z"},
		},
		"longer than its period is always open": {
			opens("0 0 * * *", "25h", "America/New_York"),
			[]string{"2026-03-08T04:00:00Z", "2026-03-08T07:00:00Z", "2026-11-01T05:30:00Z", "2026-11-02T04:59:00Z"}, nil,
		},
		"over days": {
			opens("0 18 * * fri", "62h", ""),
			[]string{"2026-11-27T18:00:00Z", "2026-11-30T07:59:59Z"},
			[]string{"2026-11-27T17:59:59Z", "2026-11-30T08:00:00Z"},
		},
		"lists, ranges, steps and names": {
			opens("0,30 8-18/5 1-7 JAN,jul Mon-Fri", "10m", ""),
			[]string{"2027-01-01T08:00:00Z", "2027-01-01T13:30:00Z", "2027-07-05T18:09:00Z"},
			[]string{"2027-01-01T08:10:00Z", "2027-01-01T09:00:00Z", "2027-02-01T08:00:00Z"},
		},
		"a day of month or a day of week, where both are given": {
			opens("0 0 13 * 5", "1h", ""),
			[]string{"2026-11-13T00:30:00Z", "2026-11-20T00:30:00Z", "2026-12-13T00:30:00Z"},
			[]string{"2026-11-14T00:30:00Z"},
		},
		"a day of month and a day of week, where one begins with a star": {
			opens("0 0 */2 * 5", "1h", ""),
			[]string{"2026-11-13T00:30:00Z", "2026-11-27T00:30:00Z"},
			[]string{"2026-11-20T00:30:00Z", "2026-11-15T00:30:00Z"},
		},
		"seven is Sunday": {
			opens("0 0 * * 7", "1h", ""), []string{"2026-11-29T00:00:00Z"}, []string{"2026-11-28T00:00:00Z", "2026-11-30T00:00:00Z"},
		},
		"29 February": {
			opens("0 0 29 2 *", "24h", ""), []string{"2028-02-29T12:00:00Z"}, []string{"2027-03-01T00:00:00Z", "2028-02-28T23:59:59Z", "2028-03-01T00:00:00Z"},
		},
		"a time that spring skips opens at the change": {
			opens("30 2 * * *", "1h", "Europe/Paris"), // 29 March 2026, 02:00 → 03:00 at 01:00Z
			[]string{"2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:59:59Z", "2026-03-30T00:30:00Z"},
			[]string{"2026-03-29T00:59:59Z", "2026-03-29T02:00:00Z"},
		},
		"a time that autumn repeats opens once": {
			opens("30 2 * * *", "20m", "Europe/Paris"), // 25 October 2026, 03:00 → 02:00 at 01:00Z
			[]string{"2026-10-25T00:30:00Z"},
			[]string{"2026-10-25T01:30:00Z", "2026-10-25T00:50:00Z"},
		},
		"every hour is every hour in autumn too": {
			opens("30 * * * *", "20m", "Europe/Paris"),
			[]string{"2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"},
			[]string{"2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"},
		},
		"a window lasts as long as it says over a change": {
			opens("0 1 * * *", "4h", "America/New_York"), // 1 November 2026, 02:00 → 01:00 at 06:00Z
			[]string{"2026-11-01T05:00:00Z", "2026-11-01T08:59:59Z"},
			[]string{"2026-11-01T04:59:59Z", "2026-11-01T09:00:00Z"},
		},
		"half an hour of daylight saving": {
			opens("15 2 * * *", "15m", "Australia/Lord_Howe"), // 4 October 2026, 02:00 → 02:30 at 3 October 15:30Z
			[]string{"2026-10-03T15:30:00Z"},
			[]string{"2026-10-03T15:29:59Z", "2026-10-03T15:45:00Z"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New([]api.MaintenanceWindow{test.window}, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, moment := range test.open {
				if open, reason := s.Open(at(t, moment)); !open || reason != "" {
					t.Errorf("not open at %s: %s", moment, reason)
				}
			}
			for _, moment := range test.closed {
				if open, reason := s.Open(at(t, moment)); open || !strings.Contains(reason, "the next opens at ") {
					t.Errorf("open at %s (%q)", moment, reason)
				}
			}
		})
	}
}

func TestClocksThatGoBackOverMidnight(t *testing.T) {
	// On 7 November 2010 clocks in St. John's went from 00:01 (02:31Z) back to 23:01 of the day before.
	nightly, err := compile(opens("0 0 * * *", "30m", "America/St_Johns"))
	if err != nil {
		t.Fatal(err)
	}
	if !nightly.open(at(t, "2010-11-07T02:45:00Z")) || nightly.open(at(t, "2010-11-07T03:30:00Z")) {
		t.Error("the window of the 7th is not open on the second evening of the 6th, or opens again at its midnight")
	}
	hourly, err := compile(opens("30 * * * *", "10m", "America/St_Johns"))
	if err != nil {
		t.Fatal(err)
	}
	if next := hourly.next(at(t, "2010-11-07T02:30:30Z")); !next.Equal(at(t, "2010-11-07T03:00:00Z")) {
		t.Errorf("the hourly window opens next at %s, not at half past eleven once more", next)
	}
}

func TestFreezesAndIgnoring(t *testing.T) {
	windows := []api.MaintenanceWindow{opens("0 2 * * *", "1h", ""), opens("0 14 * * *", "1h", "")}
	freezes := []api.Freeze{{From: at(t, "2026-12-20T00:00:00Z"), Until: at(t, "2026-12-27T00:00:00Z"), Reason: "holidays"}}
	for name, test := range map[string]struct {
		windows []api.MaintenanceWindow
		freezes []api.Freeze
		ignore  bool
		now     string
		want    string // "" is open
	}{
		"nothing declared":               {nil, nil, false, "2026-12-21T02:30:00Z", ""},
		"in the second window":           {windows, freezes, false, "2026-12-19T14:30:00Z", ""},
		"between them":                   {windows, freezes, false, "2026-12-19T04:00:00Z", "outside every maintenance window; the next opens at 2026-12-19T14:00:00Z"},
		"a freeze in a window":           {windows, freezes, false, "2026-12-20T02:30:00Z", `a freeze is on until 2026-12-27T00:00:00Z: "holidays"`},
		"a freeze begins":                {nil, freezes, false, "2026-12-20T00:00:00Z", "a freeze is on"},
		"a second before":                {nil, freezes, false, "2026-12-19T23:59:59Z", ""},
		"a freeze ends":                  {nil, freezes, false, "2026-12-27T00:00:00Z", ""},
		"ignored":                        {windows, freezes, true, "2026-12-21T04:00:00Z", ""},
		"a window that cannot be read":   {[]api.MaintenanceWindow{windows[0], {Cron: "x"}}, nil, false, "2026-12-19T02:30:00Z", "maintenance window 1: cron"},
		"a window that never comes soon": {[]api.MaintenanceWindow{opens("0 0 29 2 */6", "1h", "")}, nil, false, "2032-03-01T00:00:00Z", "none opens for years"},
	} {
		open, reason := Open(test.windows, test.freezes, test.ignore, at(t, test.now))
		if open != (test.want == "") || !strings.Contains(reason, test.want) {
			t.Errorf("%s: %v, %q", name, open, reason)
		}
	}
}

func TestWindowsThatAreNotRightAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		window api.MaintenanceWindow
		want   string
	}{
		"nothing":              {opens("", "1h", ""), "0 fields, not 5"},
		"six fields":           {opens("0 0 2 * * 6", "1h", ""), "6 fields, not 5"},
		"a macro":              {opens("@daily", "1h", ""), "1 fields, not 5"},
		"minute 60":            {opens("60 * * * *", "1h", ""), `minute "60" is not 0 to 59`},
		"hour 24":              {opens("0 24 * * *", "1h", ""), "hour"},
		"day 0":                {opens("0 0 0 * *", "1h", ""), "day of month"},
		"month 13":             {opens("0 0 1 13 *", "1h", ""), "month"},
		"weekday 8":            {opens("0 0 * * 8", "1h", ""), "day of week"},
		"a name that is none":  {opens("0 0 * foo *", "1h", ""), "month"},
		"a name across two":    {opens("0 0 * anf *", "1h", ""), "month"},
		"a backward range":     {opens("0 5-3 * * *", "1h", ""), "backwards"},
		"a step of 0":          {opens("*/0 * * * *", "1h", ""), "step"},
		"a step of nothing":    {opens("5/10 * * * *", "1h", ""), "step without a range"},
		"a sign":               {opens("+5 * * * *", "1h", ""), "minute"},
		"an empty item":        {opens("1,,2 * * * *", "1h", ""), "minute"},
		"a range of a range":   {opens("1-2-3 * * * *", "1h", ""), "minute"},
		"a day that never is":  {opens("0 0 30 2 *", "1h", ""), "never fires"},
		"another one":          {opens("0 0 31 4,6,9,11 *", "1h", ""), "never fires"},
		"a long cron":          {opens(strings.Repeat("1,", 200)+"1 * * * *", "1h", ""), "at most 256"},
		"no duration":          {opens("0 0 * * *", "0s", ""), "duration"},
		"years":                {opens("0 0 * * *", "9000h", ""), "duration"},
		"no zone of that name": {opens("0 0 * * *", "1h", "Europe/Atlantis"), "IANA"},
		"the machine's own":    {opens("0 0 * * *", "1h", "Local"), "IANA"},
		"a path for a zone":    {opens("0 0 * * *", "1h", "../../etc/passwd"), "IANA"},
	} {
		if err := Validate(test.window); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want …%s…", name, err, test.want)
		}
	}
}

var zones = []string{
	"UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Chatham",
	"America/Nuuk", "Africa/Casablanca", "America/Havana", "Pacific/Apia", "Asia/Beirut",
}

// modelOpenings walks the minutes of the world from one time to another and says at which a window
// opens, by looking at a clock on the wall: the model of instants, without arithmetic on offsets.
func modelOpenings(w window, from, to time.Time) []time.Time {
	type wall struct {
		day          string
		hour, minute int
	}
	read := func(t time.Time) wall {
		t = t.In(w.zone)
		return wall{t.Format(time.DateOnly), t.Hour(), t.Minute()}
	}
	fires := func(t time.Time) bool { // t's own wall clock
		return w.cron.matchesDay(t) && w.cron.hour&(1<<t.Hour()) != 0 && w.cron.minute&(1<<t.Minute()) != 0
	}
	var openings []time.Time
	shown := map[wall]bool{}
	for t := from.Add(-3 * time.Hour); t.Before(to); t = t.Add(time.Minute) {
		before, now := t.Add(-time.Minute).In(w.zone), t.In(w.zone)
		skipped := false
		if !w.cron.hourStar { // every minute that the clock on the wall jumped over
			_, a := before.Zone()
			_, b := now.Zone()
			for jumped := before.Add(time.Minute); b > a && jumped.Before(before.Add(time.Duration(b-a+60)*time.Second)); jumped = jumped.Add(time.Minute) {
				face := time.Date(before.Year(), before.Month(), before.Day(), before.Hour(), before.Minute(), 0, 0, time.UTC).Add(jumped.Sub(before))
				if face.Format("2006-01-02 15:04") != now.Format("2006-01-02 15:04") {
					skipped = skipped || fires(face)
				}
			}
		}
		face := read(now)
		if (skipped || fires(now) && (w.cron.hourStar || !shown[face])) && !t.Before(from) {
			openings = append(openings, t)
		}
		shown[face] = true
	}
	return openings
}

func TestOpeningsAreThoseOfAClockOnTheWall(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		cron := rapid.SampledFrom([]string{
			"30 2 * * *", "0 0 * * *", "15 1-3 * * *", "*/20 * * * *", "10 */2 * * *", "45 23 * * *", "0 3 * * 0", "59 23 31 * *", "5 0,1,2,3 * * 6,0",
		}).Draw(t, "cron")
		compiled, err := compile(opens(cron, rapid.SampledFrom([]string{"10m", "1h", "5h", "30h"}).Draw(t, "duration"), zone))
		if err != nil {
			t.Fatal(err)
		}
		from := drawMoment(t, compiled.zone)
		to := from.Add(30 * time.Hour)
		openings := modelOpenings(compiled, from.Add(-compiled.duration), to)
		for now := from; now.Before(from.Add(3 * time.Hour)); now = now.Add(7 * time.Minute) {
			open, next := false, time.Time{}
			for _, at := range openings {
				if !at.After(now) && now.Before(at.Add(compiled.duration)) {
					open = true
				}
				if at.After(now) && next.IsZero() {
					next = at
				}
			}
			if got := compiled.open(now); got != open {
				t.Fatalf("%s in %s at %s: open is %v, want %v", cron, zone, now, got, open)
			}
			if got := compiled.next(now); !next.IsZero() && !got.Equal(next) {
				t.Fatalf("%s in %s at %s: the next opening is %s, want %s", cron, zone, now, got, next)
			}
		}
	})
}

// drawMoment draws a time, more often than not around a change of the zone's clocks.
func drawMoment(t *rapid.T, zone *time.Location) time.Time {
	moment := time.Date(2026, 1, 1, 0, rapid.IntRange(0, 3*365*24*60).Draw(t, "minute"), 0, 0, time.UTC)
	if _, change := moment.In(zone).ZoneBounds(); !change.IsZero() && rapid.Bool().Draw(t, "around a change") {
		moment = change.Add(time.Duration(rapid.IntRange(-240, 120).Draw(t, "minutes from it")) * time.Minute)
	}
	return moment.UTC().Truncate(time.Minute)
}

func TestNothingChangesBeforeNextChange(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		zone := rapid.SampledFrom(zones).Draw(rt, "zone")
		windows := []api.MaintenanceWindow{opens("30 2 * * *", "3h", zone), opens("0 12 * * 1-5", "30m", zone)}
		loc, err := time.LoadLocation(zone)
		if err != nil {
			rt.Fatal(err)
		}
		now := drawMoment(rt, loc)
		freezes := []api.Freeze{{From: now.Add(5 * time.Hour), Until: now.Add(50 * time.Hour)}}
		s, err := New(windows, freezes, false)
		if err != nil {
			rt.Fatal(err)
		}
		next := s.NextChange(now)
		if !next.After(now) {
			rt.Fatalf("the next change is at %s, not after %s", next, now)
		}
		open, _ := s.Open(now)
		for moment := now; moment.Before(next); moment = moment.Add(time.Minute) {
			if got, _ := s.Open(moment); got != open {
				rt.Fatalf("open turned %v at %s, before %s", got, moment, next)
			}
		}
	})
	if s, _ := New(nil, nil, false); !s.NextChange(at(t, "2026-11-23T08:00:00Z")).IsZero() {
		t.Error("what is always open changes")
	}
}

func FuzzWindow(f *testing.F) {
	for _, cron := range []string{"0 2 * * 6", "*/5 0-23/2 1,15 jan-dec mon", "30 2 29 2 */3", "@daily", "0 0 * * 7"} {
		f.Add(cron, "Europe/Paris", int64(time.Hour), int64(1795420800))
	}
	f.Fuzz(func(t *testing.T, cron, zone string, duration, unix int64) {
		compiled, err := compile(api.MaintenanceWindow{Cron: cron, Duration: api.Duration(duration), TimeZone: zone})
		if err != nil {
			return
		}
		now := time.Unix(unix%(1<<34), 0).UTC()
		next := compiled.next(now)
		if !next.IsZero() && (!next.After(now) || !compiled.open(next)) {
			t.Errorf("%q in %q opens next at %s, and is %v then", cron, zone, next, compiled.open(next))
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	s, err := New([]api.MaintenanceWindow{opens("0 2 * * 6", "4h", "Europe/Paris")}, nil, false)
	if err != nil {
		b.Fatal(err)
	}
	now := at(b, "2026-11-23T08:00:00Z")
	for b.Loop() {
		s.Open(now)
	}
}
