package integration

import (
	"os/exec"
	"testing"

	"github.com/prometheus/procfs"
)

// BenchmarkBackends measures container to container over each kind of backend that this kernel can, or a process in its place,
// against host to host in the same rounds, none on the fast path. CPU is the whole machine's: wireguard encrypts in threads of
// the kernel, or in a process.
func BenchmarkBackends(b *testing.B) {
	v4 := Stack{V4: true}
	paths := []path{newHostPath(b, "host", v4)}
	for _, way := range []struct{ name, backend, module string }{
		{"vxlan", `{"Type":"vxlan"}`, ""},
		{"host-gw", `{"Type":"host-gw"}`, ""},
		{"ipip", `{"Type":"ipip"}`, "ipip"},
		{"wireguard", `{"Type":"wireguard"}`, ""},
		{"udp", `{"Type":"udp"}`, ""},
	} {
		if way.module != "" && exec.Command("modprobe", "-n", way.module).Run() != nil {
			b.Logf("%s: this kernel has no module %s", way.name, way.module)
			continue
		}
		paths = append(paths, newOverlayPath(b, overlay{
			name: way.name, stack: v4, backend: way.backend, slow: [2]bool{true, true},
			delegate: map[string]any{"isDefaultGateway": true}, script: ":",
		}))
	}
	seen := make([]samples, len(paths))
	for range loadRounds {
		for k := range loads {
			for i, p := range paths {
				before := busy(b)
				seen[i].take(b, k, p)
				seen[i][k][len(seen[i][k])-1].cpu = busy(b) - before // of kernel threads and processes too
			}
		}
	}
	for i, p := range paths {
		b.Run(p.name, func(b *testing.B) { seen[i].report(b, seen[0]) })
	}
}

// busy is how long all CPUs together have been busy since the machine started, in seconds.
func busy(t testing.TB) float64 {
	t.Helper()
	fs, err := procfs.NewDefaultFS()
	must(t, err)
	stat, err := fs.Stat()
	must(t, err)
	c := stat.CPUTotal
	return c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ
}
