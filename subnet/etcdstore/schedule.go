package etcdstore

import "time"

// cause is why a Member looks at its lease and its peers although nothing has happened.
type cause uint8

// The causes.
const (
	dueWrite    cause = iota // to write again what failed, or was refused
	dueChange                // to write a change that nobody waits for
	duePeers                 // to let go of peers that vanished
	dueRemember              // to come up with what is remembered, since etcd keeps silent
)

// schedule is when that is, each cause once.
type schedule map[cause]time.Time

// due says whether a cause need not be waited for any longer.
func (s schedule) due(c cause, now time.Time) bool { return !now.Before(s[c]) }

// next is the earliest time that is still to come; an hour from now if there is none.
func (s schedule) next(now time.Time) time.Duration {
	wait := time.Hour
	for c, t := range s {
		if !t.After(now) {
			delete(s, c)
		} else {
			wait = min(wait, t.Sub(now))
		}
	}
	return wait
}
