package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFaultsDocument checks that docs/faults.md names tests that there are, and every test of a fault.
func TestFaultsDocument(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"backend/firewall", "backend/kernel", "backend/sysctl", "backend/task", "backend/underlay", "cmd/internal/agent", "cmd/internal/doctor", "cniplugin", "cniplugin/attachment", "subnet", "subnet/etcdembed", "subnet/etcdstore"} { // what needs no daemon
		more, err := filepath.Glob("../" + dir + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	there := make(map[string]bool)
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			there[m[1]] = true
			fault := strings.HasPrefix(file, "fault_") && m[1] != t.Name()
			if fault && !strings.Contains(string(doc), "`"+m[1]+"`") {
				t.Errorf("docs/faults.md has no row for %s", m[1])
			}
		}
	}
	for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(doc), -1) {
		if !there[m[1]] {
			t.Errorf("docs/faults.md names %s, which is no test", m[1])
		}
	}
}
