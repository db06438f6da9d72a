package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestConfiguredBridge finds the bridge that the host's CNI configurations give a network, past those of others.
func TestConfiguredBridge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for file, text := range map[string]string{
		"00-broken.conflist": `{"plugins":`,
		"05-other.conflist":  `{"name":"x","plugins":[{"type":"bridge","bridge":"br7"}]}`,
		"10-blue.conflist":   `{"name":"b","plugins":[{"type":"overlay","network":"blue","delegate":{"bridge":"blue0"}},{"type":"portmap"}]}`,
		"20-mine.conf":       `{"name":"m","type":"overlay","subnetFile":"/run/mine/subnet.env","delegate":{"bridge":"mine0"}}`,
		"30-ours.conflist":   `{"name":"o","plugins":[{"type":"overlay","network":"default","delegate":{"bridge":"overlay0"}}]}`,
		"40-late.conflist":   `{"name":"l","plugins":[{"type":"overlay","delegate":{"bridge":"late0"}}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, subnetFile, dir, want string }{
		{"", "/run/overlayd/subnet.env", dir, "overlay0"},
		{"", "/run/mine/subnet.env", dir, "mine0"},
		{"blue", "/run/overlayd/blue/subnet.env", dir, "blue0"},
		{"red", "/run/overlayd/red/subnet.env", dir, ""},
		{"", "/run/overlayd/subnet.env", filepath.Join(dir, "none"), ""},
	} {
		if got := (overlay{name: c.name, subnetFile: c.subnetFile}).configured(c.dir); got != c.want {
			t.Errorf("network %q of %s: %q, want %q", c.name, c.subnetFile, got, c.want)
		}
	}
}
