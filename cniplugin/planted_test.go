package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// What stands in place of the files of the plugin is neither followed nor waited for.
func TestPlantedFiles(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(path string) error{
		"link": func(path string) error { return os.Symlink("/etc/planted", path) },
		"FIFO": func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, v4Lease)
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
			h.mustAdd(t, r)
			replace := func(dir, suffix string) {
				t.Helper()
				for _, depth := range []string{"*", "*/*", "*/*/*"} {
					files, _ := filepath.Glob(filepath.Join(h.dir, dir, depth))
					for _, file := range files {
						if strings.HasSuffix(file, suffix) {
							if err := errors.Join(os.Remove(file), plant(file)); err != nil {
								t.Fatal(err)
							}
							return
						}
					}
				}
				t.Fatalf("%s has no %s", dir, suffix)
			}
			replace("state", ".json")
			h.mustCall(t, r.del())
			h.wantClean(t)
			replace("ipam", "lock")
			_, _, err := h.add(r)
			wantError(t, err, types.ErrIOFailure, "lock is not a file")
		})
	}
}
