// Package journal keeps the agent's records: one append-only file in the state directory, of which
// every record is on disk when Append returns.
//
// The file is a header and records, each of them
//
//	mark    4 bytes
//	length  4 bytes, little-endian, of the payload
//	sum     4 bytes, CRC-32C of length and payload
//	payload
//
// What it promises, whatever system call fails and wherever the machine stops: Open returns every
// record whose Append returned nil, in order, and after them at most the one that was being appended.
// Compact replaces all records with one, or does nothing. A file that is damaged anywhere but in an
// unfinished record at its end is set aside whole: half a history is no history.
//
// Open writes what it read into a new file before it returns it. So a record that an earlier process
// wrote, but could not make durable, is durable before anybody acts on it, and a torn end is gone.
//
// After an error of a write nothing is known about what is on disk: the journal then refuses
// everything, and the process is to end and open it again.
//
// It does not know what its records mean; its caller is internal/agent, which hands it to the reducer.
package journal
