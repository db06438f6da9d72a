package identity

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/policy"
)

// TestFiles reads what was written, and says what is wrong with what others planted there.
func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	web := policy.Endpoint{
		IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")},
		Identity: policy.Identity{Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"},
			Ports: []policy.NamedPort{{Name: "http", Port: 80, Protocol: policy.TCP}}},
	}
	for range 2 {
		if err := WriteFile(dir, "docker-1", web); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(dir, "docker-2", policy.Endpoint{}); err == nil {
		t.Error("an endpoint without an address is written")
	}
	plant := map[string]string{
		"empty":     "",
		"unknown":   `{"ips":["10.0.0.1"],"identity":{"namespace":"default","name":"a"},"more":1}`,
		"nothing":   `{}`,
		"namespace": `{"ips":["10.0.0.1"],"identity":{"namespace":"../x","name":"a"}}`,
		"name":      `{"ips":["10.0.0.1"],"identity":{"namespace":"default","name":"a\u001b"}}`,
		"label":     `{"ips":["10.0.0.1"],"identity":{"namespace":"default","name":"a","labels":{"a b":"c"}}}`,
		"port":      `{"ips":["10.0.0.1"],"identity":{"namespace":"default","name":"a","ports":[{"name":"http","port":0,"protocol":"TCP"}]}}`,
		"address":   `{"ips":["127.0.0.1"],"identity":{"namespace":"default","name":"a"}}`,
		"mapped":    `{"ips":["::ffff:10.0.0.1"],"identity":{"namespace":"default","name":"a"}}`,
		"large":     strings.Repeat(" ", maxFile+1),
	}
	for id, text := range plant {
		if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("docker-1.json", filepath.Join(dir, "link.json")); err != nil {
		t.Fatal(err)
	}
	plant["fifo"], plant["link"] = "", ""
	all, unread, err := ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]policy.Endpoint{"docker-1": web}, all, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("read (-want +got):\n%s", diff)
	}
	for id := range plant {
		if unread[id] == nil {
			t.Errorf("%s is not refused", id)
		}
	}
	for range 2 {
		if err := RemoveFile(dir, "docker-1"); err != nil {
			t.Error(err)
		}
	}
	if all, _, err := ReadDir(filepath.Join(dir, "none")); err != nil || len(all) > 0 {
		t.Errorf("no directory: %v, %v", all, err)
	}
}
