package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clock is a wall clock that a test sets, for overlayd as it is. A namespace has no wall clock of its own, and Go asks
// no library for the time, so the kernel is made to ask the test: a seccomp filter (seccomp_unotify(2)) brings it each
// clock_gettime(CLOCK_REALTIME). Monotonic time stays the kernel's, as when a real clock jumps.
type clock struct {
	t      testing.TB
	offset atomic.Int64 // to the true time, in nanoseconds
}

// now is the time of day under the clock.
func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// start starts overlayd on the host under the clock.
func (c *clock) start(h *Host, args ...string) {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "launcher's end")
	command := h.Args(args...)
	command = slices.Insert(command, slices.Index(command, bin("overlayd")), self, clockLauncher)
	cmd := h.Command(command...)
	cmd.ExtraFiles = []*os.File{theirs}
	p := spawn(c.t, cmd, "overlayd on "+h.Name, nil)
	theirs.Close()
	listener, err := receiveFile(pair[0])
	if err != nil {
		c.t.Fatalf("launch under the clock: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer unix.Close(listener)
		if err := c.serve(listener); err != nil {
			c.t.Errorf("clock of %s: %v", h.Name, err)
		}
	}()
	c.t.Cleanup(func() { p.Kill(); <-ended })
	h.Daemon = p
}

// syscallAsked is struct seccomp_notif.
type syscallAsked struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// syscallAnswer is struct seccomp_notif_resp.
type syscallAnswer struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// serve answers until no process has the filter any more. A caller that a signal interrupts asks again.
func (c *clock) serve(listener int) error {
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll: %w", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			if fds[0].Revents != 0 {
				return nil
			}
			continue
		}
		var asked syscallAsked
		if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&asked)); err != nil {
			continue // it is gone
		}
		answer := syscallAnswer{id: asked.id}
		if asked.nr == unix.SYS_BRK {
			answer.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		if err := c.answer(listener, &asked); err != nil {
			return err
		}
		if err := ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// answer writes what a call asks for to the memory of the process.
func (c *clock) answer(listener int, asked *syscallAsked) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", asked.pid), os.O_RDWR, 0)
	if err != nil {
		return nil // it is gone
	}
	defer mem.Close()
	if ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&asked.id)) != nil {
		return nil // it is gone, and this may be the memory of another one with its pid
	}
	if asked.nr == unix.SYS_BRK {
		return hideVDSO(mem, asked.pid)
	}
	now := c.now()
	timespec := binary.NativeEndian.AppendUint64(nil, uint64(now.Unix()))
	_, err = mem.WriteAt(binary.NativeEndian.AppendUint64(timespec, uint64(now.Nanosecond())), int64(asked.args[1]))
	return err
}
