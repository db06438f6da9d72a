package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	v4Lease   = leaseText
	v6Lease   = "FLANNEL_IPV6_NETWORK=fc00:7::/48\nFLANNEL_IPV6_SUBNET=fc00:7:0:4c::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
	dualLease = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n" + v6Lease
)

// Nomad runs every binary with no arguments and looks for a semantic version.
func TestVersion(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	semver := regexp.MustCompile(`^CNI overlay plugin v\d+\.\d+\.\d+(-\w+)?\n`)
	for _, args := range [][]string{nil, {"--version"}} {
		cmd := exec.Command(filepath.Join(h.bin, "overlay"), args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil || !semver.Match(out) {
			t.Errorf("%v: %v: %q", args, err, out)
		}
	}
	out, err := h.call(request{command: "VERSION"})
	var versions struct{ SupportedVersions []string }
	if err == nil {
		err = json.Unmarshal(out, &versions)
	}
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; err != nil || !slices.Equal(versions.SupportedVersions, want) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAttach(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, lease string
		ips, routes []string
		mtu         string
		delegate    map[string]any
	}{
		{"IPv4", v4Lease, []string{"10.5.72.2/24"}, []string{"10.5.0.0/16 via 10.5.72.1", "default via 10.5.72.1"}, "1450", nil},
		{"IPv6", v6Lease, []string{"fc00:7:0:4c::2/64"},
			[]string{"fc00:7::/48 via fc00:7:0:4c::1", "default via fc00:7:0:4c::1"}, "1430", nil},
		{"dual stack", dualLease, []string{"10.5.72.2/24", "fc00:7:0:4c::2/64"},
			[]string{"10.5.0.0/16 via 10.5.72.1", "fc00:7::/48 via fc00:7:0:4c::1"}, "1430", nil},
		{"ptp", v4Lease, []string{"10.5.72.2/24"}, []string{"10.5.0.0/16 via 10.5.72.1"}, "1450", map[string]any{"type": "ptp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.lease)
			more := map[string]any{}
			if tt.delegate != nil {
				more["delegate"] = tt.delegate
			}
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: more}
			ips, result := h.mustAdd(t, r)
			if got := fmt.Sprint(ips); got != fmt.Sprint(tt.ips) {
				t.Errorf("addresses %s, want %s", got, tt.ips)
			}
			shown := ip(t, r.netns, "addr", "show", "eth0") +
				ip(t, r.netns, "-4", "route", "show") + ip(t, r.netns, "-6", "route", "show")
			for _, want := range append(append(tt.routes, tt.ips...), "mtu "+tt.mtu) {
				if !strings.Contains(shown, want) {
					t.Errorf("the container has no %q:\n%s", want, shown)
				}
			}
			for _, p := range ips {
				// The first container makes the bridge, whose IPv6 address the kernel tries for a second or two before
				// it answers (DAD). bridge waits for the container's own address only.
				mustRun(t, "nsenter", "--net="+r.netns, "ping", "-c1", "-w5", p.Masked().Addr().Next().String())
			}

			check := request{command: "CHECK", id: "c1", ifName: "eth0", netns: r.netns, more: map[string]any{"prevResult": result}}
			if tt.delegate != nil {
				check.more["delegate"] = tt.delegate
			}
			h.mustCall(t, check)
			ip(t, r.netns, "addr", "flush", "dev", "eth0", "scope", "global")
			if _, err := h.call(check); err == nil {
				t.Error("CHECK did not see that the addresses are gone")
			}
			r.command = "DEL"
			h.mustCall(t, r)
			h.wantClean(t)
		})
	}
}

func TestConfigVersions(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	netns := h.addNamespace(t, "c1")
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		r := request{id: "c1", ifName: "eth0", netns: netns, more: map[string]any{"cniVersion": version}}
		_, result := h.mustAdd(t, r)
		if !strings.Contains(string(result), fmt.Sprintf(`"cniVersion": %q`, version)) {
			t.Errorf("asked in %s: %s", version, result)
		}
		r.command = "DEL"
		h.mustCall(t, r)
	}
	_, err := h.call(request{command: "ADD", id: "c1", ifName: "eth0", netns: netns, more: map[string]any{"cniVersion": "9.9.9"}})
	wantError(t, err, types.ErrIncompatibleCNIVersion, "")
	h.wantClean(t)
}

// The ways in which runtimes call; see docs.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)

	t.Run("nerdctl: DEL before ADD, address and MAC asked for", func(t *testing.T) {
		netns := h.addNamespace(t, "nc")
		r := request{id: "nc", ifName: "eth0", args: "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=h;IP=10.5.72.77"}
		r.more = map[string]any{"runtimeConfig": map[string]any{
			"ips": []string{"10.5.72.77/24"}, "mac": "02:aa:00:00:00:01", "portMappings": []any{},
		}}
		r.command = "DEL"
		h.mustCall(t, r)
		r.netns = netns
		if ips, _ := h.mustAdd(t, r); fmt.Sprint(ips) != "[10.5.72.77/24]" {
			t.Errorf("addresses %v", ips)
		}
		if link := ip(t, netns, "link", "show", "eth0"); !strings.Contains(link, "02:aa:00:00:00:01") {
			t.Errorf("MAC: %s", link)
		}
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("containerd: DEL twice, then without a namespace", func(t *testing.T) {
		r := request{
			id: "cd", ifName: "eth0", netns: h.addNamespace(t, "cd"),
			args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=cd;K8S_POD_UID=u",
		}
		h.mustAdd(t, r)
		h.mustCall(t, r.del())
		r.netns = ""
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("Nomad: DEL with no CNI_ARGS", func(t *testing.T) {
		r := request{
			id: "no", ifName: "eth0", netns: h.addNamespace(t, "no"),
			args: "IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_JOB_ID=web;NOMAD_ALLOC_ID=no",
		}
		h.mustAdd(t, r)
		r.args = ""
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("the namespace went first", func(t *testing.T) {
		r := request{id: "gone", ifName: "eth0", netns: h.addNamespace(t, "gone")}
		h.mustAdd(t, r)
		mustRun(t, "ip", "netns", "del", filepath.Base(r.netns))
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
}

// del is the DEL of what was added.
func (r request) del() request {
	r.command = "DEL"
	return r
}

func TestTwoInterfaces(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	first := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	second := first
	second.ifName = "net1"
	second.more = map[string]any{"delegate": map[string]any{}} // only one of them has the default route
	h.mustAdd(t, first)
	h.mustAdd(t, second)
	h.mustCall(t, first.del())
	if shown := ip(t, second.netns, "-4", "-o", "addr", "show"); !strings.Contains(shown, "net1") || strings.Contains(shown, "eth0") {
		t.Errorf("DEL of eth0 left: %s", shown)
	}
	h.mustCall(t, second.del())
	h.wantClean(t)
}

func TestRealAddAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	h.mustAdd(t, r)
	if got := h.reserved(t); len(got) != 1 {
		t.Errorf("addresses held: %v", got)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// A failed ADD takes everything back; after a failed DEL the next one finishes.
func TestRealFailures(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	ip(t, r.netns, "link", "add", "eth0", "type", "veth", "peer", "in-the-way")
	if _, err := h.call(request{command: "ADD", id: r.id, ifName: r.ifName, netns: r.netns}); err == nil {
		t.Fatal("ADD of an interface that is there")
	}
	h.wantClean(t)

	h.mustAdd(t, r)
	broken := filepath.Join(h.dir, "ipam", h.network)
	if err := os.Rename(broken, broken+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.call(r.del()); err == nil {
		t.Fatal("DEL although host-local cannot work")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(broken+".away", broken); err != nil {
		t.Fatal(err)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

func TestRealGC(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	var valid []types.GCAttachment
	for i, id := range []string{"kept", "gone", "dead"} {
		r := request{id: id, ifName: "eth0", netns: h.addNamespace(t, id)}
		h.mustAdd(t, r)
		if i == 0 {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
	}
	mustRun(t, "ip", "netns", "del", h.network+"dead")
	h.mustCall(t, request{command: "STATUS"})
	h.mustCall(t, request{command: "GC", more: map[string]any{"cni.dev/valid-attachments": valid}})
	if got := h.reserved(t); !slices.Equal(got, []string{"10.5.72.2"}) {
		t.Errorf("addresses held: %v", got)
	}
	if links := ip(t, h.network+"gone", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("an interface without an address of its own is left: %s", links)
	}
	h.mustCall(t, request{command: "GC", more: map[string]any{"cni.dev/valid-attachments": []any{}}})
	h.wantClean(t)
}

// Hundred containers come and go, twenty at a time, and leave no trace.
func TestHundred(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	const workers, rounds = 20, 5
	var seen sync.Map
	errs := make(chan error, workers)
	for w := range workers {
		r := request{ifName: "eth0", netns: h.addNamespace(t, fmt.Sprint(w))}
		go func() {
			errs <- func() error {
				for round := range rounds {
					r.id = fmt.Sprintf("c%d-%d", w, round)
					ips, _, err := h.add(r)
					if err != nil {
						return err
					}
					for _, p := range ips {
						if other, taken := seen.LoadOrStore(p, r.id); taken {
							return fmt.Errorf("%s and %s have %v", r.id, other, p)
						}
					}
					for _, p := range ips {
						seen.Delete(p) // before another can get it
					}
					if _, err := h.call(r.del()); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	h.wantClean(t)
}

// cnitool is libcni: what runtimes link, with its cache and chaining.
func TestCnitool(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	netns := h.addNamespace(t, "c1")
	for _, dir := range []string{"net.d", "varlib"} {
		if err := os.Mkdir(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"plugins":[%s,{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		h.network, h.conf(map[string]any{"capabilities": map[string]any{"ips": true}}))
	if err := os.WriteFile(filepath.Join(h.dir, "net.d", "10-overlay.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	cnitool := func(command string, env ...string) {
		t.Helper()
		// libcni keeps its cache in /var/lib/cni.
		script := `mount --bind "$1" /var/lib && exec "$2" "$3" "$4" "$5"`
		cmd := exec.Command("nsenter", "--net="+h.ns, "unshare", "--mount", "sh", "-c", script, "sh",
			filepath.Join(h.dir, "varlib"), filepath.Join(h.bin, "cnitool"), command, h.network, netns)
		cmd.Env = append(os.Environ(), "CNI_PATH="+h.bin, "NETCONFPATH="+filepath.Join(h.dir, "net.d"))
		cmd.Env = append(cmd.Env, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cnitool %s: %v\n%s", command, err, out)
		}
	}
	caps := `CAP_ARGS={"ips":["10.5.72.50"],"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	cnitool("status")
	cnitool("del", caps)
	cnitool("add", caps)
	cnitool("check", caps)
	if got := h.reserved(t); !slices.Contains(got, "10.5.72.50") {
		t.Errorf("addresses held: %v", got)
	}
	if err := os.Remove(h.subnetFile()); err != nil {
		t.Fatal(err)
	}
	cnitool("check", caps)
	cnitool("del", caps)
	h.wantClean(t)
	if err := os.WriteFile(h.subnetFile(), []byte(dualLease), 0o600); err != nil {
		t.Fatal(err)
	}
	cnitool("add")
	cnitool("gc")
	h.wantClean(t)
}
