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
)

// dockerClient asks overlayd-docker as Docker asks.
type dockerClient struct {
	tb     testing.TB
	client *http.Client
}

func newDockerClient(tb testing.TB, socket string) *dockerClient {
	return &dockerClient{tb, &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}}
}

// dockerDriver is overlayd-docker in a box.
type dockerDriver struct {
	*Box
	*dockerClient
	process *Process
}

// dockerDriver starts one in the box, whose Docker does not answer.
func newDockerDriver(b *Box) *dockerDriver {
	d := &dockerDriver{Box: b, dockerClient: newDockerClient(b.t, filepath.Join(b.varLib, "overlayd.sock"))}
	d.start()
	return d
}

func (d *dockerDriver) start() {
	d.t.Helper()
	d.process = d.Spawn("overlayd-docker on "+d.Name, nil,
		d.inside(bin("overlayd-docker"), "--socket", "/var/lib/overlayd.sock", "--docker-socket", "/var/lib/docker.sock")...)
	eventually(d.t, "overlayd-docker serves", func() error {
		_, _, err := d.try("Plugin.Activate", "")
		return err
	})
}

// try asks once, and returns the status and the body of the answer.
func (d *dockerClient) try(call, body string) (int, string, error) {
	response, err := d.client.Post("http://plugin/"+call, "application/vnd.docker.plugins.v1.2+json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

// call asks, and wants an answer that is no refusal.
func (d *dockerClient) call(call, body string) map[string]any {
	d.tb.Helper()
	status, text, err := d.try(call, body)
	var answer map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil || status != http.StatusOK || answer["Err"] != nil {
		d.tb.Fatalf("%s %s: %v, %d, %s", call, body, err, status, text)
	}
	return answer
}

// refused wants a refusal in one line, with the text in it.
func (d *dockerClient) refused(call, body, want string) {
	d.tb.Helper()
	status, text, err := d.try(call, body)
	var answer struct{ Err, Error string }
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil || status != http.StatusOK || answer.Err != answer.Error || !strings.Contains(answer.Err, want) || strings.Contains(answer.Err, "\n") {
		d.tb.Errorf("%s %s: %v, %d, %s; want a refusal with %q", call, body, err, status, text, want)
	}
}

// driverID is an id as Docker makes them.
func driverID(n int) string { return fmt.Sprintf("%08x%056d", 0xabc00000+n, n) }

// network is what makes Docker's network n: its gateway is the host's.
func (d *dockerClient) createNetwork(n int) string {
	d.tb.Helper()
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

// rules counts those of a port of the host's.
func (d *dockerDriver) rules(port int) int {
	return strings.Count(d.Exec("nft", "list", "ruleset"), fmt.Sprintf("dport %d dnat", port))
}

// gc runs overlayctl cni gc in the box.
func (d *dockerDriver) gc() string {
	d.t.Helper()
	return d.Run(bin("overlayctl"), "--config", "/dev/null", "cni", "gc", "-o", "json", "--cni-conf-dir", d.confs, "--cni-bin-dir", "/opt/cni/bin")
}

// gateway is the host's address on the overlay.
func (d *dockerClient) gateway() string {
	text, _, _ := strings.Cut(d.call("IpamDriver.RequestPool", `{}`)["Data"].(map[string]any)["com.docker.network.gateway"].(string), "/")
	return text
}
