// Package directory is the activation backend of systems that are not Nix, of tests and of the
// demonstration (design/wire.md, its last paragraph): a closure is a folder of the store, the profile
// and the current system are links to one, and to switch is to run the closure's own
// bin/switch-to-configuration and then to move the current-system link.
//
// The switch runs in a helper, which is this same binary in a session of its own: it goes on when the
// agent is killed, and the next agent takes it up. Each switch, or job, has a folder of its own below
// switch/ in the state directory:
//
//	job.json      what to do, written before the helper is started
//	lock          held by the helper as long as it lives: this, and no process number, says that it runs
//	process.json  who the helper is, so that it can be stopped
//	begun         there once the script was, or was about to be, run: it never is a second time
//	output.log    what the script printed, capped
//	result.json   how it ended, written whole before the helper exits
//
// switch/lock is held by the helper whose turn it is: two switches never run at once, whoever asked
// for them. A helper that was killed takes its script with it, and the next one ends what may be left
// of it before it begins.
//
// Only the agent's activation procedure uses a Backend. Every main that runs an agent calls HelperMain
// first.
package directory
