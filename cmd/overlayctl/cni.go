package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
	"github.com/overlayd/overlayd/cniplugin/dead"
	"github.com/overlayd/overlayd/subnet"
)

// cniDirs is where this host has its CNI configuration and its plugins.
type cniDirs struct {
	conf string
	bin  []string
}

func (d *cniDirs) registerConf(fs *pflag.FlagSet) {
	fs.StringVar(&d.conf, "cni-conf-dir", "/etc/cni/net.d", "`directory` of the CNI configuration")
}

func (d *cniDirs) register(fs *pflag.FlagSet) {
	d.registerConf(fs)
	fs.StringSliceVar(&d.bin, "cni-bin-dir", []string{"/opt/cni/bin"}, "comma-separated `directories` of the CNI plugins")
}

// plugins calls the plugins as a container runtime does.
func (d *cniDirs) plugins() *libcni.CNIConfig { return libcni.NewCNIConfig(d.bin, nil) }

// cniNetwork is a configured network, and where the plugin overlay keeps what it has attached to it.
type cniNetwork struct {
	list       *libcni.NetworkConfigList
	network    string // of overlayd's; empty: the one that has no name
	subnetFile string
	dataDir    string
	poolsDir   string // host-local's
	madeUp     bool   // the configuration is gone; this is of the plugin overlay alone
}

// networks returns the configured networks that are overlay's, by file name. Files of other networks, good or bad, are
// theirs.
func (d *cniDirs) networks() ([]cniNetwork, error) {
	files, err := libcni.ConfFiles(d.conf, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var found []cniNetwork
	for _, file := range files {
		list, err := readConf(file)
		if err != nil {
			continue
		}
		for _, plugin := range list.Plugins {
			if plugin.Network.Type == "overlay" {
				found = append(found, newCNINetwork(list, plugin.Bytes))
				break
			}
		}
	}
	return found, nil
}

func readConf(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	plugin, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var conf struct{ CNIVersion, Name string }
	if err := json.Unmarshal(plugin, &conf); err != nil {
		return nil, err
	}
	return listOf(conf.CNIVersion, conf.Name, json.RawMessage(plugin))
}

// listOf makes a list of a single plugin.
func listOf(version, name string, plugin any) (*libcni.NetworkConfigList, error) {
	list, err := json.Marshal(map[string]any{"cniVersion": version, "name": name, "plugins": []any{plugin}})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

func newCNINetwork(list *libcni.NetworkConfigList, plugin []byte) cniNetwork {
	conf := struct {
		Network, SubnetFile, DataDir string
		IPAM                         struct{ DataDir string }
	}{DataDir: attachment.DefaultDir}
	conf.IPAM.DataDir = bridge.DefaultPools
	_ = json.Unmarshal(plugin, &conf) // it is JSON, and what does not fit the plugin will refuse
	if conf.Network == subnet.DefaultNetwork {
		conf.Network = ""
	}
	subnetFile := cmp.Or(conf.SubnetFile, attachment.SubnetFile(conf.Network))
	return cniNetwork{list: list, network: conf.Network, subnetFile: subnetFile, dataDir: conf.DataDir, poolsDir: conf.IPAM.DataDir}
}

// network returns the first of networks, the one that a runtime would take, that is of overlayd's network of the name.
func (d *cniDirs) network(name string) (cniNetwork, error) {
	all, err := d.networks()
	if err != nil {
		return cniNetwork{}, err
	}
	if i := slices.IndexFunc(all, func(n cniNetwork) bool { return n.network == name }); i >= 0 {
		return all[i], nil
	}
	if name != "" {
		return cniNetwork{}, fmt.Errorf(`%s has no network of type overlay with "network": %q: copy 10-overlay.conflist there, with that and a name of its own`, d.conf, name)
	}
	return cniNetwork{}, fmt.Errorf("%s has no network of type overlay: copy 10-overlay.conflist there", d.conf)
}

// everyNetwork returns networks, and those whose configuration is gone but not what the plugin remembers of them.
func (d *cniDirs) everyNetwork(ctx context.Context) ([]cniNetwork, error) {
	networks, err := d.networks()
	if err != nil {
		return nil, err
	}
	configured := map[string]bool{}
	dataDirs := map[string]bool{attachment.DefaultDir: true}
	for _, n := range networks {
		configured[filepath.Join(n.dataDir, n.list.Name)] = true
		dataDirs[n.dataDir] = true
	}
	for _, dir := range slices.Sorted(maps.Keys(dataDirs)) {
		var names []string
		err := attachment.With(ctx, dir, attachment.Shared, func(s *attachment.Store) (err error) {
			names, err = s.Networks()
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if configured[filepath.Join(dir, name)] {
				continue
			}
			list, err := listOf("1.0.0", name, map[string]any{"type": "overlay", "dataDir": dir})
			if err != nil {
				return nil, err
			}
			n := newCNINetwork(list, list.Plugins[0].Bytes)
			n.madeUp = true
			networks = append(networks, n)
		}
	}
	return networks, nil
}

func (n cniNetwork) attachments() (attachment.All, error) {
	return attachment.Read(n.dataDir, n.list.Name)
}

// detach calls the plugins' DEL for an attachment, with the configuration, the result and the capabilities of the ADD, which
// libcni keeps, or with today's configuration. A container that was attached anew, in another namespace, stays.
func (d *cniDirs) detach(ctx context.Context, n cniNetwork, a attachment.Attachment, netns string) error {
	list, rt, err := dead.Configuration(d.plugins(), a)
	switch {
	case rt == nil:
		return err
	case a.Caller == attachment.Docker: // what is kept is of its ports alone, if it has any
		ours := *n.list
		if list != nil {
			ours.Plugins = append(slices.Clone(ours.Plugins), list.Plugins...)
		}
		list = &ours
	case list == nil && n.madeUp && !a.OfEarlierBoot(): // other plugins of the chain may have left port mappings
		return fmt.Errorf("the configuration of network %s is neither in %s nor in %s: name its directory with --cni-conf-dir",
			a.Network, d.conf, libcni.CacheDir)
	case list == nil:
		today := *n.list
		list = &today
	}
	rt.NetNS = netns
	list.Plugins = slices.Clone(list.Plugins)
	for i, plugin := range list.Plugins {
		if plugin.Network.Type != "overlay" {
			continue
		}
		only, err := libcni.InjectConf(plugin, map[string]any{attachment.OnlyNetnsKey: a.NetnsID})
		if err != nil {
			return err
		}
		list.Plugins[i] = only
	}
	return d.plugins().DelNetworkList(ctx, list, rt)
}

func (a *app) cniCommand() *cobra.Command {
	return group(&cobra.Command{Use: "cni", Short: "Look after what the CNI plugin has attached to this host"}, a.cniGCCommand())
}
