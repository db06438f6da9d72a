package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy"
)

func TestAddRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *rig, *skel.CmdArgs)
		code    uint
		text    string
	}{
		{"no subnet.env", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			if err := os.Remove(r.path("run/subnet.env")); err != nil {
				t.Fatal(err)
			}
		}, types.ErrTryAgainLater, "run/subnet.env does not exist: is overlayd running? (systemctl status overlayd)"},
		{"empty subnet.env", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "run/subnet.env", "")
		}, types.ErrTryAgainLater, "subnet.env"},
		{"half of subnet.env", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "run/subnet.env", "FLANNEL_NETWORK=10.5.0.0/16\n")
		}, types.ErrTryAgainLater, "subnet.env"},
		{"subnet held by another", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "run/subnet.refused", "10.5.72.0/24 is held by host b\nmore\n")
		}, types.ErrTryAgainLater, "overlayd takes no new containers: 10.5.72.0/24 is held by host b"},
		{"refused without a reason", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "run/subnet.refused", "")
		}, types.ErrTryAgainLater, "no reason"},
		{"the refusal is a link", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "secret", "root's\n")
			if err := os.Symlink(r.path("secret"), r.path("run/subnet.refused")); err != nil {
				t.Fatal(err)
			}
		}, types.ErrTryAgainLater, "subnet.refused is a symbolic link, which is not followed"},
		{"the refusal is a FIFO", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			if err := syscall.Mkfifo(r.path("run/subnet.refused"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, types.ErrTryAgainLater, "subnet.refused is not a file of at most"},
		{"subnet.env is a link", func(t *testing.T, r *rig, _ *skel.CmdArgs) {
			r.write(t, "secret", "root's\n")
			if err := errors.Join(os.Remove(r.path("run/subnet.env")), os.Symlink(r.path("secret"), r.path("run/subnet.env"))); err != nil {
				t.Fatal(err)
			}
		}, types.ErrTryAgainLater, "subnet.env is a symbolic link, which is not followed"},
		{"hostile id", func(_ *testing.T, _ *rig, a *skel.CmdArgs) { a.ContainerID = "../../etc/x" },
			types.ErrInvalidEnvironmentVariables, "containerID"},
		{"hostile interface", func(_ *testing.T, _ *rig, a *skel.CmdArgs) { a.IfName = "../x" },
			types.ErrInvalidEnvironmentVariables, "interface name"},
		{"no namespace", func(_ *testing.T, _ *rig, a *skel.CmdArgs) { a.Netns = "/nowhere" },
			types.ErrInvalidNetNS, "CNI_NETNS: open /nowhere"},
		{"bad configuration", func(_ *testing.T, _ *rig, a *skel.CmdArgs) { a.StdinData = []byte(`{"mtu":1}`) },
			types.ErrUnsupportedField, "mtu"},
		{"dataDir is a file", func(t *testing.T, r *rig, _ *skel.CmdArgs) { r.write(t, "data", "") },
			types.ErrIOFailure, "dataDir"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			args := r.args("c1")
			tt.prepare(t, r, args)
			wantError(t, r.add(t.Context(), args), tt.code, tt.text)
			if got := r.exec.commands(); len(got) != 0 {
				t.Errorf("delegate was run: %v", got)
			}
		})
	}
}

func TestAddWritesState(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "c1")

	path := r.path("data/net/c1:eth0.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got attachment.Attachment
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	id, err := r.netnsID(r.netns)
	if err != nil {
		t.Fatal(err)
	}
	want := attachment.Attachment{
		Version: 2, Network: "net", ContainerID: "c1", IfName: "eth0", Netns: r.netns, NetnsID: id,
		Args: "IgnoreUnknown=1;K8S_POD_NAME=web", Caller: "kubernetes", Labels: map[string]string{"K8S_POD_NAME": "web"},
		Endpoint: &policy.Identity{Namespace: "default", Name: "web"},
		Created:  r.now(), Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.72.2/24")},
		Result: json.RawMessage(`{"cniVersion":"1.1.0","ips":[{"address":"10.5.72.2/24"}]}`),
	}
	if got.Delegate == nil || len(got.Subnets) != 1 || got.Subnets[0].String() != "10.5.72.1/24" {
		t.Errorf("delegate %s, subnets %v", got.Delegate, got.Subnets)
	}
	got.Delegate, got.Subnets = nil, nil
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	for name, mode := range map[string]os.FileMode{path: 0o640, filepath.Dir(path): 0o750, r.path("data"): 0o750} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode().Perm(), err, mode)
		}
	}
	if !strings.Contains(r.stdout.String(), `"10.5.72.2/24"`) {
		t.Errorf("result: %s", r.stdout)
	}
}

// flannel's plugin left the file of a failed ADD behind, and forgot one whose DEL had failed.
func TestAddFails(t *testing.T) {
	t.Parallel()
	broken := types.NewError(7, "no bridge", "because")
	for _, tt := range []struct {
		name  string
		fail  map[string]error
		files []string
		code  uint
		text  string
	}{
		{"undone", map[string]error{"ADD": broken}, []string{}, 7, "bridge ADD: no bridge"},
		{"cannot be undone", map[string]error{"ADD": broken, "DEL": errors.New("busy")},
			[]string{"net/c1:eth0.json"}, 7, "bridge ADD: no bridge; because; bridge DEL: busy"},
		{"no code", map[string]error{"ADD": types.NewError(0, "netplugin failed", "")}, []string{}, codeDelegate, "netplugin failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.exec.fail = tt.fail
			wantError(t, r.add(t.Context(), r.args("c1")), tt.code, tt.text)
			if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0"}, r.exec.commands()); diff != "" {
				t.Errorf("delegate (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.files, r.files(t)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// A runtime whose pipe is gone has not heard of the address, so nobody will give it back.
func TestAddCannotAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.plugin.stdout = failingWriter{}
	wantError(t, r.add(t.Context(), r.args("c1")), types.ErrIOFailure, "print the result")
	if got := r.files(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestAddTimesOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec.fail["ADD"] = types.NewError(0, "signal: killed", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, r.add(ctx, r.args("c1")), types.ErrTryAgainLater, "bridge ADD: ended before it was done")
	if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0"}, r.exec.commands()); diff != "" {
		t.Errorf("delegate (-want +got):\n%s", diff)
	}
}

func TestAddAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "c1")
	r.mustAdd(t, "c1")
	want := []string{"ADD c1 eth0", "DEL c1 eth0", "ADD c1 eth0"}
	if diff := cmp.Diff(want, r.exec.commands()); diff != "" {
		t.Errorf("delegate (-want +got):\n%s", diff)
	}

	r.exec.fail["DEL"] = errors.New("busy")
	wantError(t, r.add(t.Context(), r.args("c1")), codeDelegate, "bridge DEL: busy")
	if got := r.files(t); len(got) != 1 {
		t.Errorf("files: %v", got)
	}
}

// Two plugins work on two containers at the same time; GC waits for both.
func TestParallel(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 50
	errs := make(chan error, n)
	for i := range n {
		go func() {
			p := newPlugin(r.exec, new(strings.Builder))
			p.netnsID = fileID
			args := r.args(fmt.Sprintf("c%d", i))
			errs <- errors.Join(p.add(t.Context(), args), p.del(t.Context(), args))
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := r.files(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}
