package policy_test

import (
	"testing"
	"time"

	"github.com/overlayd/overlayd/policy"
)

// TestIndexFollows: what came of an index by changes follows it, and nothing that a wiped or restored etcd has does.
func TestIndexFollows(t *testing.T) {
	t.Parallel()
	now := time.Now()
	later := func(i policy.Index, n int) policy.Index {
		for range n {
			now = now.Add(time.Second)
			i = i.Next(now, 1)
		}
		return i
	}
	backup := later(policy.Index{}, 3)
	known := later(backup, 2)
	confirmed := later(backup, 1)
	confirmed.Confirmed = confirmed.At
	ahead := policy.Index{At: now.Add(time.Hour).UnixNano()}
	for name, c := range map[string]struct {
		says, known policy.Index
		want        bool
	}{
		"wiped":                         {policy.Index{}, known, false},
		"wiped, and written":            {later(policy.Index{}, 1), known, false},
		"wiped, and often written":      {later(policy.Index{}, 60), known, false},
		"restored":                      {backup, known, false},
		"restored, and written":         {later(backup, 1), known, false},
		"restored, and confirmed":       {confirmed, known, true},
		"confirmed, and written":        {later(confirmed, 3), known, true},
		"confirmed, lost, and written":  {later(policy.Index{}, 1), confirmed, false},
		"the same":                      {known, known, true},
		"one later":                     {later(known, 1), known, true},
		"64 later":                      {later(known, 64), known, true},
		"more than can be remembered":   {later(known, 200), known, true},
		"nothing known":                 {known, policy.Index{}, true},
		"a clock that was set back":     {ahead.Next(now, 1), ahead, true},
		"a clock that was ahead, wiped": {later(policy.Index{}, 1), ahead, false},
	} {
		if got := c.says.Follows(c.known); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
		if len(c.says.Before) > 64 {
			t.Errorf("%s: it remembers %d", name, len(c.says.Before))
		}
	}
	if n := ahead.Next(now, 1); n.At != ahead.At+1 {
		t.Errorf("%d after %d", n.At, ahead.At)
	}
}
