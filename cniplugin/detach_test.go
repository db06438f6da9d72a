package main

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDelFromStateAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "c1")
	if err := errors.Join(os.RemoveAll(r.path("run")), os.Remove(r.netns)); err != nil {
		t.Fatal(err)
	}
	args := r.args("c1", `,"delegate":{"type":"now/wrong"},"mtu":"wrong"`)
	args.Netns, args.Args = "", ""

	r.exec.fail["DEL"] = errors.New("busy")
	wantError(t, r.del(t.Context(), args), codeDelegate, "bridge DEL: busy")
	if got := r.files(t); len(got) != 1 {
		t.Fatalf("a failed DEL must keep the file: %v", got)
	}
	r.exec.fail = nil
	for range 2 {
		if err := r.del(t.Context(), args); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.files(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if diff := cmp.Diff([]string{"ADD c1 eth0", "DEL c1 eth0", "DEL c1 eth0"}, r.exec.commands()); diff != "" {
		t.Errorf("delegate (-want +got):\n%s", diff)
	}
	if got := r.exec.calls[2]; got.Args != "IgnoreUnknown=1;K8S_POD_NAME=web" || got.Netns != "" || got.Conf["mtu"] != 1450.0 {
		t.Errorf("DEL was run with %+v", got)
	}
}

// Who collects what is left behind has seen a namespace gone. A container that was attached since stays.
func TestDelOfOneNamespaceOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "c1")
	if err := r.del(t.Context(), r.args("c1", `,"overlayd/netnsID":"another"`)); err != nil {
		t.Fatal(err)
	}
	if got := r.files(t); len(got) != 1 {
		t.Fatalf("files: %v", got)
	}
	if err := r.del(t.Context(), r.args("c1", `,"overlayd/netnsID":"one"`)); err != nil {
		t.Fatal(err)
	}
	if got := r.files(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestDelBeforeAdd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	args := r.args("c1")
	args.Netns = ""
	if err := r.del(t.Context(), args); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.path("data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a DEL of nothing made the data directory: %v", err)
	}
}

// The path of a process that is gone may lead into another's namespace.
func TestDelEntersNoOtherNamespace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, given, want string }{
		{"the same", "netns", "netns"},
		{"the same by another path", "link", "link"},
		{"not given", "", "netns"},
		{"another, the own still there", "other", "netns"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.mustAdd(t, "c1")
			r.write(t, "other", "two")
			if err := os.Symlink(r.netns, r.path("link")); err != nil {
				t.Fatal(err)
			}
			args := r.args("c1")
			if args.Netns = ""; tt.given != "" {
				args.Netns = r.path(tt.given)
			}
			if err := r.del(t.Context(), args); err != nil {
				t.Fatal(err)
			}
			if got := r.exec.calls[1].Netns; got != r.path(tt.want) {
				t.Errorf("entered %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("the path is another's now", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.mustAdd(t, "c1")
		r.write(t, "other", "two")
		if err := os.Rename(r.path("other"), r.netns); err != nil {
			t.Fatal(err)
		}
		if err := r.del(t.Context(), r.args("c1")); err != nil {
			t.Fatal(err)
		}
		if got := r.exec.calls[1].Netns; got != "" {
			t.Errorf("entered %s", got)
		}
	})
}

func TestDelUnusableState(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mustAdd(t, "c1")
	r.write(t, "data/net/c1:eth0.json", `{"version":1,`)

	lease := r.path("run/subnet.env")
	if err := os.Rename(lease, lease+".away"); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.del(t.Context(), r.args("c1")), codeState, "net/c1:eth0.json: not a usable attachment file")
	wantError(t, r.del(t.Context(), r.args("c1")), codeState, "start overlayd and try again, or remove the file")
	if got := r.files(t); len(got) != 1 {
		t.Fatalf("files: %v", got)
	}

	if err := os.Rename(lease+".away", lease); err != nil {
		t.Fatal(err)
	}
	if err := r.del(t.Context(), r.args("c1")); err != nil {
		t.Fatal(err)
	}
	if got := r.files(t); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if diff := cmp.Diff(r.exec.calls[0].Conf, r.exec.calls[1].Conf); diff != "" {
		t.Errorf("made up again otherwise (-ADD +DEL):\n%s", diff)
	}
}
