package names

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestResolvedDropIn reads the drop-in for systemd-resolved, which was tried with systemd 252, and what the document writes in its place.
func TestResolvedDropIn(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../etc/systemd/resolved.conf.d/overlayd.conf")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if len(lines) != 3 || lines[0] != "[Resolve]" || lines[2] != "Domains=~"+strings.TrimSuffix(Zone, ".") {
		t.Fatalf("%q", lines)
	}
	if _, err := netip.ParseAddr(strings.TrimPrefix(lines[1], "DNS=")); err != nil {
		t.Error(err)
	}
	doc, err := os.ReadFile("../../../docs/names.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := `printf '[Resolve]\nDNS=%s\n` + lines[2] + `\n'`; !strings.Contains(string(doc), want) {
		t.Errorf("docs/names.md does not write %s", want)
	}
}
