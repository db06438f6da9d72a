package integration

import (
	"fmt"
	"net"
	"net/http"
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
