package fastpath

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

func newPath(t *testing.T) *Path {
	t.Helper()
	p, err := New(Config{Namespace: nstest.New(t), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	return p
}

// The committed object is what the compiler makes of the source.
func TestObjectIsOfItsSource(t *testing.T) {
	if _, err := exec.LookPath("clang-14"); err != nil {
		t.Skip("needs clang-14 and llvm-14 to compile, and libbpf-dev for headers")
	}
	dir := t.TempDir()
	text, err := os.ReadFile("fastpath.go")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "//go:generate ")
	line, _, _ = strings.Cut(line, "\n")
	args := strings.Fields(strings.Replace(line, " program ", " -output-dir "+dir+" program ", 1))
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=fastpath")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	for _, name := range []string{"program_bpfel.o", "program_bpfel.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		got, err2 := os.ReadFile(name)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what %s and fastpath.c make: go generate ./backend/fastpath", name, "clang-14")
		}
	}
}

// A daemon with fewer rights takes what was pinned before, and finds nothing of its forerunner in it.
func TestPinned(t *testing.T) {
	bpffs := t.TempDir()
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(bpffs, unix.MNT_DETACH) })
	dir := filepath.Join(bpffs, "overlayd")
	cfg := Config{Namespace: nstest.New(t), Log: slog.New(slog.DiscardHandler), Pinned: dir}
	if _, err := New(cfg); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("with nothing there: %v", err)
	}
	if err := Load(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var own programOwn
		if err := p.kernel.Consts.Lookup(uint32(0), &own); err != nil || own.Underlay != 0 {
			t.Errorf("%+v, %v", own, err)
		}
		for name, m := range map[string]*ebpf.Map{"peers": p.kernel.Peers, "locals": p.kernel.Locals} {
			if k, err := m.NextKeyBytes(nil); k != nil || err != nil {
				t.Errorf("%s has %x, %v", name, k, err)
			}
		}
		f := families["IPv4"]
		p.SetOwn(Own{Underlay: 1, MTU: 1400, Tunnels: []Tunnel{{Addr: f.host, Port: 8472, VNI: 1, MAC: vtep}}})
		p.Replace([]Claim{{"a", []Peer{{Subnet: netip.PrefixFrom(f.remote, 24), Host: f.peer, MAC: peerVTEP, VNI: 1}}}})
		p.SetContainers([]Container{{Index: 1, Addrs: []netip.Addr{f.local}}})
		if s := p.Status(); s.Peers != 1 || len(s.Slow) != 0 {
			t.Errorf("%+v", s)
		}
	}
	if err := Load(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}
