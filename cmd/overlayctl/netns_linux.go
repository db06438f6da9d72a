package main

import (
	"errors"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// makeNetns makes a network namespace that is found by its name as ip-netns(8) has it, with loopback up. The error is
// [fs.ErrExist] if there is one of the name.
func makeNetns(name string) error {
	if err := shareNetnsDir(); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is in the new namespace and ends with this goroutine
		done <- func() error {
			ns, err := netns.NewNamed(name)
			if err != nil {
				return err
			}
			defer ns.Close()
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}()
	}()
	return <-done
}

// shareNetnsDir lets namespaces that are mounted in the directory be seen, and be unmounted, in every mount namespace.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // it is no mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		err = unix.Mount("", netnsDir, "", unix.MS_SHARED|unix.MS_REC, "")
	}
	return err
}

// removeNetns removes a namespace's name; the namespace lives on as long as there are processes in it.
func removeNetns(name string) error { return netns.DeleteNamed(name) }
