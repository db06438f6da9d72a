package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestMembersJoin makes three machines the members of a network's etcd, by a command on each, loses the first for good, and
// has another one join in its place by those that are left.
func TestMembersJoin(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	deb := makePackages(t, media, "1.0.0").deb
	wire := lab.NewSegment(1)
	var machines []*Machine
	for i := range 3 {
		m := lab.NewMachine(wire, 11+i, media)
		m.In("dpkg", "--install", deb)
		machines = append(machines, m)
	}
	first, second, third := machines[0], machines[1], machines[2]
	said := first.In("overlayctl", "init", "--network", overlayV4)
	plain := strings.Fields(joinLine.FindStringSubmatch(said)[1])
	second.fails("lets hosts join, and not run etcd: \"overlayctl tokens create --member\"", append(plain, "--member")...)
	join := strings.Fields(joinLine.FindStringSubmatch(first.In("overlayctl", "tokens", "create", "--member", "--uses", "2"))[1])
	second.In(append([]string{"overlayctl"}, plain...)...) // a host like any other
	t.Log(second.In(append([]string{"overlayctl"}, join...)...))
	t.Log(third.In(append([]string{"overlayctl"}, join...)...))
	if out := third.In(append([]string{"overlayctl"}, join...)...); !strings.Contains(out, "there is a certificate for this host") || !strings.Contains(out, "there is /etc/overlayd/overlayd.yaml") {
		t.Errorf("joining again:\n%s", out)
	}
	roles := func(m *Machine) (names map[string]string) {
		t.Helper()
		out, _ := m.TryIn("overlayctl", "members", "list", "-o", "json")
		var list []struct{ Host, Role, Problem string }
		begin, end := strings.IndexByte(out, '['), strings.LastIndexByte(out, ']')
		if begin < 0 || json.Unmarshal([]byte(out[begin:end+1]), &list) != nil {
			t.Fatal(out)
		}
		names = map[string]string{}
		for _, e := range list {
			names[e.Host] = e.Role
			if e.Problem != "" {
				names[e.Host] = "away"
			}
		}
		return names
	}
	eventually(t, "three are members", func() error {
		if got := roles(first); len(got) != 3 || strings.Contains(fmt.Sprint(got), "learner") || strings.Contains(fmt.Sprint(got), "away") {
			return fmt.Errorf("%v", got)
		}
		return nil
	})

	name := strings.TrimSpace(first.In("hostname"))
	first.In("sh", "-ec", "systemctl disable --now overlayd; overlayd --cleanup || true; rm -rf /var/lib/overlayd /etc/overlayd/overlayd.yaml")
	if got := roles(third); got[name] != "away" {
		t.Errorf("without the first: %v", got)
	}
	second.In("overlayctl", "members", "remove", name)
	second.In("overlayctl", "hosts", "remove", name)
	join = strings.Fields(joinLine.FindStringSubmatch(second.In("overlayctl", "tokens", "create", "--member"))[1])
	if !strings.HasPrefix(join[1], second.Addrs[0].String()) {
		t.Errorf("the way to join is %q", join[:2])
	}
	t.Log(first.In(append([]string{"overlayctl"}, join...)...))
	eventually(t, "three are members again", func() error {
		got := roles(third)
		for _, m := range machines {
			if role := got[strings.TrimSpace(m.In("hostname"))]; role != "leader" && role != "member" {
				return fmt.Errorf("%v", got)
			}
		}
		if len(got) != 3 {
			return errors.New("more than three")
		}
		return nil
	})
	backup := "/root/backup"
	second.In("overlayctl", "etcd", "snapshot", backup)
	second.In("systemctl", "stop", "overlayd")
	second.In("overlayd", "--force-new-cluster")
	second.In("mv", "/var/lib/overlayd/etcd", "/root/etcd.old")
	second.In("overlayctl", "etcd", "restore", backup)
	if out := second.In("find", "/var/lib/overlayd", "!", "-user", "overlayd"); out != "" {
		t.Errorf("files that the daemon's user has not:\n%s", out)
	}
	second.In("systemctl", "start", "overlayd")
}
