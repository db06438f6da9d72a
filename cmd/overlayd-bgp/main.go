// Overlayd-bgp tells routers by BGP which host has which subnet of the overlay. It follows the leases in etcd, and announces
// each with the host's own address as the next hop: one or two of it serve a network.
package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/program"
	"github.com/overlayd/overlayd/cmd/internal/settings"
)

func main() { program.Main(command(os.Stdout, os.Stderr)) }

func command(stdout, stderr io.Writer) *cobra.Command {
	var client settings.Client
	var file string
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			return cfg.run(cmd.Context(), stderr)
		},
	}
	client.Register(cmd.PersistentFlags())
	// Not one of overlayd's settings, which PersistentFlags are.
	fileFlag := func(c *cobra.Command) {
		c.Flags().StringVar(&file, "bgp-config", "/etc/overlayd/bgp.yaml", "`file` with the routers")
	}
	status := &cobra.Command{
		Use: "status", Short: "Show the routers, and what is announced to them",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			return printStatus(cmd.Context(), cfg.HTTP, stdout)
		},
	}
	check := &cobra.Command{
		Use: "check", Short: "Read the configuration and the files that it names",
		RunE: func(cmd *cobra.Command, _ []string) error { _, err := load(cmd); return err },
	}
	for _, c := range []*cobra.Command{cmd, status, check} {
		fileFlag(c)
	}
	cmd.AddCommand(status, check)
	return program.Finish(cmd, stdout, stderr)
}
