package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) networkCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "network",
		Short: "Show, check and change the network configuration; make and delete networks",
	}, a.networkGetCommand(), a.networkSetCommand(), a.networkValidateCommand())
	common := []*cobra.Command{
		a.networkCreateCommand(), a.networkListCommand(), a.networkDeleteCommand(),
		a.networkPeerCommand(), a.networkUnpeerCommand(), a.networkPeersCommand(), a.networkRolesCommand(),
	}
	ofAll(common...)
	cmd.AddCommand(common...)
	return cmd
}

func (a *app) networkGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get",
		Short: "Show the network configuration as etcd holds it",
		Long: `Show the network configuration as etcd holds it, byte for byte; with -o json or yaml, laid out to be read.
What it prints can be given back to overlayctl network set.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, _, err := a.network(cmd.Context())
			if err != nil {
				return err
			}
			return a.printNetwork(raw)
		},
	}
}

// printNetwork writes a configuration as it is or, if a format was asked for, in it.
func (a *app) printNetwork(raw []byte) error {
	if !a.output.forPeople() && json.Valid(raw) {
		return a.print(json.RawMessage(raw), nil)
	}
	_, err := fmt.Fprintf(a.stdout, "%s\n", bytes.TrimSuffix(raw, []byte("\n")))
	return err
}

// networkArgs declares --filename, and how a configuration is given: as one argument or by it.
func networkArgs(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "filename", "f", "", "`file` with the configuration, JSON or YAML; - is the standard input")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *file != "" {
			return arguments()(cmd, args)
		}
		return arguments("CIDR, JSON, - or --filename")(cmd, args)
	}
}

// candidate is a configuration that the operator proposes.
type candidate struct {
	raw     []byte // canonical JSON
	network subnet.Network
}

// readCandidate reads and checks what the operator proposes. It is strict: a key that nobody knows is a typing
// mistake, though daemons pass over it.
func (a *app) readCandidate(args []string, file string) (candidate, error) {
	text, err := a.readNetwork(args, file)
	if err != nil {
		return candidate{}, err
	}
	return parseCandidate(text)
}

func parseCandidate(text string) (candidate, error) {
	raw, err := subnet.NetworkJSON(text)
	if err != nil {
		return candidate{}, err
	}
	n, err := subnet.ParseNetwork(raw)
	if err != nil {
		return candidate{}, err
	}
	return candidate{raw, n}, backend.Validate(n)
}

func (a *app) readNetwork(args []string, file string) (string, error) {
	var data []byte
	var err error
	switch {
	case len(args) == 1 && args[0] != "-":
		data = []byte(args[0])
	case file == "" || file == "-":
		data, err = io.ReadAll(a.stdin)
	default:
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return "", err
	}
	converted, err := yaml.YAMLToJSONStrict(data)
	switch {
	case err != nil && json.Valid(data):
		return "", fmt.Errorf("network config: %w", err) // a key twice, which a JSON parser does not see
	case err == nil && bytes.HasPrefix(converted, []byte("{")):
		return string(converted), nil
	}
	return string(data), nil // a CIDR, or JSON with a mistake that its parser explains better
}

func (a *app) networkValidateCommand() *cobra.Command {
	var file string
	var offline bool
	cmd := &cobra.Command{
		Use:   "validate (CIDR | JSON | - | -f FILE)",
		Short: "Check a network configuration, also against the leases in etcd",
		Example: `  overlayctl network validate 10.244.0.0/16
  overlayctl network validate -f network.yaml --offline`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.readCandidate(args, file)
			if err != nil {
				return err
			}
			if !offline {
				if err := a.checkAgainstEtcd(cmd.Context(), c); err != nil {
					return err
				}
			}
			return a.report("valid", c)
		},
	}
	networkArgs(cmd, &file)
	cmd.Flags().BoolVar(&offline, "offline", false, "do not ask etcd: check the configuration by itself")
	return cmd
}

func (a *app) checkAgainstEtcd(ctx context.Context, c candidate) error {
	if _, err := a.store(); err != nil {
		return err
	}
	found, err := a.readCurrent(ctx)
	if err != nil {
		a.warn([]string{"the configuration was checked by itself, not against the leases: " + err.Error()})
		return nil
	}
	if err := a.checkGround(c.network, found); err != nil {
		return err
	}
	if err := found.refuse(c.network, "network set would need --force for this"); err != nil {
		return err
	}
	held, err := a.networks(ctx)
	if err != nil {
		a.warn([]string{"the configuration was not checked against other networks: " + err.Error()})
		return nil
	}
	if a.overlay != "" {
		if c, err = distinct(held, a.overlay, c); err != nil {
			return err
		}
	}
	return clashes(held, a.overlay, c.network)
}

func (a *app) networkSetCommand() *cobra.Command {
	var file string
	var force bool
	cmd := &cobra.Command{
		Use:   "set (CIDR | JSON | - | -f FILE)",
		Short: "Write the network configuration",
		Long: `Write the network configuration. A change that leaves leases behind is refused: their subnet must still be one
that the new network would lease. With --force it is written, and no host loses anything: those whose subnet is still
within the network keep it, and if there is a lease without a place in it, all hosts stay with the network that they
have until there is none, or until overlayd is restarted. A range that covers what hosts reach each other or etcd by is
refused in any case, as hosts would.`,
		Example: `  overlayctl network set 10.244.0.0/16
  overlayctl network set '{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}'
  overlayctl network get | overlayctl network set -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.readCandidate(args, file)
			if err != nil {
				return err
			}
			return a.setNetwork(cmd.Context(), c, force)
		},
	}
	networkArgs(cmd, &file)
	cmd.Flags().BoolVar(&force, "force", false, "also if leases would not fit")
	return cmd
}

func (a *app) setNetwork(ctx context.Context, c candidate, force bool) error {
	held, err := a.networks(ctx)
	if err != nil {
		return err
	}
	before := held.Find(a.overlay)
	if before.ModRevision == 0 && a.overlay != "" {
		return noNetwork(a.overlay)
	}
	if a.overlay != "" { // the unnamed one's numbers are flannel's where its config says nothing
		if c, err = distinct(held, a.overlay, c); err != nil {
			return err
		}
	}
	found, err := a.readCurrent(ctx)
	if err != nil {
		return err
	}
	if bytes.Equal(found.raw, c.raw) && before.Followed {
		return a.report("unchanged", c)
	}
	if err := clashes(held, a.overlay, c.network); err != nil {
		return err
	}
	if err := a.checkGround(c.network, found); err != nil {
		return err
	}
	if !force {
		if err := found.refuse(c.network, "nothing was written; --force writes it all the same"); err != nil {
			return err
		}
	}
	if found.revision != before.ModRevision {
		return fmt.Errorf("the network config: %w", etcdstore.ErrConflict)
	}
	err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error { return s.PutNetwork(ctx, held, a.overlay, c.raw) })
	if err != nil {
		return err
	}
	if found.raw == nil {
		return a.report("created", c)
	}
	if err := a.report("changed", c); err != nil || !a.output.forPeople() {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "  was: %s\n", printable(string(found.raw))) // network set takes it back
	return err
}

// report says what was done or found, and describes c.
func (a *app) report(done string, c candidate) error {
	if !a.output.forPeople() {
		return a.printNetwork(c.raw)
	}
	_, err := fmt.Fprintf(a.stdout, "%s: %s\n", done, describe(c.network))
	return err
}
