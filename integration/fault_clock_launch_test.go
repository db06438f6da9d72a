package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clockLauncher as first argument makes the test binary set the filter up and become the program that follows.
const clockLauncher = "launch-under-the-clock"

// launchUnderClock is the launcher. It returns only when it fails: the thread that has the filter becomes the program.
func launchUnderClock(args []string) error {
	const socket = 3      // the first of ExtraFiles
	const nr, arg = 0, 16 // in struct seccomp_data: the call, and the low half of its first argument
	runtime.LockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLOCK_GETTIME, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_BRK, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.CLOCK_REALTIME, Jf: 1}, // which is 0, as in brk(0)
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	unix.CloseOnExec(socket)
	return syscall.Exec(args[0], args, os.Environ())
}

// receiveFile receives a file descriptor; one that is not sent, because the sender has ended, is an error.
func receiveFile(socket int) (fd int, err error) {
	rights := make([]byte, unix.CmsgSpace(4))
	if _, _, _, _, err := unix.Recvmsg(socket, make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC); err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return 0, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

// hideVDSO has a program that starts read the time by system calls: Go's runtime finds the vDSO by the auxiliary vector,
// at the end of the stack. Before it, in a binary with race detection, comes the dynamic loader, whose first system call
// is brk(0) on every architecture.
func hideVDSO(mem *os.File, pid uint32) error {
	const ignore, vdso = 1, 33 // AT_IGNORE and AT_SYSINFO_EHDR of getauxval(3)
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return err
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	before, _, _ := bytes.Cut(maps, []byte("[stack]"))
	var from, to int64
	if _, err := fmt.Sscanf(string(before[bytes.LastIndexByte(before, '\n')+1:]), "%x-%x", &from, &to); err != nil {
		return fmt.Errorf("stack of %d: %w", pid, err)
	}
	stack := make([]byte, to-from)
	if _, err := mem.ReadAt(stack, from); err != nil {
		return err
	}
	at := bytes.Index(stack, auxv) // not there: hidden before
	for i := 0; at >= 0 && i < len(auxv); i += 16 {
		if binary.NativeEndian.Uint64(auxv[i:]) == vdso {
			_, err = mem.WriteAt(binary.NativeEndian.AppendUint64(nil, ignore), from+int64(at+i))
		}
	}
	return err
}
