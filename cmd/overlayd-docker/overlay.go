package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/subnet"
)

// overlay is one of overlayd's networks, and what this host has of it now.
type overlay struct {
	name       string // "" is the one that has none
	subnetFile string
	subnet.Env
}

// overlay reads the lease of a network.
func (d *driver) overlay(name string) (overlay, error) {
	o := overlay{name: name, subnetFile: filepath.Join(d.runDir, name, "subnet.env")}
	var err error
	o.Env, err = attachment.ReadLease(o.subnetFile)
	if err != nil && name != "" {
		err = fmt.Errorf("network %s: %w", name, err)
	}
	return o, err
}

// overlays are those that this host has a lease of, the unnamed one first.
func (d *driver) overlays() (all []overlay, err error) {
	entries, err := os.ReadDir(d.runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := []string{""}
	for _, e := range entries {
		if e.IsDir() && subnet.ValidNetworkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if o, err := d.overlay(name); err == nil {
			all = append(all, o)
		}
	}
	return all, nil
}

// called is the network's name for people.
func (o overlay) called() string {
	if o.name == "" {
		return subnet.DefaultNetwork
	}
	return o.name
}

// of is the host's subnet of a family, with the gateway's address.
func (o overlay) of(v6 bool) (netip.Prefix, error) {
	for _, s := range o.Subnets {
		if s.Addr().Is6() == v6 {
			return s, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("network %s has no IPv%d: the host's lease is %s", o.called(), familyNumber(v6), subnet.Join(o.Subnets))
}

func familyNumber(v6 bool) int {
	if v6 {
		return 6
	}
	return 4
}

// conf is the configuration that the CNI plugin would give to bridge and host-local, by which it can undo what is made of it.
func (o overlay) conf() (json.RawMessage, error) {
	bridge, err := o.bridge()
	if err != nil {
		return nil, err
	}
	var ranges, routes []any
	for _, s := range o.Subnets {
		ranges = append(ranges, []any{map[string]string{"subnet": s.Masked().String()}})
	}
	for _, n := range o.Networks {
		routes = append(routes, map[string]string{"dst": n.String()})
	}
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": attachment.PoolName(o.Subnets), "type": "bridge", "bridge": bridge,
		"isGateway": true, "forceAddress": true, "ipMasq": false, "hairpinMode": true,
		"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes},
	}
	if o.MTU > 0 {
		conf["mtu"] = o.MTU
	}
	return json.Marshal(conf)
}

// dockersOwn are the names of bridges on which Docker gives out addresses itself.
var dockersOwn = regexp.MustCompile(`^(docker0|br-[0-9a-f]{12})$`)

// confDir is where runtimes have their CNI configurations.
const confDir = "/etc/cni/net.d"

// configured is the bridge that a CNI configuration in dir gives the network; empty if none does.
func (o overlay) configured(dir string) string {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return ""
	}
	slices.Sort(files)
	type plugin struct {
		Type, Network, SubnetFile string
		Delegate                  struct{ Bridge string }
	}
	for _, file := range files {
		var conf struct {
			plugin
			Plugins []plugin
		}
		data, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(data, &conf) != nil {
			continue // whose it is, says so
		}
		for _, p := range append(conf.Plugins, conf.plugin) {
			name, err := canonical(p.Network)
			if err == nil && p.Type == "overlay" && name == o.name && (p.SubnetFile == "" || p.SubnetFile == o.subnetFile) {
				return p.Delegate.Bridge
			}
		}
	}
	return ""
}

// bridge is the one that has the network's gateway; before there is one it is that which the CNI plugin would make.
func (o overlay) bridge() (string, error) {
	preset := "cni0"
	if o.name != "" {
		preset = "ov-" + o.name
	}
	preset = cmp.Or(o.configured(confDir), preset)
	gateway := o.Subnets[0].Addr()
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return "", err
	}
	i := slices.IndexFunc(all, func(a netlink.Addr) bool { return a.IP.Equal(gateway.AsSlice()) })
	if i < 0 {
		return preset, nil
	}
	link, err := netlink.LinkByIndex(all[i].LinkIndex)
	if err != nil {
		return "", err
	}
	name := link.Attrs().Name
	if link.Type() != "bridge" || dockersOwn.MatchString(name) {
		return "", fmt.Errorf("%s has the gateway %s of the host's lease, so somebody else gives out its addresses: "+
			"take that away first (--bip of dockerd, or a network with --subnet %s)", name, gateway, o.Subnets[0].Masked())
	}
	return name, nil
}
