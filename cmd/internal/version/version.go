// Package version says which build of overlayd a binary is.
package version

import "runtime/debug"

// number is set by the linker: -ldflags "-X github.com/overlayd/overlayd/cmd/internal/version.number=v1.2.3".
var number string

// String is the version of the binary: what the linker was told, else what the Go tool recorded, else "devel".
func String() string {
	if number != "" {
		return number
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
