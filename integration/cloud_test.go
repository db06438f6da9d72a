package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// runScript runs an example with leases on its standard input.
func runScript(t *testing.T, leases string, env []string, args ...string) (stderr string, err error) {
	t.Helper()
	cmd := exec.Command("../examples/"+args[0], args[1:]...)
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), strings.NewReader(leases)
	var text strings.Builder
	cmd.Stderr = &text
	err = cmd.Run()
	return text.String(), err
}

const leasesOfTwo = `{"network":["10.244.0.0/16","fd00:244::/48"],"own":{"subnets":["10.244.1.0/24","fd00:244:0:1::/64"]},"peers":[{"subnets":["10.244.2.0/24"]}]}`

func TestCloudAWS(t *testing.T) {
	t.Parallel()
	c := newCloud(t, "aws", fakeAWS)
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
			fmt.Fprint(w, "token")
		case r.Header.Get("X-aws-ec2-metadata-token") != "token":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/meta-data/mac":
			fmt.Fprint(w, "02:00:00:00:00:01")
		case r.URL.Path == "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/interface-id":
			fmt.Fprint(w, "eni-me")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer metadata.Close()
	env := []string{c.env(), "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + metadata.URL}
	c.write("state", `{"limit":4,"calls":[],"checks":{},"routes":{
		"10.244.1.0/24":{"NetworkInterfaceId":"eni-dead","State":"blackhole"},"10.244.2.0/24":{"NetworkInterfaceId":"eni-peer"},
		"10.244.9.0/24":{"NetworkInterfaceId":"eni-gone"},"10.99.0.0/24":{"NetworkInterfaceId":"eni-other"}}}`)
	if text, err := runScript(t, leasesOfTwo, env, "aws-routes", "rtb-1"); err != nil {
		t.Fatal(err, text)
	}
	want := []string{
		"delete-route 10.244.9.0/24", "replace-route 10.244.1.0/24 eni-me", "create-route fd00:244:0:1::/64 eni-me",
		"modify-network-interface-attribute eni-me",
	}
	if diff := cmp.Diff(want, c.state().Calls); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if text, err := runScript(t, leasesOfTwo, env, "aws-routes", "rtb-1"); err != nil || len(c.state().Calls) != len(want) {
		t.Errorf("once more: %v %s, %v", err, text, c.state().Calls)
	}

	for name, tt := range map[string]struct {
		leases, table, file, want string
	}{
		"the table is full":  {strings.Replace(leasesOfTwo, "10.244.1.0", "10.244.3.0", 1), "rtb-1", "", "RouteLimitExceeded"},
		"more than fit":      {strings.Replace(leasesOfTwo, "10.244.1.0", "10.244.3.0", 1), "rtb-1", "", "a route table holds 2 routes"},
		"no such table":      {leasesOfTwo, "rtb-2", "", "cannot read the route table rtb-2"},
		"the API is away":    {leasesOfTwo, "rtb-1", "away", "ServiceUnavailable"},
		"no table was named": {leasesOfTwo, "", "", "usage: aws-routes"},
	} {
		c := newCloud(t, "aws", fakeAWS)
		c.write("state", `{"limit":2,"calls":[],"checks":{"eni-me":false},"routes":{"10.99.0.0/24":{"NetworkInterfaceId":"x"},"10.98.0.0/24":{"NetworkInterfaceId":"x"}}}`)
		if tt.file != "" {
			c.write(tt.file, "")
		}
		args := []string{"aws-routes", tt.table, "eni-me"}
		if tt.table == "" {
			args = args[:1]
		}
		if text, err := runScript(t, tt.leases, []string{c.env(), "AWS_ROUTE_LIMIT=2"}, args...); err == nil || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %v %s", name, err, text)
		}
	}
}

func TestCloudGCE(t *testing.T) {
	t.Parallel()
	c := newCloud(t, "gcloud", fakeGCloud)
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, map[string]string{"name": "me", "zone": "projects/1/zones/europe-west1-b"}[filepath.Base(r.URL.Path)])
	}))
	defer metadata.Close()
	c.write("state", `{"calls":[],"routes":{
		"mine-once":{"destRange":"10.244.1.0/24","nextHopInstance":"https://c/instances/dead"},
		"peers":{"destRange":"10.244.2.0/24","nextHopInstance":"https://c/instances/peer"},
		"gone":{"destRange":"10.244.9.0/24","nextHopInstance":"https://c/instances/gone"},
		"theirs":{"destRange":"10.99.0.0/24","nextHopInstance":"https://c/instances/x"},"default":{"destRange":"0.0.0.0/0"}}}`)
	env := []string{c.env(), "GCE_METADATA_HOST=" + strings.TrimPrefix(metadata.URL, "http://")}
	for range 2 { // the second time there is nothing to do
		if text, err := runScript(t, leasesOfTwo, env, "gce-routes", "default"); err != nil {
			t.Fatal(err, text)
		}
	}
	want := []string{"delete mine-once", "delete gone", "create overlayd-10-244-1-0-24"}
	if diff := cmp.Diff(want, c.state().Calls); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestExtensionWritesRouteTable has hosts whose packets a router carries, by a route table that aws-routes keeps: a cloud.
func TestExtensionWritesRouteTable(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	one, two := lab.NewSegment(1), lab.NewSegment(2)
	router := lab.NewRouter(one, two)
	lab.NewEtcd(one)
	lab.StartEtcd()
	c := newCloud(t, "aws", fakeAWS)
	c.write("router", router.Path())
	script, err := filepath.Abs("../examples/aws-routes")
	if err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(c.dir, "shut-down")
	lab.Put(configKey, lab.Config(fmt.Sprintf(`{"Type":"extension","SyncCommand":"%s rtb-1 $CLOUD_INTERFACE",
		"PreStartupCommand":"echo I am $CLOUD_INTERFACE","ShutdownCommand":"touch %s"}`, script, note)))
	hosts := []*Host{lab.NewHost(one, 11), lab.NewHost(two, 12)}
	hosts[0].Start()
	hosts[0].waitProblem("extension: true")
	hosts[0].Daemon.Stop(15)
	var want []string
	for _, h := range hosts {
		h.StartEnv([]string{c.env(), "CLOUD_INTERFACE=" + eni(h)}, "--extension")
	}
	for _, h := range hosts {
		h.WaitReady()
		want = append(want, h.subnets()[0]+" "+eni(h))
	}
	c.waitRoutes(want...)
	for key, value := range lab.Keys(subnetsPrefix) {
		if !strings.Contains(value, `"BackendType":"extension","BackendData":"I am eni-172-30-`) {
			t.Errorf("%s: %s", key, value)
		}
	}
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	reach(t, a, b, 1500)
	reach(t, b, a, 1500)

	// The API is away while a lease is news: the host says so, goes on, and makes up for it.
	c.write("away", "")
	lab.Put(subnetsPrefix+"10.5.222.0-24", `{"PublicIP":"172.30.1.77","BackendType":"extension"}`)
	hosts[0].waitProblem("SyncCommand", "cannot read the route table rtb-1")
	reach(t, a, b, 1500)
	if err := os.Remove(filepath.Join(c.dir, "away")); err != nil {
		t.Fatal(err)
	}
	lab.Delete(subnetsPrefix + "10.5.222.0-24")
	hosts[0].waitWell()

	// A host leaves, and the other removes its route.
	hosts[1].Daemon.Stop(15)
	if out, code := hosts[1].Once("--extension", "--cleanup"); code != 0 || !strings.Contains(out, "ran touch") {
		t.Errorf("cleanup: %d, %s", code, out)
	}
	if _, err := os.Stat(note); err != nil {
		t.Error(err)
	}
	c.waitRoutes(want[0])
}
