package firewall

import (
	"strings"

	"github.com/overlayd/overlayd/backend/task"
)

// ElementsOf are Elements as one of several networks uses them.
type ElementsOf struct {
	e       *Elements
	network string
	changed chan struct{}
}

// For returns what is the network's, the same each time.
func (e *Elements) For(network string) *ElementsOf {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.views[network]
	if v == nil {
		v = &ElementsOf{e, network, make(chan struct{}, 1)}
		e.views[network] = v
	}
	return v
}

// Replace is [Elements.Replace].
func (v *ElementsOf) Replace(all []Claim) { v.e.Replace(v.network, all) }

// Update is [Elements.Update].
func (v *ElementsOf) Update(changed []Claim) (done <-chan struct{}) {
	return v.e.Update(v.network, changed)
}

// Status tells how far all elements are, and counts those in the network's sets. What is in no network's is the unnamed one's.
func (v *ElementsOf) Status() task.Status {
	v.e.mu.Lock()
	defer v.e.mu.Unlock()
	s := v.e.status
	s.Objects = 0
	for set, elements := range v.e.sets {
		if _, network, _ := strings.Cut(set.Name, "."); elements.declared && network == v.network {
			s.Objects += len(elements.state)
		}
	}
	return s
}

// Changed receives after Status changed.
func (v *ElementsOf) Changed() <-chan struct{} { return v.changed }
