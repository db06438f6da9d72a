package kernel

import (
	"maps"
	"time"

	"github.com/overlayd/overlayd/backend/task"
)

// trouble is what a key has gone through lately.
type trouble struct {
	err    error     // why it is not as wanted; nil: it is, or was for a while
	rounds int       // how often it failed or was brought back, without a pause to forget that in
	last   time.Time // of them
	next   time.Time // not to be tried before
}

func (tr *trouble) over(now time.Time) bool { return now.Sub(tr.last) > task.Forgotten }

// round notes that a key failed with err, or was brought back, and tells whether that is still worth a line in the log.
func (t *tracker) round(key Key, err error, now time.Time) (news bool) {
	tr := t.troubles[key]
	if tr == nil {
		tr = &trouble{}
		t.troubles[key] = tr
	}
	if tr.over(now) {
		tr.rounds = 0
	}
	doublings := tr.rounds
	if tr.rounds++; err == nil {
		doublings -= task.Peaceful
	}
	// There is no jitter in it: what failed together is best tried together.
	tr.last, tr.next, tr.err = now, now.Add(task.Backoff(doublings)), nil
	if err != nil {
		t.retry(tr, err)
	}
	return tr.rounds <= task.Peaceful
}

// retry lets what is in trouble be tried when it is due.
func (t *tracker) retry(tr *trouble, err error) {
	tr.err = err
	if t.retryAt.IsZero() || tr.next.Before(t.retryAt) {
		t.retryAt = tr.next
	}
}

// retryDue makes pending what is to be tried again now, and what is in a moment, so that it is one piece of work.
func (t *tracker) retryDue(now time.Time) {
	if t.retryAt.IsZero() || now.Before(t.retryAt) {
		return
	}
	t.retryAt = time.Time{}
	for key, tr := range t.troubles {
		e := t.entries[key]
		switch {
		case tr.err == nil:
		case e == nil || !e.differs():
			tr.err = nil
		case tr.next.After(now.Add(healDelay / 2)):
			t.retry(tr, tr.err)
		default:
			e.lost = e.lost || tr.err == task.ErrFought
			t.enqueue(e)
		}
	}
}

// retryFailed lets what failed be tried now, but for what is fought over.
func (t *tracker) retryFailed(now time.Time) {
	for _, tr := range t.troubles {
		if tr.err != nil && tr.err != task.ErrFought {
			tr.next = now
			t.retry(tr, tr.err)
		}
	}
}

// calm ends what a key failed by, and remembers that it did.
func (t *tracker) calm(key Key) {
	if tr := t.troubles[key]; tr != nil {
		tr.err = nil
	}
}

// fails tells whether a key is in trouble.
func (t *tracker) fails(key Key) bool {
	tr := t.troubles[key]
	return tr != nil && tr.err != nil
}

// forget forgets troubles that are over, and tells whether there are others.
func (t *tracker) forget(now time.Time) bool {
	maps.DeleteFunc(t.troubles, func(_ Key, tr *trouble) bool { return tr.err == nil && tr.over(now) })
	if len(t.troubles) == 0 {
		t.troubles = map[Key]*trouble{} // a map keeps the room that it once had
	}
	return len(t.troubles) > 0
}
