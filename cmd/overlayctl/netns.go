package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

const (
	netnsDir      = "/run/netns"
	netnsIDPrefix = "netns-" // of the container ids of those made here
	netnsIfName   = "eth0"
)

// wiredNetns is a network namespace on the overlay.
type wiredNetns struct {
	Name      string       `json:"name"`
	Path      string       `json:"path"`
	Addresses []netip.Addr `json:"addresses"` // empty if the namespace is gone
	Tap       *machine     `json:"tap,omitempty"`
	Bridge    *machine     `json:"bridge,omitempty"`
}

func (a *app) netnsCommand() *cobra.Command {
	dirs := &cniDirs{}
	return group(&cobra.Command{
		Use:   "netns",
		Short: "Make network namespaces on the overlay, for what has no CNI",
		Example: `  overlayctl netns add web --namespace dev --label app=web --port http:80/tcp
  systemd-nspawn -D /srv/web --network-namespace-path=/run/netns/web
  ip netns exec web ip address
  overlayctl netns add vm --tap tap0`,
	}, a.netnsAddCommand(dirs), a.netnsDelCommand(dirs), a.netnsListCommand(dirs))
}

func (a *app) netnsAddCommand(dirs *cniDirs) *cobra.Command {
	who := &netnsIdentity{}
	var link machineLink
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a network namespace, attach it to the overlay and print its path",
		Long: `Make a network namespace, attach it to the overlay and print its path. With --tap there is a tap in it for a virtual machine,
with --bridge a bridge on the host, to which one machine or container of somebody else's is plugged. What it is to have is printed
below: the MAC, the addresses and the gateways, which are not the namespace's own then.`,
		Args: arguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := netnsName(args[0])
			if err != nil {
				return err
			}
			cniArgs, err := who.args(name)
			if err != nil {
				return usageError{err}
			}
			for flag, name := range map[string]string{"tap": link.tap, "bridge": link.bridge} {
				if err := utils.ValidateInterfaceName(name); name != "" && err != nil {
					return usageError{fmt.Errorf("--%s: %w", flag, err)}
				}
			}
			network, err := dirs.network(a.overlay)
			if err != nil {
				return err
			}
			path := filepath.Join(netnsDir, name)
			if err := makeNetns(name); errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists already", path)
			} else if err != nil {
				return fmt.Errorf("make %s: %w", path, err)
			}
			wired := wiredNetns{Name: name, Path: path}
			made, err := wired.wire(cmd.Context(), dirs, network, link, cniArgs)
			if err != nil {
				return errors.Join(err, removeNetns(name))
			}
			if wired.Tap = made; link.bridge != "" {
				wired.Tap, wired.Bridge = nil, made
			}
			return a.print(wired, func(w io.Writer) { wired.show(w) })
		},
	}
	dirs.register(cmd.Flags())
	flags := cmd.Flags()
	flags.StringVar(&link.tap, "tap", "", "`name` of a tap in the namespace, for a virtual machine")
	flags.StringVar(&link.bridge, "bridge", "", "`name` of a bridge on the host, for a machine or container of somebody else's")
	cmd.MarkFlagsMutuallyExclusive("tap", "bridge")
	flags.StringVar(&who.namespace, "namespace", "", "`namespace` that policies know it by")
	flags.StringVar(&who.name, "name", "", "`name` that policies know it by (default: NAME)")
	flags.StringArrayVar(&who.labels, "label", nil, "label, `KEY=VALUE`, that policies know it by; may be repeated")
	flags.StringArrayVar(&who.ports, "port", nil, "named port, `NAME:PORT/PROTOCOL`, that policies may name; may be repeated")
	return cmd
}

// show prints the path, and what a machine is to have.
func (n wiredNetns) show(w io.Writer) {
	fmt.Fprintln(w, n.Path)
	for kind, m := range map[string]*machine{"TAP": n.Tap, "BRIDGE": n.Bridge} {
		if m != nil {
			row(w, kind, "MAC", "ADDRESSES", "GATEWAYS", "MTU")
			row(w, m.Name, m.MAC, strings.Join(m.Addresses, ","), strings.Join(m.Gateways, ","), fmt.Sprint(m.MTU))
		}
	}
}

// wire attaches the namespace, and gives a machine its link if one is asked for. One that could not be is detached again, since a
// plugin late in the chain may be what failed.
func (n *wiredNetns) wire(ctx context.Context, d *cniDirs, to cniNetwork, link machineLink, args [][2]string) (made *machine, err error) {
	rt := &libcni.RuntimeConf{ContainerID: netnsIDPrefix + n.Name, NetNS: n.Path, IfName: netnsIfName, Args: args}
	answer, err := d.plugins().AddNetworkList(ctx, to.list, rt)
	if err == nil {
		n.Addresses = attachment.NetnsAddresses(rt.NetNS)
		if link != (machineLink{}) {
			var result *types100.Result
			if result, err = types100.NewResultFromResult(answer); err == nil {
				made, err = link.plug(n.Name, rt.NetNS, result)
			}
		}
	}
	if err == nil {
		return made, nil
	}
	err = fmt.Errorf("attach %s to network %s: %w", rt.NetNS, to.list.Name, err)
	if undo := d.plugins().DelNetworkList(context.WithoutCancel(ctx), to.list, rt); undo != nil {
		return nil, errors.Join(err, fmt.Errorf("and detach it again: %w", undo))
	}
	return nil, err
}

func (a *app) netnsDelCommand(dirs *cniDirs) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "del NAME",
		Short:             "Detach a network namespace that add has made, and remove it",
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeNetns(dirs),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := netnsName(args[0])
			if err != nil {
				return err
			}
			all, err := dirs.wired()
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(x wiredAttachment) bool { return x.ContainerID == netnsIDPrefix+name })
			path := filepath.Join(netnsDir, name)
			if i < 0 {
				return fmt.Errorf("%s is none that overlayctl netns add has made", path)
			}
			if err := removeHostBridge(name); err != nil {
				return fmt.Errorf("the bridge of %s: %w", path, err)
			}
			// The path may have become another's, which is neither to be entered nor to be removed.
			if !all[i].NetnsIsThere() {
				return dirs.detach(cmd.Context(), all[i].of, all[i].Attachment, "")
			}
			if err := dirs.detach(cmd.Context(), all[i].of, all[i].Attachment, path); err != nil {
				return err
			}
			return removeNetns(name)
		},
	}
	dirs.register(cmd.Flags())
	return cmd
}

// wiredAttachment is that of a namespace made by add.
type wiredAttachment struct {
	attachment.Attachment
	of cniNetwork
}

// wired returns the attachments of namespaces made by add, of all networks.
func (d *cniDirs) wired() (found []wiredAttachment, err error) {
	networks, err := d.networks()
	if err == nil && len(networks) == 0 {
		_, err = d.network("") // which says what is missing
	}
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		all, err := n.attachments()
		if err != nil {
			return nil, err
		}
		for _, x := range all.Usable {
			if strings.HasPrefix(x.ContainerID, netnsIDPrefix) && x.IfName == netnsIfName {
				found = append(found, wiredAttachment{x, n})
			}
		}
	}
	return found, nil
}

func (a *app) netnsListCommand(dirs *cniDirs) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the network namespaces that add has made",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := dirs.wired()
			if err != nil {
				return err
			}
			list := []wiredNetns{}
			for _, x := range all {
				w := wiredNetns{Name: strings.TrimPrefix(x.ContainerID, netnsIDPrefix), Path: x.Netns, Addresses: []netip.Addr{}}
				if x.NetnsIsThere() { // behind a tap, where nobody looks, too
					w.Addresses = x.PolicyEndpoint().IPs
				}
				list = append(list, w)
			}
			return a.print(list, func(w io.Writer) {
				row(w, "NAME", "PATH", "ADDRESSES")
				for _, x := range list {
					row(w, x.Name, x.Path, strings.ReplaceAll(strings.Trim(fmt.Sprint(x.Addresses), "[]"), " ", ","))
				}
			})
		},
	}
	dirs.register(cmd.Flags())
	return cmd
}

func (a *app) completeNetns(dirs *cniDirs) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if len(args) == 0 && os.Geteuid() == 0 {
			all, _ := dirs.wired() // nobody is told here
			for _, x := range all {
				names = append(names, strings.TrimPrefix(x.ContainerID, netnsIDPrefix))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
