package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// boxExec runs plugins inside a box; the rest of libcni stays in the test.
type boxExec struct{ box *Box }

func (e boxExec) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := e.box.Command(e.box.inside(path)...)
	cmd.Env = append(cmd.Env, environ...)
	cmd.Env = append(cmd.Env, "CNI_PATH=/opt/cni/bin")
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var answer types.Error
		if json.Unmarshal(stdout.Bytes(), &answer) == nil && answer.Code != 0 {
			return nil, &answer
		}
		return nil, fmt.Errorf("%s: %w\n%s%s", path, err, &stdout, &stderr)
	}
	return stdout.Bytes(), nil
}

func (boxExec) FindInPath(plugin string, _ []string) (string, error) {
	return filepath.Join("/opt/cni/bin", plugin), nil
}

func (boxExec) Decode(answer []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(answer)
}

// shippedConflist is the configuration that `make install` installs. Its cniVersion is 1.0.0, since containerd 1.6
// refuses 1.1.0; given is another one.
func shippedConflist(t *testing.T, given string) []byte {
	t.Helper()
	b, err := os.ReadFile("../etc/10-overlay.conflist")
	if err != nil {
		t.Fatal(err)
	}
	old, wanted := []byte(`"cniVersion": "1.0.0"`), []byte(fmt.Sprintf(`"cniVersion": %q`, given))
	if !bytes.Contains(b, old) {
		t.Fatalf("the shipped configuration has no %s", old)
	}
	return bytes.Replace(b, old, wanted, 1)
}

// parseConflist reads a configuration as runtimes do.
func parseConflist(t *testing.T, conflist []byte) *libcni.NetworkConfigList {
	t.Helper()
	list, err := libcni.ConfListFromBytes(conflist)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
