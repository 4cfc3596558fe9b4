package trust_test

import (
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

func TestFreshnessToTheSecond(t *testing.T) {
	const window = time.Hour
	for name, test := range map[string]struct {
		age  time.Duration // of what was signed
		code api.Code
	}{
		"just signed":             {0, ""},
		"at the window's end":     {window, ""},
		"a second after it":       {window + time.Second, api.CodeStale},
		"60 s in the future":      {-60 * time.Second, ""},
		"61 s in the future":      {-61 * time.Second, api.CodeSignedInFuture},
		"a century in the future": {-876000 * time.Hour, api.CodeSignedInFuture},
		"two centuries old":       {2 * 876000 * time.Hour, api.CodeStale},
	} {
		t.Run(name, func(t *testing.T) {
			err := trust.CheckFresh("thing", now.Add(-test.age), window, now)
			if test.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantRefusal(t, err, test.code, "thing: signed at ")
		})
	}
}

func TestNothingSignedBeforeTheLineIsAccepted(t *testing.T) {
	tr := manifesttest.Trust()
	tr.Release.RejectSignedBefore = &now
	root := manifesttest.Root(tr)
	if err := trust.CheckNotBefore(root, "thing", now); err != nil {
		t.Error(err)
	}
	wantRefusal(t, trust.CheckNotBefore(root, "thing", now.Add(-time.Second)), api.CodeStale, "nothing signed before")
}

func TestPositionsOnlyAdvance(t *testing.T) {
	at := func(sequence int64, after time.Duration) trust.Position {
		return trust.Position{Sequence: sequence, SignedAt: now.Add(after)}
	}
	for name, test := range map[string]struct {
		last, next trust.Position
		refused    bool
	}{
		"the same":                         {at(5, 0), at(5, 0), false},
		"a later sequence":                 {at(5, 0), at(6, 0), false},
		"a later sequence, signed earlier": {at(5, 0), at(6, -time.Hour), false},
		"signed again":                     {at(5, 0), at(5, time.Second), false},
		"an earlier sequence":              {at(5, 0), at(4, time.Hour), true},
		"the same sequence signed earlier": {at(5, 0), at(5, -time.Second), true},
		"the first ever":                   {trust.Position{}, at(1, 0), false},
	} {
		err := trust.CheckAdvance("thing", test.last, test.next)
		if test.refused {
			wantRefusal(t, err, api.CodeRollbackRefused, "thing: sequence ")
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if test.last.Compare(test.next) != -test.next.Compare(test.last) {
			t.Errorf("%s: the order is not one", name)
		}
	}
}
