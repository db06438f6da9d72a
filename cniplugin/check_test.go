package main

import (
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	broken := map[string]error{"CHECK": types.NewError(100, "eth0 is gone", "")}
	prev := `,"prevResult":{"cniVersion":"1.1.0"}`
	for _, tt := range []struct {
		name    string
		prepare func(*testing.T, *rig)
		more    string
		fails   bool
		ran     bool
	}{
		{"broken", func(*testing.T, *rig) {}, prev, true, true},
		{"broken, state unusable", func(t *testing.T, r *rig) { r.write(t, "data/net/c1:eth0.json", "") }, prev, true, true},
		{"delegate missing", func(_ *testing.T, r *rig) { r.exec.missing = true }, prev, false, false},
		{"configuration wrong", func(*testing.T, *rig) {}, prev + `,"dataDir":1`, false, false},
		{"check disabled", func(*testing.T, *rig) {}, prev + `,"disableCheck":true`, false, false},
		{"no state", func(t *testing.T, r *rig) { os.RemoveAll(r.path("data")) }, prev, false, false},
		{"no file", func(t *testing.T, r *rig) { os.RemoveAll(r.path("data/net")) }, prev, false, false},
		{"no state to be made up", func(t *testing.T, r *rig) {
			r.write(t, "data/net/c1:eth0.json", "")
			os.RemoveAll(r.path("run"))
		}, prev, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.mustAdd(t, "c1")
			tt.prepare(t, r)
			r.exec.fail = broken
			err := r.check(t.Context(), r.args("c1", tt.more))
			if (err != nil) != tt.fails || (len(r.exec.calls) == 2) != tt.ran {
				t.Errorf("%v, want failure %v; ran %v, want delegate %v", err, tt.fails, r.exec.commands(), tt.ran)
			}
		})
	}
	t.Run("daemon away", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.mustAdd(t, "c1")
		os.RemoveAll(r.path("run"))
		if err := r.check(t.Context(), r.args("c1", prev)); err != nil {
			t.Fatal(err)
		}
		if r.exec.calls[1].Conf["prevResult"] == nil {
			t.Error("CHECK without prevResult")
		}
	})
}
