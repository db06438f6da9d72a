// Overlayd gives every container on every bare host its own address on one network: it claims a subnet lease for
// its host in etcd, keeps it, follows the other hosts' leases and programs the kernel after them.
package main

import (
	"errors"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/cmd/internal/program"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

func main() {
	if extension.Keeping() {
		os.Exit(extension.Keep())
	}
	program.Main(command(os.Stdout, os.Stderr))
}

func command(stdout, stderr io.Writer) *cobra.Command {
	var cleanup, check, forceNew, loadFast bool
	var restore string
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	new(settings.Daemon).Register(declared)

	cmd := &cobra.Command{
		Use:   "overlayd",
		Short: "An overlay network for containers on bare hosts, kept in etcd",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := source{declared, stderr}.config()
			if err != nil {
				return err
			}
			switch {
			case loadFast:
				return cfg.loadFastPath(stdout)
			case check:
				return cfg.check()
			case more(cleanup, forceNew, restore != "", cfg.told.DryRun):
				return program.Misuse(errors.New("--cleanup, --dry-run, --force-new-cluster and --restore-etcd exclude each other: see overlayd --help"))
			case forceNew:
				return cfg.forceNewCluster(cmd.Context(), stdout)
			case restore != "":
				return cfg.restoreEtcd(restore, stdout)
			case cleanup:
				return cfg.cleanup(cmd.Context(), stdout)
			case cfg.told.DryRun:
				return cfg.dryRun(cmd.Context(), stdout)
			}
			return cfg.run(cmd.Context())
		},
	}
	cmd.Flags().AddFlagSet(declared)
	cmd.Flags().BoolVar(&cleanup, "cleanup", false, "leave the network: give the lease back, remove everything from the kernel, and exit")
	cmd.Flags().BoolVar(&forceNew, "force-new-cluster", false, "make this host the only member of the embedded etcd, when most are lost for good, and exit")
	cmd.Flags().StringVar(&restore, "restore-etcd", "", "make the embedded etcd's data from a snapshot, a `file`, and exit")
	cmd.Flags().BoolVar(&check, "check", false, "read the configuration and the files that it names, and exit")
	cmd.Flags().BoolVar(&loadFast, "load-fast-path", false, "load the programs of the fast path for the daemon, which may not, and exit")
	for _, name := range []string{"check", "load-fast-path"} { // for packages, overlayctl init and join, and the unit
		_ = cmd.Flags().MarkHidden(name) // the flag exists
	}
	return program.Finish(cmd, stdout, stderr)
}

// more reports whether more than one is set.
func more(set ...bool) bool {
	return len(slices.DeleteFunc(set, func(is bool) bool { return !is })) > 1
}
