package policy

import (
	"slices"
	"time"
)

// indexMemory is how many changes a host may have missed and still know that they were made after what it knows: 1.3 kB.
const indexMemory = 64

// Index says of all policies and namespaces together which change was the last, so that hosts tell what an operator deleted
// from what an etcd lost that was wiped or restored. Each change writes it too.
type Index struct {
	At        int64   `json:"at"` // nanoseconds since 1970; grows with each change
	Policies  int     `json:"policies"`
	Before    []int64 `json:"before,omitempty"`    // At of the changes before, the oldest first; the last 64
	Confirmed int64   `json:"confirmed,omitempty"` // when somebody said that what there is is meant, whatever was before
}

// Next is the index after a change at a time, when there are so many policies.
func (i Index) Next(now time.Time, policies int) Index {
	next := Index{At: max(i.At+1, now.UnixNano()), Policies: policies, Confirmed: i.Confirmed}
	if i.At != 0 {
		next.Before = append(slices.Clone(i.Before), i.At)
		next.Before = next.Before[max(len(next.Before)-indexMemory, 0):]
	}
	return next
}

// Follows says whether i came of known by changes, as far as it remembers: whatever is gone was deleted.
func (i Index) Follows(known Index) bool {
	switch {
	case known.At == 0, i.At == known.At, i.Confirmed > known.At, slices.Contains(i.Before, known.At):
		return true
	}
	return len(i.Before) == indexMemory && known.At < i.Before[0]
}
