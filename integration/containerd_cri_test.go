package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is a client of containerd's CRI, which is how a kubelet, or anything in its place, starts containers.
type CRI struct {
	t       testing.TB
	c       *Containerd
	runtime cri.RuntimeServiceClient
}

// CRI connects to containerd; the connection outlives restarts of it.
func (c *Containerd) CRI() *CRI {
	c.t.Helper()
	conn, err := grpc.NewClient("unix:"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	images := cri.NewImageServiceClient(conn)
	eventually(c.t, "CRI knows the image", func() error {
		reply, err := images.ImageStatus(c.t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: imageName}})
		if err == nil && reply.Image == nil {
			err = fmt.Errorf("no %s", imageName)
		}
		return err
	})
	return &CRI{t: c.t, c: c, runtime: cri.NewRuntimeServiceClient(conn)}
}

// NetworkReady asks what the CRI thinks of the network; message is its reason for false.
func (c *CRI) NetworkReady() (ready bool, message string) {
	c.t.Helper()
	reply, err := c.runtime.Status(c.t.Context(), &cri.StatusRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, condition := range reply.Status.Conditions {
		if condition.Type == cri.NetworkReady {
			return condition.Status, condition.Message
		}
	}
	return false, "no such condition"
}

// WaitNetworkReady waits until the CRI thinks of the network as told, for a reason with the text in it.
func (c *CRI) WaitNetworkReady(want bool, text string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("NetworkReady=%t", want), func() error {
		if ready, message := c.NetworkReady(); ready != want || !strings.Contains(message, text) {
			return fmt.Errorf("NetworkReady=%t: %s", ready, message)
		}
		return nil
	})
}

// Pod is a pod sandbox with one container in it, which serves a page on port 80.
type Pod struct {
	*CRI
	ID, container string
	Addrs         []netip.Addr // IPv4 before IPv6
}

// RunPod starts a pod as a kubelet does: the sandbox, the container in it, and the program.
func (c *CRI) RunPod(name string, ports ...*cri.PortMapping) *Pod {
	c.t.Helper()
	ctx := c.t.Context()
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: "uid-of-" + name},
		Labels:       map[string]string{"app": "labelled", "tier": "front"},
		Annotations:  map[string]string{"overlayd/labels": "app=" + name, "overlayd/ports": "http:80/tcp", "secret": "hush-hush"},
		Hostname:     name,
		PortMappings: ports,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: "/" + c.c.cgroup},
	}
	sandbox, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		c.t.Fatalf("RunPodSandbox %s: %v", name, err)
	}
	p := &Pod{CRI: c, ID: sandbox.PodSandboxId}
	created, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.ID, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "web"},
			Image:    &cri.ImageSpec{Image: imageName},
			Command:  []string{"/bin/httpd", "-f", "-p", "80", "-h", "/www"},
			Linux:    &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		c.t.Fatalf("CreateContainer in %s: %v", name, err)
	}
	p.container = created.ContainerId
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container}); err != nil {
		c.t.Fatalf("StartContainer in %s: %v", name, err)
	}
	p.Addrs = p.addrs()
	return p
}

// addrs are the addresses that the CRI reports.
func (p *Pod) addrs() []netip.Addr {
	p.t.Helper()
	reply, err := p.runtime.PodSandboxStatus(p.t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.t.Fatal(err)
	}
	network := reply.Status.Network
	texts := []string{network.Ip}
	for _, more := range network.AdditionalIps {
		texts = append(texts, more.Ip)
	}
	var addrs []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			p.t.Fatalf("PodSandboxStatus: %v", err)
		}
		addrs = append(addrs, a)
	}
	return addrs
}

// Exec runs a command in the pod's container; a failure ends the test.
func (p *Pod) Exec(args ...string) string {
	p.t.Helper()
	reply, err := p.runtime.ExecSync(p.t.Context(), &cri.ExecSyncRequest{ContainerId: p.container, Cmd: args, Timeout: 30})
	if err == nil && reply.ExitCode != 0 {
		err = fmt.Errorf("exit code %d\n%s%s", reply.ExitCode, reply.Stdout, reply.Stderr)
	}
	if err != nil {
		p.t.Fatalf("%s in pod %s: %v", strings.Join(args, " "), p.ID, err)
	}
	return string(reply.Stdout)
}

// Destroy ends the pod as a kubelet does.
func (p *Pod) Destroy() {
	p.t.Helper()
	if _, err := p.runtime.StopPodSandbox(p.t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Fatalf("StopPodSandbox: %v", err)
	}
	if _, err := p.runtime.RemovePodSandbox(p.t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.t.Fatalf("RemovePodSandbox: %v", err)
	}
}
