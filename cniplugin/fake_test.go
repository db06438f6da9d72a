package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const leaseText = `FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.72.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
`

// call is one run of a delegate.
type call struct {
	Command, ID, IfName, Netns, Args string
	Conf                             map[string]any
}

// fakeExec is a delegate that is never run.
type fakeExec struct {
	version.PluginDecoder
	fail    map[string]error // by command, or by command and container id
	missing bool

	mu    sync.Mutex
	calls []call
}

func (f *fakeExec) FindInPath(plugin string, paths []string) (string, error) {
	if f.missing {
		return "", fmt.Errorf("failed to find plugin %q in path %s", plugin, paths)
	}
	return filepath.Join(paths[0], plugin), nil
}

func (f *fakeExec) ExecPlugin(_ context.Context, _ string, stdin []byte, environ []string) ([]byte, error) {
	env := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	c := call{
		Command: env["CNI_COMMAND"], ID: env["CNI_CONTAINERID"], IfName: env["CNI_IFNAME"],
		Netns: env["CNI_NETNS"], Args: env["CNI_ARGS"],
	}
	if err := json.Unmarshal(stdin, &c.Conf); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	for _, name := range []string{c.Command, c.Command + " " + c.ID} {
		if err := f.fail[name]; err != nil {
			return nil, err
		}
	}
	return fmt.Appendf(nil, `{"cniVersion":%q,"ips":[{"address":"10.5.72.2/24"}]}`, c.Conf["cniVersion"]), nil
}

// commands lists what was run, "ADD c1 eth0".
func (f *fakeExec) commands() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, c := range f.calls {
		list = append(list, strings.TrimSpace(c.Command+" "+c.ID+" "+c.IfName))
	}
	return list
}

// rig is a plugin with a fake delegate and directories of its own.
type rig struct {
	*plugin
	exec   *fakeExec
	stdout *bytes.Buffer
	dir    string
	netns  string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{exec: &fakeExec{fail: map[string]error{}}, stdout: &bytes.Buffer{}, dir: t.TempDir()}
	r.plugin = newPlugin(r.exec, r.stdout)
	r.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	r.netnsID = fileID
	r.netns = filepath.Join(r.dir, "netns")
	r.write(t, "netns", "one")
	r.write(t, "run/subnet.env", leaseText)
	return r
}

// fileID tells files apart as netnsID does namespaces, by what is in them.
func fileID(path string) (string, error) {
	data, err := os.ReadFile(path)
	return string(data), err
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(r.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// args is a command for interface eth0 of a container; more is added to the configuration.
func (r *rig) args(id string, more ...string) *skel.CmdArgs {
	return &skel.CmdArgs{
		ContainerID: id, IfName: "eth0", Netns: r.netns, Path: "/opt/cni/bin",
		Args: "IgnoreUnknown=1;K8S_POD_NAME=web",
		StdinData: fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"net","type":"overlay","subnetFile":%q,"dataDir":%q,"delegate":{"type":"bridge"}%s}`,
			r.path("run/subnet.env"), r.path("data"), strings.Join(more, "")),
	}
}

func (r *rig) mustAdd(t *testing.T, id string) {
	t.Helper()
	if err := r.add(t.Context(), r.args(id)); err != nil {
		t.Fatalf("ADD %s: %v", id, err)
	}
}

// files lists what is in the store.
func (r *rig) files(t *testing.T) []string {
	t.Helper()
	return filesBelow(t, r.path("data"))
}

func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	found := []string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && entry.Name() != "lock" {
			found = append(found, strings.TrimPrefix(path, dir+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

// wantError fails unless err has the code and names what it must.
func wantError(t *testing.T, err error, code uint, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want code %d and %q", code, text)
	}
	if got := codeOf(err, types.ErrInternal); got != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("code %d, %v\nwant code %d, %q", got, err, code, text)
	}
}
