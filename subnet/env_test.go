package subnet

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const dualEnv = `FLANNEL_NETWORK=10.7.0.0/16
FLANNEL_SUBNET=10.7.100.1/24
FLANNEL_IPV6_NETWORK=fc00:7::/48
FLANNEL_IPV6_SUBNET=fc00:7:0:4c::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
`

func TestParseEnvRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, raw, want string }{
		{"empty", "", "line FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK is missing: the file is incomplete or still being written"},
		{"no network", "FLANNEL_SUBNET=10.7.100.1/24\n", "line FLANNEL_NETWORK is missing: the file is incomplete or still being written"},
		{"no subnet", "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n", "line FLANNEL_SUBNET is missing: the file is incomplete or still being written"},
		{"no MTU", "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=10.7.100.1/24\nFLANNEL_IPMASQ=true\n", "line FLANNEL_MTU is missing: the file is incomplete or still being written"},
		{"no masq", "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUBNET=10.7.100.1/24\nFLANNEL_MTU=1450\n", "line FLANNEL_IPMASQ is missing: the file is incomplete or still being written"},
		{"no =", "FLANNEL_NETWORK=10.7.0.0/16\nFLANNEL_SUB", `line 2: "FLANNEL_SUB" has no =`},
		{"quotes", `FLANNEL_NETWORK="10.7.0.0/16`, `line 1: "10.7.0.0/16: the quotes do not match`},
		{"text behind quotes", `FLANNEL_NETWORK="10.7.0.0/16" x`, `line 1: "10.7.0.0/16" x: the quotes do not match`},
		{"network text", strings.Replace(dualEnv, "10.7.0.0/16", "10.7.0.0", 1), `FLANNEL_NETWORK: "10.7.0.0" is not an IPv4 range in the form <address>/<length>`},
		{"network family", strings.Replace(dualEnv, "10.7.0.0/16", "fc00::/48", 1), `FLANNEL_NETWORK: "fc00::/48" is not an IPv4 range in the form <address>/<length>`},
		{"second network", strings.Replace(dualEnv, "10.7.0.0/16", "10.7.0.0/16,", 1), `FLANNEL_NETWORK: "" is not an IPv4 range in the form <address>/<length>`},
		{"subnet family", strings.Replace(dualEnv, "fc00:7:0:4c::1/64", "10.7.100.1/24", 1), `FLANNEL_IPV6_SUBNET: "10.7.100.1/24" is not an IPv6 range in the form <address>/<length>`},
		{"two subnets", strings.Replace(dualEnv, "10.7.100.1/24", "10.7.100.1/24,10.7.101.1/24", 1), "FLANNEL_SUBNET: 2 subnets, but a host has one"},
		{"MTU text", strings.Replace(dualEnv, "1450", "big", 1), `FLANNEL_MTU: "big" is not a number of bytes up to 65535`},
		{"MTU below zero", strings.Replace(dualEnv, "1450", "-1", 1), `FLANNEL_MTU: "-1" is not a number of bytes up to 65535`},
		{"masq", strings.Replace(dualEnv, "true", "tru", 1), `FLANNEL_IPMASQ: "tru" is neither true nor false`},
		{"huge", strings.Repeat("#", 1<<20), "1048576 bytes are too many: at most 65536 are read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, err := ParseEnv([]byte(tt.raw))
			if err == nil {
				t.Fatalf("accepted as %+v", e)
			}
			if diff := cmp.Diff("subnet env: "+tt.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

// TestParseEnvHalfWritten cuts a file at every byte: but for the last line's end, each is needed.
func TestParseEnvHalfWritten(t *testing.T) {
	t.Parallel()
	for i := range len(dualEnv) - 1 {
		if e, err := ParseEnv([]byte(dualEnv[:i])); err == nil {
			t.Errorf("%q is accepted as %+v", dualEnv[:i], e)
		}
	}
}

func TestParseEnv(t *testing.T) {
	t.Parallel()
	v4 := Env{[]netip.Prefix{prefix("10.7.0.0/16")}, []netip.Prefix{prefix("10.7.100.1/24")}, 1472, false}
	tests := []struct {
		name, raw string
		want      Env
	}{
		{"dual", dualEnv, Env{
			[]netip.Prefix{prefix("10.7.0.0/16"), prefix("fc00:7::/48")},
			[]netip.Prefix{prefix("10.7.100.1/24"), prefix("fc00:7:0:4c::1/64")}, 1450, true}},
		{"IPv6 alone", "FLANNEL_IPV6_NETWORK=fc00:7::/48\nFLANNEL_IPV6_SUBNET=fc00:7:0:4c::1/64\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=true", Env{
			[]netip.Prefix{prefix("fc00:7::/48")}, []netip.Prefix{prefix("fc00:7:0:4c::1/64")}, 0, true}},
		{"any order, comments, quotes", "# ours\n\nexport FLANNEL_IPMASQ='false' # no\r\n FLANNEL_MTU = 1472 # bytes\nOTHER=\nFLANNEL_SUBNET=\"10.7.100.1/24\"\nFLANNEL_NETWORK=10.7.3.0/16", v4},
		{"two networks", "FLANNEL_NETWORK=10.7.0.0/16, 10.8.0.0/16\nFLANNEL_SUBNET=10.7.100.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", Env{
			[]netip.Prefix{prefix("10.7.0.0/16"), prefix("10.8.0.0/16")}, v4.Subnets, 1472, false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := ParseEnv([]byte(tt.raw))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, compareNetip); diff != "" {
				t.Errorf("env (-want +got):\n%s", diff)
			}
		})
	}
	e, _ := ParseEnv([]byte(dualEnv))
	if diff := cmp.Diff(dualEnv, string(e.Format())); diff != "" {
		t.Errorf("Format (-want +got):\n%s", diff)
	}
}

func TestGateway(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{
		"10.5.72.0/24": "10.5.72.1/24", "10.5.72.9/24": "10.5.72.1/24", "10.5.72.4/30": "10.5.72.5/30", "fc00:7:0:4c::/64": "fc00:7:0:4c::1/64",
	} {
		if got := Gateway(prefix(p)); got != prefix(want) {
			t.Errorf("Gateway(%s) = %s, want %s", p, got, want)
		}
	}
}

func TestReadEnvRefuses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "subnet.env")
	if _, err := ReadEnv(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("absent file: %v", err)
	}
	if err := os.WriteFile(path, []byte(dualEnv[:40]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadEnv(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("half a file: %v", err)
	}
}

// TestWriteEnv sets the umask of the process: not parallel.
func TestWriteEnv(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	want, err := ParseEnv([]byte(dualEnv))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "overlayd", "subnet.env")
	if err := WriteEnv(path, Env{}); err == nil {
		t.Error("an empty env is written")
	}
	if _, err := os.Stat(filepath.Join(dir, "run")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused env leaves a directory: %v", err)
	}
	for range 2 { // the second time, over a file that is there and has another mode
		if err := WriteEnv(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadEnv(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, compareNetip); diff != "" {
			t.Errorf("env (-want +got):\n%s", diff)
		}
		for name, mode := range map[string]fs.FileMode{path: 0o644, filepath.Dir(path): fs.ModeDir | 0o755, filepath.Join(dir, "run"): fs.ModeDir | 0o755} {
			if info, err := os.Stat(name); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, mode %s, want %s", name, err, info.Mode(), mode)
			}
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("files beside subnet.env: %v, %v", names, err)
	}
	if err := WriteEnv(filepath.Join(path, "below", "a file"), want); err == nil {
		t.Error("a file is taken for a directory")
	}
}

func FuzzParseEnv(f *testing.F) {
	f.Add([]byte(dualEnv))
	f.Add([]byte("FLANNEL_NETWORK=10.7.0.0/16, 10.8.0.0/16\nexport FLANNEL_SUBNET='10.7.100.1/24' # x\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=false"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := ParseEnv(raw)
		if err != nil {
			return
		}
		text := e.Format()
		again, err := ParseEnv(text)
		if err != nil {
			if len(text) > maxDocument { // addresses may be longer in their canonical form
				return
			}
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(e, again, compareNetip); diff != "" {
			t.Errorf("%q (-first +second):\n%s", raw, diff)
		}
		if !slices.Equal(text, again.Format()) {
			t.Errorf("%q turns into %q", text, again.Format())
		}
	})
}
