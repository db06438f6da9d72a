package task

import (
	"errors"
	"time"
)

// How long after a failure something is tried again, at first and at most. What others undo is put back at once, Peaceful
// times, until that was Forgotten ago; then it is a fight, and each round begins later.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	Peaceful   = 8
	Forgotten  = time.Minute
)

// ErrFought is why something is not as it is wanted though it could be.
var ErrFought = errors.New("others undo it again and again")

// Backoff is the first delay, doubled so often.
func Backoff(doublings int) time.Duration {
	return min(firstRetry<<min(max(0, doublings), 10), lastRetry)
}
