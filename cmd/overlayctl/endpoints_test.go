package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// endpointHost is a host with containers, whose daemon is down.
type endpointHost struct {
	t            *testing.T
	dir, dataDir string
}

func newEndpointHost(t *testing.T) *endpointHost {
	t.Helper()
	h := &endpointHost{t: t, dir: t.TempDir()}
	h.dataDir = filepath.Join(h.dir, "data")
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "overlay", "plugins": [{"type": "overlay", "dataDir": %q}]}`, h.dataDir)
	for name, text := range map[string]string{"net.d/10-overlay.conflist": conf, "overlayd.yaml": "", "run/endpoints/x": ""} {
		name = filepath.Join(h.dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// attach leaves the record that the plugin would.
func (h *endpointHost) attach(a attachment.Attachment, address string) {
	h.t.Helper()
	a.Version, a.Network, a.IfName, a.Delegate = attachment.Version, "overlay", "eth0", json.RawMessage(`{"type":"bridge"}`)
	a.Addresses = []netip.Prefix{netip.MustParsePrefix(address)}
	s, err := attachment.Create(h.t.Context(), h.dataDir, attachment.Shared, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.Close()
	if err := s.Save(a); err != nil {
		h.t.Fatal(err)
	}
}

func (h *endpointHost) flags() []string {
	return []string{"--cni-conf-dir", filepath.Join(h.dir, "net.d"), "--run-dir", filepath.Join(h.dir, "run"), "--config", filepath.Join(h.dir, "overlayd.yaml")}
}

func (h *endpointHost) run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(ctx, append(append([]string{"endpoints"}, args...), h.flags()...), strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// want runs a command, and compares what it prints.
func (h *endpointHost) want(want string, args ...string) {
	h.t.Helper()
	code, out, err := h.run(h.t.Context(), args...)
	if code != 0 {
		h.t.Fatalf("%v: exit code %d: %s", args, code, err)
	}
	trim := func(text string) (lines []string) {
		for line := range strings.Lines(strings.TrimSpace(text)) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	if diff := cmp.Diff(trim(want), trim(out)); diff != "" {
		h.t.Errorf("%v (-want +got):\n%s", args, diff)
	}
}

func (h *endpointHost) refused(text string, args ...string) {
	h.t.Helper()
	if code, _, err := h.run(h.t.Context(), args...); code == 0 || !strings.Contains(err, text) {
		h.t.Errorf("%v: exit code %d, %q; want %q", args, code, err, text)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	h := newEndpointHost(t)
	h.want("NAMESPACE NAME ADDRESSES ISOLATED LABELS", "list")
	h.attach(attachment.Attachment{ContainerID: "default-old", Args: "K8S_POD_NAMESPACE=dev;K8S_POD_NAME=older"}, "10.244.1.3/24")
	h.attach(attachment.Attachment{
		ContainerID: "default-web", EndpointNotes: []string{"something was dropped"},
		Endpoint: &policy.Identity{
			Namespace: "default", Name: "web", Labels: map[string]string{"app": "web", "tier": "front"},
			Ports: []policy.NamedPort{{Name: "http", Port: 80, Protocol: policy.TCP}},
		},
	}, "10.244.1.2/24")
	docker := policy.Endpoint{
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.9")}, Identity: policy.Identity{Namespace: "dev", Name: "db", Labels: map[string]string{"app": "db"}},
	}
	if err := identity.WriteFile(identity.Dir(filepath.Join(h.dir, "run")), "docker-1", docker); err != nil {
		t.Fatal(err)
	}
	h.want(`NAMESPACE NAME ADDRESSES ISOLATED LABELS
		default web 10.244.1.2 ? app=web,tier=front
		dev db 10.244.1.9 ? app=db
		dev older 10.244.1.3 ? -`, "list")
	h.want(`NAMESPACE NAME ADDRESSES ISOLATED LABELS PORTS NETWORK CONTAINER
		default web 10.244.1.2 ? app=web,tier=front http:80/tcp overlay default-web`, "list", "-o", "wide", "-l", "app in (web, x),tier,!zone,app!=db")
	h.want(`NAMESPACE NAME ADDRESSES ISOLATED LABELS
		dev older 10.244.1.3 ? -`, "list", "-n", "dev", "-l", "app notin (db)")
	for _, name := range []string{"web", "default/web", "10.244.1.2", "default-web"} {
		h.want(`Namespace: default
			Name: web
			Addresses: 10.244.1.2
			Labels: app=web,tier=front
			Ports: http:80/tcp
			Isolated: ?
			Network: overlay
			Container: default-web
			Interface: eth0
			Note: something was dropped`, "get", name)
	}
	h.refused(`"default-" may be any of these`, "get", "default-")
	h.refused(`no container "gone"`, "get", "gone")
	h.refused("a parenthesis is not closed", "list", "-l", "app in (web")
	h.refused("--selector", "list", "-l", "a b=c")

	h.want("default/web app=shop,tier=front,zone=a", "label", "web", "app=shop", "zone=a")
	h.want("default/web app=shop,zone=a", "label", "web", "tier-")
	h.want("dev/older app=old", "label", "dev/older", "app=old")
	h.refused("its labels are Docker's", "label", "db", "app=x")
	h.refused("is neither KEY=VALUE nor KEY-", "label", "web", "app")
	h.refused("label", "label", "web", "app=not a value")
	h.refused("missing argument", "label", "web")
	all, err := attachment.Read(h.dataDir, "overlay")
	if err != nil || len(all.Usable) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, a := range all.Usable {
		if a.ContainerID == "default-web" && (a.Relabelled["tier"] != nil || *a.Relabelled["app"] != "shop" || a.EndpointNotes == nil) {
			t.Errorf("the record keeps %v", a.Relabelled)
		}
	}
}

// TestEndpointsWatch tells of a change and of an end.
func TestEndpointsWatch(t *testing.T) {
	t.Parallel()
	h := newEndpointHost(t)
	web := attachment.Attachment{ContainerID: "c", Endpoint: &policy.Identity{Namespace: "default", Name: "web"}}
	h.attach(web, "10.244.1.2/24")
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx, append([]string{"endpoints", "watch", "-o", "json"}, h.flags()...), strings.NewReader(""), out, io.Discard)
		out.Close()
	}()
	defer func() { cancel(); <-ended }()
	events := json.NewDecoder(in)
	wantEvent := func(want string, labels int) {
		t.Helper()
		var e struct {
			Event  string
			Labels map[string]string
		}
		if err := events.Decode(&e); err != nil || e.Event != want || len(e.Labels) != labels {
			t.Errorf("%+v, %v; want %s with %d labels", e, err, want, labels)
		}
	}
	wantEvent("ADDED", 0)
	web.Endpoint.Labels = map[string]string{"app": "web"}
	h.attach(web, "10.244.1.2/24")
	wantEvent("CHANGED", 1)
	if err := os.Remove(filepath.Join(h.dataDir, "overlay", "c:eth0.json")); err != nil {
		t.Fatal(err)
	}
	wantEvent("REMOVED", 1)
}
