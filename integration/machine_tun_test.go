package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestMachineUserSpace has systemd start the process that serves links which the kernel cannot make, with what its unit lets it do,
// and does with daemon and process what operators do.
func TestMachineUserSpace(t *testing.T) {
	t.Parallel()
	for _, network := range userSpaceNetworks {
		t.Run(network.name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true}, network.backend) // containers of a machine get no IPv6: its sysctls cannot be written
			media := t.TempDir()
			run(t, "install", "-t", media, bin("cnitool"))
			older, newer := makePackages(t, media, "1.0.0~rc1"), makePackages(t, media, "1.0.0")
			m, other := lab.NewMachine(wire, 11, media), lab.NewHost(wire, 12)
			m.In("dpkg", "--install", older.deb)
			m.WriteIn("/etc/overlayd/overlayd.yaml", "etcd-endpoints: "+lab.endpoint()+"\nip-masq: true\n")
			m.In("systemctl", "start", "overlayd")
			if _, err := m.TryIn("systemctl", "is-active", "overlayd-tun"); err != nil {
				t.Skipf("this kernel makes the links itself: %v", err)
			}
			other.Start()
			other.WaitReady()
			m.confined()
			stream := newStream(m.NewContainer(), other.NewContainer(), userSpaceGap)

			pid := m.showTun("MainPID")
			m.renewed(func() { m.In("systemctl", "restart", "overlayd") })
			m.renewed(func() { m.In("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "overlayd") })
			m.renewed(func() { m.In("dpkg", "--install", newer.deb) })
			m.In("systemctl", "stop", "overlayd")
			stream.Pass(250)
			m.In("systemctl", "start", "overlayd")
			stream.Pass(250)
			stream.Stop()
			if now := m.showTun("MainPID"); now != pid {
				t.Errorf("the process is %s, and was %s", now, pid)
			}

			for _, verb := range []string{"kill --kill-whom=main --signal=KILL", "restart", "stop"} {
				m.In("sh", "-c", "systemctl "+verb+" overlayd-tun")
				eventually(t, "packets flow again after "+verb, func() error {
					for _, dst := range stream.to.Addrs {
						if err := stream.from.PingSize(dst, 100); err != nil {
							return err
						}
					}
					return nil
				})
			}

			m.In("systemctl", "stop", "overlayd")
			m.In("overlayd", "--cleanup")
			eventually(t, "the process ends when it has nothing to serve", func() error {
				if state := m.showTun("ActiveState"); state != "inactive" {
					return errors.New(state)
				}
				return nil
			})
			if result := m.showTun("Result"); result != "success" {
				t.Errorf("it ended with %s", result)
			}
			m.In("dpkg", "--purge", "overlayd")
			m.stopped()
		})
	}
}

func (m *Machine) showTun(property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.In("systemctl", "show", "--value", "--property="+property, "overlayd-tun"))
}

// confined finds the process with the rights that it needs, and its sockets closed to others.
func (m *Machine) confined() {
	m.t.Helper()
	process := m.In("cat", "/proc/"+m.showTun("MainPID")+"/status")
	const netAdmin = "0000000000001000"
	for _, want := range []string{"CapEff:\t" + netAdmin, "CapBnd:\t" + netAdmin, "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(process, want+"\n") {
			m.t.Errorf("the process has no line %q:\n%s", want, process)
		}
	}
	if who := strings.TrimSpace(m.In("ps", "-o", "user=", "-p", m.showTun("MainPID"))); who != "overlayd" {
		m.t.Errorf("the process runs as %s", who)
	}
	for _, socket := range strings.Fields(m.In("sh", "-c", "ls /run/overlayd/tun.sock /run/wireguard/*.sock 2>/dev/null || true")) {
		if got := m.In("stat", "-c", "%U %a", socket); got != "overlayd 600\n" {
			m.t.Errorf("%s is %s", socket, got)
		}
		ask := fmt.Sprintf("setpriv --reuid=nobody --regid=nogroup --clear-groups socat -u OPEN:/dev/null UNIX-CONNECT:%s", socket)
		if out, err := m.TryIn("sh", "-c", ask); err == nil || !strings.Contains(out, "ermission denied") {
			m.t.Errorf("a stranger may ask at %s: %v, %s", socket, err, out)
		}
	}
}
