// Command overlay is overlayd's CNI plugin, and netavark's (see [netavark]). It gives a container an address of this host's lease by running the
// reference plugins (bridge and host-local unless told otherwise) with a configuration made from the network
// configuration and from subnet.env, and it remembers what it ran, so that a container can be detached when the
// daemon, subnet.env, the network configuration and the container itself are all gone.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// buildVersion is set by the linker (-X main.buildVersion=v1.2.3). It must stay a semantic version: Nomad finds a
// plugin by running it with no arguments and looking for one in its output.
var buildVersion = "v0.1.0-dev"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout))
}

func run(args []string, stdout io.Writer) int {
	about := "CNI overlay plugin " + buildVersion
	if slices.ContainsFunc(args, func(a string) bool { return a == "--version" || a == "-version" }) {
		fmt.Fprintln(stdout, about)
		return 0
	}
	if isNetavark(args) {
		return netavark(args, os.Stdin, stdout)
	}
	// A runtime that gives up ends its plugin: then the delegate is ended too and what it made is undone.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	p := newPlugin(&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}, stdout)
	versions := version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
	if err := skel.PluginMainFuncsWithError(p.funcs(ctx), versions, about); err != nil {
		return printError(err)
	}
	return 0
}

// printError answers the runtime with err, as JSON on stdout.
func printError(err *types.Error) int {
	if err := err.Print(); err != nil {
		fmt.Fprintln(os.Stderr, "overlay: cannot print the error:", err)
	}
	return 1
}
