package subnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"
)

// TestSetUnderAttack loads sets that a naive implementation needs minutes for.
func TestSetUnderAttack(t *testing.T) {
	t.Parallel()
	const n = 10_000
	attacks := map[string]func(i int) string{
		"garbage":               func(i int) string { return fmt.Sprintf("garbage-%d", i) },
		"one subnet":            func(i int) string { return fmt.Sprintf("10.5.9.0-24&fc00:5:0:%x::-64", i+1) },
		"all below the oldest":  func(i int) string { return nested(i, 14) },
		"all below the newest":  func(i int) string { return nested(n-1-i, 14) },
		"every length":          func(i int) string { return nested(i/18, 14+i%18) },
		"outside":               func(i int) string { return fmt.Sprintf("11.%d.%d.0-24", i/256, i%256) },
		"all in the other form": func(i int) string { return fmt.Sprintf("10.005.%d.0-24", i) },
	}
	for name, key := range attacks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := NewSet(mustNetwork(t, `{"Network":"10.0.0.0/8","SubnetLen":18,"EnableIPv6":true,"IPv6Network":"fc00:5::/48"}`))
			start := time.Now()
			for i := range n {
				s.Put(KeyValue{key(i), []byte(valueA), int64(i), int64(i), 1})
			}
			for i := range n {
				s.Delete(key(i))
			}
			// Some 50 ms; the bound is for a busy machine with the race detector.
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if s.Len() != 0 || len(visible(s)) != 0 || s.subnets.Size() != 0 {
				t.Errorf("%d leases and %d subnets are left of an empty set", s.Len(), s.subnets.Size())
			}
		})
	}
}

// nested returns a wide key for 0 and narrow keys below it for the others.
func nested(i, wide int) string {
	if i == 0 {
		return fmt.Sprintf("10.0.0.0-%d", wide)
	}
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), max(wide, 28)).Masked()
	return fmt.Sprintf("%s-%d", p.Addr(), p.Bits())
}

// TestSetKeepsNoRejectedValue is not parallel: it measures the heap.
func TestSetKeepsNoRejectedValue(t *testing.T) {
	const n, most = 1500, 2 << 20
	for name, value := range map[string]string{
		"long data":        `{"PublicIP":"172.30.0.1","BackendData":"%60000d"}`,
		"long and empty":   `{"PublicIP":"172.30.0.1"}%60000s`,
		"not JSON":         `%04000d`,
		"no address":       `{"PublicIP":"%04000d"}`,
		"a long name":      `{"PublicIP":"172.30.0.1","Host":"%04000d"}`,
		"a long key":       `{"PublicIP":"172.30.0.1","%04000d":nonsense}`,
		"data, no address": `{"BackendType":"vxlan","BackendData":"%04000d"}`,
	} {
		s, padded := NewSet(mustNetwork(t, "10.0.0.0/8")), fmt.Appendf(nil, value, 0)
		before := heap()
		for i := range n {
			s.Put(KeyValue{keyOf(s.network.Slot(uint64(i))), bytes.Clone(padded), int64(i), int64(i), 1})
		}
		after := heap()
		if s.Len() != 0 {
			t.Errorf("%s: %d count", name, s.Len())
		}
		if after > before+most {
			t.Errorf("%s: %d rejected keys hold %d kB", name, n, (after-before)>>10)
		}
		runtime.KeepAlive(s)
	}
}

// heap is what is left after a collection, in bytes.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func BenchmarkSetPut(b *testing.B) {
	for _, size := range []int{10, 10_000, 60_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			before := heap()
			n := mustNetwork(b, "10.0.0.0/8")
			s := NewSet(n)
			keys := make([]string, size)
			value := func(i int) []byte {
				return fmt.Appendf(nil, `{"PublicIP":"172.%d.%d.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:96:93:%02x:%02x:%02x"},"HostID":"%032x","Host":"node-%d"}`,
					16+i>>16, byte(i>>8), byte(i), byte(i>>16), byte(i>>8), byte(i), i, i)
			}
			for i := range size {
				keys[i] = keyOf(n.Slot(uint64(i)))
				s.Put(KeyValue{keys[i], value(i), int64(i), int64(i), int64(i)})
			}
			after := heap()
			again := value(0)
			rev := int64(size)
			b.ReportAllocs()
			for b.Loop() {
				key := keys[rev%int64(size)]
				s.Delete(key)
				s.Put(KeyValue{key, again, rev, rev, 1})
				rev++
			}
			b.ReportMetric(float64(after-before)/float64(size), "B/lease")
		})
	}
}
