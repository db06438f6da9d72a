package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeAWS stands for the command aws: a cloud with one route table, in a file, that may have a router to carry it out. Who has the
// interface eni-172-30-1-11 has the address in its name. As long as there is a file "away", the API fails.
const fakeAWS = `#!/usr/bin/python3
import fcntl, json, os, subprocess, sys
here = os.path.dirname(os.path.abspath(__file__))
lock = open(here + "/lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX)
def fail(what):
    print("An error occurred (%s)" % what, file=sys.stderr); sys.exit(254)
if os.path.exists(here + "/away"): fail("ServiceUnavailable")
try: state = json.load(open(here + "/state"))
except FileNotFoundError: state = {"routes": {}, "checks": {}, "limit": 50, "calls": []}
args = sys.argv[2:]; verb = args[0]
opts = {args[i]: args[i + 1] for i in range(1, len(args) - 1) if args[i].startswith("--")}
dst = opts.get("--destination-cidr-block") or opts.get("--destination-ipv6-cidr-block")
eni = opts.get("--network-interface-id")
if sys.argv[1] != "ec2" or opts.get("--route-table-id", opts.get("--route-table-ids", "rtb-1")) != "rtb-1": fail("InvalidRouteTableID.NotFound")
if not verb.startswith("describe"): state["calls"].append(" ".join(x for x in (verb, dst or "", eni or "") if x))
def route(*words):
    if os.path.exists(here + "/router"):
        ns = open(here + "/router").read()
        subprocess.run(["nsenter", "--net=" + ns, "ip", "route"] + list(words), check=True)
if verb == "describe-route-tables":
    print(json.dumps({"RouteTables": [{"Routes": [{"DestinationCidrBlock": "172.31.0.0/16", "GatewayId": "local"}] +
        [dict({"DestinationCidrBlock" if "." in d else "DestinationIpv6CidrBlock": d, "State": "active"}, **r) for d, r in state["routes"].items()]}]}))
elif verb == "create-route":
    if dst in state["routes"]: fail("RouteAlreadyExists")
    if len(state["routes"]) >= state["limit"]: fail("RouteLimitExceeded")
    state["routes"][dst] = {"NetworkInterfaceId": eni}; route("replace", dst, "via", eni[4:].replace("-", "."))
elif verb == "replace-route":
    if dst not in state["routes"]: fail("InvalidParameterValue")
    state["routes"][dst] = {"NetworkInterfaceId": eni}; route("replace", dst, "via", eni[4:].replace("-", "."))
elif verb == "delete-route":
    if dst not in state["routes"]: fail("InvalidRoute.NotFound")
    del state["routes"][dst]; route("del", dst)
elif verb == "describe-network-interface-attribute":
    print(json.dumps({"SourceDestCheck": {"Value": state["checks"].get(eni, True)}}))
elif verb == "modify-network-interface-attribute":
    state["checks"][eni] = False
else: fail("InvalidAction")
json.dump(state, open(here + "/state", "w"))
`

// fakeGCloud stands for the command gcloud.
const fakeGCloud = `#!/usr/bin/python3
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
try: state = json.load(open(here + "/state"))
except FileNotFoundError: state = {"routes": {}, "calls": []}
args = sys.argv[3:]; verb = args[0]
opts = dict(a.split("=", 1) for a in args if "=" in a)
if verb == "list": print(json.dumps([dict(r, name=n) for n, r in state["routes"].items()]))
elif verb == "create":
    state["routes"][args[1]] = {"destRange": opts["--destination-range"], "network": opts["--network"],
        "nextHopInstance": "https://compute/zones/%s/instances/%s" % (opts["--next-hop-instance-zone"], opts["--next-hop-instance"])}
elif verb == "delete": del state["routes"][args[1]]
if verb != "list": state["calls"].append(" ".join(args[:2]))
json.dump(state, open(here + "/state", "w"))
`

// cloud is a directory with a command that is a cloud.
type cloud struct {
	t   *testing.T
	dir string
}

func newCloud(t *testing.T, command, text string) cloud {
	t.Helper()
	c := cloud{t, t.TempDir()}
	c.write(command, text)
	return c
}

func (c cloud) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o755); err != nil {
		c.t.Fatal(err)
	}
}

// env has the cloud's command be found.
func (c cloud) env() string { return "PATH=" + c.dir + ":" + os.Getenv("PATH") }

type cloudState struct {
	Routes map[string]struct {
		NetworkInterfaceId string
		DestRange          string
		NextHopInstance    string
	} `json:"routes"`
	Calls []string `json:"calls"`
}

func (c cloud) state() (s cloudState) {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, "state"))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil && !os.IsNotExist(err) && len(data) > 0 {
		c.t.Fatal(err)
	}
	return s
}

// waitRoutes waits until the table has these routes and no others.
func (c cloud) waitRoutes(want ...string) {
	c.t.Helper()
	want = slices.Sorted(slices.Values(want))
	eventually(c.t, "the route table is right", func() error {
		var have []string
		data, _ := os.ReadFile(filepath.Join(c.dir, "state"))
		var s cloudState
		_ = json.Unmarshal(data, &s) // it may be being written
		for dst, r := range s.Routes {
			have = append(have, dst+" "+r.NetworkInterfaceId)
		}
		if slices.Sort(have); !slices.Equal(have, want) {
			return fmt.Errorf("has %v, want %v", have, want)
		}
		return nil
	})
}

// eni is the interface of a host in the cloud.
func eni(h *Host) string { return "eni-" + strings.ReplaceAll(h.Addrs[0].String(), ".", "-") }
