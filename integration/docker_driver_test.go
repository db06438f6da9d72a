package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestDockerDriver asks every call of the protocol.
func TestDockerDriver(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, "")
	if got := d.call("Plugin.Activate", ""); fmt.Sprint(got["Implements"]) != "[NetworkDriver IpamDriver]" {
		t.Errorf("implements %v", got)
	}
	if got := d.call("NetworkDriver.GetCapabilities", "null"); got["Scope"] != "local" {
		t.Errorf("capabilities %v", got)
	}
	if got := d.call("IpamDriver.GetCapabilities", ""); got["RequiresRequestReplay"] != false {
		t.Errorf("capabilities of IPAM %v", got)
	}
	if got := d.call("IpamDriver.GetDefaultAddressSpaces", ""); got["LocalDefaultAddressSpace"] != "overlayd" {
		t.Errorf("address spaces %v", got)
	}
	d.call("NetworkDriver.DiscoverNew", `{"DiscoveryType":1,"DiscoveryData":{"Address":"192.0.2.1","self":false}}`)
	d.call("NetworkDriver.DiscoverDelete", `{"DiscoveryType":1,"DiscoveryData":{"Address":"192.0.2.1","self":false}}`)
	body := d.createNetwork(1)
	d.call("NetworkDriver.CreateNetwork", body) // again

	a, b := d.lab.node("da"), d.lab.node("db")
	first := d.join(1, a)
	second := d.join(2, b)
	a.Exec("ping", "-c", "1", "-W", "5", second)
	if info := d.call("NetworkDriver.EndpointOperInfo", driverEndpoint(1, "")); info["Value"].(map[string]any)["overlayd.network"] != "default" {
		t.Errorf("info %v", info)
	}
	// The CNI plugin gives out no address of theirs, and its container reaches them.
	c := d.NewContainer()
	c.Exec("ping", "-c", "1", "-W", "5", first)
	// Nobody's address but its own.
	if out, err := a.Try("sh", "-c", "ip addr add "+second+"/32 dev lo; ping -c 1 -W 1 -I "+second+" "+c.Addrs[0].String()); err == nil {
		t.Errorf("a container sends as another one: %s", out)
	}

	ports := `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]}`
	d.call("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(1, ports))
	d.call("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(1, ports)) // again
	if n := d.rules(8080); n != 1 {
		t.Errorf("%d rules of the port, want 1", n)
	}
	d.refused("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(2, ports), "leads to another container already")
	d.refused("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(2, strings.Replace(ports, "8080", "0", 2)), "say the host's port too")
	d.call("NetworkDriver.RevokeExternalConnectivity", driverEndpoint(1, ""))
	d.call("NetworkDriver.RevokeExternalConnectivity", driverEndpoint(1, ""))
	if n := d.rules(8080); n != 0 {
		t.Errorf("%d rules of the port are left", n)
	}
	d.call("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(1, ports)) // deleted with the endpoint

	for range 2 { // what is gone is gone
		d.leave(1, first)
		d.leave(2, second)
	}
	if n := d.rules(8080); n != 0 {
		t.Errorf("%d rules of the port are left with the endpoint", n)
	}
	c.Detach()
	d.WaitNothingLeft()
	d.call("NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, driverID(1)))
	d.call("NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, driverID(1)))
	d.call("IpamDriver.ReleasePool", `{"PoolID":"default/4"}`)
	d.refused("NetworkDriver.CreateEndpoint", driverEndpoint(3, `,"Interface":{"Address":"10.5.0.9/24"}`), "is not known here any more")
}

// TestDockerDriverBadInput asks for what cannot be, and leaves nothing behind.
func TestDockerDriverBadInput(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, "")
	for call, status := range map[string]int{"NetworkDriver.CreateNetwork": 400, "IpamDriver.RequestPool": 400, "NetworkDriver.Unheard": 404} {
		if got, text, err := d.try(call, `{"NetworkID":`); err != nil || got != status {
			t.Errorf("%s: %v, %d, %s; want %d", call, err, got, text, status)
		}
	}
	if got, text, err := d.try("NetworkDriver.Join", ""); err != nil || got != 400 || !strings.Contains(text, "asked again by Docker") {
		t.Errorf("nothing is asked: %v, %d, %s", err, got, text)
	}
	if got, text, err := d.try("NetworkDriver.CreateNetwork", strings.Repeat(" ", 5<<20)); err == nil && got != 400 {
		t.Errorf("too large a body: %d, %s", got, text)
	}
	create := func(id, generic, data string) string {
		return fmt.Sprintf(`{"NetworkID":%q,"Options":{"com.docker.network.generic":{%s}},"IPv4Data":[%s]}`, id, generic, data)
	}
	for _, c := range []struct{ call, body, want string }{
		{"NetworkDriver.CreateNetwork", create(driverID(1), "", `{"AddressSpace":"LocalDefault","Pool":"172.18.0.0/16","Gateway":"172.18.0.1/16"}`), "add --ipam-driver overlayd"},
		{"NetworkDriver.CreateNetwork", create(driverID(1), `"mtu":"9000"`, `{"AddressSpace":"overlayd"}`), "-o mtu=9000"},
		{"NetworkDriver.CreateNetwork", create(driverID(1), `"network":"../../etc"`, `{"AddressSpace":"overlayd"}`), "at most 11 lower case letters"},
		{"NetworkDriver.CreateNetwork", create(driverID(1), "", `{"AddressSpace":"overlayd","Gateway":"10.9.9.9/24"}`), "leave it out"},
		{"NetworkDriver.CreateNetwork", create(driverID(1), "", `{"AddressSpace":"overlayd","AuxAddresses":{"a":"10.5.1.1"}}`), "--aux-address"},
		{"NetworkDriver.CreateNetwork", create("../../../etc/passwd", "", ``), "is no id"},
		{"NetworkDriver.CreateNetwork", create("", "", ``), "is no id"},
		{"NetworkDriver.DeleteNetwork", `{"NetworkID":"a/b"}`, "is no id"},
		{"NetworkDriver.CreateEndpoint", driverEndpoint(1, ``), "is not known here any more"},
		{"NetworkDriver.Join", driverEndpoint(1, `,"SandboxKey":"/x"`), "endpoint " + driverID(1)},
		{"NetworkDriver.EndpointOperInfo", driverEndpoint(1, ``), "endpoint " + driverID(1)},
		{"NetworkDriver.ProgramExternalConnectivity", driverEndpoint(1, ``), "endpoint " + driverID(1)},
		{"NetworkDriver.DeleteEndpoint", `{"EndpointID":"../x"}`, "is no id"},
		{"IpamDriver.RequestPool", `{"Pool":"10.9.0.0/24"}`, "it is neither the host's lease"},
		{"IpamDriver.RequestPool", `{"Pool":"10.9"}`, "--subnet 10.9"},
		{"IpamDriver.RequestPool", `{"V6":true}`, "has no IPv6"},
		{"IpamDriver.RequestPool", `{"SubPool":"10.5.1.0/28"}`, "--ip-range"},
		{"IpamDriver.RequestPool", `{"Options":{"x":"y"}}`, "--ipam-opt x"},
		{"IpamDriver.RequestPool", `{"Options":{"network":"red"}}`, "network red: subnet.env"},
		{"IpamDriver.RequestAddress", `{"PoolID":"../4"}`, "at most 11 lower case letters"},
		{"IpamDriver.RequestAddress", `{"PoolID":"x"}`, "there is no pool"},
		{"IpamDriver.RequestAddress", `{"PoolID":"default/4","Address":"10.9.9.9"}`, "is not of this host's subnet"},
		{"IpamDriver.RequestAddress", `{"PoolID":"default/4","Address":"x"}`, "ParseAddr"},
		{"IpamDriver.ReleaseAddress", `{"PoolID":"default/4","Address":"../lock"}`, "ParseAddr"},
	} {
		d.refused(c.call, c.body, c.want)
	}
	d.createNetwork(1)
	d.refused("NetworkDriver.CreateEndpoint", driverEndpoint(1, `,"Interface":{}`), "has no address")
	d.refused("NetworkDriver.CreateEndpoint", driverEndpoint(1, `,"Interface":{"Address":"10.5.1.77/24"}`), "is not reserved for it")
	address := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
	d.refused("NetworkDriver.CreateEndpoint", driverEndpoint(1, fmt.Sprintf(`,"Interface":{"Address":%q,"MacAddress":"1:2"}`, address)), "MAC address 1:2")
	d.call("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, strings.Split(address, "/")[0]))
	d.WaitNothingLeft()
}
