package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// calmFor is how long a line in the log speaks for all that come of the same cause.
	calmFor = time.Minute
	// varieties is how many causes of one message have lines of their own at a time; the others share one.
	varieties = 10
)

func newLogger(w io.Writer, level slog.Leveler, format string) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch format {
	case "text":
		h = slog.NewTextHandler(w, options)
	case "json":
		h = slog.NewJSONHandler(w, options)
	default:
		return nil, fmt.Errorf("%q is not a log format: use text or json", format)
	}
	return slog.New(calm{h, &causes{seen: map[string]map[string]*cause{}}}), nil
}

// calm is a handler that passes on the first line of a cause at once, and of those that follow the last of each minute, with
// how many there were. So whatever happens again and again, in whatever part of the daemon, is a line a minute, and what
// was so last is in the log. What is logged for debugging it passes on.
type calm struct {
	slog.Handler
	*causes
}

// causes are those of which there was a line in the last minute, by message and text.
type causes struct {
	mu   sync.Mutex
	seen map[string]map[string]*cause
}

// cause is what was not passed on.
type cause struct {
	n    int
	last slog.Record
}

func (c calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	return calm{c.Handler.WithAttrs(attrs), c.causes}
}

func (c calm) WithGroup(name string) slog.Handler { return calm{c.Handler.WithGroup(name), c.causes} }

func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return c.Handler.Handle(ctx, r)
	}
	message, text := causeOf(r)
	c.mu.Lock()
	of := c.seen[message]
	if of == nil {
		of = map[string]*cause{}
		c.seen[message] = of
	}
	if of[text] == nil && len(of) >= varieties {
		text = ""
	}
	if known := of[text]; known != nil {
		known.n, known.last = known.n+1, r.Clone()
		c.mu.Unlock()
		return nil
	}
	of[text] = &cause{}
	c.mu.Unlock()
	time.AfterFunc(calmFor, func() { c.over(message, text) })
	return c.Handler.Handle(ctx, r)
}

// over passes on what came in a minute, if anything did, for which another one begins then.
func (c calm) over(message, text string) {
	c.mu.Lock()
	of := c.seen[message]
	was := *of[text]
	if *of[text] = (cause{}); was.n == 0 {
		delete(of, text)
	}
	c.mu.Unlock()
	if was.n == 0 {
		return
	}
	time.AfterFunc(calmFor, func() { c.over(message, text) })
	was.last.AddAttrs(slog.Int("lines", was.n))
	_ = c.Handler.Handle(context.Background(), was.last)
}

// numbers may be hexadecimal.
var numbers = regexp.MustCompile(`[0-9a-fx]*[0-9][0-9a-fx]*`)

// causeOf is what a line is of: what it says but for numbers, such as ports, times and the names of temporary files. In what
// is no trouble, texts count as they are.
func causeOf(r slog.Record) (message, text string) {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		v := a.Value.Resolve()
		b.WriteString(a.Key)
		switch v.Kind() {
		case slog.KindString, slog.KindAny:
			if text := v.String(); r.Level >= slog.LevelWarn || a.Key == "stage" || a.Key == "why" {
				b.WriteString(numbers.ReplaceAllString(text, "#"))
			} else {
				b.WriteString(text)
			}
		}
		return true
	})
	return numbers.ReplaceAllString(r.Message, "#"), b.String()
}
