package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// imageName is a name that CRI and nerdctl take for what it is.
const imageName = "localhost/overlayd/busybox:1"

// busyboxImage writes an OCI layout of one image with one layer, which is busybox and a page for its web server, and
// returns the path of the archive.
func busyboxImage(t testing.TB) string {
	t.Helper()
	var image tarFile
	blob := func(mediaType string, content []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		image.add(t, tar.Header{Name: "blobs/sha256/" + digest, Mode: 0o644}, content)
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(content)}
	}
	layer := blob("application/vnd.oci.image.layer.v1.tar", busyboxLayer(t))
	config := blob("application/vnd.oci.image.config.v1+json", mustJSON(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Cmd": []string{"/bin/sleep", "infinity"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layer["digest"]}},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", mustJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []any{layer},
	}))
	manifest["annotations"] = map[string]string{"io.containerd.image.name": imageName}
	manifest["platform"] = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	image.add(t, tar.Header{Name: "index.json", Mode: 0o644},
		mustJSON(t, map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}))
	image.add(t, tar.Header{Name: "oci-layout", Mode: 0o644}, []byte(`{"imageLayoutVersion":"1.0.0"}`))

	path := filepath.Join(t.TempDir(), "busybox.tar")
	if err := os.WriteFile(path, image.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// pageText is what the image's web server answers.
const pageText = "hello from a container\n"

func busyboxLayer(t testing.TB) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("needs a static busybox: apt-get install busybox-static")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	needs, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if libraries, err := needs.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Fatalf("%s is not static, %v %v: apt-get install busybox-static", path, libraries, err)
	}
	var layer tarFile
	layer.add(t, tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, applet := range []string{"httpd", "ip", "nc", "ping", "sh", "sleep"} {
		layer.add(t, tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	layer.add(t, tar.Header{Name: "www/index.html", Mode: 0o644}, []byte(pageText))
	return layer.Bytes()
}

// tarFile is an archive in memory. It has no end marker, which readers do not need.
type tarFile struct{ bytes.Buffer }

func (f *tarFile) add(t testing.TB, header tar.Header, content []byte) {
	t.Helper()
	header.Size = int64(len(content))
	w := tar.NewWriter(&f.Buffer)
	if err := w.WriteHeader(&header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
