package etcdstore

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// counter is a log that counts its lines.
type counter struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *counter) logger() *slog.Logger { return slog.New(slog.NewTextHandler(c, nil)) }

// count returns how many lines contain text.
func (c *counter) count(text string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range strings.Lines(c.buf.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
