package extension

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeperName is what a keeper is called: a process of this program, between it and one command. It adopts all that the
// command leaves behind, and ends when the command does, or this program; whatever of the command's runs then, it kills.
const keeperName = "overlayd-command"

// lifeline is the descriptor that a keeper hears the end of its parent by: of a pipe, whose other end only that has.
const lifeline = 3

// notFound is the exit code of a keeper that could not begin, as shells have it.
const notFound = 127

// Keeping says whether this process is a keeper.
func Keeping() bool { return filepath.Base(os.Args[0]) == keeperName }

// Keep runs the command in os.Args to its end, and returns its exit code. It is for a process that is Keeping, before anything
// else in it.
func Keep() int {
	runtime.LockOSThread() // the command is to die with the thread that began it
	unix.CloseOnExec(lifeline)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintf(os.Stderr, "adopt what the command leaves: %v\n", err)
		return notFound
	}
	path, err := exec.LookPath(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return notFound
	}
	pid, err := syscall.ForkExec(path, os.Args[1:], &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
		return notFound
	}
	over := make(chan os.Signal, 1)
	signal.Notify(over, unix.SIGTERM, unix.SIGINT, unix.SIGHUP) // who ends all processes there are may come here first
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(lifeline, "lifeline"))
		over <- unix.SIGTERM
	}()
	go func() {
		<-over
		killAll()
	}()
	return reap(pid)
}

// reap waits for the command and then, having killed them, for all that it left.
func reap(command int) (code int) {
	ended := false
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD: there are none left
			return code
		case pid == command:
			ended = true
			if code = ws.ExitStatus(); ws.Signaled() {
				code = 128 + int(ws.Signal())
			}
			go killAll()
		case ended:
			// The children of what was killed are this process's now, and killAll finds them.
		}
	}
}

// killAll kills the children of this process, and those that it is given by their death, until it ends.
func killAll() {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) { // one that waits for a disk may take its time
		for _, pid := range children(os.Getpid()) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(wait)
	}
}

// children are a process's.
func children(of int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range dirs {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		// proc(5): the name is in parentheses, and may have some in it; the state and the parent follow.
		_, rest, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(" "))
		if fields := bytes.Fields(rest); len(fields) > 1 && string(fields[1]) == strconv.Itoa(of) {
			pids = append(pids, pid)
		}
	}
	return pids
}
