package fleet

import (
	"slices"

	"nixfleet.dev/nixfleet/api"
)

// maxCycles is how many cycles are reported; whoever has more will look at all edges anyway.
const maxCycles = 20

// findCycles returns cycles among edges, each as the nodes along it: none where there is none, and
// otherwise at least one through each knot, up to maxCycles, in a stable order.
func findCycles(edges []api.Edge) [][]string {
	next := map[string][]string{}
	for _, e := range edges {
		next[e.Before] = append(next[e.Before], e.After)
	}
	for _, nodes := range next {
		slices.Sort(nodes)
	}
	w := &cycleWalk{next: next, state: map[string]walkState{}}
	for _, node := range sortedKeys(next) {
		if w.state[node] == unseen {
			w.from(node)
		}
	}
	return w.cycles
}

type walkState int

const (
	unseen walkState = iota
	onPath
	done
)

// cycleWalk is a depth-first walk that keeps its own stack, as chains may be as long as a fleet.
type cycleWalk struct {
	next   map[string][]string
	state  map[string]walkState
	path   []string
	cycles [][]string
}

func (w *cycleWalk) from(start string) {
	w.push(start)
	tried := []int{0}
	for len(w.path) > 0 {
		node, last := w.path[len(w.path)-1], len(tried)-1
		if tried[last] == len(w.next[node]) {
			w.state[node] = done
			w.path, tried = w.path[:last], tried[:last]
			continue
		}
		to := w.next[node][tried[last]]
		tried[last]++
		switch w.state[to] {
		case unseen:
			w.push(to)
			tried = append(tried, 0)
		case onPath:
			w.report(to)
		}
	}
}

func (w *cycleWalk) push(node string) {
	w.state[node] = onPath
	w.path = append(w.path, node)
}

func (w *cycleWalk) report(start string) {
	if len(w.cycles) < maxCycles {
		w.cycles = append(w.cycles, slices.Clone(w.path[slices.Index(w.path, start):]))
	}
}
