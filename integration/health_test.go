package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHTTP asks a daemon for its health, before there is a network and after.
func TestHTTP(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	lab.Delete(configKey)
	h.Start()
	const base = "http://127.0.0.1:9417"
	eventually(t, "not ready", func() error {
		status, body, err := h.Get(base + "/readyz")
		if err == nil && status != 503 {
			err = fmt.Errorf("/readyz has status %d before there is a network: %s", status, body)
		}
		return err
	})
	lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
	h.WaitReady()
	if status, body, err := h.Get(base + "/healthz"); err != nil || status != 200 {
		t.Errorf("/healthz has status %d, %v: %s", status, err, body)
	}
	status, metrics, err := h.Get(base + "/metrics")
	if err != nil || status != 200 {
		t.Fatalf("/metrics has status %d, %v: %s", status, err, metrics)
	}
	for _, name := range []string{
		"overlayd_leases", "overlayd_peers", "overlayd_lease_remaining_seconds", "overlayd_lease_errors_total", "overlayd_etcd_up",
		"overlayd_kernel_objects", "overlayd_kernel_healed_total", "overlayd_kernel_errors_total",
		"overlayd_kernel_apply_seconds", "overlayd_kernel_audit_seconds",
	} {
		if !strings.Contains(metrics, "# TYPE "+name+" ") {
			t.Errorf("no metric %s", name)
		}
	}
	for _, kind := range []string{"link", "address", "neighbour", "fdb", "route", "firewall", "sysctl"} {
		for _, name := range []string{"overlayd_kernel_objects", "overlayd_kernel_healed_total", "overlayd_kernel_errors_total"} {
			if !strings.Contains(metrics, fmt.Sprintf("\n%s{kind=%q} ", name, kind)) {
				t.Errorf("no metric %s of kind %s", name, kind)
			}
		}
	}
	notReadyAgain(t, h)
}

// notReadyAgain has something in the way of the overlay's link, so that the kernel cannot be completed.
func notReadyAgain(t *testing.T, h *Host) {
	t.Helper()
	h.Daemon.Signal(syscall.SIGSTOP) // or it would be faster
	h.Exec("ip", "link", "delete", "overlay.1")
	h.Exec("ip", "link", "add", "overlay.1", "type", "bridge")
	h.Daemon.Signal(syscall.SIGCONT)
	eventually(t, "not ready, though it was", func() error {
		status, body, err := h.Get("http://127.0.0.1:9417/readyz")
		if err == nil && status != 503 {
			err = fmt.Errorf("/readyz has status %d with a foreign link in the way: %s", status, body)
		}
		return err
	})
	h.Exec("ip", "link", "delete", "overlay.1")
	h.WaitReady()
}

// TestNotify plays systemd: STATUS says what is waited for, and READY comes only when the kernel is complete.
func TestNotify(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	hosts[1].Start()
	hosts[1].WaitReady()
	lab.StopEtcd()

	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hosts[0].StartEnv([]string{"NOTIFY_SOCKET=" + path})
	status := func(text string) string { _, after, _ := strings.Cut(text, "STATUS="); return after }
	first := notification(t, conn)
	for ; status(first) == ""; first = notification(t, conn) {
		if strings.Contains(first, "READY=1") {
			t.Fatal("READY though etcd does not answer")
		}
	}
	t.Logf("first status: %s", status(first))
	lab.ResumeEtcd()
	for !strings.Contains(notification(t, conn), "READY=1") {
	}
	// No waiting here: READY says that this is there.
	if n := peerRoutes(hosts[0].Exec("ip", "-4", "route", "show")); n != 1 {
		t.Errorf("READY with %d of 1 peers programmed", n)
	}
	if _, err := os.Stat(hosts[0].SubnetFile()); err != nil {
		t.Errorf("READY without subnet.env: %v", err)
	}
	if code, _ := hosts[0].Daemon.Stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for !strings.Contains(notification(t, conn), "STOPPING=1") {
	}
}

// notification is the next datagram to the service manager.
func notification(t testing.TB, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("no notification: %v", err)
	}
	return string(buf[:n])
}
