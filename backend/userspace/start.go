package userspace

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Program is the name of the process's program. It is started from the directory that the daemon's is in.
const Program = "overlayd-tun"

// logName is where a process writes that nobody but the daemon started, in the run directory.
const logName = "tun.log"

// Files are what a process that a daemon started has in the run directory. It ends when its socket is removed.
func Files(runDir string) []string {
	log := filepath.Join(runDir, logName)
	if _, err := os.Stat(log); err != nil {
		return nil // there is none, or its socket is systemd's
	}
	socket := filepath.Join(runDir, SocketName)
	return []string{socket, socket + ".lock", log}
}

// nobody tells whether dialling failed because nobody listens.
func nobody(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// start makes the socket, and a process that serves it, and connects. The socket is there before the process is: nobody has to
// wait until it listens. Where systemd has the socket, this is not called.
func (c *Client) start() (net.Conn, error) {
	lock, err := os.OpenFile(c.socket()+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if conn, err := net.Dial("unix", c.socket()); err == nil { // another was faster
		return conn, nil
	}
	if err := c.spawn(); err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	return net.Dial("unix", c.socket())
}

// spawn starts a process in a session of its own: it outlives this one.
func (c *Client) spawn() error {
	cmd, err := c.command()
	if err != nil {
		return err
	}
	if err := os.Remove(c.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.socket(), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(c.socket(), 0o600); err != nil {
		return err
	}
	file, err := l.File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	cmd.Env = append(environment(os.Environ()), "LISTEN_FDS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A log that cannot be written, on a full disk say, keeps nothing from working.
	if log, err := os.OpenFile(filepath.Join(c.runDir, logName), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.log.Info("started", "program", cmd.Path, "pid", cmd.Process.Pid)
	go func() { _ = cmd.Wait() }() // it may end before the daemon does
	return nil
}

// beside is the program in the directory of this process's own.
func beside() (*exec.Cmd, error) {
	self, err := os.Executable()
	return exec.Command(filepath.Join(filepath.Dir(self), Program)), err
}

// environment is without what is for the daemon alone.
func environment(all []string) []string {
	return slices.DeleteFunc(all, func(v string) bool {
		return slices.ContainsFunc([]string{"NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_", "OVERLAYD_"}, func(p string) bool { return strings.HasPrefix(v, p) })
	})
}
