package settings_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cmd/internal/settings"
)

var update = flag.Bool("update", false, "write the settings into docs/configuration.md")

// The reference stands between these lines of the document.
const (
	document = "../../../docs/configuration.md"
	from     = "<!-- settings: made from the code by go test ./cmd/internal/settings -update -->\n"
	to       = "<!-- end of settings -->\n"
)

// TestReference holds the settings in the document against those of the code.
func TestReference(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), from)
	have, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("%s has no settings between %q and %q", document, from, to)
	}
	want := reference()
	if *update {
		if err := os.WriteFile(document, []byte(before+from+want+to+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(have, "\n")); diff != "" {
		t.Errorf("docs/configuration.md is not current, go test ./cmd/internal/settings -update writes it (-code +document):\n%s", diff)
	}
}

// reference is a table of all settings, as Markdown.
func reference() string {
	var d settings.Daemon
	fs := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	d.Register(fs)
	fs.SortFlags = false // as the code has them, which puts together what belongs together
	var b strings.Builder
	b.WriteString("| setting | default | |\n|---|---|---|\n")
	fs.VisitAll(func(f *pflag.Flag) {
		kind, usage := pflag.UnquoteUsage(f)
		name := "`" + f.Name + "`"
		if kind != "" {
			name += " *" + kind + "*"
		}
		value := strings.Trim(f.DefValue, "[]")
		if f.Value.Type() == "duration" {
			value = strings.TrimSuffix(value, "0m0s")
		}
		if value != "" && value != "invalid IP" {
			value = "`" + value + "`"
		} else {
			value = ""
		}
		usage = strings.ToUpper(usage[:1]) + usage[1:] + "."
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, value, strings.ReplaceAll(usage, "|", `\|`))
	})
	return b.String()
}
