package integration

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestMachineOthersCarry has a machine's service run the commands of its network, within its sandbox, and overlayd-bgp beside it
// announce the machine's lease to a router.
func TestMachineOthersCarry(t *testing.T) {
	t.Parallel()
	if os.Getenv(binDirEnv) == "" {
		t.Skip("needs root, for which the binaries are built")
	}
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	deb := makePackages(t, media, "1.0.0").deb
	wire := lab.NewSegment(1)
	m := lab.NewMachine(wire, 11, media)
	lab.etcdURL = "http://" + netip.AddrPortFrom(m.Addrs[0], 2379).String()
	m.install(deb)
	m.WriteIn("/usr/local/sbin/sync-routes", `#!/bin/sh -e
leases=$(cat)
ip route replace blackhole 10.5.250.0/24
echo "$(id -un) $SUBNET $1 $(grep -c CapEff:.*3400 /proc/self/status) $leases" >/run/overlayd/synced
`)
	m.In("chmod", "755", "/usr/local/sbin/sync-routes")
	m.WriteIn("/etc/overlayd/overlayd.yaml", `etcd-embedded: true
network: '{"Network":"10.5.0.0/16","Backend":{"Type":"extension","SyncCommand":"/usr/local/sbin/sync-routes $REGION"}}'
extension: true
`)
	m.WriteIn("/etc/systemd/system/overlayd.service.d/test.conf", "[Service]\nEnvironment=REGION=here\n")
	m.In("systemctl", "daemon-reload")
	m.In("systemctl", "start", "overlayd")
	subnet := networkOf(strings.TrimSpace(m.In("sh", "-ec", ". /run/overlayd/subnet.env; echo $FLANNEL_SUBNET")))
	if got, want := m.In("cat", "/run/overlayd/synced"), fmt.Sprintf(`overlayd %s here 1 {"network":["10.5.0.0/16"],`, subnet); !strings.HasPrefix(got, want) {
		t.Errorf("the command said %q, want %q…", got, want)
	}
	if out := m.In("ip", "route", "show", "type", "blackhole"); !strings.Contains(out, "10.5.250.0/24") {
		t.Errorf("it could not change routes: %s", out)
	}

	n := lab.node("router")
	wire.Plug(n, "eth0", gatewayNumber)
	r := startBird(n, "router id 172.30.1.1;\nprotocol device {}\nprotocol direct { ipv4; }\n"+
		`protocol bgp overlay { local as 64512; neighbor 172.30.1.11 as 64512; password "secret"; ipv4 { import all; export none; }; }`+"\n")
	m.In("sh", "-ec", `umask 027; echo secret >/etc/overlayd/bgp-password; chgrp overlayd /etc/overlayd/bgp-password; umask 022
sed -e 's/192.0.2.10/172.30.1.11/; s/192.0.2.1$/172.30.1.1/; s/#password/password/' /usr/share/overlayd/examples/bgp.yaml >/etc/overlayd/bgp.yaml`)
	m.In("systemctl", "start", "overlayd-bgp")
	want := subnet + " via 172.30.1.11"
	r.waitRoutes(want)
	stop := r.never([]string{want})
	m.In("systemctl", "restart", "overlayd-bgp")
	r.waitRoutes(want)
	if out := m.In("overlayd-bgp", "status"); !strings.Contains(out, subnet) {
		t.Errorf("status: %s", out)
	}
	process := m.In("sh", "-c", "cat /proc/$(systemctl show --value -p MainPID overlayd-bgp)/status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(process, want+"\n") {
			t.Errorf("the process of overlayd-bgp has no line %q:\n%s", want, process)
		}
	}
	stop()
}
