package etcdstore

import (
	"log/slog"
	"time"
)

const (
	// skipLines is how many skipped keys are logged one by one in each skipWindow; the others are summed up.
	skipLines  = 10
	skipWindow = time.Minute
)

// skips logs and counts keys that are no leases of the network: each once for each reason, and a flood of them in
// few lines.
type skips struct {
	log     *slog.Logger
	metrics *metrics
	known   map[string]string // key → reason
	since   time.Time         // start of the window
	lines   int               // logged in the window
	silent  int               // not logged since the last summary
}

func newSkips(log *slog.Logger, m *metrics) *skips {
	return &skips{log: log, metrics: m, known: make(map[string]string)}
}

// note takes in why a key does not count; nil: it does, or is gone.
func (s *skips) note(key string, reason error, now time.Time) {
	if reason == nil {
		delete(s.known, key)
		return
	}
	text := reason.Error()
	if s.known[key] == text {
		return
	}
	s.known[key] = text
	s.metrics.failed(kindSkipped)
	if now.Sub(s.since) > skipWindow {
		s.since, s.lines = now, 0
	}
	if s.lines >= skipLines {
		s.silent++
		return
	}
	s.lines++
	s.log.Warn("skipped a key that is no lease of the network", "err", reason)
}

// flush logs what was not logged key by key. It is called after each batch of changes.
func (s *skips) flush(now time.Time) {
	if s.silent == 0 || s.lines > skipLines && now.Sub(s.since) <= skipWindow {
		return
	}
	s.log.Warn("skipped more keys that are no leases of the network", "count", s.silent, "total", len(s.known))
	s.silent = 0
	s.lines = skipLines + 1 // one summary in each window
}
