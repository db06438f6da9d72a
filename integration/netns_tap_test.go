package integration

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// machineAt stands for a virtual machine at a tap: it answers ARP and ICMP echo for its address, as QEMU's guest would, and asks for its
// gateway by ARP when it is told to. What it sent must not come back.
func machineAt(t *testing.T, netns, tap string, mac net.HardwareAddr, addr, gateway netip.Addr) (ask func()) {
	t.Helper()
	var fd int
	err := ns.WithNetNSPath(netns, func(ns.NetNS) (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(tap)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	if err != nil {
		t.Fatalf("%s: %v", tap, err)
	}
	f := os.NewFile(uintptr(fd), tap)
	t.Cleanup(func() { f.Close() })
	request := append(bytes.Repeat([]byte{0xff}, 6), mac...)
	request = append(request, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	request = append(append(request, mac...), addr.AsSlice()...)
	request = append(append(request, make([]byte, 6)...), gateway.AsSlice()...)
	go func() {
		frame := make([]byte, 9000)
		for {
			n, err := f.Read(frame)
			if err != nil {
				return
			}
			if n > 12 && bytes.Equal(frame[6:12], mac) {
				t.Errorf("the machine hears itself: %x", frame[:n])
			}
			if answer := answerOf(frame[:n], mac, addr.AsSlice()); answer != nil {
				_, _ = f.Write(answer)
			}
		}
	}()
	return func() {
		if _, err := f.Write(request); err != nil {
			t.Errorf("%s: %v", tap, err)
		}
	}
}

// answerOf is the answer to a frame, nil if there is none.
func answerOf(frame []byte, mac net.HardwareAddr, addr []byte) []byte {
	const arp, ipv4 = 0x0806, 0x0800
	if len(frame) < 42 {
		return nil
	}
	out := bytes.Clone(frame)
	copy(out, frame[6:12])
	copy(out[6:], mac)
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == arp && frame[21] == 1 && bytes.Equal(frame[38:42], addr):
		out[21] = 2
		copy(out[22:], mac)
		copy(out[28:], addr)
		copy(out[32:], frame[22:32])
	case kind == ipv4 && frame[23] == unix.IPPROTO_ICMP && frame[34] == 8 && bytes.Equal(frame[30:34], addr):
		copy(out[26:], frame[30:34])
		copy(out[30:], frame[26:30])
		out[34] = 0
		sum := uint32(binary.BigEndian.Uint16(frame[36:])) + 0x0800
		binary.BigEndian.PutUint16(out[36:], uint16(sum+sum>>16))
	default:
		return nil
	}
	return out
}

func parseMAC(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// TestNetnsTap gives a virtual machine a tap with the address, the MAC and the guard of a container.
func TestNetnsTap(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	name := m.Name + "vm"
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() }) // should del not come to it
	for _, bad := range []struct{ tap, want string }{{"a/b", "exit status 2"}, {"eth0", "has an interface of this name already"}, {"br-tap", "has an interface of this name already"}} {
		out, err := m.Run(m.overlayctl("netns", "add", name, "--tap", bad.tap)...)
		if err == nil || !strings.Contains(err.Error(), bad.want) || out != "" {
			t.Errorf("--tap %s: %v, %s, want %q", bad.tap, err, out, bad.want)
		}
		if _, err := os.Stat(netnsDir + "/" + name); err == nil {
			t.Errorf("--tap %s: the namespace is left", bad.tap)
		}
		if files := leases(filesUnder(t, m.varLib)); len(files) != 0 {
			t.Errorf("--tap %s: files %q left", bad.tap, files)
		}
	}
	var made struct {
		Path string
		Tap  struct {
			MAC                 string
			Addresses, Gateways []string
			MTU                 int
		}
	}
	if err := json.Unmarshal([]byte(m.Must(m.overlayctl("netns", "add", name, "--tap", "tap0", "-o", "json")...)), &made); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(append(made.Tap.Addresses, made.Tap.Gateways...), " "); got != "10.5.7.3/24 10.5.7.1" && got != "10.5.7.4/24 10.5.7.1" || made.Tap.MTU != 1450 {
		t.Errorf("the machine is to have %+v", made.Tap)
	}
	mac := parseMAC(t, made.Tap.MAC)
	addr := netip.MustParsePrefix(made.Tap.Addresses[0]).Addr()
	ask := machineAt(t, made.Path, "tap0", mac, addr, netip.MustParseAddr(made.Tap.Gateways[0]))
	for range 2 {
		m.Must("ping", "-n", "-c1", "-w15", addr.String())
		ask() // no bridge may learn that it is elsewhere
	}
	if shown := m.Must("ip", "-n", name, "-o", "address", "show", "scope", "global"); shown != "" {
		t.Errorf("the namespace has addresses itself:\n%s", shown)
	}
	if list := m.Must(m.overlayctl("netns", "list")...); !strings.Contains(list, addr.String()) {
		t.Errorf("list does not know the machine's address:\n%s", list)
	}
	m.Must(m.overlayctl("netns", "del", name)...)
	if files := leases(filesUnder(t, m.varLib)); len(files) != 0 {
		t.Errorf("files %q left", files)
	}
	if links := m.Must("ip", "-o", "link", "show", "type", "veth"); strings.Contains(links, "oveth") {
		t.Errorf("links left: %s", links)
	}
}

// TestNetnsBridge gives what has its own NICs a bridge on the host, behind which one of them has the address of a container.
func TestNetnsBridge(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	name := m.Name + "vm"
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() }) // should del not come to it
	for bridge, want := range map[string]string{"lo": "the host has an interface of this name already", "a/b": "exit status 2"} {
		if out, err := m.Run(m.overlayctl("netns", "add", name, "--bridge", bridge)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--bridge %s: %v, %s, want %q", bridge, err, out, want)
		}
		if files := leases(filesUnder(t, m.varLib)); len(files) != 0 {
			t.Errorf("--bridge %s: files %q left", bridge, files)
		}
	}
	before := m.Must("ip", "-br", "link")
	var made struct {
		Bridge struct {
			Name, MAC           string
			Addresses, Gateways []string
		}
	}
	if err := json.Unmarshal([]byte(m.Must(m.overlayctl("netns", "add", name, "--bridge", "to-vm", "-o", "json")...)), &made); err != nil {
		t.Fatal(err)
	}
	other := m.lab.node("other") // a container of somebody else's, whose runtime knows bridges only
	m.Must("ip", "link", "add", "nic", "up", "master", "to-vm", "type", "veth", "peer", "name", "eth0", "address", made.Bridge.MAC, "netns", other.Name)
	other.Exec("ip", "link", "set", "eth0", "up")
	other.Exec("ip", "address", "add", made.Bridge.Addresses[0], "dev", "eth0")
	other.Exec("ip", "route", "add", "default", "via", made.Bridge.Gateways[0])
	other.Exec("ping", "-n", "-c1", "-W5", made.Bridge.Gateways[0])
	m.Must("ping", "-n", "-c1", "-W5", strings.TrimSuffix(made.Bridge.Addresses[0], "/24"))
	m.Must("ip", "link", "delete", "nic")
	m.Must(m.overlayctl("netns", "del", name)...)
	if files := leases(filesUnder(t, m.varLib)); len(files) != 0 {
		t.Errorf("files %q left", files)
	}
	if after := m.Must("ip", "-br", "link"); strings.Contains(after, "to-vm") || strings.Contains(after, "ovport") || strings.Count(after, "\n") != strings.Count(before, "\n") {
		t.Errorf("links left:\n%s", after)
	}
}
