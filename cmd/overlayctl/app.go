package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/man"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cmd/internal/version"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// app is one run of overlayctl.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() time.Time
	screen         screen

	settings settings.Client
	declared *pflag.FlagSet // the same by name
	output   output
	timeout  time.Duration
	overlay  string           // the network that is meant; empty: the one that has no name
	chosen   bool             // which etcd is meant
	etcd     *etcdstore.Store // of the network that has no name; nil until it is asked
}

// command is the whole of the command line.
func (a *app) command() *cobra.Command {
	declared := pflag.NewFlagSet("overlayctl", pflag.ContinueOnError)
	a.declared = declared
	a.settings.Register(declared)
	a.output = "table"
	declared.VarP(&a.output, "output", "o", "`format` of the output: "+strings.Join(outputs, ", "))
	declared.StringVarP(&a.overlay, overlayFlag, "N", subnet.DefaultNetwork, "`name` of the network that is meant, of several")
	declared.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long to wait for each answer of etcd or the daemon")

	root := group(&cobra.Command{
		Use:   "overlayctl",
		Short: "Look at and change an overlay network of overlayd or flannel",
		Long: `Overlayctl looks at and changes an overlay network of overlayd or flannel.

Each flag below can also be set by an environment variable, OVERLAYCTL_ETCD_ENDPOINTS for --etcd-endpoints, or in
overlayd's configuration file. OVERLAYD_ variables count where there is none that begins with OVERLAYCTL_.`,
		Version:       version.String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			sources, err := settings.Load(declared, "overlayctl")
			from := sources["etcd-endpoints"]
			a.chosen = from != "" && !strings.HasSuffix(from, ": etcd-endpoints") // by the command line or the environment, and not the file
			a.settings.UseEmbedded(sources)
			if err != nil {
				return err
			}
			return a.chooseOverlay(cmd, sources[overlayFlag])
		},
	}, a.hostsCommand(), a.leasesCommand(), a.networkCommand(), a.statusCommand(), a.peersCommand(), a.wireGuardCommand(), a.doctorCommand(),
		a.policyCommand(), a.namespacesCommand(), a.endpointsCommand(), a.netnsCommand(), a.dockerOptsCommand())
	common := []*cobra.Command{
		a.initCommand(), a.joinCommand(), a.tokensCommand(), a.fastPathCommand(), a.diagsCommand(), a.certsCommand(), a.membersCommand(),
		a.etcdCommand(), a.cniCommand(), a.versionCommand(),
	}
	ofAll(common...)
	root.AddCommand(common...)
	root.PersistentFlags().AddFlagSet(declared)
	// It fails for a flag that does not exist, which the test of completion would see.
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("overlayctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	root.AddCommand(&cobra.Command{
		Use: "man", Short: "Print the manual page", Hidden: true, // it is for packages
		Args:              arguments(),
		PersistentPreRunE: needsNoSettings,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(man.Page(root))
			return err
		},
	})
	tame(root)
	return root
}

func needsNoSettings(*cobra.Command, []string) error { return nil }

// tame has cobra's own commands refuse what ours refuse.
func tame(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	for _, shell := range completion.Commands() {
		shell.Args = arguments()
	}
	group(completion)
	completion.PersistentPreRunE = needsNoSettings

	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	help.Args = func(_ *cobra.Command, args []string) error {
		if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
			return usageError{fmt.Errorf("no help for %q: there is no such command", strings.Join(args, " "))}
		}
		return nil
	}
}

// group makes cmd a command that does nothing but hold others, and says so if none of them is named.
func group(cmd *cobra.Command, members ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(members...)
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf(" (did you mean %q?)", near[0])
		}
		return usageError{fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !cmd.HasParent() {
			return cmd.Help()
		}
		return usageError{fmt.Errorf("%q needs a command", cmd.CommandPath())}
	}
	return cmd
}

// arguments refuses a number of arguments other than the length of names.
func arguments(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError{fmt.Errorf("missing argument: %s", names[len(args)])}
		case len(args) > len(names):
			return usageError{fmt.Errorf("unexpected argument %q", args[len(names)])}
		}
		return nil
	}
}

// store is the network in etcd that is meant.
func (a *app) store() (*etcdstore.Store, error) {
	s, err := a.root()
	if err != nil {
		return nil, err
	}
	return s.Named(a.overlay)
}

// root is the network in etcd that has no name, for as long as the process lives. It does not connect before it is asked something.
func (a *app) root() (*etcdstore.Store, error) {
	if a.etcd != nil {
		return a.etcd, nil
	}
	client, err := a.client()
	if err == nil {
		a.etcd, err = client.Store(a.settings.Etcd.Prefix)
	}
	return a.etcd, err
}

// client speaks to etcd: as an operator by the socket of the one that runs here, else where the daemon has found it, for
// there may be none any more where the configuration says.
func (a *app) client() (*etcdstore.Client, error) {
	at := &a.settings.Etcd.Endpoints
	if socket, err := filepath.Abs(settings.EtcdSocket(a.settings.RunDir)); err == nil && a.settings.EtcdEmbedded && !a.chosen {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			*at = []string{"unix://" + socket}
		}
	}
	elsewhere := func(url string) bool { return !strings.HasPrefix(url, "https://") } // where no certificate says who it is
	if !a.chosen && !slices.ContainsFunc(*at, elsewhere) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := api.Dial(settings.Socket(a.settings.RunDir)).Status(ctx)
		if err == nil && len(s.Etcd.Endpoints) > 0 && !slices.ContainsFunc(s.Etcd.Endpoints, elsewhere) {
			*at = s.Etcd.Endpoints
		}
	}
	return etcdstore.NewClient(a.settings.Etcd.Config, a.quiet())
}

// quiet is a logger for what says in its errors all that matters.
func (a *app) quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// ask calls f, which speaks to etcd, and gives it --timeout.
func (a *app) ask(ctx context.Context, f func(context.Context, *etcdstore.Store) error) error {
	s, err := a.store()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return a.named(f(ctx, s))
}

// network asks for the network configuration, as etcd has it, and its revision.
func (a *app) network(ctx context.Context) (raw []byte, revision int64, err error) {
	err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		raw, revision, err = s.Network(ctx)
		return err
	})
	return raw, revision, err
}

// listing asks for the leases.
func (a *app) listing(ctx context.Context) (listing etcdstore.Listing, err error) {
	err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		listing, err = s.Leases(ctx)
		return err
	})
	return listing, err
}

// named adds which etcd was asked to an error of asking it.
func (a *app) named(err error) error {
	for _, answer := range []error{nil, etcdstore.ErrNoNetwork, etcdstore.ErrConflict, etcdstore.ErrTaken} {
		if errors.Is(err, answer) {
			return err
		}
	}
	return fmt.Errorf("%w (--etcd-endpoints %s)", err, strings.Join(a.settings.Etcd.Endpoints, ","))
}
