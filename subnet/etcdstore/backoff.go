package etcdstore

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is how long to wait before something that failed is tried again: longer each time, and never as long as others
// do that failed at the same moment. The zero value has seen no failure.
type backoff time.Duration

// next counts a failure and returns the wait, which is at most most.
func (b *backoff) next(least, most time.Duration) time.Duration {
	wait := min(most, max(least, 2*time.Duration(*b)))
	*b = backoff(wait)
	return wait/2 + rand.N(wait/2)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// signal wakes the receiver of a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
