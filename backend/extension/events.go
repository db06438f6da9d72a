package extension

import (
	"slices"
	"time"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/subnet"
)

// attempt is how something that is tried until it succeeds has fared.
type attempt struct {
	tries int       // in vain, one after the other
	at    time.Time // when the next is to begin
	err   error     // of the last
	done  bool
}

// ended takes in what became of a try, and says whether that is news.
func (a *attempt) ended(err error, now time.Time) (news bool) {
	news = (err == nil) != (a.err == nil) || err != nil && a.err != nil && err.Error() != a.err.Error()
	if a.err = err; err == nil {
		a.tries, a.done = 0, true
		return news
	}
	a.at, a.tries = now.Add(task.Backoff(a.tries+firstDoublings)), a.tries+1
	return news
}

// firstDoublings have commands retried after 1.6 s at first: they are programs that speak to others, and not a kernel.
const firstDoublings = 4

// event is a peer, for SubnetAddCommand and SubnetRemoveCommand.
type event struct {
	attempt
	want   *subnet.Lease // as it is; nil: gone
	had    *subnet.Lease // as a command heard of it; nil: none has
	queued bool
}

// settled says whether a command has heard how things are.
func (e *event) settled() bool {
	if e.want == nil || e.had == nil {
		return e.want == e.had
	}
	return e.done && e.want.Equal(*e.had)
}

// events are all peers', and which of them there is something to tell of.
type events struct {
	all   map[string]*event
	queue []string
}

// becomes notes how a peer is now.
func (e *events) becomes(key string, want *subnet.Lease) {
	ev := e.all[key]
	if ev == nil {
		if want == nil {
			return
		}
		ev = &event{}
		e.all[key] = ev
	}
	ev.want = want
	switch {
	case !ev.settled():
		ev.attempt = attempt{err: ev.err}
		e.enqueue(key, ev)
	case want == nil: // no command has heard of it
		delete(e.all, key)
	}
}

func (e *events) enqueue(key string, ev *event) {
	if !ev.queued {
		ev.queued = true
		e.queue = append(e.queue, key)
	}
}

// next takes the first from the queue whose time has come; else it says when one will be.
func (e *events) next(now time.Time) (key string, ev *event, at time.Time) {
	rest := e.queue[:0]
	for i, key := range e.queue {
		ev := e.all[key]
		switch {
		case ev == nil || ev.settled(): // meanwhile, or it stands here twice
		case !ev.at.After(now):
			ev.queued = false
			e.queue = slices.Delete(e.queue, len(rest), i+1)
			return key, ev, time.Time{}
		default:
			rest = append(rest, key)
			if at.IsZero() || ev.at.Before(at) {
				at = ev.at
			}
		}
	}
	e.queue = rest
	return "", nil, at
}

// told takes in what became of a command that heard of a peer: of lease, or that it is gone.
func (e *events) told(key string, lease *subnet.Lease, err error, now time.Time) (news bool) {
	ev := e.all[key]
	news = ev.ended(err, now)
	if lease != nil || err == nil {
		ev.had = lease // also of one that failed: something may be there
	}
	switch {
	case !ev.settled():
		e.enqueue(key, ev)
	case ev.had == nil:
		delete(e.all, key)
	}
	return news
}

// untold says whether there is a peer that no command has been run for.
func (e *events) untold() bool {
	for _, key := range e.queue {
		if ev := e.all[key]; ev != nil && ev.tries == 0 && !ev.settled() {
			return true
		}
	}
	return false
}
