package main

import (
	"context"
	"io"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// plugin answers the CNI commands. It keeps nothing between two of them but the files of its store.
type plugin struct {
	exec   invoke.Exec // runs the delegates
	stdout io.Writer   // takes the result of ADD
	now    func() time.Time

	// netnsID tells the network namespaces apart that a path can lead to.
	netnsID func(path string) (string, error)

	limit time.Duration // for one command in all, below the minutes that runtimes wait
	undo  time.Duration // for removing what a failed ADD has left, on top of limit
}

func newPlugin(exec invoke.Exec, stdout io.Writer) *plugin {
	return &plugin{
		exec:    exec,
		stdout:  stdout,
		now:     time.Now,
		netnsID: attachment.NetnsID,
		limit:   60 * time.Second,
		undo:    20 * time.Second,
	}
}

// funcs binds the commands to ctx and to the time limit.
func (p *plugin) funcs(ctx context.Context) skel.CNIFuncs {
	bind := func(command func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			ctx, cancel := context.WithTimeout(ctx, p.limit)
			defer cancel()
			return command(ctx, args)
		}
	}
	return skel.CNIFuncs{
		Add:    bind(p.add),
		Del:    bind(p.del),
		Check:  bind(p.check),
		GC:     bind(p.gc),
		Status: bind(p.status),
	}
}
