package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// socketName is the daemon's socket, in the directory of subnet.env.
const socketName = "overlayd.sock"

// status says whether an ADD would work. Code 50: it would not. Code 51: it would, but overlayd is not running, so
// that nobody follows the other hosts' leases; CNI has that code for containers that may lose connectivity.
//
// Nomad asks before it removes a container too, and removes nothing when it hears of an error. So what hinders an ADD
// alone is no error as long as the network has a container; ADD itself says it.
func (p *plugin) status(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err == nil {
		err = p.ready(ctx, conf, args.Path)
	}
	switch {
	case err == nil:
		return p.daemonStatus(ctx, filepath.Dir(conf.SubnetFile))
	case attached(ctx, args.StdinData):
		return nil
	}
	return err
}

// attached says whether the network has a container.
func attached(ctx context.Context, stdin []byte) (found bool) {
	conf, err := parseAttachmentConf(stdin)
	if err != nil {
		return false
	}
	err = attachment.With(ctx, conf.DataDir, attachment.Shared, func(s *attachment.Store) error {
		keys, err := s.List(conf.Name)
		found = len(keys) > 0
		return err
	})
	return found && err == nil
}

// ready says why an ADD would fail.
func (p *plugin) ready(ctx context.Context, conf netConf, path string) error {
	lease, err := readLease(conf.SubnetFile)
	if err != nil {
		return failf(types.ErrPluginNotAvailable, "%v", err)
	}
	rendered, err := conf.render(lease)
	if err != nil {
		return err
	}
	if conf.inProcess(rendered) {
		return nil
	}
	return p.delegate(rendered, invoke.Args{Path: path}).run(ctx, "STATUS")
}

func (p *plugin) daemonStatus(ctx context.Context, runDir string) error {
	path := filepath.Join(runDir, socketName)
	// A subnetFile elsewhere may be anybody's: flannel's, or one that was written by hand.
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && runDir != filepath.Dir(defaultSubnetFile) {
		return nil
	}
	dialer := net.Dialer{Timeout: p.dial}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return failf(types.ErrLimitedConnectivity, "overlayd does not answer: %v: running containers keep their "+
			"network, changes on other hosts are not followed (systemctl status overlayd)", err)
	}
	return conn.Close()
}
