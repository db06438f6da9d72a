package kernel

import (
	"maps"
	"time"
)

// fight is how often a key was brought back, or failed, without a pause to be forgotten in.
type fight struct {
	rounds int
	last   time.Time
	next   time.Time // not to be brought back before
}

func (f fight) over(now time.Time) bool { return now.Sub(f.last) > forgotten }

// round notes that a key was brought back, or failed, and tells whether that is still worth a line in the log.
func (t *table) round(key Key, now time.Time) (news bool) {
	f := t.fights[key]
	if f.over(now) {
		f.rounds = 0
	}
	f.rounds++
	delay := min(firstRetry<<min(max(0, f.rounds-peaceful), 10), lastRetry)
	f.last, f.next = now, now.Add(jitter(delay))
	t.fights[key] = f
	return f.rounds <= peaceful
}

// tellFights says in a line what was quarrelled about since the last, and forgets what was left in peace.
func (r *Reconciler) tellFights(now time.Time) {
	if r.fightsAt.IsZero() || now.Before(r.fightsAt) {
		return
	}
	if args := counts(r.fought); len(args) > 0 {
		if r.prey != nil {
			args = append(args, "object", r.prey.String())
		}
		r.log.Warn("healed or failed again and again", args...)
	}
	r.fought, r.prey, r.fightsAt = [kinds]int{}, nil, time.Time{}
	for _, t := range r.desired.tables {
		maps.DeleteFunc(t.fights, func(_ Key, f fight) bool { return f.over(now) })
		if len(t.fights) > 0 {
			r.fightsAt = now.Add(forgotten)
		} else {
			t.fights = map[Key]fight{} // a map keeps the room that it once had
		}
	}
}
