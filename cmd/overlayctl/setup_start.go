package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

const (
	// serveWithin is how long a host may take from the start of its daemon until it serves.
	serveWithin = time.Minute
	// lookEvery is how often the daemon is asked meanwhile.
	lookEvery = 100 * time.Millisecond
)

// daemonProgram is the path of overlayd.
func daemonProgram() (string, error) {
	program, err := exec.LookPath("overlayd")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/overlayd") // not in every root's PATH
	}
	if err != nil {
		return "", errors.New("overlayd is not installed: it is neither in PATH nor in /usr/sbin")
	}
	return program, nil
}

// check has the daemon read a configuration, as the user who it will be.
func (s *setup) check(ctx context.Context, file string) error {
	program, err := daemonProgram()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "--config", file, "--check")
	cmd.Dir = "/"
	if s.files.UID >= 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.files.UID), Gid: uint32(s.files.GID)}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		why := strings.TrimPrefix(strings.TrimSpace(string(out)), "overlayd: ")
		return fmt.Errorf("the configuration would not do, nothing was started: %s (%w)", printable(why), err)
	}
	return nil
}

// start has systemd start the daemon now and at every boot, anew if it runs with an older configuration.
func (s *setup) start(ctx context.Context) error {
	if s.dryRun || s.noStart {
		return nil
	}
	verb := "start"
	if status, err := s.askDaemon(ctx); err == nil && s.older(status) {
		verb = "restart"
	}
	for _, args := range [][]string{{"enable", "overlayd"}, {"--no-block", verb, "overlayd"}} {
		if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, printable(strings.TrimSpace(string(out))))
		}
	}
	s.did("enabled and "+verb+"ed", "", "overlayd.service")
	return nil
}

// older says whether the daemon was started before its configuration was written.
func (s *setup) older(status api.Status) bool {
	info, err := os.Stat(s.config)
	return err == nil && status.Started.Before(info.ModTime())
}

// awaitServing waits until the daemon serves its subnet, and says which.
func (s *setup) awaitServing(ctx context.Context) error {
	if s.dryRun {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, serveWithin)
	defer cancel()
	socket := api.Dial(settings.Socket(s.daemon.RunDir))
	for {
		status, err := socket.Status(ctx)
		switch {
		case err == nil && status.Ready && status.Etcd.Connected && status.Lease.State == "held" && !s.older(status):
			fmt.Fprintf(s.stdout, "this host is %s\n", printable(status.Stage))
			return nil
		case err != nil && s.noStart:
			return errNotStarted
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = errors.New(status.Stage)
			}
			return fmt.Errorf("this host does not serve after %s: %w; it goes on trying, see journalctl -u overlayd", serveWithin, err)
		case <-time.After(lookEvery):
		}
	}
}

// errNotStarted says that the rest has to wait for who starts overlayd.
var errNotStarted = errors.New("overlayd does not run: --no-start leaves it to you")

// started turns errNotStarted into what is to be done about it.
func (s *setup) started(err error, then string) error {
	if errors.Is(err, errNotStarted) {
		_, err = fmt.Fprintf(s.stdout, "now start overlayd --config %s%s\n", filepath.Clean(s.config), then)
	}
	return err
}
