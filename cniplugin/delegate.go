package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
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
	for _, key := range []string{"isGateway", "forceAddress"} {
		if _, given := conf[key]; conf["type"] == "bridge" && !given {
			conf[key] = true
		}
	}
	for key, value := range map[string]json.RawMessage{
		"args": c.Args, "dns": c.DNS, "runtimeConfig": c.RuntimeConfig,
	} {
		if len(value) > 0 {
			conf[key] = value
		}
	}
	ipam := c.renderIPAM(lease)
	conf["name"] = c.Name
	if ipam["type"] == hostLocal { // whose pools have the networks' names
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
	var conf map[string]any
	if err := decode(a.Delegate, &conf); err != nil {
		return nil, err
	}
	conf["prevResult"] = prev
	if len(now.PrevResult) > 0 {
		conf["cniVersion"] = now.CNIVersion
	}
	return json.Marshal(conf)
}

// delegate does the work on one attachment.
type delegate interface {
	// add runs ADD.
	add(ctx context.Context) (types.Result, error)
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
		ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, PluginArgsStr: a.Args, Path: path,
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

func (d program) add(ctx context.Context) (types.Result, error) {
	kind, path, err := d.find()
	if err != nil {
		return nil, err
	}
	d.args.Command = "ADD"
	result, err := invoke.ExecPluginWithResult(ctx, path, d.conf, &d.args, d.exec)
	if err != nil {
		return nil, delegateError(ctx, kind+" ADD", err)
	}
	return result, nil
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

// ready looks for the plugin and that of its addresses.
func (d program) ready() error {
	var conf struct {
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	if err := decode(d.conf, &conf); err != nil {
		return err
	}
	if _, _, err := d.find(); err != nil {
		return err
	}
	_, err := d.pathOf(conf.IPAM.Type)
	return err
}

func (d program) find() (kind, path string, err error) {
	var conf struct {
		Type string `json:"type"`
	}
	if err := decode(d.conf, &conf); err != nil {
		return "", "", err
	}
	path, err = d.pathOf(conf.Type)
	return conf.Type, path, err
}

func (d program) pathOf(kind string) (string, error) {
	path, err := d.exec.FindInPath(kind, filepath.SplitList(d.args.Path))
	if err != nil {
		return "", failf(types.ErrPluginNotAvailable,
			"delegate: %v: install the reference plugins there (CNI_PATH)", err)
	}
	return path, nil
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
