package integration

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// certify gives a host a certificate for its addresses, as overlayctl join does, and a configuration by which it finds etcd
// at the first of members, which runs etcd itself if it is a member.
func (a *authority) certify(h *Host, first *Host, member bool) {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: h.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, addr := range h.Addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	conf := fmt.Sprintf("etcd-cafile: %s\netcd-certfile: %s\netcd-keyfile: %s\nrun-dir: %s\nstate-dir: %s\nnetwork: 10.5.0.0/16\n",
		a.file, h.file("pem"), h.file("key"), h.RunDir, h.State)
	if h != first {
		conf += fmt.Sprintf("etcd-endpoints: [%s]\n", h.etcdAt(first))
	}
	if member {
		template.URIs = []*url.URL{{Scheme: "overlayd", Opaque: "member"}}
		conf += fmt.Sprintf("etcd-embedded: true\netcd-embedded-listen: %s:2379\n", h.Addrs[0])
	}
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, h.file("key"), "PRIVATE KEY", raw)
	writePEM(a.t, h.file("pem"), "CERTIFICATE", der)
	writeFile(h, h.file("yaml"), conf)
}

func (h *Host) file(kind string) string { return filepath.Join(filepath.Dir(h.RunDir), "host."+kind) }

func (h *Host) etcdAt(of *Host) string { return fmt.Sprintf("https://%s:2379", of.Addrs[0]) }

// configured is how overlayd is started on a host with a configuration file.
func (h *Host) configured(more ...string) []string {
	return append([]string{"unshare", "--uts", "sh", "-c", `echo "$0" >/proc/sys/kernel/hostname && exec "$@"`, h.Name,
		bin("overlayd"), "--config=" + h.file("yaml")}, more...)
}

func (h *Host) startConfigured() {
	h.t.Helper()
	h.Daemon = h.Spawn("overlayd on "+h.Name, nil, h.configured()...)
}

// ctl runs overlayctl with the host's configuration, and overlayd where it looks for it.
func (h *Host) ctl(args ...string) (string, error) {
	h.t.Helper()
	cmd := h.Command(append([]string{bin("overlayctl"), "--config", h.file("yaml")}, args...)...)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(bin("overlayd"))+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("overlayctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (h *Host) mustCtl(args ...string) string {
	h.t.Helper()
	out, err := h.ctl(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// members are etcd's by host, and their roles, as overlayctl tells.
func (h *Host) members() map[string]string {
	h.t.Helper()
	out, _ := h.ctl("members", "list", "-o", "json") // it fails where one is not well
	var list []struct{ Host, Role, Problem string }
	if err := json.Unmarshal([]byte(out[:strings.LastIndexByte(out, ']')+1]), &list); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	all := map[string]string{}
	for _, m := range list {
		all[m.Host] = m.Role
		if m.Problem != "" {
			all[m.Host] = "away"
		}
	}
	return all
}

// smallDisk is a host's state directory on a disk that can be filled.
type smallDisk struct {
	t       *testing.T
	ballast string
}

func (h *Host) smallDisk() smallDisk {
	t := h.t.(*testing.T)
	if err := syscall.Mount("tmpfs", h.State, "tmpfs", 0, "size=200m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(h.State, syscall.MNT_DETACH) })
	return smallDisk{t, filepath.Join(h.State, "ballast")}
}

// fill leaves so many bytes.
func (d smallDisk) fill(but int64) {
	d.t.Helper()
	_ = os.WriteFile(d.ballast, make([]byte, 200<<20), 0o600)
	info, err := os.Stat(d.ballast)
	if err == nil {
		err = os.Truncate(d.ballast, info.Size()-but)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d smallDisk) empty() {
	if err := os.Remove(d.ballast); err != nil {
		d.t.Fatal(err)
	}
}

// TestMembers grows the etcd of a network to three hosts, loses the first of them for good and replaces it, loses two of
// three, and brings all of it back from a backup, while hosts keep their subnets. Only the first is in anybody's configuration.
func TestMembers(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	hosts := lab.NewHosts(lab.NewSegment(1), 5)
	a, b, c, d, other := hosts[0], hosts[1], hosts[2], hosts[3], hosts[4]
	ca := newAuthority(t, "ca")
	for _, h := range hosts {
		ca.certify(h, a, h != other)
	}
	disk := d.smallDisk()
	for _, h := range hosts {
		h.startConfigured()
		if h == a {
			h.WaitReady()
		}
	}
	for _, h := range hosts { // b, c and d wait to be members, and serve containers meanwhile
		h.WaitReady()
		h.WaitPeers(4)
	}
	subnets := map[*Host]string{}
	for _, h := range hosts {
		subnets[h] = envValue(t, h, "FLANNEL_SUBNET")
	}
	wrong := func(h *Host, want string, args ...string) {
		t.Helper()
		out, err := h.ctl(args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("overlayctl %s: %v, %s; want %q", strings.Join(args, " "), err, out, want)
		}
	}
	wrong(a, `"host-9" is not an address`, "members", "add", "host-9")
	wrong(a, `no member of etcd is called "host-9"`, "members", "remove", "host-9")
	wrong(a, "is etcd's only member: add another first", "members", "remove", a.Name)
	wrong(other, "only operators may", "members", "add", d.Addrs[0].String())
	eventually(t, "b says what it waits for", func() error {
		if out := b.Daemon.Output.String(); !strings.Contains(out, "on a host that is one, overlayctl members add "+b.Addrs[0].String()+":2380") {
			return errors.New(out)
		}
		return nil
	})
	a.mustCtl("members", "add", b.Addrs[0].String())
	a.mustCtl("members", "add", c.Addrs[0].String())
	if got := a.members(); len(got) != 3 || got[a.Name] == "learner" || got[b.Name] == "learner" || got[c.Name] == "learner" {
		t.Errorf("members: %v", got)
	}
	for _, h := range hosts[1:] { // the first has it from itself
		eventually(t, h.Name+" knows the members", func() error {
			if text, err := os.ReadFile(filepath.Join(h.State, "leases.jsonl")); err != nil || !strings.Contains(string(text), h.etcdAt(c)) {
				return fmt.Errorf("%v: %s", err, text)
			}
			return nil
		})
	}

	a.Daemon.Kill()
	other.Daemon.Kill()
	other.startConfigured() // its configuration names a alone
	other.WaitReady()
	other.waitWell()
	if got := b.members(); got[a.Name] != "away" || got[b.Name] == "away" || got[c.Name] == "away" {
		t.Errorf("members without the first: %v", got)
	}
	wrong(b, "fewer members than a majority", "members", "remove", c.Name)
	b.mustCtl("members", "add", d.Addrs[0].String(), "--replace", a.Name)
	if got := b.members(); len(got) != 3 || got[d.Name] == "" || got[d.Name] == "away" {
		t.Errorf("members with another in place of the first: %v", got)
	}
	// A member's disk is full: it goes on as a host like any other, and is a member again when there is room.
	disk.fill(0)
	writes := 0
	eventually(t, "etcd ends on d", func() error {
		writes++ // a config that says the same
		b.mustCtl("network", "set", fmt.Sprintf(`{"Network":"10.5.0.0/16","EnableNFTables":%t,"Backend":{"Type":"vxlan"}}`, writes%2 == 0))
		if d.Daemon.Running() {
			return errors.New("it runs")
		}
		return nil
	})
	d.startConfigured()
	d.WaitReady()
	if got := b.members(); got[d.Name] != "away" {
		t.Errorf("members while the disk of one is full: %v", got)
	}
	disk.empty()
	eventually(t, "d is a member again", func() error {
		if got := b.members(); got[d.Name] == "away" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})

	a.startConfigured() // it was repaired, too late
	if code := a.Daemon.Wait(); code != 1 || !strings.Contains(a.Daemon.Output.String(), "this host is no member of etcd any more: in etcd-endpoints, set where etcd is; then either set etcd-embedded: false") {
		t.Errorf("a member that was removed while it was away: %d, %s", code, a.Daemon.Output.String())
	}
	ca.certify(a, b, false) // as it is told
	a.startConfigured()
	a.WaitReady()

	backup := filepath.Join(t.TempDir(), "backup")
	b.mustCtl("etcd", "snapshot", backup)
	wrong(b, "file exists", "etcd", "snapshot", backup)
	c.Daemon.Kill()
	d.Daemon.Kill()
	b.Daemon.Kill()
	same := func(when string, hosts ...*Host) {
		t.Helper()
		for _, h := range hosts {
			h.waitWell()
			if got := envValue(t, h, "FLANNEL_SUBNET"); got != subnets[h] {
				t.Errorf("%s: %s has %s, had %s", when, h.Name, got, subnets[h])
			}
		}
	}
	once := func(want string, args ...string) {
		t.Helper()
		p := b.Spawn("overlayd on "+b.Name, nil, b.configured(args...)...)
		if code := p.Wait(); !strings.Contains(p.Output.String(), want) {
			t.Errorf("overlayd %q: %d, %s; want %q", args, code, p.Output.String(), want)
		}
	}
	b.startConfigured() // alone it is no majority: it serves what it remembers
	b.WaitReady()
	b.Daemon.Kill()
	once("this host is etcd's only member: start overlayd", "--force-new-cluster")
	b.startConfigured()
	b.WaitReady()
	same("after most members were lost", a, b, other)
	if got := b.members(); len(got) != 1 || got[b.Name] != "leader" {
		t.Errorf("members after most were lost: %v", got)
	}
	once("is in use", "--force-new-cluster") // by the daemon that runs

	b.Daemon.Kill()
	wrong(b, "there is an etcd's data already", "etcd", "restore", backup)
	if err := os.Rename(filepath.Join(b.State, "etcd"), filepath.Join(b.State, "etcd.old")); err != nil {
		t.Fatal(err)
	}
	wrong(b, "no such file", "etcd", "restore", backup+".none")
	cut := backup + ".cut"
	text, err := os.ReadFile(backup)
	if err == nil {
		err = os.WriteFile(cut, text[:len(text)/2], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	wrong(b, "restore etcd's data in", "etcd", "restore", cut)
	b.mustCtl("etcd", "restore", backup)
	b.startConfigured()
	b.WaitReady()
	same("after etcd was restored", a, b, other)
}
