package etcdstore

import "log/slog"

// skips logs and counts keys that are no leases of the network, each once for each reason.
type skips struct {
	log     *slog.Logger
	metrics *metrics
	known   map[string]string // key → reason
}

// note takes in why a key does not count; nil: it does, or is gone.
func (s *skips) note(key string, reason error) {
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
	s.log.Warn("skipped a key that is no lease of the network", "err", reason)
}
