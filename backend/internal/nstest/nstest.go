// Package nstest makes network namespaces for tests of this machine's kernel.
package nstest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// New makes a network namespace with no name: it ends with the test even if that crashes.
func New(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(here); err != nil {
		panic(err) // this thread must not be used any more
	}
	return ns
}

// Sh runs a script in ns, and stops the test where a line of it fails.
func Sh(t testing.TB, ns netns.NsHandle, script string) string {
	t.Helper()
	var out []byte
	err := rtnl.InNetns(ns, func() (err error) {
		out, err = exec.CommandContext(t.Context(), "/bin/sh", "-ec", script).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// Run runs a task until stop is called, or the test ends. It must not fail.
func Run(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Path names ns for the netns argument of ip.
func Path(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns) }

// LAN is what a test's host has without us.
const LAN = `
ip link set lo up
ip link add eth0 type veth peer name wire0
ip link set wire0 up
ip link set eth0 up
ip address add 192.0.2.1/24 dev eth0
ip address add 2001:db8::1/64 dev eth0 nodad
until ip -6 route show table local | grep -q '^local 2001:db8::1 '; do :; done # the kernel makes it later
`
