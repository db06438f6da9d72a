// Overlayd gives every container on every bare host its own address on one network: it claims a subnet lease for
// its host in etcd, keeps it, follows the other hosts' leases and programs the kernel after them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/cmd/internal/man"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cmd/internal/version"
)

// Exit codes, a promise to scripts.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if extension.Keeping() {
		os.Exit(extension.Keep())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := command(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "overlayd: %v\n", err)
		var usage usageError
		if errors.As(err, &usage) {
			os.Exit(exitUsage)
		}
		os.Exit(exitFailed)
	}
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func command(stdout, stderr io.Writer) *cobra.Command {
	var cleanup, manual, check, forceNew, loadFast bool
	var restore string
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	new(settings.Daemon).Register(declared)

	cmd := &cobra.Command{
		Use:           "overlayd",
		Short:         "An overlay network for containers on bare hosts, kept in etcd",
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q: overlayd takes flags only, see overlayd --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if manual {
				_, err := stdout.Write(man.Page(cmd))
				return err
			}
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
				return usageError{errors.New("--cleanup, --dry-run, --force-new-cluster and --restore-etcd exclude each other: see overlayd --help")}
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
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.SetVersionTemplate("overlayd {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see overlayd --help", err)}
	})
	cmd.Flags().AddFlagSet(declared)
	cmd.Flags().BoolVar(&cleanup, "cleanup", false, "leave the network: give the lease back, remove everything from the kernel, and exit")
	cmd.Flags().BoolVar(&forceNew, "force-new-cluster", false, "make this host the only member of the embedded etcd, when most are lost for good, and exit")
	cmd.Flags().StringVar(&restore, "restore-etcd", "", "make the embedded etcd's data from a snapshot, a `file`, and exit")
	cmd.Flags().BoolVar(&manual, "man", false, "print the manual page, and exit")
	cmd.Flags().BoolVar(&check, "check", false, "read the configuration and the files that it names, and exit")
	cmd.Flags().BoolVar(&loadFast, "load-fast-path", false, "load the programs of the fast path for the daemon, which may not, and exit")
	for _, name := range []string{"man", "check", "load-fast-path"} { // for packages, overlayctl init and join, and the unit
		_ = cmd.Flags().MarkHidden(name) // the flag exists
	}
	return cmd
}

// more reports whether more than one is set.
func more(set ...bool) bool {
	return len(slices.DeleteFunc(set, func(is bool) bool { return !is })) > 1
}
