// Overlayd-docker is Docker's way onto the overlay: a network and IPAM driver by libnetwork's protocol for plugins. It attaches
// containers as the CNI plugin does, to the same bridge, with addresses of the same pool, and leaves the same records; it keeps
// nothing in memory, and works with the daemon dead. It tells overlayd also of containers that Docker has put on the overlay
// without it.
//
// The protocol is JSON over HTTP, and what a library would give of it is a table of names.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/internal/program"
	"github.com/overlayd/overlayd/cmd/internal/version"
)

func main() { program.Main(command()) }

// config is what the command line says.
type config struct {
	socket, dockerSocket string
	runDir, stateDir     string
	cniBin               []string
}

func command() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "overlayd-docker",
		Short: "Docker's network and IPAM driver of the overlay",
		Long: `Docker's network and IPAM driver of the overlay: what Docker asks when a network has the driver overlayd. Containers get addresses
of the host's lease, from the pool that the CNI plugin takes them from, and policies know them.

It follows Docker's events too: containers that Docker has put on the overlay in another way (--bip) are told to overlayd for
policies. A container's label overlayd/namespace says its namespace, and overlayd/ports (http:80/tcp) its named ports.`,
		Example: `  docker network create -d overlayd --ipam-driver overlayd web
  docker run -d --network web -p 8080:80 nginx`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cfg.run(cmd.Context(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.socket, "socket", "/run/docker/plugins/overlayd.sock", "`socket` where Docker looks for it, unless systemd hands one over")
	flags.StringVar(&cfg.dockerSocket, "docker-socket", "/run/docker.sock", "`socket` at which Docker listens")
	flags.StringVar(&cfg.runDir, "run-dir", "/run/overlayd", "`directory` of overlayd's subnet.env")
	flags.StringVar(&cfg.stateDir, "state-dir", "/var/lib/overlayd-docker", "`directory` for what Docker's networks and endpoints are")
	flags.StringSliceVar(&cfg.cniBin, "cni-bin-dir", []string{"/opt/cni/bin"}, "comma-separated `directories` of the CNI plugins, for portmap")
	return program.Finish(cmd, os.Stdout, os.Stderr)
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
