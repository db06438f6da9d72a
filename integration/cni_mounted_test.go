package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// mounted is a host with a mount namespace of its own, in which /var/lib is the host's and what is mounted stays.
type mounted struct {
	*Host
	mounts string
}

// mount makes the mount namespace, which goes away with the test. Network namespaces that are named in it are named
// everywhere, as on a real host, and the other way round.
func (h *Host) mount() *mounted {
	h.t.Helper()
	ready := filepath.Join(h.RunDir, "mounted")
	p := h.Spawn("mounts of "+h.Name, nil, "unshare", "--mount", "--propagation=unchanged", "sh", "-c",
		`mount --make-private "$(stat -c %m /var/lib)" && mount --bind "$1" /var/lib && : >"$2" && exec sleep infinity`, "sh", h.varLib, ready)
	eventually(h.t, "the mounts of "+h.Name, func() error {
		_, err := os.Stat(ready)
		return err
	})
	return &mounted{h, fmt.Sprintf("/proc/%d/ns/mnt", p.Pid())}
}

// Command is a command to be run on the host and in its mounts.
func (m *mounted) Command(args ...string) *exec.Cmd {
	return m.Host.Command(append([]string{"nsenter", "--mount=" + m.mounts, "--"}, args...)...)
}

// Run runs a command and returns its output. The error holds standard error.
func (m *mounted) Run(args ...string) (string, error) {
	cmd := m.Command(args...)
	cmd.Env = append(cmd.Env, "CNI_PATH="+bin(""), "NETCONFPATH="+m.confs)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

// Must is Run of what must not fail.
func (m *mounted) Must(args ...string) string {
	m.t.Helper()
	out, err := m.Run(args...)
	if err != nil {
		m.t.Fatalf("%s: %v: %v\n%s", m.Name, args, err, out)
	}
	return out
}

// overlayctl is the command line of a command of overlayctl's that calls CNI plugins.
func (m *mounted) overlayctl(args ...string) []string {
	return append(append([]string{bin("overlayctl"), "--config", "/dev/null"}, args...),
		"--cni-conf-dir", m.confs, "--cni-bin-dir", bin(""))
}
