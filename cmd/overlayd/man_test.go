package main

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/cmd/internal/man"
)

// TestManPage makes the man page from the commands. "make share" names the directory to keep it in.
func TestManPage(t *testing.T) {
	t.Parallel()
	dir := cmp.Or(os.Getenv("MAN_DIR"), t.TempDir())
	if err := man.Write(dir, command(io.Discard, io.Discard)); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "overlayd.8"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".TH OVERLAYD 8", `\-\-etcd\-endpoints URLs`, `\-\-cleanup`} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page does not say %s", want)
		}
	}
}
