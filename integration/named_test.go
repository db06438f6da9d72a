package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// allTests are the sources of the repository's test files, by test.
func allTests(t *testing.T) map[string][]string {
	t.Helper()
	tests := map[string][]string{}
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
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

// TestAttacksDocument checks that each attack in docs/security.md has tests that there are.
func TestAttacksDocument(t *testing.T) {
	t.Parallel()
	const document, least = "../docs/security.md", 60
	testsOf(t, document)
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Attacks\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		switch {
		case !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---"):
			continue
		case len(cells) != 3:
			t.Errorf("not a row of an attack, what stops it, and a test: %s", line)
		case strings.TrimSpace(cells[2]) == "test":
			continue
		case !strings.Contains(cells[2], "`Test"):
			t.Errorf("an attack without a test: %s", line)
		}
		rows++
	}
	if rows < least {
		t.Errorf("%s has %d attacks: there were %d", document, rows, least)
	}
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
		for _, m := range regexp.MustCompile(`.*(?:[^\w.]/(?:var/)?tmp\b|os\.TempDir\(|mktemp -u).*`).FindAllString(string(text), -1) {
			t.Errorf("%s: %s: use mktemp, os.MkdirTemp or t.TempDir", path, strings.TrimSpace(m))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
