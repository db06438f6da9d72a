package firewall

import (
	"time"

	"github.com/overlayd/overlayd/backend/task"
)

func (e *Elements) claim(o owner, want []Element) {
	for _, el := range want {
		e.count(el, 1)
	}
	for _, el := range e.owners[o] {
		e.count(el, -1)
	}
	if e.owners[o] = want; len(want) == 0 {
		delete(e.owners, o)
	}
}

func (e *Elements) count(el Element, by int32) {
	s := e.set(el.Set)
	st := s.state[el.Key]
	if st.claims += by; (st.claims > 0) != st.there {
		e.dirty[el] = struct{}{}
	}
	s.put(el.Key, st)
}

// put notes the state of an element; nothing is kept of one that nobody wants and that is not there.
func (s *elements) put(key string, st state) {
	if s.state[key] = st; st == (state{}) {
		delete(s.state, key)
	}
}

// compare takes in what was seen in a set, and adds what has to be done there to dirty. It tells how much others had changed
// of what was there.
func (e *Elements) compare(set Set, seen map[string]bool, recorded []string, dirty map[Element]struct{}) (healed int) {
	s := e.sets[set]
	if s.records != nil {
		for key, st := range s.state {
			s.state[key] = state{there: st.there}
		}
		for _, key := range recorded {
			s.state[key] = state{claims: 1}
		}
	}
	for key := range seen {
		s.state[key] = state{claims: s.state[key].claims}
	}
	for key, st := range s.state {
		if st.there = seen[key]; st.there != (st.claims > 0) {
			dirty[Element{set, key}] = struct{}{}
			healed++
		}
		s.put(key, st)
	}
	if !s.known || s.records != nil {
		healed = 0
	}
	s.known = true
	return healed
}

// sort tells what of dirty has to be added and removed. What is wanted in a set that is not there waits.
func (e *Elements) sort(dirty map[Element]struct{}) (add, remove map[Set][]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	add, remove = map[Set][]string{}, map[Set][]string{}
	for el := range dirty {
		s := e.sets[el.Set]
		switch st := s.state[el.Key]; {
		case !s.declared: // when it is, all of it is looked at
		case st.claims > 0 && !st.there:
			add[el.Set] = append(add[el.Set], el.Key)
		case st.claims == 0 && st.there:
			remove[el.Set] = append(remove[el.Set], el.Key)
		}
	}
	return add, remove
}

// note takes in what became of what was to be added or removed.
func (e *Elements) note(changed map[Set][]string, there bool, err error) {
	for set, keys := range changed {
		s := e.sets[set]
		if err != nil {
			s.look = true
			continue
		}
		for _, key := range keys {
			st := s.state[key]
			if st.there = there; st.there != (st.claims > 0) { // meanwhile
				e.dirty[Element{set, key}] = struct{}{}
				task.Signal(e.wake)
			}
			s.put(key, st)
		}
	}
}

// conclude tells what became of a pass, and returns when to look again at what failed, or others change.
func (e *Elements) conclude(healed int, err error) (again time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.status
	e.status = task.Status{Healed: before.Healed + healed, Pending: err != nil || len(e.waiting) > 0, Err: err}
	for _, s := range e.sets {
		if s.declared {
			e.status.Objects += len(s.state)
		}
		s.look = s.look || err != nil
	}
	e.metrics.Objects.WithLabelValues(kindElement).Set(float64(e.status.Objects))
	e.metrics.Healed.WithLabelValues(kindElement).Add(float64(healed))
	if err != nil {
		e.metrics.Errors.WithLabelValues(kindElement).Inc()
		e.log.Warn("not programmed", "object", kindElement, "err", err)
		e.lookAt = time.Now().Add(task.Backoff(e.failures))
		e.failures++
	} else {
		e.failures = 0
		e.heal(healed)
	}
	if e.status != before {
		task.Signal(e.changed)
		for _, v := range e.views {
			task.Signal(v.changed)
		}
	}
	if e.lookAt.IsZero() {
		return lookEvery
	}
	return time.Until(e.lookAt)
}

// heal notes that others had changed elements. Where they do so again and again, it takes longer and longer to undo that.
func (e *Elements) heal(elements int) {
	if elements == 0 {
		return
	}
	if fought := e.fights.Healed(e.log, kindElement, elements); fought > 0 {
		e.status.Err = task.ErrFought
		e.lookAt = time.Now().Add(task.Backoff(fought))
	}
}
