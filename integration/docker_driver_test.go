package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dockerDriver is overlayd-docker in a box, asked as Docker asks.
type dockerDriver struct {
	*Box
	socket  string // as it is seen from here
	process *Process
	client  *http.Client
}

// dockerDriver starts one in the box, whose Docker does not answer.
func newDockerDriver(b *Box) *dockerDriver {
	d := &dockerDriver{Box: b, socket: filepath.Join(b.varLib, "overlayd.sock")}
	d.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
	}}}
	d.start()
	return d
}

func (d *dockerDriver) start() {
	d.t.Helper()
	d.process = d.Spawn("overlayd-docker on "+d.Name, nil, d.inside(bin("overlayd-docker"), "--socket", "/var/lib/overlayd.sock")...)
	eventually(d.t, "overlayd-docker serves", func() error {
		_, _, err := d.try("Plugin.Activate", "")
		return err
	})
}

// try asks once, and returns the status and the body of the answer.
func (d *dockerDriver) try(call, body string) (int, string, error) {
	response, err := d.client.Post("http://plugin/"+call, "application/vnd.docker.plugins.v1.2+json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// call asks, and wants an answer that is no refusal.
func (d *dockerDriver) call(call, body string) map[string]any {
	d.t.Helper()
	status, text, err := d.try(call, body)
	var answer map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil || status != http.StatusOK || answer["Err"] != nil {
		d.t.Fatalf("%s %s: %v, %d, %s", call, body, err, status, text)
	}
	return answer
}

// refused wants a refusal in one line, with the text in it.
func (d *dockerDriver) refused(call, body, want string) {
	d.t.Helper()
	status, text, err := d.try(call, body)
	var answer struct{ Err, Error string }
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil || status != http.StatusOK || answer.Err != answer.Error || !strings.Contains(answer.Err, want) || strings.Contains(answer.Err, "\n") {
		d.t.Errorf("%s %s: %v, %d, %s; want a refusal with %q", call, body, err, status, text, want)
	}
}

// driverID is an id as Docker makes them.
func driverID(n int) string { return fmt.Sprintf("%08x%056d", 0xabc00000+n, n) }

// network is what makes Docker's network n: its gateway is the host's.
func (d *dockerDriver) createNetwork(n int) string {
	d.t.Helper()
	p := d.call("IpamDriver.RequestPool", `{"AddressSpace":"overlayd"}`)
	gateway := p["Data"].(map[string]any)["com.docker.network.gateway"]
	body := fmt.Sprintf(`{"NetworkID":%q,"Options":{"com.docker.network.generic":{}},"IPv4Data":[{"AddressSpace":"overlayd","Pool":"0.0.0.0/0","Gateway":%q}]}`, driverID(n), gateway)
	d.call("NetworkDriver.CreateNetwork", body)
	return body
}

// endpoint is what names the endpoint n, and more, on network 1.
func driverEndpoint(n int, more string) string {
	return fmt.Sprintf(`{"NetworkID":%q,"EndpointID":%q%s}`, driverID(1), driverID(n), more)
}

// join makes an endpoint, joins it, and moves the interface into a namespace of the host's, as Docker does. It returns the address.
func (d *dockerDriver) join(n int, netns *Node) string {
	d.t.Helper()
	address := d.call("IpamDriver.RequestAddress", `{"PoolID":"default/4"}`)["Address"].(string)
	d.call("NetworkDriver.CreateEndpoint", driverEndpoint(n, fmt.Sprintf(`,"Interface":{"Address":%q}`, address)))
	j := d.call("NetworkDriver.Join", driverEndpoint(n, fmt.Sprintf(`,"SandboxKey":"/run/docker/netns/%s"`, netns.Name)))
	d.move(j, address, netns)
	return strings.Split(address, "/")[0]
}

func (d *dockerDriver) move(j map[string]any, address string, netns *Node) {
	d.t.Helper()
	link := j["InterfaceName"].(map[string]any)["SrcName"].(string)
	d.Exec("ip", "link", "set", link, "netns", netns.Name, "name", "eth0")
	netns.Exec("sh", "-c", fmt.Sprintf("ip addr add %s dev eth0 && ip link set eth0 up && ip route add default via %s", address, j["Gateway"]))
}

// leave undoes what join has made.
func (d *dockerDriver) leave(n int, address string) {
	d.t.Helper()
	d.call("NetworkDriver.Leave", driverEndpoint(n, ""))
	d.call("NetworkDriver.DeleteEndpoint", driverEndpoint(n, ""))
	d.call("IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":"default/4","Address":%q}`, address))
}

// driverBox is a box with overlayd and the driver.
func driverBox(t *testing.T, stack Stack, config string) *dockerDriver {
	t.Helper()
	lab, wire := newWire(t, stack, `{"Type":"vxlan"}`)
	if config != "" {
		lab.Put(configKey, config)
	}
	b := lab.NewBox(wire, 11)
	startAll(t, []*Host{b.Host}, "--ip-masq")
	return newDockerDriver(b)
}

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

// rules counts those of a port of the host's.
func (d *dockerDriver) rules(port int) int {
	return strings.Count(d.Exec("nft", "list", "ruleset"), fmt.Sprintf("dport %d dnat", port))
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

// gc runs overlayctl cni gc in the box.
func (d *dockerDriver) gc() string {
	d.t.Helper()
	return d.Run(bin("overlayctl"), "--config", "/dev/null", "cni", "gc", "-o", "json", "--cni-conf-dir", d.confs, "--cni-bin-dir", "/opt/cni/bin")
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
	d.Exec("ip", "netns", "delete", dead.Name)
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
	d.Exec("ip", "netns", "delete", dead.Name)
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

// gateway is the host's address on the overlay.
func (d *dockerDriver) gateway() string {
	text, _, _ := strings.Cut(d.call("IpamDriver.RequestPool", `{}`)["Data"].(map[string]any)["com.docker.network.gateway"].(string), "/")
	return text
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
