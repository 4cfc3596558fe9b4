// Package cli is the `nixfleet` command: what CI, operators and newcomers type (design/wire.md, command
// lines). It parses flags, environment and configuration, calls the packages that do the work, and prints
// tables for people or, with --json, one JSON value for programs. It decides nothing itself.
//
// Main runs one command line and is called by cmd/nixfleet and by tests. A group of commands is a file
// with a function that returns it, listed in NewRoot; what commands share hangs off App.
package cli
