package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// pod is a container: a network namespace that the CNI plugin has attached to a host.
type pod struct {
	*node
	rig     *rig
	host    *host
	ns      string
	podName string
	labels  map[string]string
	ports   []namedPort
	publish string // CAP_ARGS' portMappings, if not empty
	addrs   [2]netip.Addr
	agent   *agent
}

type namedPort struct {
	name  string
	port  uint16
	proto string
}

// key is how policies' people call it: namespace/name.
func (p *pod) key() string { return p.ns + "/" + p.podName }

// newPod makes a container, attaches it, and starts its servers.
func (r *rig) newPod(h *host, ns, name string, labels map[string]string, ports ...namedPort) *pod {
	r.t.Helper()
	p := r.plainPod(h, ns, name, labels, ports...)
	p.attach()
	r.loose = true
	return p
}

// plainPod is a namespace with servers in it, that is not attached yet.
func (r *rig) plainPod(h *host, ns, name string, labels map[string]string, ports ...namedPort) *pod {
	r.t.Helper()
	r.made++
	p := &pod{node: newNode(r.t, fmt.Sprintf("%sc%d", r.prefix, r.made)), rig: r, host: h,
		ns: ns, podName: name, labels: maps.Clone(labels), ports: ports}
	p.open()
	return p
}

// cniArgs says who the container is, as a runtime would.
func (p *pod) cniArgs() string {
	args := []string{"IgnoreUnknown=1", "K8S_POD_NAME=" + p.podName, "NAMESPACE=" + p.ns}
	var labels, ports []string
	for _, k := range slices.Sorted(maps.Keys(p.labels)) {
		labels = append(labels, k+":"+p.labels[k])
	}
	for _, n := range p.ports {
		ports = append(ports, fmt.Sprintf("%s:%d/%s", n.name, n.port, n.proto))
	}
	if len(labels) > 0 {
		args = append(args, "LABELS="+strings.Join(labels, ","))
	}
	if len(ports) > 0 {
		args = append(args, "PORTS="+strings.Join(ports, ","))
	}
	return strings.Join(args, ";")
}

// attach runs ADD, and learns the addresses.
func (p *pod) attach() {
	p.t.Helper()
	if err := p.tryAttach(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pod) tryAttach() error {
	out, err := p.cnitool("add")
	if err != nil {
		return err
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return fmt.Errorf("ADD of %s: %w in\n%s", p.key(), err, out)
	}
	p.addrs = [2]netip.Addr{}
	for _, ip := range result.IPs {
		a := ip.Address.Addr()
		family := v4
		if a.Is6() {
			family = v6
		}
		p.addrs[family] = a
	}
	if !p.addrs[v4].IsValid() || !p.addrs[v6].IsValid() {
		return fmt.Errorf("ADD of %s gives %s", p.key(), out)
	}
	return nil
}

// detach runs DEL.
func (p *pod) detach() {
	p.t.Helper()
	if _, err := p.cnitool("del"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pod) cnitool(verb string) (string, error) {
	cmd := p.host.command(p.host.inVarLib(bin("cnitool"), verb, "overlay", p.path())...)
	cmd.Env = append(cmd.Env, "CNI_PATH="+bin(""), "NETCONFPATH="+p.host.conf, "CNI_ARGS="+p.cniArgs())
	if p.publish != "" {
		cmd.Env = append(cmd.Env, "CAP_ARGS="+p.publish)
	}
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("cnitool %s %s: %w: %s%s", verb, p.key(), err, out, exit.Stderr)
	}
	return string(out), err
}

// relabel gives the container other labels, as an operator would.
func (p *pod) relabel(labels map[string]string) {
	if p.host == nil { // on paper
		p.labels = maps.Clone(labels)
		return
	}
	p.t.Helper()
	args := []string{"endpoints", "label", p.key()}
	for k := range p.labels {
		if _, stays := labels[k]; !stays {
			args = append(args, k+"-")
		}
	}
	for k, v := range labels {
		if old, there := p.labels[k]; !there || old != v {
			args = append(args, k+"="+v)
		}
	}
	if len(args) == 3 {
		return
	}
	if _, err := p.host.overlayctl("", args...); err != nil {
		p.t.Fatal(err)
	}
	p.labels, p.rig.loose = maps.Clone(labels), true
}
