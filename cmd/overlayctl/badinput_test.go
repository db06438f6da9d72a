package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// actingGroups hold commands, and do something themselves.
var actingGroups = []string{"peers", "wireguard"}

// leaves are the words of every command that does something, the hidden ones too.
func leaves(cmd *cobra.Command, path ...string) [][]string {
	if cmd.Name() == "help" || strings.HasPrefix(cmd.Name(), "__") {
		return nil // cobra's own
	}
	if !cmd.HasSubCommands() {
		return [][]string{path}
	}
	var all [][]string
	for _, sub := range cmd.Commands() {
		all = append(all, leaves(sub, append(append([]string{}, path...), sub.Name())...)...)
	}
	return all
}

// TestEveryCommandRefuses gives every command what it cannot take: exit code 2, one line that says what, one that says
// where to read on, and nothing else. No etcd and no daemon is asked, for there is none.
func TestEveryCommandRefuses(t *testing.T) {
	t.Parallel()
	commands := leaves((&app{}).command())
	if len(commands) < 20 {
		t.Fatalf("only %d commands: %q", len(commands), commands)
	}
	for _, words := range commands {
		for _, wrong := range [][]string{
			{"--nonsense"},
			{"-o", "xml"},
			{"--timeout", "soon"},
			{"--etcd-endpoints"}, // without its value
			{"a", "b", "c", "d", "e", "f", "g"},
		} {
			if len(wrong) == 7 && strings.Join(words, " ") == "policy delete" {
				continue // takes any number of names
			}
			args := append(append([]string{}, words...), wrong...)
			t.Run(strings.Join(args, " "), func(t *testing.T) {
				t.Parallel()
				refused(t, args...)
			})
		}
	}
}

// TestEveryGroupRefuses names no command, or one that is not there.
func TestEveryGroupRefuses(t *testing.T) {
	t.Parallel()
	groups := map[string]bool{}
	for _, words := range leaves((&app{}).command()) {
		if len(words) > 1 {
			groups[words[0]] = true
		}
	}
	for name := range groups {
		if !slices.Contains(actingGroups, name) {
			refused(t, name)
		}
		refused(t, name, "nonsense")
		refused(t, name, "--nonsense")
	}
	refused(t, "nonsense")
	refused(t, "--nonsense")
	refused(t, "help", "nonsense")
	refused(t, "help", "leases", "nonsense")
}

func refused(t *testing.T, args ...string) {
	t.Helper()
	var stdout, stderr strings.Builder
	code := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
	lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
	if code != exitUsage || stdout.Len() > 0 || len(lines) != 2 ||
		!strings.HasPrefix(lines[0], "overlayctl: ") || !strings.HasPrefix(lines[1], "Run 'overlayctl") {
		t.Errorf("overlayctl %s: exit code %d, standard output %q, standard error\n%s",
			strings.Join(args, " "), code, stdout.String(), stderr.String())
	}
}
