package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestMachineDocker has systemd start the driver when Docker asks, with what its unit lets it do: all that Docker asks of a container is
// done, also after the driver was killed, and nothing but people's own is left after a purge.
func TestMachineDocker(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	media := t.TempDir()
	m := lab.NewMachine(wire, 11, media)
	m.In("dpkg", "--install", makePackages(t, media, "1.0.0").deb)
	m.WriteIn("/etc/overlayd/overlayd.yaml", "etcd-endpoints: "+lab.endpoint()+"\nip-masq: true\n")
	m.In("systemctl", "start", "overlayd")
	m.In("systemctl", "enable", "--now", "overlayd-docker.socket")
	d := newDockerClient(t, fmt.Sprintf("/proc/%d/root/run/docker/plugins/overlayd.sock", m.init))
	d.call("Plugin.Activate", "")
	d.createNetwork(1)
	for range 2 {
		address := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
		d.call("NetworkDriver.CreateEndpoint", driverEndpoint(1, fmt.Sprintf(`,"Interface":{"Address":%q}`, address)))
		d.call("NetworkDriver.Join", driverEndpoint(1, `,"SandboxKey":"/run/docker/netns/box"`))
		d.call("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(1, `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}`))
		if out := m.Exec("nft", "list", "ruleset"); !strings.Contains(out, "tcp dport 8080 dnat") {
			t.Errorf("the port leads nowhere:\n%s", out)
		}
		m.In("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "overlayd-docker")
		d.call("NetworkDriver.Leave", driverEndpoint(1, ""))
		d.call("NetworkDriver.DeleteEndpoint", driverEndpoint(1, ""))
		d.call("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, strings.Split(address, "/")[0]))
	}
	// To see that a container is dead it looks into every namespace.
	for range 254 {
		if _, text, err := d.try("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`); err != nil || strings.Contains(text, "Err") {
			if err != nil || strings.Contains(text, ";") || !strings.Contains(text, "no IP addresses available") {
				t.Errorf("of a full pool: %v, %s", err, text)
			}
			break
		}
	}
	if out := m.In("sh", "-c", "ip -o link; ls /var/lib/cni/overlay/overlayd-docker"); strings.Contains(out, "oveth") || strings.Contains(out, "json") {
		t.Errorf("left over: %s", out)
	}
	m.In("dpkg", "--purge", "overlayd")
	m.remains(map[string]bool{"/var/lib/overlayd-docker": false, "/usr/sbin/overlayd-docker": false, "/etc/systemd/system/sockets.target.wants/overlayd-docker.socket": false})
}
