package integration

import (
	"encoding/json"
	"fmt"
	"testing"
)

// doctor runs overlayctl doctor on the host and returns the level and the text of each check, and whether it exits
// with 0.
func (h *Host) doctor(flags ...string) (levels, texts map[string]string, failed error) {
	h.t.Helper()
	out, failed := h.TryOverlayctl(append(flags, "doctor", "--run-dir", h.RunDir, "-o", "json")...)
	var found []struct{ Check, Level, Text string }
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		h.t.Fatalf("overlayctl doctor: %v, %v in %q", failed, err, out)
	}
	levels, texts = map[string]string{}, map[string]string{}
	for _, f := range found {
		levels[f.Check], texts[f.Check] = f.Level, f.Text
	}
	return levels, texts, failed
}

// TestDoctor finds nothing on hosts that are well, whatever the backend, and changes nothing; then it finds what was
// done to them.
func TestDoctor(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, backend.Config)
			hosts := lab.NewHosts(wire, 3)
			startAll(t, hosts, "--ip-masq")
			before := hosts[0].Dump()
			var texts map[string]string
			eventually(t, "nothing fails", func() error {
				levels, said, failed := hosts[0].doctor()
				texts = said
				if levels["etcd access"] != "fail" || failed == nil { // the lab's etcd is plaintext for all
					return fmt.Errorf("etcd access: %s: %s", levels["etcd access"], texts["etcd access"])
				}
				delete(levels, "etcd access")
				for check, level := range levels {
					if level != "ok" && check != "clock" && level != "skip" {
						return fmt.Errorf("%s: %s: %s", check, level, texts[check])
					}
				}
				return nil
			})
			for check, text := range texts {
				t.Logf("%s: %s", check, text)
			}
			sameDump(t, hosts[0].Node, before)

			hosts[1].Exec("ip", "link", "set", "eth0", "down")
			levels, texts, failed := hosts[0].doctor()
			if failed == nil || levels["peers"] != "fail" {
				t.Errorf("a peer is gone, and doctor says %s: %s (%v)", levels["peers"], texts["peers"], failed)
			}
		})
	}
}
