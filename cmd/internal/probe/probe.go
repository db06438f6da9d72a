// Package probe asks other hosts by ICMP echo whether, how fast and with what size of packet they are reached. Echoes
// take the same way as containers' packets, and the kernel of the other host answers: it needs no program that listens
// there, and works with hosts of flannel's too.
package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// burst is how many echoes are sent at once, and pause what follows: 20,000 in a second, of 100 bytes each, are
	// no load for a network and none that makes the kernel drop answers.
	burst = 100
	pause = 5 * time.Millisecond
	// window is how many echoes may be without an answer before the next burst waits for up to patience: on a busy host
	// the answers pile up, and the kernel drops what nobody fetches.
	window   = 500
	patience = 50 * time.Millisecond
	// least is the size of the smallest packet that carries what is needed to know it again.
	least = 84
)

// Target is where to send echoes.
type Target struct {
	Addr netip.Addr
	Size int // of the IP packets in bytes, which are not fragmented; 0: small ones
	// UDP sends to a port at which nobody listens, which the kernel says, in place of echoes: those firewalls let through
	// for themselves. It says so a few times a second at most.
	UDP bool
}

// Config says how many echoes are sent to each target, how far apart, and how long to wait for the last answer.
type Config struct {
	Count             int
	Interval, Timeout time.Duration
}

// Result is what came of the echoes to a target.
type Result struct {
	Target
	Sent, Received int
	Min, Avg, Max  time.Duration // 0 if nothing was received
	Err            error         // why the kernel did not send one; nil if it sent all
}

// Lost is the share of the echoes that were not answered, from 0 to 1.
func (r Result) Lost() float64 {
	if r.Sent == 0 {
		return 1
	}
	return 1 - float64(r.Received)/float64(r.Sent)
}

// flight is one run of Ping.
type flight struct {
	cookie  [8]byte // marks our echoes among those of others
	sockets map[bool]*socket

	mu      sync.Mutex
	results []Result
	sent    [][]time.Time   // by target and round; zero: answered, or not sent
	sums    []time.Duration // by target
	open    int             // echoes without an answer
	done    chan struct{}   // closed when the last is answered
	last    bool            // no more are sent
}

// Ping sends echoes to all targets at once, and returns a result for each, in their order. The error is that nothing
// could be asked: without CAP_NET_RAW it wraps os.ErrPermission.
func Ping(ctx context.Context, targets []Target, cfg Config) ([]Result, error) {
	if len(targets) == 0 {
		return nil, nil
	}
	f := &flight{
		sockets: map[bool]*socket{}, results: make([]Result, len(targets)), sent: make([][]time.Time, len(targets)),
		sums: make([]time.Duration, len(targets)), done: make(chan struct{}),
	}
	rand.Read(f.cookie[:]) // it never fails (crypto/rand)
	var readers sync.WaitGroup
	defer readers.Wait()
	for i, t := range targets {
		f.results[i].Target = t
		f.sent[i] = make([]time.Time, cfg.Count)
		v4 := t.Addr.Is4()
		if f.sockets[v4] != nil {
			continue
		}
		s, err := listen(v4)
		if err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
		defer s.close() // ends the reader
		f.sockets[v4] = s
		readers.Go(func() { s.read(f.cookie, f.answered) })
	}
	if err := f.send(ctx, cfg); err != nil {
		return nil, err
	}
	select {
	case <-f.done:
	case <-time.After(cfg.Timeout):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return f.finish(), nil
}

// send sends all echoes, a round to all targets after the other.
func (f *flight) send(ctx context.Context, cfg Config) error {
	for round := range cfg.Count {
		next := time.Now().Add(cfg.Interval)
		for i := range f.results {
			f.sendOne(i, round)
			if i%burst == burst-1 {
				f.breathe()
			}
		}
		if round == cfg.Count-1 {
			break
		}
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = true
	f.settle()
	return nil
}

// breathe waits after a burst: for a moment, and for answers if too many are out.
func (f *flight) breathe() {
	for end := time.Now().Add(patience); ; {
		time.Sleep(pause)
		f.mu.Lock()
		open := f.open
		f.mu.Unlock()
		if open < window || time.Now().After(end) {
			return
		}
	}
}

func (f *flight) sendOne(target, round int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &f.results[target]
	r.Sent++
	at := time.Now()
	if err := f.sockets[r.Addr.Is4()].send(r.Target, f.cookie, target, round); err != nil {
		r.Err = unwrapped(err)
		return
	}
	f.sent[target][round] = at
	f.open++
}

// answered takes note of an answer; a second one to the same echo does not count.
func (f *flight) answered(target, round int, from netip.Addr, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if target >= len(f.sent) || round >= len(f.sent[target]) || f.sent[target][round].IsZero() || from != f.results[target].Addr.WithZone("") {
		return
	}
	r := &f.results[target]
	took := at.Sub(f.sent[target][round])
	f.sent[target][round] = time.Time{}
	if r.Received == 0 || took < r.Min {
		r.Min = took
	}
	r.Max = max(r.Max, took)
	r.Received++
	f.sums[target] += took
	f.open--
	f.settle()
}

// settle ends the waiting once there is nothing to wait for.
func (f *flight) settle() {
	if f.last && f.open == 0 {
		select {
		case <-f.done:
		default:
			close(f.done)
		}
	}
}

func (f *flight) finish() []Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.results {
		if n := f.results[i].Received; n > 0 {
			f.results[i].Avg = f.sums[i] / time.Duration(n)
		}
	}
	return f.results
}

// unwrapped is the kernel's word without the addresses that the net package adds.
func unwrapped(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
