package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// allTests are the sources of the repository's test files, by test; a script in a testdata is a part of every test.
func allTests(t *testing.T) map[string][]string {
	t.Helper()
	tests, scripts := map[string][]string{}, ""
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if script, ok := strings.CutSuffix(path, ".txtar"); ok {
			scripts += fmt.Sprintf("%q ", filepath.Base(script))
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			tests[m[1]] = append(tests[m[1]], string(source))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for test := range tests {
		tests[test] = append(tests[test], scripts)
	}
	return tests
}

// testsOf are the tests that a document names, like `TestX` or `TestX/sub test`, each of which must be there.
func testsOf(t *testing.T, document string) (named []string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	there := allTests(t)
	for _, m := range regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`").FindAllStringSubmatch(string(text), -1) {
		test, sub := m[1], m[2]
		named = append(named, test)
		sources := strings.Join(there[test], "")
		if sources == "" {
			t.Errorf("%s names %s, which is no test", document, test)
		}
		for name := range strings.SplitSeq(sub, "/") {
			if !strings.Contains(sources, `"`+strings.ReplaceAll(name, "_", " ")+`"`) && !strings.Contains(sources, `"`+name+`"`) && name != "" {
				t.Errorf("%s names %s/%s: the file of %[2]s has no %[4]q", document, test, sub, name)
			}
		}
	}
	return named
}

// TestFaultsDocument checks that docs/faults.md names tests that there are, and every test of a fault.
func TestFaultsDocument(t *testing.T) {
	t.Parallel()
	named := strings.Join(testsOf(t, "../docs/faults.md"), " ") + " "
	files, err := filepath.Glob("fault_*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			if !strings.Contains(named, m[1]+" ") {
				t.Errorf("docs/faults.md has no row for %s", m[1])
			}
		}
	}
}

// TestAttacksDocument checks that each attack in the tables of docs/security.md has tests that there are.
func TestAttacksDocument(t *testing.T) {
	t.Parallel()
	const document, header, least = "../docs/security.md", "| attack | what stops it | test |", 81
	testsOf(t, document)
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	rows, attacks := 0, false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == header || !strings.HasPrefix(line, "|"):
			attacks = line == header
		case !attacks || strings.HasPrefix(line, "|---"):
		case strings.Count(line, " | ") != 2 || !strings.Contains(line[strings.LastIndex(line, " | "):], "`Test"):
			t.Errorf("not a row of an attack, what stops it, and its tests: %s", line)
		default:
			rows++
		}
	}
	if rows < least {
		t.Errorf("%s has %d attacks: at least %d", document, rows, least)
	}
	t.Logf("%d attacks", rows)
}

// TestNoPredictablePaths finds no script and no test that writes, as root, where everybody can put a link before it does.
func TestNoPredictablePaths(t *testing.T) {
	t.Parallel()
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if e.IsDir() && (name == ".git" || name == "bin") {
			return fs.SkipDir
		}
		source := strings.HasSuffix(name, ".sh") || strings.HasSuffix(name, ".mk") || strings.HasSuffix(name, ".go") || name == "Makefile"
		if err != nil || !source || name == "named_test.go" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`.*(?:[^\w.]/(?:var/)?tmp/\w|cd /tmp\b|os\.TempDir\(|mktemp -u).*`).FindAllString(string(text), -1) {
			t.Errorf("%s: %s: use mktemp, os.MkdirTemp or t.TempDir", path, strings.TrimSpace(m))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
