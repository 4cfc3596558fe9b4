package schedule

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// cron is a parsed five-field cron expression: minute, hour, day of month, month, day of week. Bit n
// of a field is set when it matches n.
type cron struct {
	minute, hour, dom, month, dow uint64

	// Where both are restricted, a day matches by either (cron(5)); a field that begins with * is none.
	domStar, dowStar bool
	// hourStar marks an expression that fires by the hour on the clock of the world rather than at
	// times of the day: it fires in both passes of an hour that is repeated.
	hourStar bool
}

type cronField struct {
	name     string
	min, max int
	names    string // three letters each, from min on
}

var cronFields = [5]cronField{
	{name: "minute", min: 0, max: 59},
	{name: "hour", min: 0, max: 23},
	{name: "day of month", min: 1, max: 31},
	{name: "month", min: 1, max: 12, names: "janfebmaraprmayjunjulaugsepoctnovdec"},
	{name: "day of week", min: 0, max: 7, names: "sunmontuewedthufrisat"},
}

// maxCron is the longest cron expression, in bytes.
const maxCron = 256

// parseCron parses a cron expression. Lists, ranges, steps and names of months and days work; macros,
// seconds and the extensions of particular crons (L, W, #) do not.
func parseCron(s string) (cron, error) {
	if len(s) > maxCron {
		return cron{}, fmt.Errorf("cron is %d bytes; at most %d are allowed", len(s), maxCron)
	}
	parts := strings.Fields(s)
	if len(parts) != len(cronFields) {
		return cron{}, fmt.Errorf("cron %q has %d fields, not 5 (minute, hour, day of month, month, day of week)", s, len(parts))
	}
	var bits [5]uint64
	for i, part := range parts {
		var err error
		if bits[i], err = cronFields[i].parse(part); err != nil {
			return cron{}, fmt.Errorf("cron %q: %s %q %w", s, cronFields[i].name, part, err)
		}
	}
	if bits[4]&(1<<7) != 0 { // 7 is Sunday too
		bits[4] = bits[4]&^(1<<7) | 1
	}
	star := func(i int) bool { return strings.HasPrefix(parts[i], "*") }
	c := cron{
		minute: bits[0], hour: bits[1], dom: bits[2], month: bits[3], dow: bits[4],
		hourStar: star(1), domStar: star(2), dowStar: star(4),
	}
	if !c.everMatches() {
		return cron{}, fmt.Errorf("cron %q never fires", s)
	}
	return c, nil
}

func (f cronField) parse(s string) (uint64, error) {
	var bits uint64
	for item := range strings.SplitSeq(s, ",") {
		itemBits, err := f.item(item)
		if err != nil {
			return 0, err
		}
		bits |= itemBits
	}
	return bits, nil
}

// item parses *, n, n-m, and those but n with /step.
func (f cronField) item(s string) (uint64, error) {
	s, stepText, hasStep := strings.Cut(s, "/")
	step := 1
	if hasStep {
		var err error
		if step, err = number(stepText); err != nil || step < 1 || step > f.max {
			return 0, fmt.Errorf("has a step that is not 1 to %d", f.max)
		}
	}
	from, to := f.min, f.max
	switch first, last, isRange := strings.Cut(s, "-"); {
	case s == "*":
		if f.max == 7 {
			to = 6 // 7 is 0 once more: a step would count Sunday twice
		}
	case isRange:
		var err error
		if from, err = f.value(first); err != nil {
			return 0, err
		}
		if to, err = f.value(last); err != nil {
			return 0, err
		}
		if from > to {
			return 0, errors.New("has a range that goes backwards")
		}
	case hasStep:
		return 0, errors.New("has a step without a range")
	default:
		n, err := f.value(s)
		if err != nil {
			return 0, err
		}
		from, to = n, n
	}
	var bits uint64
	for n := from; n <= to; n += step {
		bits |= 1 << n
	}
	return bits, nil
}

func (f cronField) value(s string) (int, error) {
	if n, err := number(s); err == nil && n >= f.min && n <= f.max {
		return n, nil
	}
	if len(s) == 3 && f.names != "" {
		if i := strings.Index(f.names, strings.ToLower(s)); i >= 0 && i%3 == 0 {
			return f.min + i/3, nil
		}
	}
	return 0, fmt.Errorf("is not %d to %d", f.min, f.max)
}

// number parses digits and nothing else: no sign.
func number(s string) (int, error) {
	if s == "" || len(s) > 4 || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("is not a number")
	}
	return strconv.Atoi(s)
}

// everMatches says whether there is a day that c fires on; 30 February is the classic that is not one.
func (c cron) everMatches() bool {
	if !c.dowStar {
		return true // every month has every day of the week; a day of month beside it only adds days
	}
	for m, days := range [...]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31} {
		inMonth := uint64(1)<<(days+1) - 1
		if c.month&(1<<(m+1)) != 0 && c.dom&inMonth != 0 {
			return true
		}
	}
	return false
}

// matchesDay says whether c fires on the day of t, whose time of day does not matter.
func (c cron) matchesDay(t time.Time) bool {
	if c.month&(1<<t.Month()) == 0 {
		return false
	}
	dom := c.dom&(1<<t.Day()) != 0
	dow := c.dow&(1<<t.Weekday()) != 0
	if c.domStar || c.dowStar {
		return dom && dow
	}
	return dom || dow
}
