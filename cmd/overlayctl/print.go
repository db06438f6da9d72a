package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"
)

// outputs are the values of --output.
var outputs = []string{"table", "wide", "json", "yaml"}

// output is a flag that takes one of outputs.
type output string

func (o *output) String() string { return string(*o) }

// Type is what the flag's value is called in the usage text.
func (o *output) Type() string { return "format" }

// Set refuses what is none of outputs.
func (o *output) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return fmt.Errorf("use one of %s", strings.Join(outputs, ", "))
	}
	*o = output(s)
	return nil
}

// forPeople says that the output is read by eyes rather than by a program.
func (o output) forPeople() bool { return o == "table" || o == "wide" }

// outputError says that nobody can be told anything any more.
type outputError struct{ error }

// show prints what a command has found, and says by the exit code whether that needs attention.
func (a *app) show(v any, attention bool, table func(w io.Writer)) error {
	switch err := a.print(v, table); {
	case err != nil:
		return outputError{err}
	case attention:
		return errAttention
	}
	return nil
}

// print writes v as JSON or YAML or, for people, what table writes, its columns aligned at the tabs.
func (a *app) print(v any, table func(w io.Writer)) error {
	switch a.output {
	case "json":
		e := json.NewEncoder(a.stdout)
		e.SetEscapeHTML(false) // dual-stack keys hold an &
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		data, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(data)
		return err
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row writes cells as a row of a table. Other hosts wrote some of them: a terminal must not obey them.
func row(w io.Writer, cells ...string) {
	for i, c := range cells {
		c = printable(c)
		if c == "" {
			c = "-"
		}
		cells[i] = c
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// warn writes lines to stderr, but no more than a screen of them.
func (a *app) warn(lines []string) {
	for _, line := range bound(lines) {
		fmt.Fprintln(a.stderr, "overlayctl: warning: "+printable(line))
	}
}

// bound cuts a list that is too long for a screen, and says how much it cut.
func bound(lines []string) []string {
	const most = 20
	if len(lines) <= most {
		return lines
	}
	return append(slices.Clone(lines[:most]), fmt.Sprintf("and %d more", len(lines)-most))
}

// rough is a duration to about two digits, as 23h or 45s.
func rough(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// plural is "1 lease" or "2 leases", "1 policy" or "2 policies".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
