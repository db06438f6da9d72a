package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// TestDockerDriverKnowsWho has a Docker that says of one endpoint whose it is while it joins, and of another one later.
func TestDockerDriverKnowsWho(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, "")
	var listed atomic.Pointer[string]
	started := make(chan struct{}, 1)
	docker := http.NewServeMux()
	docker.HandleFunc("GET /networks/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"Containers":{"ep-1":{"Name":"shop.web-1","EndpointID":%q}}}`, driverID(1))
	})
	docker.HandleFunc("GET /containers/json", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.RawQuery, "all=1") {
			if !strings.Contains(r.URL.Query().Get("filters"), `"^/shop\\.web-1$"`) {
				t.Errorf("asked for %s", r.URL.RawQuery)
			}
			fmt.Fprint(w, `[{"Id":"c1","Names":["/shop.web-1"],"Labels":{"app":"web","overlayd/namespace":"shop"}}]`)
		} else if list := listed.Load(); list != nil {
			fmt.Fprint(w, *list)
		} else {
			fmt.Fprint(w, "[]")
		}
	})
	docker.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			select {
			case <-started:
				fmt.Fprintln(w, "{}")
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	l, err := net.Listen("unix", filepath.Join(d.varLib, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: docker}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })

	d.createNetwork(1)
	first := d.join(1, d.lab.node("who1"))
	if id := d.identity(1); id.Name != "shop.web-1" || id.Namespace != "shop" || id.Labels["app"] != "web" {
		t.Errorf("joined as %+v", id)
	}
	second := d.join(2, d.lab.node("who2"))
	if id := d.identity(2); id.Name != driverID(2) || id.Namespace != "default" {
		t.Errorf("joined as %+v", id)
	}
	list := fmt.Sprintf(`[{"Id":"c2","Names":["/late"],"Labels":{"app":"late"},"NetworkSettings":{"Networks":{"web":{"EndpointID":%q,"IPAddress":%q}}}}]`, driverID(2), second)
	listed.Store(&list)
	started <- struct{}{}
	eventually(t, "the second one is known", func() error {
		if id := d.identity(2); id.Name != "late" || id.Labels["app"] != "late" {
			return fmt.Errorf("it is %+v", id)
		}
		return nil
	})
	if all, _, err := identity.ReadDir(identity.Dir(d.RunDir)); err != nil || len(all) != 0 {
		t.Errorf("told of by a file besides: %v, %v", all, err)
	}
	d.leave(1, first)
	d.leave(2, second)
	d.WaitNothingLeft()
}

// identity is what the record of an endpoint says to policies.
func (d *dockerDriver) identity(n int) policy.Identity {
	d.t.Helper()
	all, err := attachment.Read(filepath.Join(d.varLib, "cni", "overlay"), attachment.DockerNetwork)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, a := range all.Usable {
		if a.ContainerID == driverID(n) && a.Endpoint != nil {
			return *a.Endpoint
		}
	}
	return policy.Identity{}
}

// TestDockerDriverNamedNetwork has one of Docker's networks be of a network of overlayd's that has a name: its lease and its bridge.
func TestDockerDriverNamedNetwork(t *testing.T) {
	t.Parallel()
	d := driverBox(t, Stack{V4: true}, "")
	if err := os.MkdirAll(filepath.Join(d.RunDir, "blue"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(d.Host, filepath.Join(d.RunDir, "blue", "subnet.env"), "FLANNEL_NETWORK=10.88.0.0/16\nFLANNEL_SUBNET=10.88.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	p := d.call("IpamDriver.RequestPool", `{"Options":{"network":"blue"}}`)
	if p["PoolID"] != "blue/4" {
		t.Errorf("the pool is %v", p)
	}
	create := `{"NetworkID":%q,"Options":{"com.docker.network.generic":{"network":%q}},"IPv4Data":[{"AddressSpace":"overlayd","Pool":"0.0.0.0/0","Gateway":%q}]}`
	d.refused("NetworkDriver.CreateNetwork", fmt.Sprintf(create, driverID(1), "blue", d.gateway()), "add --ipam-opt network=blue")
	d.call("NetworkDriver.CreateNetwork", fmt.Sprintf(create, driverID(1), "blue", "10.88.3.1/24"))
	address := d.call("IpamDriver.RequestAddress", `{"PoolID":"blue/4"}`)["Address"].(string)
	d.call("NetworkDriver.CreateEndpoint", driverEndpoint(1, fmt.Sprintf(`,"Interface":{"Address":%q}`, address)))
	j := d.call("NetworkDriver.Join", driverEndpoint(1, `,"SandboxKey":"/run/docker/netns/blue"`))
	if j["Gateway"] != "10.88.3.1" || !strings.HasPrefix(address, "10.88.3.") {
		t.Errorf("joined with %s as %v", address, j)
	}
	if out := d.Exec("ip", "-o", "addr", "show", "dev", "ov-blue"); !strings.Contains(out, "10.88.3.1/24") {
		t.Errorf("the bridge has %s", out)
	}
	d.leave(1, strings.Split(address, "/")[0])
	d.WaitNothingLeft()
}
