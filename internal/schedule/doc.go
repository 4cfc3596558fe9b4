// Package schedule says whether a time is inside maintenance windows and outside freezes, and when
// that changes. Windows open by cron in a time zone, with daylight saving as people expect it.
//
// It is pure: the time is an argument. The tables of time zones are linked in (time/tzdata), so that a
// host without them knows its windows too; where the system has them, those are used. Fleet and manifest
// validation call Validate; the agent, before it acts on a dispatch, and the planner ask Open.
package schedule
