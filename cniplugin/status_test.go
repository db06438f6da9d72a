package main

import (
	"net"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestStatusBad(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *rig)
		code    uint
		text    string
	}{
		{"no subnet.env", func(t *testing.T, r *rig) { os.RemoveAll(r.path("run")) },
			types.ErrPluginNotAvailable, "is overlayd running?"},
		{"half of subnet.env", func(t *testing.T, r *rig) { r.write(t, "run/subnet.env", "FLANNEL_MTU=1450\n") },
			types.ErrPluginNotAvailable, "subnet.env"},
		{"refused", func(t *testing.T, r *rig) { r.write(t, "run/subnet.refused", "held by host b") },
			types.ErrPluginNotAvailable, "held by host b"},
		{"no delegate", func(t *testing.T, r *rig) { r.exec.missing = true },
			types.ErrPluginNotAvailable, "install the reference plugins there (CNI_PATH)"},
		{"delegate is not ready", func(t *testing.T, r *rig) { r.exec.fail["STATUS"] = types.NewError(50, "dhcp is down", "") },
			types.ErrPluginNotAvailable, "bridge STATUS: dhcp is down"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			args := r.args("c1")
			if err := r.add(t.Context(), args); err != nil {
				t.Fatal(err)
			}
			tt.prepare(t, r)
			// go-cni asks before it removes c1, and an error has Nomad leave it.
			if err := r.status(t.Context(), args); err != nil {
				t.Errorf("with a container: %v", err)
			}
			if err := os.RemoveAll(r.path("data")); err != nil {
				t.Fatal(err)
			}
			wantError(t, r.status(t.Context(), args), tt.code, tt.text)
		})
	}
}

// An ADD needs no daemon, only what it has left; go-cni calls no ADD, and no DEL, after a STATUS that fails.
func TestStatusWithoutDaemon(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.path("run/overlayd.sock")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := r.status(t.Context(), r.args("")); err != nil {
		t.Error(err)
	}
}
