package integration

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEtcdOutOfSpace has etcd's quota used up, so that it takes no writes: hosts with a lease keep it, also over a
// restart; one without is told why, and gets one when there is room.
func TestEtcdOutOfSpace(t *testing.T) {
	t.Parallel()
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`, "--quota-backend-bytes", strconv.Itoa(2<<20))
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts, "--lease-ttl=10s")
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	keys := r.keys()
	eventually(t, "the quota is used up", func() error {
		out, err := r.etcd.tryCtl("put", "/junk", strings.Repeat("x", 120<<10))
		if err == nil {
			return fmt.Errorf("there is room")
		}
		if !strings.Contains(out, "space exceeded") {
			t.Fatal(out)
		}
		return nil
	})
	h := r.hosts[0]
	h.Daemon.Stop(syscall.SIGKILL)
	h.Start("--lease-ttl=10s")
	h.WaitReady()
	late := r.NewHost(r.wire, 13)
	late.Start()
	eventually(t, "the late host says why it has no lease", func() error {
		s, err := late.status()
		if err == nil && (s.Ready || !strings.Contains(s.Stage, "space exceeded")) {
			err = fmt.Errorf("stage %q", s.Stage)
		}
		return err
	})
	time.Sleep(shortTTL + 5*time.Second) // renewals are no writes
	r.stream.Pass(250)

	r.etcd.ctl("compact", strconv.Itoa(r.revision(t)))
	r.etcd.ctl("defrag")
	r.etcd.ctl("alarm", "disarm")
	measure(t, "the late host has a lease", 10*time.Second, late.WaitReady)
	r.hosts = append(r.hosts, late)
	r.well(t, keys...)
}
