package main

import (
	"testing"

	"github.com/prometheus/procfs"
)

// TestUnmapCode has less resident after than before, and goes on running.
func TestUnmapCode(t *testing.T) {
	before := residentFile(t)
	if err := unmapCode(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after >= before {
		t.Errorf("%d bytes of files are resident, %d before", after, before)
	}
}

// residentFile is how much of files this process has in memory, in bytes.
func residentFile(t *testing.T) uint64 {
	t.Helper()
	self, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	status, err := self.NewStatus()
	if err != nil {
		t.Fatal(err)
	}
	return status.RssFile
}
