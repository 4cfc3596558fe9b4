package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// worker is one part of the agent that runs as long as the agent does.
type worker struct {
	name string
	run  func(ctx context.Context) error
}

// errEarly is why an agent ends whose worker returned without being told to.
var errEarly = errors.New("a worker ended by itself")

// supervise runs the workers under one context. It returns once all have ended: nil where ctx ended
// first, and otherwise why the first that returned or panicked did; that ends the others too.
func supervise(ctx context.Context, workers []worker) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, len(workers))
	for _, w := range workers {
		go func() { ended <- guard(inner, w) }()
	}
	var first error
	for range workers {
		err := <-ended
		if first == nil && ctx.Err() == nil {
			first = err
			cancel(err)
		}
	}
	return first
}

// guard runs one worker and says that it ended, whatever way it did.
func guard(ctx context.Context, w worker) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s panicked: %v\n%s", errEarly, w.name, p, debug.Stack())
		}
	}()
	if err := w.run(ctx); err != nil {
		return fmt.Errorf("%w: %s: %w", errEarly, w.name, err)
	}
	return fmt.Errorf("%w: %s", errEarly, w.name)
}
