package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// smallDisk mounts 64 kB on a directory and leaves free what is to be left.
func smallDisk(t *testing.T, dir string, free int64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 65536-free), 0o600); err != nil {
		t.Fatal(err)
	}
}

// On a full disk an ADD fails, and leaves nothing: no half of a file, no address, no interface.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, dir string
		more      map[string]any
		code      uint
		text      string
	}{
		{"of the attachments", "state", nil, types.ErrIOFailure, "dataDir: write "},
		{"of the addresses", "ipam", nil, codeDelegate, "no space left on device"},
		{"of the reference plugins' addresses", "ipam", reference(nil), types.ErrInternal, "no space left on device"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, v4Lease)
			dir := filepath.Join(h.dir, tt.dir)
			smallDisk(t, dir, 0)
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: tt.more}
			_, _, err := h.add(r)
			wantError(t, err, tt.code, tt.text)
			if links := ip(t, r.netns, "-o", "link"); strings.Contains(links, "eth0") {
				t.Errorf("an interface is left: %s", links)
			}
			for _, name := range filesBelow(t, dir) {
				if base := filepath.Base(name); base != "ballast" && base != "lock" {
					t.Errorf("left: %s", name)
				}
			}
			if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
				t.Fatal(err)
			}
			h.mustCall(t, r.del()) // what a runtime does after a failed ADD
			if tt.more != nil {    // they stumble over a bridge that has lost its only port before it got an address
				ip(t, h.ns, "link", "del", "cni0")
			}
			h.mustAdd(t, r)
			h.mustCall(t, r.del())
			h.wantClean(t)
		})
	}
}

// Files that a power loss has left empty are in nobody's way: the container is detached, and its address is free again.
func TestEmptyFiles(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	ips, _ := h.mustAdd(t, r)
	dir := filepath.Join(h.dir, "ipam")
	for _, name := range append(filesBelow(t, filepath.Join(h.dir, "state")), filesBelow(t, dir)...) {
		path := filepath.Join(h.dir, "state", name)
		if _, err := os.Stat(path); err != nil {
			path = filepath.Join(dir, name)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	h.mustCall(t, r.del())
	for range 254 { // none is lost: after the last of the subnet the first comes again
		again, _ := h.mustAdd(t, r)
		if again[0] == ips[0] {
			h.mustCall(t, r.del())
			h.wantClean(t)
			return
		}
		h.mustCall(t, r.del())
	}
	t.Errorf("%s is lost", ips[0])
}
