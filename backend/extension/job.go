package extension

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// job is a command to run next.
type job struct {
	run
	key     string // of the network's configuration
	subnet  string // that it is for; "": for none in particular
	retried bool
	serves  bool // the network as it is: it is of no use when that has other commands
	// ended takes in, with mu held, what became of it, and says whether that is news.
	ended func(output string, err error, now time.Time) (news bool)
}

// next is what to run now; if there is nothing, it says when there will be. The caller holds mu. The zero Time: when something
// happens.
func (r *Runner) next(now time.Time) (j job, at time.Time) {
	sooner := func(a attempt) (due bool) {
		if a.at.After(now) && (at.IsZero() || a.at.Before(at)) {
			at = a.at
		}
		return !a.at.After(now)
	}
	for _, p := range r.pre {
		if !p.done && sooner(p.attempt) {
			return preStarting(p), at
		}
	}
	if len(r.left) > 0 {
		return r.shutdown(), at
	}
	if !r.site.Any() {
		return j, at
	}
	if !r.post.done {
		if sooner(r.post) {
			return r.postStartup(), at
		}
		return j, at // what follows stands on it
	}
	key, ev, later := r.events.next(now)
	if ev != nil {
		return r.event(key, ev), at
	}
	if !later.IsZero() && (at.IsZero() || later.Before(at)) {
		at = later
	}
	if r.sync.err == nil && (r.stale || !r.sync.done) || !r.sync.at.IsZero() && sooner(r.sync) {
		return r.synchronize(), at
	}
	return j, at
}

func preStarting(p *preStartup) job {
	j := job{key: "PreStartupCommand", run: run{text: p.text}, retried: p.tries > 0}
	j.ended = func(output string, err error, now time.Time) bool {
		told, _ := json.Marshal(output) // a string always marshals
		if err == nil && len(told) > mostTold {
			err = fmt.Errorf("it printed %d bytes: at most %d are told to peers", len(told), mostTold)
		}
		news := p.ended(err, now)
		if err == nil {
			p.told = told
		}
		return news || err == nil
	}
	return j
}

// shutdown is for what was left. Nobody waits for it to succeed.
func (r *Runner) shutdown() job {
	s := r.left[0]
	return job{key: "ShutdownCommand", run: run{text: s.Shutdown, vars: s.vars()}, ended: func(_ string, err error, _ time.Time) bool {
		r.left = r.left[1:]
		return err != nil
	}}
}

func (r *Runner) postStartup() job {
	s := r.site
	j := job{key: "PostStartupCommand", run: run{text: s.PostStartup, vars: s.vars()}, retried: r.post.tries > 0, serves: true}
	j.ended = func(_ string, err error, now time.Time) bool { return r.site.Equal(s) && r.post.ended(err, now) }
	return j
}

// event is the command for a peer. A peer that changed has come anew, as with flannel.
func (r *Runner) event(key string, ev *event) job {
	s, lease := r.site, ev.want
	j := job{key: "SubnetAddCommand", subnet: key, retried: ev.tries > 0, serves: true}
	about := lease
	j.text = s.SubnetAdd
	if lease == nil {
		j.key, j.text, about = "SubnetRemoveCommand", s.SubnetRemove, ev.had
	}
	j.vars, j.stdin = hostVars(*about), heard(*about)
	j.ended = func(_ string, err error, now time.Time) bool {
		if r.site.Commands != s.Commands || r.events.all[key] != ev {
			return false
		}
		return r.events.told(key, lease, err, now)
	}
	return j
}

// againAfter is how long after news SyncCommand is run once more: another host, whose command had begun before it heard of this one's
// lease, may have taken away what ours has put.
const againAfter = 10 * time.Second

// synchronize tells of all leases there are.
func (r *Runner) synchronize() job {
	s, news := r.site, r.stale || !r.sync.done
	r.stale = false
	j := job{key: "SyncCommand", run: run{text: s.Sync, vars: s.vars()}, retried: r.sync.tries > 0, serves: true}
	if s.Sync != "" {
		j.stdin = r.leases()
	}
	j.ended = func(_ string, err error, now time.Time) bool {
		if !r.site.Equal(s) {
			return false
		}
		changed := r.sync.ended(err, now)
		if err == nil && s.Sync != "" {
			r.sync.at = now.Add(r.cfg.Every/2 + rand.N(r.cfg.Every))
			if again := now.Add(againAfter + rand.N(againAfter)); news && again.Before(r.sync.at) {
				r.sync.at = again
			}
		}
		return changed
	}
	return j
}

func (r *Runner) leases() []byte {
	all := Leases{Network: r.site.Network, Own: newLease(r.site.Own), Peers: make([]Lease, 0, len(r.peers))}
	for _, key := range slices.Sorted(maps.Keys(r.peers)) {
		if peer := r.peers[key]; peer.LeaseID != 0 || peer.Backend != "" { // else it is kept for a host that does not run
			all.Peers = append(all.Peers, newLease(peer.Lease))
		}
	}
	text, err := json.Marshal(all)
	if err != nil { // a lease's data are JSON, or it would not have been read
		return nil
	}
	return append(text, '\n')
}
