// Overlayd-docker is Docker's way onto the overlay: a network and IPAM driver by libnetwork's protocol for plugins. It attaches
// containers as the CNI plugin does, to the same bridge, with addresses of the same pool, and leaves the same records; it keeps
// nothing in memory, and works with the daemon dead. It tells overlayd also of containers that Docker has put on the overlay
// without it.
//
// Of the protocol's Go libraries docker/go-plugins-helpers is the one, whose last release is of 2021 and whose listener knows no
// socket that systemd hands over; what is needed of it is a table of names.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/man"
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
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "overlayd-docker: %v\n", err)
		var usage usageError
		if errors.As(err, &usage) {
			os.Exit(exitUsage)
		}
		os.Exit(exitFailed)
	}
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

// config is what the command line says.
type config struct {
	socket, dockerSocket string
	runDir, stateDir     string
	cniBin               []string
}

func command() *cobra.Command {
	var cfg config
	var manual bool
	cmd := &cobra.Command{
		Use:   "overlayd-docker",
		Short: "Docker's network and IPAM driver of the overlay",
		Long: `Docker's network and IPAM driver of the overlay: what Docker asks when a network has the driver overlayd. Containers get addresses
of the host's lease, from the pool that the CNI plugin takes them from, and policies know them.

It follows Docker's events too: containers that Docker has put on the overlay in another way (--bip) are told to overlayd for
policies. A container's label overlayd/namespace says its namespace, and overlayd/ports (http:80/tcp) its named ports.`,
		Example: `  docker network create -d overlayd --ipam-driver overlayd web
  docker run -d --network web -p 8080:80 nginx`,
		Version: version.String(), SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q: see overlayd-docker --help", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if manual {
				_, err := cmd.OutOrStdout().Write(man.Page(cmd))
				return err
			}
			return cfg.run(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	cmd.SetOut(os.Stdout)
	cmd.SetErr(os.Stderr)
	cmd.SetVersionTemplate("overlayd-docker {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w: see overlayd-docker --help", err)}
	})
	flags := cmd.Flags()
	flags.StringVar(&cfg.socket, "socket", "/run/docker/plugins/overlayd.sock", "`socket` where Docker looks for it, unless systemd hands one over")
	flags.StringVar(&cfg.dockerSocket, "docker-socket", "/run/docker.sock", "`socket` at which Docker listens")
	flags.StringVar(&cfg.runDir, "run-dir", "/run/overlayd", "`directory` of overlayd's subnet.env")
	flags.StringVar(&cfg.stateDir, "state-dir", "/var/lib/overlayd-docker", "`directory` for what Docker's networks and endpoints are")
	flags.StringSliceVar(&cfg.cniBin, "cni-bin-dir", []string{"/opt/cni/bin"}, "comma-separated `directories` of the CNI plugins, for portmap")
	flags.BoolVar(&manual, "man", false, "print the manual page, and exit")
	_ = flags.MarkHidden("man") // the flag exists
	cmd.CompletionOptions.DisableDefaultCmd = true
	return cmd
}

func (c config) run(ctx context.Context, log *slog.Logger) error {
	l, err := listen(c.socket)
	if err != nil {
		return err
	}
	defer l.Close()
	d, err := newDriver(c, log)
	if err != nil {
		return err
	}
	log.Info("serving", "version", version.String(), "socket", l.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(ctx, l, d.handler()) })
	g.Go(func() error { return newFollower(d).run(ctx) })
	return g.Wait()
}
