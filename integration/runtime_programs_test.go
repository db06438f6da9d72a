package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// runtimesDirEnv names a directory with containerd 2, its ctr and shim, and nerdctl, and below "debian" podman and
// Docker: `make test-runtimes` fills one. Without it the distribution's containerd is run and the others are not.
const runtimesDirEnv = "OVERLAYD_RUNTIMES_DIR"

// runtimeProgram is the path of a program of the runtime under test; without one it is the bare name.
func runtimeProgram(name string) string {
	if dir := os.Getenv(runtimesDirEnv); dir != "" {
		return filepath.Join(dir, name)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return name
	}
	return path
}

// runtimePath is the PATH that makes containerd find the shim that belongs to it.
func runtimePath() string {
	return "PATH=" + filepath.Dir(runtimeProgram("containerd")) + ":" + os.Getenv("PATH")
}

// needRuntimes skips the tests of runtimes that take too long to get for every run.
func needRuntimes(t *testing.T) {
	t.Helper()
	if os.Getenv(runtimesDirEnv) == "" {
		t.Skip("needs a runtime that make test does not get: make test-runtimes")
	}
}

// unpacked is the path of a file of a Debian package that is not installed.
func unpacked(name string) string { return filepath.Join(os.Getenv(runtimesDirEnv), "debian", name) }

// unpackedPath is the PATH that has the unpacked programs too.
func unpackedPath() string {
	return "PATH=" + unpacked("usr/bin") + ":" + unpacked("usr/sbin") + ":" + os.Getenv("PATH")
}
