package attachment

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NetnsID tells which network namespace path leads to; no other has the same, nor will have after a reboot. The error
// says that there is none.
//
// A path alone does not tell: runtimes use /proc/<pid>/ns/net, and when that process is gone its pid can be another's,
// in the host's own namespace even, where a DEL of eth0 would take the host off its network. Nor does the inode: the
// kernel gives that of a namespace that is gone to the next one. The cookie it never gives twice in one boot.
func NetnsID(path string) (string, error) {
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	defer ns.Close()
	cookie, err := netnsCookie(ns)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.14
		return boot + "/" + ns.UniqueId(), nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Sprintf("%s/%d", boot, cookie), nil
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// OfEarlierBoot says whether the attachment was made before the host started: its namespace, its interfaces and whatever
// chained plugins made in the kernel are gone.
func (a Attachment) OfEarlierBoot() bool {
	boot, err := bootID()
	return err == nil && a.NetnsID != "" && !strings.HasPrefix(a.NetnsID, boot+"/")
}

// NetnsIsThere says whether the path at which the namespace was when it was attached still leads to it.
func (a Attachment) NetnsIsThere() bool {
	id, err := NetnsID(a.Netns)
	return err == nil && id == a.NetnsID
}

// netnsCookie asks a socket made in ns. A goroutine of its own makes it: should its thread not find back, it stays
// locked to it and takes it away, so that no delegate is started from there.
func netnsCookie(ns netns.NsHandle) (cookie uint64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var own netns.NsHandle
		if own, err = netns.Get(); err != nil {
			return
		}
		defer own.Close()
		cookie, err = cookieAfterSet(ns)
		if backErr := netns.Set(own); backErr != nil {
			err = errors.Join(err, backErr)
			return
		}
		runtime.UnlockOSThread()
	}()
	<-done
	return cookie, err
}

// cookieAfterSet moves the thread to ns.
func cookieAfterSet(ns netns.NsHandle) (uint64, error) {
	if err := netns.Set(ns); err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}
