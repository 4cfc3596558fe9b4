// Package load measures what the control plane bears (docs/performance.md): how much memory a parked
// agent takes, and how soon a host hears that it is its turn. Every figure is a ratio to a bare baseline
// that runs beside it in the same benchmark, with the same clients, in a process of its own.
//
//	go test -run '^$' -bench . -benchtime 1x ./test/load
//
// It has benchmarks only; nothing imports it.
package load
