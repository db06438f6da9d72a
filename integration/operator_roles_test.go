package integration

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRolesOfEtcd gives hosts the roles that overlayctl prints, in an etcd of the operator's that asks for certificates: hosts
// serve with them, one with a reservation writes nothing but its own key, and none what is an operator's.
func TestRolesOfEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	ca, dir := newAuthority(t, "ca"), t.TempDir()
	for _, name := range []string{"root", "host-1", "host-2", "server"} {
		ca.issue(filepath.Join(dir, name), name, time.Now().Add(time.Hour))
	}
	as := func(name string) []string {
		return []string{"--endpoints", "https://127.0.0.1:2379", "--cacert", ca.file, "--cert", filepath.Join(dir, name+".pem"), "--key", filepath.Join(dir, name+".key")}
	}
	etcd := &etcdServer{node: lab.Etcd, dir: filepath.Join(dir, "data"), flags: as("root"), args: []string{
		"--listen-client-urls", "https://[::]:2379", "--advertise-client-urls", "https://127.0.0.1:2379",
		"--cert-file", filepath.Join(dir, "server.pem"), "--key-file", filepath.Join(dir, "server.key"), "--client-cert-auth", "--trusted-ca-file", ca.file}}
	etcd.start()
	etcd.wait()
	etcd.ctl("put", configKey, lab.Config(`{"Type":"vxlan"}`))
	const blue = "/coreos.com/network/blue/"
	etcd.ctl("put", blue+"config", `{"Network":"10.20.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`)
	etcd.ctl("put", "/coreos.com/network/overlayd/networks/blue", "{}")
	hosts := lab.NewHosts(wire, 2)
	const reserved = subnetsPrefix + "10.5.77.0-24"
	etcd.ctl("put", reserved, `{"PublicIP":"`+hosts[0].Addrs[0].String()+`","PublicIPv6":null,"Host":"host-1"}`)
	lab.etcdURL = "https://172.30.1.100:2379"
	flags := func(name string) []string {
		return []string{"--etcd-cafile", ca.file, "--etcd-certfile", filepath.Join(dir, name+".pem"), "--etcd-keyfile", filepath.Join(dir, name+".key")}
	}
	roles := hosts[0].Overlayctl(append(flags("root"), "network", "roles", "--hosts=host-1,host-2")...)
	for _, line := range strings.Split(roles, "\n") {
		if command, ok := strings.CutPrefix(line, "etcdctl "); ok {
			etcd.ctl(strings.Fields(strings.ReplaceAll(command, "'", ""))...)
		}
	}
	for _, args := range [][]string{{"user", "add", "root", "--no-password"}, {"user", "grant-role", "root", "root"}, {"auth", "enable"}} {
		etcd.ctl(args...)
	}
	for i, h := range hosts {
		h.Start(append(flags([]string{"host-1", "host-2"}[i]), "--networks=all")...)
	}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
		h.WaitNetwork("blue", "10.20.0.0/16", 1)
	}
	if subnet := envValue(t, hosts[0], "FLANNEL_SUBNET"); subnet != "10.5.77.1/24" {
		t.Errorf("the host with a reservation has %s", subnet)
	}
	for name, keys := range map[string][]string{
		"host-1": {subnetsPrefix + "10.5.9.0-24", blue + "config", blue + "overlayd/policy/default/x"},
		"host-2": {configKey, "/coreos.com/network/overlayd/networks/red", "/coreos.com/network/overlayd/peered/blue,default", "/coreos.com/network/red/subnets/10.30.1.0-24"},
	} {
		etcd.flags = as(name)
		for _, key := range keys {
			if out, err := etcd.tryCtl("put", key, "x"); err == nil || !strings.Contains(out+err.Error(), "permission denied") {
				t.Errorf("%s writes %s: %s, %v", name, key, out, err)
			}
		}
		if out, err := etcd.tryCtl("get", "--prefix", "/coreos.com/network/overlayd/tokens/"); err == nil {
			t.Errorf("%s reads tokens: %s", name, out)
		}
	}
	if levels, texts, _ := hosts[1].doctor(flags("host-2")...); levels["etcd access"] != "ok" {
		t.Errorf("doctor: %s: %s", levels["etcd access"], texts["etcd access"])
	}
}
