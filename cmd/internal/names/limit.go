package names

import (
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
)

const (
	// mostQuestions of one container are heard in a second, mostAsked of them asked of the host's resolvers.
	mostQuestions = 20000
	mostAsked     = 1000
	// mostWaiting answers of others are waited for, for one container, and in all: as many sockets.
	mostWaiting    = 64
	mostWaitingAll = 512
	// mostConns of TCP are served, of one container, and in all.
	mostConns    = 16
	mostConnsAll = 512
	// mostKnown askers are told apart; more can only be made up.
	mostKnown = 4096
)

// limits keep one container from being in the way of others, or of the host's resolvers.
type limits struct {
	mu            sync.Mutex
	by            map[netip.Addr]*limit
	waiting, open int
}

// limit is what one asker may do.
type limit struct {
	heard, asked  *rate.Limiter
	waiting, open int
}

func newLimits() *limits { return &limits{by: map[netip.Addr]*limit{}} }

func (l *limits) of(addr netip.Addr) *limit {
	if have := l.by[addr]; have != nil {
		return have
	}
	if len(l.by) >= mostKnown {
		for a, have := range l.by {
			if have.waiting+have.open == 0 {
				delete(l.by, a)
			}
		}
	}
	n := &limit{heard: rate.NewLimiter(mostQuestions, mostQuestions), asked: rate.NewLimiter(mostAsked, 2*mostAsked)}
	l.by[addr] = n
	return n
}

// hear says whether a question is heard.
func (l *limits) hear(addr netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of(addr).heard.Allow()
}

// wait says whether the answer to a question may be waited for, by others' if asks says so; done is to be called then.
func (l *limits) wait(addr netip.Addr, asks bool) (done func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of(addr)
	if of.waiting >= mostWaiting || l.waiting >= mostWaitingAll || asks && !of.asked.Allow() {
		return nil, false
	}
	of.waiting++
	l.waiting++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		of.waiting--
		l.waiting--
	}, true
}

// connect says whether a connection is served; done is to be called then.
func (l *limits) connect(addr netip.Addr) (done func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of(addr)
	if of.open >= mostConns || l.open >= mostConnsAll {
		return nil, false
	}
	of.open++
	l.open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		of.open--
		l.open--
	}, true
}
