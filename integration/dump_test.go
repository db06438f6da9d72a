package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Dump is the whole of what the node's kernel has been told, in the words of ip, bridge and nft. What the kernel
// finds out by itself, such as the neighbours it met, is not in it, nor are counters.
func (n *Node) Dump() string {
	n.t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-d", "address", "show"},
		{"ip", "-4", "rule", "show"},
		{"ip", "-6", "rule", "show"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "neighbour", "show", "nud", "permanent"},
		{"bridge", "fdb", "show"},
		{"nft", "--stateless", "list", "ruleset"},
	} {
		out, err := n.Command(args...).Output() // standard error has warnings of ip's that come and go
		if err != nil {
			n.t.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		fmt.Fprintf(&b, "# %s\n%s", strings.Join(args, " "), out)
	}
	return changing.ReplaceAllString(b.String(), "")
}

// changing are the parts of a dump that change by themselves: nft's counters, how long a route has to live, that
// an address is new, the multicast addresses that the kernel listens to and the routes that it makes for itself.
var changing = regexp.MustCompile(`(?m) packets \d+ bytes \d+| expires \d+sec| tentative|^(?:33:33|01:00:5e):.*\n|^(?:local|anycast|multicast|broadcast) .*\n`)

// sameDump fails the test if the node's kernel is not as it was.
func sameDump(t testing.TB, n *Node, before string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(n.Dump(), "\n")); diff != "" {
		t.Errorf("%s is not as it was (-before +after):\n%s", n.Name, diff)
	}
}

// filesUnder are the paths of all files below dir, relative to it, sorted; directories are not named.
func filesUnder(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}
