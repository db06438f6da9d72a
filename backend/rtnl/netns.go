package rtnl

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// OrCurrent is ns, or the current namespace where that is zero, which to netlink's library would be standard input.
func OrCurrent(ns netns.NsHandle) netns.NsHandle {
	if ns == 0 {
		return netns.None()
	}
	return ns
}

// InNetns runs f with the calling thread in ns: what f opens, reads below /proc/sys/net or executes belongs to ns.
// f must not hand that work to other goroutines. The zero handle, and one that is closed, stand for the current namespace.
func InNetns(ns netns.NsHandle, f func() error) error {
	if ns == 0 || !ns.IsOpen() {
		return f()
	}
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("current network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(ns) {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace %s: %w", ns, err)
			return
		}
		err := f()
		// A thread that cannot go back stays locked and ends with this goroutine: nobody may inherit the namespace.
		if netns.Set(here) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
