package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// docScript runs what a document says in a box where ctr is told of what a box lacks, and overlayctl of what a host's
// configuration would say. $1 is the directory of programs, $2 the etcd.
const docScript = `export PATH="$1:$PATH" OVERLAYD_CONFIG=/dev/null OVERLAYD_ETCD_ENDPOINTS="$2"
cd /run
`

// say runs lines of a document on the host, and returns what they print.
func (c *Containerd) say(lines string) string {
	c.t.Helper()
	out, err := c.trySay(lines)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", lines, err, out)
	}
	return out
}

func (c *Containerd) trySay(lines string) (string, error) {
	ctr := strings.Join(c.ctr(), " ")
	lines = regexp.MustCompile(`(?m)^ctr (-n (\w+) run -d)`).ReplaceAllString(lines,
		ctr+" $1 --snapshotter native --cgroup /"+c.cgroup+"/$2")
	lines = strings.ReplaceAll(lines, "\nctr ", "\n"+ctr+" ")
	if strings.HasPrefix(lines, "ctr ") {
		lines = ctr + strings.TrimPrefix(lines, "ctr")
	}
	lines = strings.ReplaceAll(lines, "docker.io/library/busybox:latest", imageName)
	return c.Try(c.inside("sh", "-ec", docScript+lines, "sh", bin(""), c.lab.endpoint())...)
}

// TestPolicyDocument does what docs/policy.md says, with ctr's containers on two hosts.
func TestPolicyDocument(t *testing.T) {
	t.Parallel()
	_, hosts := newContainerds(t)
	for _, h := range hosts {
		h.InstallConflist(shippedConflist(t, "1.0.0"))
		for _, namespace := range []string{"dev", "prod"} {
			h.Ctr("--namespace", namespace, "image", "import", "--no-unpack", busyboxImage(t))
		}
	}
	first, other := hosts[0], hosts[1]
	doc := readDocument(t, "policy.md")
	if said := first.say(doc.block("-n dev run")); !strings.Contains(said, "dev/pod1") && !strings.Contains(said, "app=myapp") {
		t.Errorf("endpoints list says\n%s", said)
	}
	commands := strings.SplitAfter(doc.block("-n prod run"), "\n")
	other.say(commands[0])
	address := func(h *Containerd, namespace string) string {
		shown := h.Ctr("-n", namespace, "task", "exec", "--exec-id", "show", "pod1", "ip", "-o", "address", "show", "dev", "eth0")
		return globalAddrs(t, shown)[0].String()
	}
	doc = readDocument(t, "policy.md", "10.244.2.2", address(first, "dev"), "10.244.1.2", address(other, "prod"), "10.244.0.0/16", overlayV4)
	try := strings.SplitAfter(doc.block("-n prod run"), "\n")[1]
	tries := 1
	reaches := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("prod/pod1 reaches dev/pod1: %t", want), func() error {
			tries++
			out, err := other.trySay(strings.Replace(try, "--exec-id 1", fmt.Sprint("--exec-id ", tries), 1))
			if (err == nil) != want {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
	}
	reaches(true)
	first.say(doc.block("podSelector: {}\n  policyTypes:"))
	reaches(false)
	if said := first.say(doc.block("policy explain --from prod:")); !strings.Contains(said, "denied: prod") {
		t.Errorf("explain and denials say\n%s", said)
	}
	first.say(doc.block("ingress:\n  - {}"))
	reaches(true)
	first.say(doc.block("cidr: "))
	reaches(false) // it is the one that is excepted
	first.say(doc.block("podSelector:\n  policyTypes:"))
	if said := first.say(doc.block("policy delete -n prod")); strings.Contains(said, "deny-all-egress   ") {
		t.Errorf("after all is deleted there is\n%s", said)
	}
	reaches(true)
}
