package policy

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// probe is one question: does something new from one container reach the other?
type probe struct {
	from, to *pod
	family   int
	proto    string // tcp, udp or icmp
	port     uint16 // 0 of icmp
}

func (p probe) String() string {
	return fmt.Sprintf("%s %s %d %s", p.from.key(), p.to.key(), p.family, p.service())
}

// service is protocol/port, or icmp.
func (p probe) service() string {
	if p.proto == "icmp" {
		return p.proto
	}
	return fmt.Sprintf("%s/%d", p.proto, p.port)
}

// services are what every container has servers of.
var services = []struct {
	proto string
	port  uint16
}{{"tcp", 80}, {"tcp", 81}, {"udp", 80}, {"udp", 81}, {"icmp", 0}}

// pairs are the probes of each ordered pair of the rig's containers, itself among them.
func (r *rig) pairs() []probe {
	var all []probe
	for _, from := range r.pods {
		for _, to := range r.pods {
			for family := range to.addrs {
				for _, s := range services {
					all = append(all, probe{from, to, family, s.proto, s.port})
				}
			}
		}
	}
	return all
}

// counts is what a run has probed.
type counts struct {
	mu                             sync.Mutex
	cases, probes, allowed, denied int
}

var total counts

// print says what was probed; a run that had no probes says nothing.
func (c *counts) print() {
	if c.probes > 0 {
		fmt.Printf("policies: %d cases, %d probes, %d allowed, %d denied\n", c.cases, c.probes, c.allowed, c.denied)
	}
}

func (c *counts) add(shots []*shot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range shots {
		c.probes++
		if s.got {
			c.allowed++
		} else {
			c.denied++
		}
	}
}

func (c *counts) addCase() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cases++
}

// shot is a probe under way.
type shot struct {
	probe
	want, got bool
	fd        int
}

// How long an answer that is expected may be late, before the whole is tried again; and how often.
const (
	lateAnswer = 3 * time.Second
	attempts   = 4
	// settleWithin is how long what was done last may take to be in force, where nothing tells when it is.
	settleWithin = 5 * time.Second
)

// expect probes until all is as wanted. What is wanted and does not come is asked for again, since a busy machine loses packets
// and delays answers; what comes and is not wanted is a fault at once where it is known that policies are in force.
func (r *rig) expect(what string, probes []probe, want func(probe) bool) {
	r.t.Helper()
	r.awaitMark()
	strict := r.marker != nil && !r.loose
	r.loose = false
	began := time.Now()
	var wrong []string
	for n := 0; n < attempts || !strict && time.Since(began) < settleWithin; n++ {
		wrong = nil
		open := false
		for _, s := range r.fire(probes, want) {
			switch {
			case s.got && !s.want:
				wrong, open = append(wrong, s.String()+" passes"), true
			case !s.got && s.want:
				wrong = append(wrong, s.String()+" does not pass")
			}
		}
		if len(wrong) == 0 {
			return
		}
		if open && strict {
			break
		}
	}
	r.t.Errorf("%s: %d of %d probes are wrong:\n%s", what, len(wrong), len(probes), summary(wrong))
}

// summary is the first lines of many.
func summary(lines []string) string {
	const most = 25
	slices.Sort(lines)
	if len(lines) > most {
		lines = append(lines[:most:most], fmt.Sprintf("and %d more", len(lines)-most))
	}
	return strings.Join(lines, "\n")
}

// fire sends all probes, each container its own, and returns what came of them.
func (r *rig) fire(probes []probe, want func(probe) bool) []*shot {
	r.runs++
	all := make([]*shot, len(probes))
	of := make(map[*pod][]*shot)
	for i, p := range probes {
		all[i] = &shot{probe: p, want: want(p), fd: -1}
		of[p.from] = append(of[p.from], all[i])
	}
	each := func(f func(v *volley)) func(map[*pod]*volley) {
		return func(volleys map[*pod]*volley) {
			var wg sync.WaitGroup
			for from, v := range volleys {
				wg.Go(func() { from.agent.do(func() { f(v) }) })
			}
			wg.Wait()
		}
	}
	volleys := make(map[*pod]*volley)
	for from, shots := range of {
		volleys[from] = &volley{shots: shots, source: 10000 + r.runs%50000, run: r.runs}
	}
	each(func(v *volley) { v.open(); v.collect(lateAnswer) })(volleys)
	r.settle()
	each(func(v *volley) { v.collect(0); v.close() })(volleys)
	total.add(all)
	for _, v := range volleys {
		if v.err != nil {
			r.t.Fatalf("probe: %v", v.err)
		}
	}
	return all
}

// settle waits until packets that were sent before have come to wherever they come to. On each processor's queue packets keep
// their order, so an echo from one host to the other and back, which has more stations than any probe, sent from each processor
// twice, comes after them.
func (r *rig) settle() {
	c := r.control
	if c[0] == nil || c[1] == nil {
		return
	}
	c[0].agent.do(func() {
		if err := echoOnEachCPU(c[1].addrs[v4]); err != nil {
			r.t.Errorf("between the containers that no policy is about: %v", err)
		}
	})
}
