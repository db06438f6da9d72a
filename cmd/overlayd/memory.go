package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// How far the heap may grow, see setGC. A start makes little that does not stay, and is to be over soon; a daemon that
// changes a few objects at a time collects seldom all the same.
const (
	starting = 400
	serving  = 30
)

// setGC says how far the heap may grow beyond what is in use, in per cent. GOGC in the environment has precedence.
func setGC(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// giveBack lets the kernel have what only the start needed.
func (c *config) giveBack() {
	setGC(serving)
	debug.FreeOSMemory()
	if err := unmapCode(); err != nil {
		c.log.Warn("the code that only the start needed stays in memory", "err", err)
	}
}

// unmapCode takes all code out of the process's memory: of the 11 MB that a start runs through, or that the kernel maps
// with it, one is run again. That comes back from the page cache. Nobody writes code but a debugger, so nothing else can
// be lost; of data that only looks constant, such as relocated pointers, that is not so.
func unmapCode() error {
	self, err := procfs.Self()
	if err != nil {
		return err
	}
	maps, err := self.ProcMaps()
	for _, m := range maps {
		if !m.Perms.Execute || m.Perms.Write || m.Inode == 0 {
			continue
		}
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, m.StartAddr, m.EndAddr-m.StartAddr, unix.MADV_DONTNEED)
		if errno != 0 {
			err = errors.Join(err, fmt.Errorf("madvise %s: %w", m.Pathname, errno))
		}
	}
	return err
}
