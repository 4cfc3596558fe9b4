// Package standin is a control plane for tests of the agent: a real TLS 1.3 server that asks for client
// certificates, answers every agent endpoint of design/wire.md as an honest control plane of one rollout
// would, records what it was sent, and lets a test replace any endpoint by a handler of its own, hostile
// ones above all.
//
// It holds no planner and no disk. Only tests import it.
package standin
