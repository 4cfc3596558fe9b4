package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

func untilTold(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func TestAWorkerThatReturnsOrPanicsEndsAllOfThemWithItsError(t *testing.T) {
	broken := errors.New("broken")
	for name, run := range map[string]func(context.Context) error{
		"an error": func(context.Context) error { return broken },
		"nothing":  func(context.Context) error { return nil },
		"a panic":  func(context.Context) error { panic("broken") },
	} {
		synctest.Test(t, func(t *testing.T) {
			ended := false
			err := supervise(t.Context(), []worker{
				{"steady", func(ctx context.Context) error { defer func() { ended = true }(); return untilTold(ctx) }},
				{"odd", run},
			})
			if !errors.Is(err, errEarly) || !strings.Contains(err.Error(), "odd") || strings.Contains(err.Error(), "steady") {
				t.Errorf("%s: %v", name, err)
			}
			if name == "an error" && !errors.Is(err, broken) {
				t.Errorf("the worker's own error is lost: %v", err)
			}
			if !ended {
				t.Errorf("%s: the other worker was left behind", name)
			}
		})
	}
}

func TestWorkersThatAreToldToEndEndWithoutAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- supervise(ctx, []worker{{"a", untilTold}, {"b", untilTold}}) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
