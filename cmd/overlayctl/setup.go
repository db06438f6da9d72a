package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/cmd/internal/agent"
	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
)

// daemonUser is who overlayd runs as, see systemd/overlayd.service.
const daemonUser = "overlayd"

// setup makes a machine a host of a network, a step at a time. Each step looks first at what is there, so that a run that was
// interrupted anywhere is continued by the next.
type setup struct {
	*app
	iface   []string
	dryRun  bool
	noStart bool

	daemon settings.Daemon // what the daemon would be told besides the file that is to be written
	config string          // that file
	exists bool            // it was there, and is what a command like this has written
	files  enrol.Files
	hostID string
}

func (s *setup) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&s.iface, "iface", nil, "`link` or address to reach the other hosts by (default: the default route's)")
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().BoolVar(&s.noStart, "no-start", false, "write everything, and leave it to you to start overlayd: for machines without systemd")
}

// did says what was done or, in a dry run, what would be.
func (s *setup) did(done, would, format string, args ...any) {
	if s.dryRun {
		done = would
	}
	fmt.Fprintf(s.stdout, "%s %s\n", done, printable(fmt.Sprintf(format, args...)))
}

func (s *setup) found(format string, args ...any) {
	fmt.Fprintf(s.stdout, "there is %s\n", printable(fmt.Sprintf(format, args...)))
}

// prepare finds out whether this machine can be made a host at all, and whether somebody else did so already.
func (s *setup) prepare() error {
	switch {
	case os.Geteuid() != 0:
		return errors.New("this needs root: try it with sudo")
	case !s.noStart && !isDir("/run/systemd/system"):
		return errors.New("systemd does not run here: with --no-start everything is written, and you start overlayd by other means")
	}
	s.config = s.declared.Lookup("config").Value.String()
	if s.config != settings.DefaultFile && !s.noStart {
		return fmt.Errorf("--config: the unit reads %s: with --no-start another is written, and you start overlayd by other means", settings.DefaultFile)
	}
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	s.daemon.Register(declared)
	if s.config != settings.DefaultFile {
		if err := declared.Parse([]string{"--config", s.config}); err != nil {
			return err
		}
	}
	if _, err := settings.Load(declared, "overlayd"); err != nil {
		return err
	}
	s.daemon.Client = s.settings // overlayctl's own flags and variables count too
	if err := s.lookAtConfig(); err != nil {
		return err
	}
	s.files.UID, s.files.GID = -1, -1
	return s.lookUpUser()
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// marker begins the files that this writes.
const marker = "# Written by overlayctl "

// lookAtConfig refuses a configuration that somebody else has written. The one that comes with the package is nothing but
// comments, and is nobody's.
func (s *setup) lookAtConfig() error {
	text, err := os.ReadFile(s.config)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.exists = strings.HasPrefix(string(text), marker); s.exists {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return fmt.Errorf("%s has settings that overlayctl did not write (%.40s): move it away, and compare when this is done", s.config, printable(line))
		}
	}
	return nil
}

// lookUpUser finds the user who must be able to read what is written. Where root runs the daemon, there may be none.
func (s *setup) lookUpUser() error {
	u, err := user.Lookup(daemonUser)
	if err != nil && s.noStart {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: install overlayd's package, or run systemd-sysusers", err)
	}
	s.files.UID, err = strconv.Atoi(u.Uid)
	if err == nil {
		s.files.GID, err = strconv.Atoi(u.Gid)
	}
	return err
}

// openState finds out who this host is, and makes it somebody if it is nobody.
func (s *setup) openState() error {
	dir := s.daemon.StateDir
	state, err := agent.ReadState(dir, agent.MachineID())
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.dryRun:
		state = agent.NewState()
	case errors.Is(err, fs.ErrNotExist):
		if state, err = agent.OpenState(dir, agent.MachineID(), s.quiet()); err != nil {
			return err
		}
		defer state.Close()
		for _, name := range []string{".", "identity.json"} {
			if err := os.Lchown(filepath.Join(dir, name), s.files.UID, s.files.GID); err != nil {
				return err
			}
		}
		s.did("made", "", "this host's identity, %s, in %s", state.HostID, dir)
	case err != nil:
		return err
	}
	s.hostID = state.HostID
	if s.files.Root, err = os.OpenRoot(dir); errors.Is(err, fs.ErrNotExist) && s.dryRun {
		return nil
	}
	return err
}

// path is that of a file in the state directory.
func (s *setup) path(name string) string { return filepath.Join(s.daemon.StateDir, name) }

// write writes a file into the state directory, and says so.
func (s *setup) write(name string, data []byte, mode fs.FileMode, what string, args ...any) error {
	if !s.dryRun {
		if _, err := s.files.Write(name, data, mode); err != nil {
			return err
		}
	}
	s.did("made", "would make", what+", "+s.path(name), args...)
	return nil
}

// addresses are those by which this host meets others, IPv4 first, of the families that it has.
func (s *setup) addresses() (addrs []netip.Addr, err error) {
	var errs []error
	for _, v6 := range []bool{false, true} {
		choice, err := underlay.Find(netns.None(), underlay.Selector{IPv4: !v6, IPv6: v6, Ifaces: s.iface})
		addrs, errs = append(addrs, choice.Addrs...), append(errs, err)
	}
	if len(addrs) == 0 {
		return nil, errs[0]
	}
	return addrs, nil
}

// suits says why a network is none for this host.
func (s *setup) suits(n subnet.Network, etcd ...netip.Addr) error {
	selector := underlay.Selector{Ifaces: s.iface}
	for _, pool := range n.Pools {
		selector.IPv4 = selector.IPv4 || pool.Prefix.Addr().Is4()
		selector.IPv6 = selector.IPv6 || pool.Prefix.Addr().Is6()
	}
	choice, err := underlay.Find(netns.None(), selector)
	if err != nil {
		return err
	}
	var places []backend.Place
	for _, addr := range choice.Addrs {
		places = append(places, backend.At(addr, "this host's address"))
	}
	for _, addr := range etcd {
		places = append(places, backend.At(addr, "etcd at"))
	}
	return backend.Covers(n, backend.Places(choice.Around, places, n, nil))
}

// setting is a line of the configuration, and why it is there.
type setting struct {
	why, name string
	value     any
}

// certificates are the settings by which the daemon shows what this has made, and renews it.
func (s *setup) certificates() []setting {
	return []setting{
		{"The daemon renews its certificate itself.", "etcd-cafile", s.path(enrol.CAFile)},
		{"", "etcd-certfile", s.path(enrol.HostFile)},
		{"", "etcd-keyfile", s.path(enrol.HostFile)},
	}
}

// common are the settings of every host.
func (s *setup) common() []setting {
	list := []setting{{"Hide packets that leave the overlay behind this host's address.", "ip-masq", true}}
	if len(s.iface) > 0 {
		list = append(list, setting{"The link that reaches the other hosts.", "iface", s.iface})
	}
	var usual settings.Daemon
	usual.Register(pflag.NewFlagSet("overlayd", pflag.ContinueOnError))
	if s.daemon.StateDir != usual.StateDir {
		list = append(list, setting{"", "state-dir", s.daemon.StateDir})
	}
	if s.daemon.RunDir != usual.RunDir {
		list = append(list, setting{"", "run-dir", s.daemon.RunDir})
	}
	return list
}

// writeConfig writes the configuration, once the daemon has found nothing wrong with it, and says whether it is new.
func (s *setup) writeConfig(ctx context.Context, by string, list []setting) error {
	text := marker + by + ". What is not here has its default: see overlayd(8).\n"
	for _, line := range list {
		value, err := yaml.Marshal(map[string]any{line.name: line.value})
		if err != nil {
			return err
		}
		if line.why != "" {
			text += "\n# " + line.why + "\n"
		}
		text += string(value)
	}
	if s.dryRun {
		s.did("", "would write", "%s:", s.config)
		_, err := fmt.Fprint(s.stdout, "  "+strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")+"\n")
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.config), 0o755); err != nil {
		return err
	}
	next := s.config + ".new"
	defer os.Remove(next)
	if err := renameio.WriteFile(next, []byte(text), 0o644); err != nil {
		return err
	}
	if err := s.check(ctx, next); err != nil {
		return err
	}
	if err := renameio.WriteFile(s.config, []byte(text), 0o644); err != nil {
		return err
	}
	s.did("wrote", "", "%s", s.config)
	return nil
}
