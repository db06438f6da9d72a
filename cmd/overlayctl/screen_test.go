package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestScreenOfNoTerminal(t *testing.T) {
	t.Parallel()
	if got := screenOf(new(strings.Builder)); got != (screen{}) {
		t.Errorf("a buffer is taken for a terminal: %+v", got)
	}
}

func TestSheet(t *testing.T) {
	t.Parallel()
	fields := []field{
		{"STATE", "not ready: programming the kernel, 12 objects to go", bad},
		{"A", "", good},
		{"PEER", "written by \x1b[2J others", plain},
	}
	for name, test := range map[string]struct {
		screen
		want string
	}{
		"no terminal": {screen{}, `
STATE  not ready: programming the kernel, 12 objects to go
A      -
PEER   written by ?[2J others
`},
		"narrow": {screen{width: 30}, `
STATE  not ready: programming
       the kernel, 12 objects
       to go
A      -
PEER   written by ?[2J others
`},
		"narrower than a word": {screen{width: 12}, `
STATE  not
       ready:
       programming
       the
       kernel,
       12
       objects
       to go
A      -
PEER   written
       by
       ?[2J
       others
`},
		"colours": {screen{width: 80, colour: true}, "\n" +
			"STATE  \x1b[31mnot ready: programming the kernel, 12 objects to go\x1b[0m\n" +
			"A      \x1b[32m-\x1b[0m\n" +
			"PEER   written by ?[2J others\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			b.WriteString("\n")
			test.sheet(&b, fields)
			if diff := cmp.Diff(test.want, b.String()); diff != "" {
				t.Errorf("sheet (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAgain(t *testing.T) {
	t.Parallel()
	trouble := errors.New("trouble")
	var out, warnings strings.Builder
	a := &app{stdout: &out, stderr: &warnings, output: "table"}
	if err := a.again(t.Context(), false, func(context.Context) error { return trouble }); err != trouble {
		t.Errorf("once: %v, want what look says", err)
	}
	mute := outputError{trouble}
	if err := a.again(t.Context(), true, func(context.Context) error { return mute }); err != mute {
		t.Errorf("nobody can be told: %v, want %v", err, mute)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.again(ctx, true, func(context.Context) error { return trouble }); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if got, want := warnings.String(), "overlayctl: warning: trouble\n"; got != want {
		t.Errorf("warnings %q, want %q", got, want)
	}
}
