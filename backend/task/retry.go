package task

import (
	"errors"
	"log/slog"
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

// Fights counts how often a thing was brought back that others had changed. The zero Fights has seen none.
type Fights struct {
	rounds int // with no pause among them to be forgotten in
	last   time.Time
}

// Healed notes that objects of a kind were brought back, and says so. It returns how many rounds of a fight that makes; 0: none.
func (f *Fights) Healed(log *slog.Logger, kind string, objects int) (fought int) {
	if time.Since(f.last) > Forgotten {
		f.rounds = 0
	}
	f.rounds++
	f.last = time.Now()
	if f.rounds <= Peaceful {
		log.Info("healed", kind, objects)
		return 0
	}
	log.Warn("healed again and again", kind, objects)
	return f.rounds - Peaceful
}

// Signal has who receives from c, whose capacity is 1, do so once more.
func Signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
