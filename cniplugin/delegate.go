package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
	"github.com/overlayd/overlayd/subnet"
)

// render makes the delegate's configuration, the one that flannel's plugin makes but for ipMasq.
//
// flannel sets ipMasq to the inverse of FLANNEL_IPMASQ, so that somebody masquerades. But what the bridge plugin
// masquerades is everything that leaves the host's own subnet, the overlay's other hosts too, and there the
// container's address is lost. Inside the overlay packets keep their source, so here it stays off unless the
// configuration asks for it: masquerading towards the outside is overlayd's (--ip-masq), which spares the overlay.
//
// forceAddress lets the bridge take the gateway of a new lease, where flannel's ADDs fail until somebody removes the
// old one by hand.
func (c *netConf) render(lease subnet.Env) (json.RawMessage, error) {
	conf := map[string]any{"type": "bridge", "ipMasq": false}
	if lease.MTU > 0 {
		conf["mtu"] = lease.MTU
	}
	for key, value := range c.Delegate {
		conf[key] = value
	}
	preset := map[string]any{"isGateway": true, "forceAddress": true}
	if c.Network != "" {
		preset["bridge"] = "ov-" + c.Network // a bridge belongs to one network
	}
	for key, value := range preset {
		if _, given := conf[key]; conf["type"] == "bridge" && !given {
			conf[key] = value
		}
	}
	for key, value := range map[string]json.RawMessage{
		"args": c.Args, "dns": c.DNS, "runtimeConfig": withoutAnnotations(c.RuntimeConfig),
	} {
		if len(value) > 0 {
			conf[key] = value
		}
	}
	if err := c.refuseOverlap(lease); err != nil {
		return nil, err
	}
	ipam := c.renderIPAM(lease)
	conf["name"] = c.Name
	if ipam["type"] == hostLocal && !c.besideLease() { // whose pools have the networks' names
		conf["name"] = attachment.PoolName(lease.Subnets)
	}
	conf["cniVersion"] = c.CNIVersion
	conf["ipam"] = ipam

	out, err := json.Marshal(conf)
	if err != nil {
		return nil, fmt.Errorf("render the delegate's configuration: %w", err)
	}
	return out, nil
}

func (c *netConf) renderIPAM(lease subnet.Env) map[string]any {
	ipam := map[string]any{"type": hostLocal}
	for key, value := range c.IPAM {
		ipam[key] = value
	}
	if c.besideLease() {
		return ipam // what leads to the overlay is the operator's to say: its gateway is not on that LAN
	}
	var ranges [][]map[string]string // one set for each family: a container gets an address of each
	for _, s := range lease.Subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.Masked().String()}})
	}
	if ipam["type"] == hostLocal {
		ipam["ranges"] = ranges
	}

	given, _ := ipam["routes"].([]any)
	routes := append([]any{}, given...)
	for _, n := range lease.Networks {
		if dst := n.String(); !hasRoute(given, dst) {
			routes = append(routes, map[string]string{"dst": dst})
		}
	}
	ipam["routes"] = routes
	return ipam
}

func hasRoute(routes []any, dst string) bool {
	for _, r := range routes {
		if route, ok := r.(map[string]any); ok && route["dst"] == dst {
			return true
		}
	}
	return false
}

// confNow returns the saved configuration as the commands after ADD want it: in the version in which the runtime now
// speaks, with the result that it kept, or else with that which was saved.
func confNow(a attachment.Attachment, now attachmentConf) (json.RawMessage, error) {
	prev := now.PrevResult
	if len(prev) == 0 {
		prev = a.Result
	}
	if len(prev) == 0 {
		return a.Delegate, nil
	}
	keys := map[string]any{"prevResult": prev}
	if len(now.PrevResult) > 0 {
		keys["cniVersion"] = now.CNIVersion
	}
	return with(a.Delegate, keys)
}

// with returns a delegate's configuration with other values for some of its keys.
func with(conf json.RawMessage, keys map[string]any) (json.RawMessage, error) {
	var all map[string]any
	if err := decode(conf, &all); err != nil {
		return nil, err
	}
	maps.Copy(all, keys)
	return json.Marshal(all)
}

// keep returns the configuration with what the old attachment had: the addresses and the MAC are asked for in the way of
// runtimes (runtimeConfig), which host-local, bridge and macvlan heed. What is asked for already comes first.
func keep(conf json.RawMessage, args string, old attachment.Attachment) (json.RawMessage, error) {
	var c struct{ RuntimeConfig map[string]any }
	ips, mac, err := bridge.Asked(conf, args)
	if err = errors.Join(err, decode(conf, &c)); err != nil {
		return conf, nil // the plugins themselves say what they do not understand
	}
	asked := map[string]any{}
	maps.Copy(asked, c.RuntimeConfig)
	given, _ := asked["ips"].([]any)
	for _, a := range old.Addresses {
		i := slices.IndexFunc(ips, func(ip net.IP) bool { return (ip.To4() != nil) == a.Addr().Is4() })
		if i < 0 {
			given = append(given, a.Addr().String())
		} else if !ips[i].Equal(a.Addr().AsSlice()) {
			old.MAC = "" // it goes with the address if it was derived from it, and may be another container's next
		}
	}
	if given != nil {
		asked["ips"] = given
	}
	if mac == nil && old.MAC != "" {
		asked["mac"] = old.MAC
	}
	return with(conf, map[string]any{"runtimeConfig": asked})
}

// delegate does the work on one attachment.
type delegate interface {
	// add runs ADD; waits says that the container may do nothing before its policies are in force, see package pending.
	add(ctx context.Context) (result types.Result, waits bool, err error)
	// run runs a command that has no result.
	run(ctx context.Context, command string) error
	// ready says why add cannot work. ADD asks before it saves or makes anything: what was half made of a configuration
	// that nobody understands, or with a plugin missing, could not be removed either.
	ready() error
}

// delegateOf returns the delegate of an attachment. It gets for every command the CNI_ARGS of ADD, which it has
// accepted once.
func (p *plugin) delegateOf(a attachment.Attachment, netns, path string) delegate {
	if a.InProcess {
		return inProcess{a.Delegate, bridge.Container{
			ID: a.ContainerID, IfName: a.IfName, Netns: netns, Args: a.Args, Again: a.Again, Allowed: a.AllowedSources, Unheld: a.Unfollowed,
		}}
	}
	return p.delegate(a.Delegate, invoke.Args{
		ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, PluginArgsStr: bridge.Loadable(a.Args), Path: path,
	})
}

// program is a delegate that is another plugin.
type program struct {
	exec invoke.Exec
	conf json.RawMessage
	args invoke.Args // all but the command
}

func (p *plugin) delegate(conf json.RawMessage, args invoke.Args) program {
	return program{exec: p.exec, conf: conf, args: args}
}

func (d program) add(ctx context.Context) (result types.Result, waits bool, err error) {
	kind, path, err := d.find()
	if err != nil {
		return nil, false, err
	}
	d.args.Command = "ADD"
	result, err = invoke.ExecPluginWithResult(ctx, path, d.conf, &d.args, d.exec)
	if err != nil {
		return nil, false, delegateError(ctx, kind+" ADD", err)
	}
	return result, false, nil // what it has made is not known before
}

func (d program) run(ctx context.Context, command string) error {
	kind, path, err := d.find()
	if err != nil {
		return err
	}
	d.args.Command = command
	if err := invoke.ExecPluginWithoutResult(ctx, path, d.conf, &d.args, d.exec); err != nil {
		return delegateError(ctx, kind+" "+command, err)
	}
	return nil
}

func (d program) ready() error {
	_, _, err := d.find()
	return err
}

// find looks for the plugin, and for that of its addresses, without which it does nothing.
func (d program) find() (kind, path string, err error) {
	var conf struct {
		Type string                `json:"type"`
		IPAM struct{ Type string } `json:"ipam"`
	}
	if err := decode(d.conf, &conf); err != nil {
		return "", "", err
	}
	dirs := filepath.SplitList(d.args.Path)
	path, err = d.exec.FindInPath(conf.Type, dirs)
	if err == nil {
		_, err = d.exec.FindInPath(conf.IPAM.Type, dirs)
	}
	if err != nil {
		return "", "", failf(types.ErrPluginNotAvailable, "delegate: %v: install the reference plugins there (CNI_PATH)", err)
	}
	return conf.Type, path, nil
}

// delegateError says which delegate failed at what, and keeps the code that the delegate gave.
func delegateError(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return failf(types.ErrTryAgainLater, "%s: ended before it was done: %v", what, context.Cause(ctx))
	}
	details := ""
	msg := err.Error()
	if e, ok := errors.AsType[*types.Error](err); ok {
		msg, details = e.Msg, e.Details
	}
	code := codeOf(err, codeDelegate)
	if strings.HasSuffix(msg, unix.EXFULL.Error()) { // of br_add_if: BR_PORT_BITS is 10, and no port has the number 0
		code, msg = types.ErrTryAgainLater, msg+": the bridge has the 1,023 ports that the kernel allows"
	}
	return types.NewError(code, what+": "+msg, details)
}
