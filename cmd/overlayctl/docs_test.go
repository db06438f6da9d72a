package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestDocuments parses every command line of overlayctl's in the documents: its command, flags and arguments must be
// there.
func TestDocuments(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "# ")
			command, ok := strings.CutPrefix(line, "overlayctl ")
			if !ok || strings.ContainsAny(command, "…|`") {
				continue // prose
			}
			found++
			if err := parse(words(command)); err != nil {
				t.Errorf("%s: overlayctl %s: %v", filepath.Base(file), command, err)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d command lines in the documents", found)
	}
}

// words splits a command line at blanks that are not quoted, and ends it at a comment or another command.
func words(line string) []string {
	var all []string
	word, quote, inWord := []byte(nil), byte(0), false
	end := func() {
		if inWord {
			all = append(all, string(word))
		}
		word, inWord = nil, false
	}
	for i := range len(line) {
		switch c := line[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word = append(word, c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == '#' && !inWord, c == '&', c == ';', c == '>':
			end()
			return all
		case c == ' ':
			end()
		default:
			word, inWord = append(word, c), true
		}
	}
	end()
	return all
}

// parse parses a command line and runs nothing.
func parse(args []string) error {
	root := (&app{stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), stdin: new(bytes.Buffer)}).command()
	neuter(root, func(cmd *cobra.Command) {
		cmd.PersistentPreRunE = nil
		if cmd.HasSubCommands() && !slices.Contains(actingGroups, cmd.Name()) {
			return // says by itself that it needs a command
		}
		cmd.RunE = func(*cobra.Command, []string) error { return nil }
	})
	root.SetArgs(args)
	return root.Execute()
}

func neuter(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		neuter(sub, f)
	}
}
