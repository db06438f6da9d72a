// Overlayd-bgp tells routers by BGP which host has which subnet of the overlay. It follows the leases in etcd, and announces
// each with the host's own address as the next hop: one or two of it serve a network.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := command(os.Stdout, os.Stderr).ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "overlayd-bgp: %v\n", err)
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
	var client settings.Client
	var file string
	var manual bool
	load := func(cmd *cobra.Command) (config, error) {
		from, err := settings.Load(cmd.Root().PersistentFlags(), "overlayd")
		if err != nil {
			return config{}, err
		}
		client.UseEmbedded(from)
		return readConfig(file, client)
	}
	cmd := &cobra.Command{
		Use:   "overlayd-bgp",
		Short: "Announce the overlay's subnets to routers by BGP",
		Long: `Announce the overlay's subnets to routers by BGP: each lease in etcd, with the host's own address as next hop. Where etcd is,
it reads from overlayd's configuration; the routers are in its own. It leaves without a word, so that routers keep what
they know until it is back (graceful restart).`,
		Version: version.String(), SilenceErrors: true, SilenceUsage: true, Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if manual {
				_, err := stdout.Write(man.Page(cmd))
				return err
			}
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			return cfg.run(cmd.Context(), stderr)
		},
	}
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	cmd.SetVersionTemplate("overlayd-bgp {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see overlayd-bgp --help", err)}
	})
	client.Register(cmd.PersistentFlags())
	cmd.Flags().BoolVar(&manual, "man", false, "print the manual page, and exit")
	_ = cmd.Flags().MarkHidden("man") // the flag exists
	// Not one of overlayd's settings, which PersistentFlags are.
	fileFlag := func(c *cobra.Command) {
		c.Flags().StringVar(&file, "bgp-config", "/etc/overlayd/bgp.yaml", "`file` with the routers")
	}
	status := &cobra.Command{
		Use: "status", Short: "Show the routers, and what is announced to them", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			return printStatus(cmd.Context(), cfg.HTTP, stdout)
		},
	}
	check := &cobra.Command{
		Use: "check", Short: "Read the configuration and the files that it names", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { _, err := load(cmd); return err },
	}
	for _, c := range []*cobra.Command{cmd, status, check} {
		fileFlag(c)
	}
	cmd.AddCommand(status, check)
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q: see overlayd-bgp --help", args[0])}
	}
	return nil
}
