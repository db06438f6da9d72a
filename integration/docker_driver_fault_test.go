package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestDockerDriverKilled kills the driver in every call, sooner or later in it, and asks again as Docker does. Whatever was half done
// is done, and at the end nothing is left.
func TestDockerDriverKilled(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, "")
	d.createNetwork(1)
	node := d.lab.node("killed")
	for i := range 8 {
		after := time.Duration(i*i) * 400 * time.Microsecond
		killed := func(call, body string) map[string]any {
			t.Helper()
			answered := make(chan struct{})
			go func() { defer close(answered); _, _, _ = d.try(call, body) }()
			select {
			case <-answered:
			case <-time.After(after):
			}
			d.Run("sh", "-c", `for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = overlayd-docker ] && kill -9 ${p#/proc/}; done; true`)
			<-answered
			d.process.Wait()
			d.start()
			return d.call(call, body)
		}
		address := killed("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
		killed("NetworkDriver.CreateEndpoint", driverEndpoint(i, fmt.Sprintf(`,"Interface":{"Address":%q}`, address)))
		j := killed("NetworkDriver.Join", driverEndpoint(i, fmt.Sprintf(`,"SandboxKey":"/run/docker/netns/%s"`, node.Name)))
		d.move(j, address, node)
		killed("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(i, `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}`))
		if n := d.rules(8080); n != 1 {
			t.Errorf("%d rules of the port, want 1", n)
		}
		node.Exec("ping", "-c", "1", "-W", "5", j["Gateway"].(string))
		killed("NetworkDriver.RevokeExternalConnectivity", driverEndpoint(i, ""))
		if n := d.rules(8080); n != 0 {
			t.Errorf("%d rules of the port are left", n)
		}
		killed("NetworkDriver.Leave", driverEndpoint(i, ""))
		killed("NetworkDriver.DeleteEndpoint", driverEndpoint(i, ""))
		killed("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, strings.Split(address, "/")[0]))
	}
	// What was reserved for an answer that nobody got is freed as soon as the pool is full, if it is not of these minutes.
	d.Run("sh", "-c", "find /var/lib/cni/networks -type f -exec touch -d '1 hour ago' {} +")
	d.gc()
	d.WaitNothingLeft()
}

// TestDockerDriverDead has containers die while Docker does not see it: what they held is freed by overlayctl cni gc, or when the pool
// is full, and what Docker deletes late is not another one's. The living, whose namespaces nobody can look into, stay.
func TestDockerDriverDead(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, `{"Network":"10.5.0.0/16","SubnetLen":28,"Backend":{"Type":"vxlan"}}`)
	d.createNetwork(1)
	living, dead := d.lab.node("living"), d.lab.node("dead")
	stays := d.join(1, living)
	d.join(2, dead)
	ports := `,"Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostPort":8080,"HostPortEnd":8080}]}`
	d.call("NetworkDriver.ProgramExternalConnectivity", driverEndpoint(2, ports))
	if freed := d.gc(); strings.TrimSpace(freed) != "[]" {
		t.Errorf("freed of the living: %s", freed)
	}
	dead.dies()
	eventually(t, "overlayctl cni gc frees the dead one", func() error {
		if freed := d.gc(); !strings.Contains(freed, driverID(2)) || strings.Contains(freed, driverID(1)) {
			return fmt.Errorf("freed %s", freed)
		}
		return nil
	})
	if n := d.rules(8080); n != 0 {
		t.Errorf("%d rules of its port are left", n)
	}

	dead = d.lab.node("dead2")
	lost := d.join(3, dead)
	dead.dies()
	eventually(t, "its link is gone", func() error { // the kernel takes its time
		if out := d.Exec("ip", "-o", "link", "show", "type", "veth"); strings.Contains(out, "oveth"+driverID(3)[:8]) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	again := false
	for i := range 13 - 1 { // of 14 one is the gateway's, and one the living one's
		address := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
		d.call("NetworkDriver.CreateEndpoint", driverEndpoint(10+i, fmt.Sprintf(`,"Interface":{"Address":%q}`, address)))
		again = again || strings.HasPrefix(address, lost+"/")
	}
	if !again {
		t.Errorf("the address %s of the dead one was not given again", lost)
	}
	d.refused("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`, "no IP addresses available")
	d.leave(3, lost) // Docker has started, and cleans up
	d.refused("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`, "no IP addresses available")
	living.Exec("ping", "-c", "1", "-W", "5", "-I", stays, d.gateway())
}

// TestDockerDriverBothFamilies attaches a container with an address of each, a MAC of its own and no way out, and again after the lease
// has changed.
func TestDockerDriverBothFamilies(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true, V6: true}, "")
	v4, v6 := d.call("IpamDriver.RequestPool", `{"Pool":"10.5.0.0/16"}`), d.call("IpamDriver.RequestPool", `{"V6":true}`)
	if v4["Pool"] != "10.5.0.0/16" || v6["Pool"] != "::/0" {
		t.Errorf("pools %v and %v", v4, v6)
	}
	gateway := func(p map[string]any) any { return p["Data"].(map[string]any)["com.docker.network.gateway"] }
	d.call("NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{"com.docker.network.internal":true},
		"IPv4Data":[{"AddressSpace":"overlayd","Pool":"10.5.0.0/16","Gateway":%q}],"IPv6Data":[{"AddressSpace":"overlayd","Pool":"::/0","Gateway":%q}]}`,
		driverID(1), gateway(v4), gateway(v6)))
	if got := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4","Options":{"RequestAddressType":"com.docker.network.gateway"}}`); got["Address"] != gateway(v4) {
		t.Errorf("the gateway is %v", got)
	}
	a4 := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
	a6 := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/6"}`)["Address"].(string)
	d.refused("IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, strings.Split(a4, "/")[0]), "not available")
	created := d.call("NetworkDriver.CreateEndpoint", driverEndpoint(1, fmt.Sprintf(`,"Interface":{"Address":%q,"AddressIPv6":%q,"MacAddress":"02:00:00:00:00:77"}`, a4, a6)))
	if created["Interface"] != nil {
		t.Errorf("Docker is told %v of what it has said", created)
	}
	node := d.lab.node("both")
	j := d.call("NetworkDriver.Join", driverEndpoint(1, fmt.Sprintf(`,"SandboxKey":"/run/docker/netns/%s"`, node.Name)))
	if j["Gateway"] != "" || j["GatewayIPv6"] != "" || j["DisableGatewayService"] != true || len(j["StaticRoutes"].([]any)) != 2 {
		t.Errorf("an internal network has %v", j)
	}
	d.refused("NetworkDriver.Join", driverEndpoint(2, fmt.Sprintf(`,"SandboxKey":"/run/docker/netns/%s"`, node.Name)), "endpoint "+driverID(2))
	if link := d.Exec("ip", "-d", "link", "show", j["InterfaceName"].(map[string]any)["SrcName"].(string)); !strings.Contains(link, "02:00:00:00:00:77") {
		t.Errorf("the MAC is not the wanted one: %s", link)
	}

	// Another lease: the network is still Docker's, its containers get addresses of the new one.
	second := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
	d.call("NetworkDriver.CreateEndpoint", driverEndpoint(3, fmt.Sprintf(`,"Interface":{"Address":%q}`, second)))
	writeFile(d.Host, d.SubnetFile(), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.250.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	d.refused("NetworkDriver.Join", driverEndpoint(3, `,"SandboxKey":"/x"`), "the lease has changed")
	third := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
	if !strings.HasPrefix(third, "10.5.250.") {
		t.Errorf("an address of the new lease is %s", third)
	}
	d.leave(1, strings.Split(a4, "/")[0])
	d.call("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/6","Address":%q}`, strings.Split(a6, "/")[0]))
	d.leave(3, strings.Split(second, "/")[0])
	d.call("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, strings.Split(third, "/")[0]))
	d.WaitNothingLeft()
}

// dies takes the namespace away with all that is in it. The next one of the name is another.
func (n *Node) dies() {
	n.t.Helper()
	run(n.t, "ip", "netns", "delete", n.Name)
	run(n.t, "ip", "netns", "add", n.Name)
}
