package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// endpoint is a container as policies know it, as it is printed.
type endpoint struct {
	policy.Endpoint
	Host        string   `json:"host,omitempty"` // of another host's, or what etcd has
	Network     string   `json:"network,omitempty"`
	ContainerID string   `json:"containerID,omitempty"`
	IfName      string   `json:"ifName,omitempty"`
	Isolated    []string `json:"isolated"` // the directions, or pending; null: nobody knows
	Notes       []string `json:"notes,omitempty"`

	dataDir string // of its record; empty: it has none
}

// endpointFlags say which endpoints are meant.
type endpointFlags struct {
	cniDirs
	namespace, selector string
	all                 bool
}

func (a *app) endpointsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "endpoints",
		Short: "Show the containers as policies know them: namespace, name, labels and addresses",
	}, a.endpointsListCommand(), a.endpointsGetCommand(), a.endpointsLabelCommand(), a.endpointsWatchCommand())
}

// registerEndpoints registers the flags of commands that show many.
func (f *endpointFlags) register(cmd *cobra.Command) {
	f.registerConf(cmd.Flags())
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "only those of the `namespace`")
	cmd.Flags().StringVarP(&f.selector, "selector", "l", "", "only those with labels as the `selector` has it: app=web,tier!=db,zone in (a,b),!old")
	cmd.Flags().BoolVar(&f.all, "all", false, "those of all hosts that are in etcd: such as some policy needs")
}

func (a *app) endpointsListCommand() *cobra.Command {
	f := &endpointFlags{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List this host's containers, or all that are in etcd",
		Example: `  overlayctl endpoints list -n dev -l app=web
  overlayctl endpoints list --all -o wide`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := f.wanted()
			if err != nil {
				return err
			}
			list, err := a.endpoints(cmd.Context(), f)
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(e endpoint) bool { return !wanted(e) })
			return a.print(list, func(w io.Writer) { a.endpointTable(w, f.all, list) })
		},
	}
	f.register(cmd)
	return cmd
}

func (a *app) endpointsGetCommand() *cobra.Command {
	f := &endpointFlags{}
	cmd := &cobra.Command{
		Use:   "get (NAME | NAMESPACE/NAME | IP | CONTAINER-ID)",
		Short: "Show one of this host's containers, and what of it was dropped",
		Args:  arguments("NAME, NAMESPACE/NAME, IP or CONTAINER-ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.findEndpoint(cmd.Context(), f, args[0])
			if err != nil {
				return err
			}
			return a.print(e, func(w io.Writer) {
				for _, line := range [][2]string{
					{"Namespace", e.Namespace}, {"Name", e.Name}, {"Addresses", addresses(e)}, {"Labels", labelText(e.Labels)},
					{"Ports", portText(e.Ports)}, {"Isolated", isolation(e)}, {"Network", e.Network}, {"Container", e.ContainerID}, {"Interface", e.IfName},
				} {
					row(w, line[0]+":", line[1])
				}
				for _, note := range e.Notes {
					row(w, "Note:", note)
				}
			})
		},
	}
	f.registerConf(cmd.Flags())
	cmd.Flags().StringVarP(&f.namespace, "namespace", "n", "", "its `namespace`")
	return cmd
}

// wanted is a predicate of the flags.
func (f *endpointFlags) wanted() (func(endpoint) bool, error) {
	selector, err := parseSelector(f.selector)
	if err != nil {
		return nil, usageError{fmt.Errorf("--selector: %w", err)}
	}
	return func(e endpoint) bool {
		return (f.namespace == "" || e.Namespace == f.namespace) && selector.Matches(e.Labels)
	}, nil
}

// findEndpoint finds the one that is meant.
func (a *app) findEndpoint(ctx context.Context, f *endpointFlags, what string) (endpoint, error) {
	all, err := a.endpoints(ctx, f)
	if err != nil {
		return endpoint{}, err
	}
	addr, _ := netip.ParseAddr(what)
	found := slices.DeleteFunc(all, func(e endpoint) bool {
		if f.namespace != "" && e.Namespace != f.namespace {
			return true
		}
		return e.Name != what && e.Namespace+"/"+e.Name != what && !slices.Contains(e.IPs, addr) &&
			(len(what) < 6 || !strings.HasPrefix(e.ContainerID, what) && e.ContainerID != what)
	})
	switch len(found) {
	case 0:
		return endpoint{}, fmt.Errorf("no container %q on this host: overlayctl endpoints list", what)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, e := range found {
		ids = append(ids, fmt.Sprintf("%s/%s %s", e.Namespace, e.Name, addresses(e)))
	}
	return endpoint{}, fmt.Errorf("%q may be any of these, name it by its address: %s", what, strings.Join(bound(ids), "; "))
}

func (a *app) endpointTable(w io.Writer, all bool, list []endpoint) {
	row(w, a.endpointHeader(all)...)
	for _, e := range list {
		row(w, a.endpointCells(all, e)...)
	}
}

func (a *app) endpointHeader(all bool) []string {
	header := []string{"NAMESPACE", "NAME", "ADDRESSES", "ISOLATED", "LABELS"}
	if all {
		header[3] = "HOST"
	}
	if a.output == "wide" {
		header = append(header, "PORTS", "NETWORK", "CONTAINER")
	}
	return header
}

func (a *app) endpointCells(all bool, e endpoint) []string {
	cells := []string{e.Namespace, e.Name, addresses(e), isolation(e), labelText(e.Labels)}
	if all {
		cells[3] = e.Host
	}
	if a.output == "wide" {
		cells = append(cells, portText(e.Ports), e.Network, e.ContainerID)
	}
	return cells
}

func addresses(e endpoint) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(e.IPs), "[]"), " ", ",")
}

func isolation(e endpoint) string {
	if e.Isolated == nil {
		return "?"
	}
	return strings.Join(e.Isolated, ",")
}

// labelText is all labels, by key.
func labelText(labels map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, key+"="+labels[key])
	}
	return strings.Join(all, ",")
}

func portText(ports []policy.NamedPort) string {
	var all []string
	for _, p := range ports {
		all = append(all, p.Name+":"+strconv.Itoa(int(p.Port))+"/"+strings.ToLower(string(p.Protocol)))
	}
	return strings.Join(all, ",")
}

// compareEndpoints orders them by name and address.
func compareEndpoints(a, b endpoint) int {
	if c := identity.Compare(a.Identity, b.Identity); c != 0 {
		return c
	}
	return slices.CompareFunc(a.IPs, b.IPs, netip.Addr.Compare)
}
