package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// screen is what the output is shown on.
type screen struct {
	width  int // columns; 0: it is no terminal
	colour bool
}

// screenOf looks at where w leads. NO_COLOR is honoured (no-color.org).
func screenOf(w io.Writer) screen {
	f, ok := w.(*os.File)
	if !ok {
		return screen{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return screen{}
	}
	s := screen{width: int(size.Col), colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if s.width < 20 { // some terminals have no idea
		s.width = 80
	}
	return s
}

// tone is how good what is printed is.
type tone int

const (
	plain tone = iota
	good
	uneasy
	bad
)

// sgr is the "Select Graphic Rendition" of a tone (ECMA-48, 8.3.117).
var sgr = map[tone]string{good: "32", uneasy: "33", bad: "31"}

func (s screen) paint(t tone, text string) string {
	if !s.colour || t == plain || text == "" {
		return text
	}
	return "\x1b[" + sgr[t] + "m" + text + "\x1b[0m"
}

// field is a line of a sheet.
type field struct {
	name, value string
	tone        tone
}

// sheet writes fields below each other, values aligned. On a terminal they are wrapped: what stands there was written
// to be read.
func (s screen) sheet(w io.Writer, fields []field) {
	column := 0
	for _, f := range fields {
		column = max(column, len(f.name)+2)
	}
	for _, f := range fields {
		value := printable(f.value)
		if value == "" {
			value = "-"
		}
		name := f.name
		for _, line := range s.wrap(value, column) {
			fmt.Fprintf(w, "%-*s%s\n", column, name, s.paint(f.tone, line))
			name = ""
		}
	}
}

// wrap breaks text at blanks into lines that fit beside a column. A word that is too long stays whole.
func (s screen) wrap(text string, column int) []string {
	if s.width == 0 {
		return []string{text}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case column+utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > s.width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// watchFlag declares --watch for commands that look once without it.
func watchFlag(cmd *cobra.Command, watch *bool) {
	cmd.Flags().BoolVarP(watch, "watch", "w", false, "look again every two seconds, until interrupted")
}

const watchEvery = 2 * time.Second

// again calls look once or, if watch is set, until it is interrupted: then what look cannot do is shown, and may pass.
func (a *app) again(ctx context.Context, watch bool, look func(context.Context) error) error {
	if !watch {
		return look(ctx)
	}
	for {
		if a.screen.width > 0 {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[2J") // home, clear
		}
		if err := look(ctx); err != nil && err != errAttention && ctx.Err() == nil {
			if _, mute := err.(outputError); mute {
				return err
			}
			a.warn([]string{err.Error()})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
		if a.screen.width == 0 && a.output.forPeople() {
			fmt.Fprintln(a.stdout)
		}
	}
}

// progress says on a terminal what takes a while, and returns what takes it away again.
func (a *app) progress(format string, args ...any) (done func()) {
	if screenOf(a.stderr).width == 0 {
		return func() {}
	}
	fmt.Fprintf(a.stderr, format+" …", args...)
	return func() { fmt.Fprint(a.stderr, "\r\x1b[K") } // erase the line
}
