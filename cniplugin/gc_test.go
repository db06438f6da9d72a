package main

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

const gcList = `,"cni.dev/valid-attachments":[{"containerID":"kept","ifname":"eth0"},{"containerID":"gone","ifname":"eth1"}]`

func TestGC(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, id := range []string{"fails", "gone", "kept", "unusable"} {
		r.mustAdd(t, id)
	}
	r.write(t, "data/net/unusable:eth0.json", "\x00\x00")
	r.write(t, "data/other/gone:eth0.json", "another network's")
	r.write(t, "data/net/README", "not ours")
	r.write(t, "data/.left:eth0.json123", "killed while writing")
	r.exec.calls = nil
	r.exec.fail["DEL fails"] = types.NewError(11, "busy", "")

	wantError(t, r.gc(t.Context(), r.args("", gcList)), 11, "container fails, eth0: bridge DEL: busy")
	want := []string{"DEL fails eth0", "DEL gone eth0", "DEL unusable eth0", "GC"}
	if diff := cmp.Diff(want, r.exec.commands()); diff != "" {
		t.Errorf("delegate (-want +got):\n%s", diff)
	}
	left := []string{"net/README", "net/fails:eth0.json", "net/kept:eth0.json", "other/gone:eth0.json"}
	if diff := cmp.Diff(left, r.files(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := r.exec.calls[3].Conf["cni.dev/valid-attachments"].([]any); len(got) != 2 {
		t.Errorf("the delegate's list: %v", got)
	}
}

func TestGCWithout(t *testing.T) {
	t.Parallel()
	t.Run("data directory", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		if err := r.gc(t.Context(), r.args("", gcList)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a delegate that knows GC", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.exec.fail["GC"] = types.NewError(types.ErrIncompatibleCNIVersion, "incompatible", "")
		if err := r.gc(t.Context(), r.args("", gcList)); err != nil {
			t.Error(err)
		}
	})
	t.Run("daemon", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.mustAdd(t, "gone")
		os.RemoveAll(r.path("run"))
		wantError(t, r.gc(t.Context(), r.args("", gcList)), types.ErrTryAgainLater, "subnet.env")
		if got := r.files(t); len(got) != 0 {
			t.Errorf("what can be collected must be: %v", got)
		}
	})
	t.Run("list", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.mustAdd(t, "gone")
		r.mustAdd(t, "kept")
		old := `,"cni.dev/attachments":[{"containerID":"kept","ifname":"eth0"}]`
		if err := r.gc(t.Context(), r.args("", old)); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"net/kept:eth0.json"}, r.files(t)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		if err := r.gc(t.Context(), r.args("")); err != nil || len(r.files(t)) != 0 {
			t.Errorf("%v, %v", err, r.files(t))
		}
	})
}

// An ADD that is under way is not yet on the runtime's list.
func TestGCWaitsForAdd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "gone")
	adding, err := attachment.Open(t.Context(), r.path("data"), attachment.Shared)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantError(t, r.gc(ctx, r.args("", gcList)), types.ErrTryAgainLater, "locked by another overlay plugin")
	if err := adding.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.gc(t.Context(), r.args("", gcList)); err != nil {
		t.Fatal(err)
	}
	if _, err := attachment.Open(t.Context(), r.path("nowhere"), attachment.Shared); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want os.ErrNotExist", err)
	}
}
