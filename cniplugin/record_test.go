package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// tinyLease has room for five containers.
const tinyLease = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/29\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"

func (h *host) recordPath(id string) string {
	return filepath.Join(h.dir, "state", h.network, id+":eth0.json")
}

// record reads what is remembered of a container's eth0.
func (h *host) record(t *testing.T, id string) (a attachment.Attachment) {
	t.Helper()
	data, err := os.ReadFile(h.recordPath(id))
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// change rewrites what is remembered of a container's eth0.
func (h *host) change(t *testing.T, id string, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(h.recordPath(id))
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(data, &record); err != nil {
		t.Fatal(err)
	}
	change(record)
	if data, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.recordPath(id), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// reboot makes all that is remembered of containers that of an earlier boot, which had other namespaces.
func (h *host) reboot(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		h.change(t, id, func(r map[string]any) { r["netnsID"] = "6f3a1c1e-0000-4000-8000-000000000000/4711" })
		mustRun(t, "ip", "netns", "del", h.network+id)
	}
}

// fill attaches as many containers as there is room for.
func (h *host) fill(t *testing.T, more map[string]any) []string {
	t.Helper()
	ids := []string{"c1", "c2", "c3", "c4", "c5"}
	for _, id := range ids {
		h.mustAdd(t, request{id: id, ifName: "eth0", netns: h.addNamespace(t, id), more: more})
	}
	return ids
}

// The record has what the kernel has, whoever made it, and the daemon may read it.
func TestRecord(t *testing.T) {
	t.Parallel()
	const group = 4711
	for name, more := range map[string]map[string]any{"in the process": nil, "the reference plugins": reference(nil)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			if err := os.Chown(h.subnetFile(), 0, group); err != nil {
				t.Fatal(err)
			}
			old := filepath.Join(h.dir, "state", h.network)
			if err := os.MkdirAll(old, 0o700); err != nil { // as older plugins made it
				t.Fatal(err)
			}
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: more,
				args: "IgnoreUnknown=true;NOMAD_JOB_ID=web;LABELS=app:web"}
			ips, result := h.mustAdd(t, r)
			a := h.record(t, "c1")
			inside, outside := oneVeth(t, r.netns), oneVeth(t, h.ns)
			got := fmt.Sprint(a.Version, a.Addresses, a.MAC, a.IfIndex, a.HostIfName, a.HostIfIndex, a.HostMAC)
			want := fmt.Sprint(2, ips, inside.Address, inside.IfIndex, outside.IfName, outside.IfIndex, outside.Address)
			if got != want {
				t.Errorf("%s\nwant %s", got, want)
			}
			if a.Caller != "nomad" || a.Labels["LABELS"] != "app:web" || a.Labels["NOMAD_JOB_ID"] != "web" {
				t.Errorf("of %s, labels %v", a.Caller, a.Labels)
			}
			var saved, printed any
			if json.Unmarshal(a.Result, &saved) != nil || json.Unmarshal(result, &printed) != nil || !cmp.Equal(saved, printed) {
				t.Errorf("result (-printed +saved):\n%s", cmp.Diff(printed, saved))
			}
			for _, path := range []string{h.recordPath("c1"), old, filepath.Join(h.dir, "state")} {
				info, err := os.Stat(path)
				if err != nil || info.Sys().(*syscall.Stat_t).Gid != group || info.Mode().Perm()&0o047 != 0o040 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
			}
			h.mustCall(t, request{command: "CHECK", id: "c1", ifName: "eth0", netns: r.netns, more: more}) // with no result of the runtime's
			h.mustCall(t, r.del())
			h.wantClean(t)
		})
	}
}

type veth struct {
	IfName, Address string
	IfIndex         int
}

// oneVeth is the veth in a namespace.
func oneVeth(t *testing.T, ns string) veth {
	t.Helper()
	var links []veth
	if err := json.Unmarshal([]byte(ip(t, ns, "-j", "link", "show", "type", "veth")), &links); err != nil || len(links) != 1 {
		t.Fatalf("%v, %v", links, err)
	}
	return links[0]
}

// Networks of one lease share its addresses, whichever plugin gives them.
func TestTwoNetworksOneLease(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	seen := map[string]string{}
	for i, more := range []map[string]any{nil, reference(nil), {"name": h.network + "b"}, reference(map[string]any{"name": h.network + "b"})} {
		id := fmt.Sprint("c", i)
		ips, _ := h.mustAdd(t, request{id: id, ifName: "eth0", netns: h.addNamespace(t, id), more: more})
		if other, taken := seen[ips[0].String()]; taken {
			t.Errorf("%s and %s have %s", other, id, ips[0])
		}
		seen[ips[0].String()] = id
	}
}

// What older plugins have reserved under the network's name is not given again, and is freed by the DEL.
func TestOldPool(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]map[string]any{"in the process": nil, "the reference plugins": reference(nil)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, v4Lease)
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: more}
			ips, _ := h.mustAdd(t, r)
			pool, old := filepath.Join(h.dir, "ipam/overlayd-10.5.72.0-24"), filepath.Join(h.dir, "ipam", h.network)
			if err := os.Rename(pool, old); err != nil {
				t.Fatal(err)
			}
			h.change(t, "c1", func(r map[string]any) {
				for _, name := range []string{"addresses", "result", "mac", "hostIfIndex"} {
					delete(r, name)
				}
				r["version"], r["delegate"].(map[string]any)["name"] = 1, h.network
			})
			// It is of the lease before this one, and stays until its container goes.
			if err := os.WriteFile(filepath.Join(old, "10.5.9.9"), []byte("former\r\neth0"), 0o600); err != nil {
				t.Fatal(err)
			}
			second := request{id: "c2", ifName: "eth0", netns: h.addNamespace(t, "c2"), more: more, args: "IgnoreUnknown=1;IP=" + ips[0].Addr().String()}
			if _, _, err := h.add(second); err == nil || !strings.Contains(err.Error(), "is not available") {
				t.Fatalf("an address that is taken was given: %v", err)
			}
			h.mustCall(t, r.del())
			if _, err := os.Stat(filepath.Join(old, "lock")); err != nil {
				t.Errorf("a pool that is in use: %v", err)
			}
			if again, _ := h.mustAdd(t, second); again[0] != ips[0] {
				t.Errorf("%s, want %s", again[0], ips[0])
			}
			h.mustCall(t, second.del())
			if left := h.reserved(t); !slices.Equal(left, []string{"10.5.9.9"}) {
				t.Errorf("reserved: %v", left)
			}
			if err := os.Remove(filepath.Join(old, "10.5.9.9")); err != nil {
				t.Fatal(err)
			}
			h.mustAdd(t, second)
			if _, err := os.Stat(old); !os.IsNotExist(err) {
				t.Errorf("an empty pool is left: %v", err)
			}
		})
	}
}

// A host whose pool was full when it crashed takes containers at once when it is back.
func TestFullPoolAfterReboot(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]map[string]any{"in the process": nil, "the reference plugins": reference(nil)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tinyLease)
			ids := h.fill(t, more)
			next := request{id: "next", ifName: "eth0", netns: h.addNamespace(t, "next"), more: more}
			if _, _, err := h.add(next); err == nil || !strings.Contains(err.Error(), "available in range set") {
				t.Fatalf("more addresses than there are, or another error: %v", err)
			}
			h.reboot(t, ids[1:]...)
			h.mustAdd(t, next)
			h.mustCall(t, next.del())
			// The living one stays, and a dead one's address can be asked for.
			h.reboot(t, "c1")
			h.mustAdd(t, request{id: "fixed", ifName: "eth0", netns: h.addNamespace(t, "fixed"), more: more, args: "IgnoreUnknown=1;IP=10.5.72.2"})
			var report attachment.FreedReport
			data, err := os.ReadFile(filepath.Join(h.dir, "state/freed.json"))
			if err == nil {
				err = json.Unmarshal(data, &report)
			}
			want := []attachment.Freed{{Network: h.network, ContainerID: "c1", IfName: "eth0", Reason: "the host has been restarted"}}
			if diff := cmp.Diff(want, report.Freed); err != nil || diff != "" {
				t.Errorf("%v, report (-want +got):\n%s", err, diff)
			}
		})
	}
}

// What a power loss leaves: records, reservations or both lost or empty. None of it holds an address.
func TestFullPoolAfterPowerLoss(t *testing.T) {
	t.Parallel()
	// An address that some namespace of this machine has is not free; other tests have those of the other leases.
	subnet := fmt.Sprintf("10.%d.%d.", 64+rand.IntN(64), rand.IntN(256))
	h := newHost(t, strings.ReplaceAll(strings.ReplaceAll(tinyLease, "10.5.72.", subnet), "10.5.0.0/16", "10.64.0.0/10"))
	ids := h.fill(t, nil)
	pool := filepath.Join(h.dir, "ipam/overlayd-"+subnet+"0-29")
	for i, id := range ids {
		mustRun(t, "ip", "netns", "del", h.network+id)
		if i < 3 {
			if err := os.Truncate(h.recordPath(id), 0); err != nil {
				t.Fatal(err)
			}
		} else if err := os.Remove(h.recordPath(id)); err != nil {
			t.Fatal(err)
		}
		if path := filepath.Join(pool, fmt.Sprint(subnet, i+2)); i > 3 {
			before := time.Now().Add(-20 * time.Minute)
			if err := os.Chtimes(path, before, before); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range []string{"n1", "n2", "n3", "n4"} { // c4 has no record, but is too young to be nobody's
		h.mustAdd(t, request{id: id, ifName: "eth0", netns: h.addNamespace(t, id)})
	}
	if _, _, err := h.add(request{id: "n5", ifName: "eth0", netns: h.addNamespace(t, "n5")}); err == nil {
		t.Error("a reservation that may be somebody's was taken")
	}
}

// A container of which there is no record is detached all the same; an interface that is not ours stays.
func TestDelWithoutRecord(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	if err := os.Remove(h.recordPath("c1")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.subnetFile(), h.subnetFile()+".away"); err != nil { // nor is there a lease
		t.Fatal(err)
	}
	for range 2 {
		h.mustCall(t, r.del())
	}
	if links := ip(t, r.netns, "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("the interface is left: %s", links)
	}
	h.wantClean(t)

	ip(t, r.netns, "link", "add", "eth0", "type", "veth", "peer", "other")
	pool := filepath.Join(h.dir, "ipam/overlayd-10.5.72.0-24/10.5.72.9")
	if err := os.WriteFile(pool, []byte("c1\r\neth0"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.mustCall(t, r.del())
	ip(t, r.netns, "link", "show", "eth0")
	if left := h.reserved(t); len(left) != 0 {
		t.Errorf("reserved: %v", left)
	}
}
