package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/ports"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy/compile"
)

// enforcing is a host with policies in force, but with nobody who says that those of a new container are.
type enforcing struct {
	*host
	table *enforce.Table
}

func newEnforcing(t *testing.T, unready enforce.Unready) enforcing {
	t.Helper()
	h := newHost(t, dualLease)
	if err := os.MkdirAll(filepath.Join(h.dir, "lib/overlay"), 0o755); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.GetFromPath(h.ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	table, err := enforce.New(enforce.Config{Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e := enforcing{h, table}
	if err := table.Rebuild(t.Context(), compile.Change{}, enforce.Options{Unready: unready}); err != nil {
		t.Fatal(err)
	}
	return e
}

// start calls the plugin with its records where the daemon looks; what it returns waits for the answer.
func (e enforcing) start(t *testing.T, r request) (wait func() (string, error)) {
	t.Helper()
	more := map[string]any{"dataDir": attachment.DefaultDir}
	for key, value := range r.more {
		more[key] = value
	}
	cmd := exec.Command("nsenter", "--net="+e.ns, "unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/cni && mount --bind "$0" /var/lib/cni && exec "$1"`,
		filepath.Join(e.dir, "lib"), filepath.Join(e.bin, "overlay"))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + e.bin, "CNI_COMMAND=" + r.command, "CNI_CONTAINERID=" + r.id,
		"CNI_IFNAME=" + r.ifName, "CNI_NETNS=" + r.netns, "CNI_ARGS=" + r.args,
	}
	cmd.Stdin = bytes.NewReader(e.conf(more))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		err := cmd.Wait()
		return out.String(), err
	}
}

func (e enforcing) pending(t *testing.T) []netip.Addr {
	t.Helper()
	addrs, err := e.table.Pending(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// records are the attachments that are complete.
func (e enforcing) records(t *testing.T) []attachment.Attachment {
	t.Helper()
	all, err := attachment.Read(filepath.Join(e.dir, "lib/overlay"), e.network)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all.Usable, func(a attachment.Attachment) bool { return len(a.Addresses) == 0 })
}

// TestAddWaitsForPolicies is done when the kernel says that the container's policies are in force, by each of the ways to attach.
func TestAddWaitsForPolicies(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]map[string]any{
		"in process": nil, "bridge": {"delegate": map[string]any{"type": "bridge"}}, "ptp": {"delegate": map[string]any{"type": "ptp"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnforcing(t, enforce.Fail)
			former := []netip.Addr{netip.MustParseAddr("10.5.72.2"), netip.MustParseAddr("fc00:7:0:4c::2")}
			if err := pending.Tell(e.dir, former); err != nil {
				t.Fatal(err)
			}
			wait := e.start(t, request{command: "ADD", id: "c", ifName: "eth0", netns: e.addNamespace(t, "c"), more: more})
			records := e.records(t)
			for deadline := time.Now().Add(20 * time.Second); len(records) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				records = e.records(t)
			}
			if len(records) == 0 {
				out, err := wait()
				t.Fatalf("no record: %v: %s", err, out)
			}
			var addrs []netip.Addr
			for _, p := range records[0].Addresses {
				addrs = append(addrs, p.Addr())
			}
			if !records[0].Untracked {
				t.Error("connections are known of addresses that nobody had before")
			}
			held := addrs
			if port, _ := records[0].Port(); !port.Routed { // by which it would reach its neighbours on the bridge
				held = append(slices.Clone(addrs), ports.LinkLocal(port.MAC))
			}
			if got := e.pending(t); !slices.Equal(got, held) {
				t.Errorf("%v wait, want %v", got, held)
			}
			if told, err := filepath.Glob(filepath.Join(e.dir, "in-force", "*")); err != nil || len(told) > 0 {
				t.Errorf("what was told of the addresses' former owners is left: %v, %v", told, err)
			}
			if name != "ptp" {
				link := mustRun(t, "ip", "-n", filepath.Base(e.ns), "-d", "link", "show", "cni0")
				if !strings.Contains(link, "nf_call_iptables 1 nf_call_ip6tables 1") {
					t.Errorf("policies do not see the bridge: %s", link)
				}
			}
			if err := e.table.Release(t.Context(), addrs); err != nil {
				t.Fatal(err)
			}
			if name == "in process" { // an older daemon tells nothing
				if err := pending.Tell(e.dir, addrs); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := wait(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestAddUnready has the daemon say nothing: the container waits on, or is not there, as policy-unready has it.
func TestAddUnready(t *testing.T) {
	t.Parallel()
	for _, unready := range []enforce.Unready{enforce.Closed, enforce.Fail, enforce.Open} {
		t.Run(string(unready), func(t *testing.T) {
			t.Parallel()
			e := newEnforcing(t, unready)
			r := request{command: "ADD", id: "c", ifName: "eth0", netns: e.addNamespace(t, "c")}
			out, err := e.start(t, r)()
			switch unready {
			case enforce.Fail:
				var answer struct{ Msg, Details string }
				if json.Unmarshal([]byte(out), &answer) != nil || err == nil || answer.Msg !=
					"the policies of the container were not in force in time: is overlayd running? (policy-unready: fail)" || answer.Details != "" {
					t.Errorf("%v: %s", err, out)
				}
				if left := filesBelow(t, filepath.Join(e.dir, "lib/overlay")); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				if links := ip(t, e.ns, "-o", "link", "show", "type", "veth"); links != "" {
					t.Errorf("left: %s", links)
				}
				return
			case enforce.Closed:
				if waits := e.pending(t); err != nil || len(waits) != 3 {
					t.Errorf("%v: %s; %v wait", err, out, waits)
				}
			case enforce.Open:
				if waits := e.pending(t); err != nil || len(waits) != 0 {
					t.Errorf("%v: %s; %v wait", err, out, waits)
				}
			}
			r.command = "DEL"
			if out, err := e.start(t, r)(); err != nil {
				t.Errorf("DEL: %v: %s", err, out)
			}
		})
	}
}
