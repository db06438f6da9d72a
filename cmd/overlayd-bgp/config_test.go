package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func write(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfig(t *testing.T) {
	t.Parallel()
	const good = "as: 64512\nrouter-id: 192.0.2.10\n"
	router := "neighbors: [{address: 192.0.2.1, as: 64512}]\n"
	open, long := write(t, "secret", 0o644), write(t, strings.Repeat("x", 81), 0o600)
	for name, tt := range map[string]struct{ text, want string }{
		"nothing":              {"", "as: missing"},
		"no router id":         {"as: 1\n" + router, "router-id: missing"},
		"a router id of IPv6":  {"as: 1\nrouter-id: 2001:db8::1\n" + router, "router-id: 2001:db8::1 is not an IPv4 address"},
		"an AS of 33 bits":     {"as: 4294967296\n", "4294967296"},
		"no neighbors":         {good, "neighbors: missing"},
		"an unknown key":       {good + router + "neighbours: []\n", "neighbours"},
		"no address":           {good + "neighbors: [{as: 1}]", "neighbors[0]: address: missing"},
		"an address of none":   {good + "neighbors: [{address: 224.0.0.1, as: 1}]", "neighbors[0]: address: 224.0.0.1 is none that a router has"},
		"no AS":                {good + "neighbors: [{address: 192.0.2.1}]", "neighbors[0]: as: missing"},
		"twice":                {good + "neighbors: [{address: 192.0.2.1, as: 1}, {address: 192.0.2.1, as: 1}]", "neighbors[1]: address: 192.0.2.1 is there twice"},
		"families":             {good + "neighbors: [{address: 192.0.2.1, as: 1, source: 2001:db8::1}]", "source: 2001:db8::1 is of another family"},
		"too long a restart":   {good + router + "restart-time: 4096", "restart-time: 4096 is not in 1-4095"},
		"no password file":     {good + "neighbors: [{address: 192.0.2.1, as: 1, password-file: /no/such}]", "password-file: stat /no/such"},
		"an open file":         {good + "neighbors: [{address: 192.0.2.1, as: 1, password-file: " + open + "}]", "everybody may read"},
		"too long a password":  {good + "neighbors: [{address: 192.0.2.1, as: 1, password-file: " + long + "}]", "has 81 bytes: MD5 takes 1-80"},
		"a password in place":  {good + "neighbors: [{address: 192.0.2.1, as: 1, password: secret}]", "password"},
		"an http that is none": {good + router + "http: here", "http: "},
	} {
		if _, err := readConfig(write(t, tt.text, 0o600), settings.Client{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %q", name, err)
		}
	}
	if _, err := readConfig("/no/such", settings.Client{}); err == nil || !strings.Contains(err.Error(), "examples/bgp.yaml") {
		t.Errorf("no file: %v", err)
	}
	c, err := readConfig("../../etc/bgp.yaml", settings.Client{})
	if err != nil || c.RestartTime != 120 || c.Neighbors[0].Port != 179 {
		t.Errorf("the example: %+v, %v", c, err)
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	record := func(id int64, backend string, endpoints ...subnet.Endpoint) subnet.Record {
		return subnet.Record{LeaseID: id, Lease: subnet.Lease{Backend: backend, Endpoints: endpoints}}
	}
	at := func(p, ip string) subnet.Endpoint {
		e := subnet.Endpoint{Subnet: netip.MustParsePrefix(p)}
		if ip != "" {
			e.PublicIP = netip.MustParseAddr(ip)
		}
		return e
	}
	outside := record(0, "wireguard", at("10.5.4.0/24", "192.0.2.14"))
	outside.Host = "laptop"
	leases := etcdstore.Listing{Records: []subnet.Record{
		record(1, "alloc", at("10.5.1.0/24", "192.0.2.11"), at("fd00:5:0:1::/64", "2001:db8::11")),
		record(2, "", at("10.5.2.0/24", "192.0.2.12")), // flannel's
		record(0, "", at("10.5.3.0/24", "192.0.2.13")), // kept
		outside,
		record(0, "alloc", at("10.5.8.0/24", "192.0.2.18")), // one that does not expire
		record(5, "alloc", at("10.5.5.0/24", "10.5.1.7")),
		record(6, "alloc", at("10.5.6.0/24", "192.0.2.1")),
		record(7, "alloc", at("10.5.7.0/24", "")),
	}}
	got, refused := plan(leases, []neighbor{{Address: netip.MustParseAddr("192.0.2.1")}})
	want := routes{
		netip.MustParsePrefix("10.5.1.0/24"):     netip.MustParseAddr("192.0.2.11"),
		netip.MustParsePrefix("fd00:5:0:1::/64"): netip.MustParseAddr("2001:db8::11"),
		netip.MustParsePrefix("10.5.2.0/24"):     netip.MustParseAddr("192.0.2.12"),
		netip.MustParsePrefix("10.5.8.0/24"):     netip.MustParseAddr("192.0.2.18"),
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{
		"10.5.4.0-24": "it belongs to no host of the network, and is reached by wireguard alone",
		"10.5.5.0-24": "its public IP 10.5.1.7 is in a subnet of the overlay",
		"10.5.6.0-24": "its public IP 192.0.2.1 is that of a router",
		"10.5.7.0-24": "it has no public IP of its subnet's family",
	}, refused); diff != "" {
		t.Errorf("refused (-want +got)\n%s", diff)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	c := config{StateDir: t.TempDir()}
	if r, err := c.recall(); r != nil || err != nil {
		t.Errorf("of nothing: %v, %v", r, err)
	}
	want := routes{netip.MustParsePrefix("10.5.1.0/24"): netip.MustParseAddr("192.0.2.11")}
	if err := c.remember(want); err != nil {
		t.Fatal(err)
	}
	if r, err := c.recall(); err != nil || r[netip.MustParsePrefix("10.5.1.0/24")] != netip.MustParseAddr("192.0.2.11") {
		t.Errorf("got %v, %v", r, err)
	}
	if err := os.WriteFile(c.memory(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.recall(); err == nil {
		t.Error("garbage is recalled")
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"nonsense"}, {"--nonsense"}, {"status", "more"}} {
		cmd := command(io.Discard, io.Discard)
		cmd.SetArgs(args)
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "overlayd-bgp --help") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
