package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"slices"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// live are the settings that a running daemon takes over on SIGHUP. Certificates and keys are read anew for each
// connection to etcd, and the password for each login, signal or not.
var live = []string{"etcd-endpoints", "log-level", "fast-path"}

// networksSetting is another, of a daemon that was started with the names of some.
const networksSetting = "networks"

// reloaded is what takes them over.
type reloaded struct {
	etcd *etcdstore.Client
	fast interface{ SetMode(api.FastPathMode) }
	host any // a networks.Host, if there may be several networks
}

// source knows how to read the settings, again and again: the command line stays as it is, the file may change.
type source struct {
	commandLine *pflag.FlagSet // parsed
	stderr      io.Writer      // for the log
}

// config reads the settings as they are now, and checks them.
func (s source) config() (*config, error) {
	var d settings.Daemon
	declared := pflag.NewFlagSet("overlayd", pflag.ContinueOnError)
	d.Register(declared)
	var err error
	s.commandLine.VisitAll(func(given *pflag.Flag) {
		if f := declared.Lookup(given.Name); f != nil && given.Changed && err == nil {
			f.Changed, err = true, assign(f.Value, given.Value)
		}
	})
	if err != nil {
		return nil, err
	}
	from, err := settings.Load(declared, "overlayd")
	if err != nil {
		return nil, err
	}
	c, err := newConfig(d, from, s.stderr)
	if err != nil {
		return nil, err
	}
	c.source, c.told, c.declared = s, d, declared
	return c, nil
}

// assign gives a flag another one's value.
func assign(to, from pflag.Value) error {
	if list, ok := from.(pflag.SliceValue); ok {
		return to.(pflag.SliceValue).Replace(list.GetSlice())
	}
	return to.Set(from.String())
}

// hangups receives SIGHUP from now on: one that came earlier would end the process.
func hangups() <-chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGHUP)
	return c
}

// reloadOn takes over what has changed in the configuration at each hangup, until ctx ends.
func (c *config) reloadOn(ctx context.Context, hangup <-chan os.Signal, parts reloaded) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		}
		if err := c.reload(parts); err != nil {
			c.log.Error("the configuration is not taken over", "err", err)
		}
	}
}

// reload takes over all of a configuration or, if it is wrong, nothing.
func (c *config) reload(parts reloaded) error {
	next, err := c.source.config()
	if err != nil {
		return err
	}
	if err := parts.etcd.SetEndpoints(next.etcd.Endpoints); err != nil {
		return err
	}
	c.level.Set(next.told.LogLevel)
	parts.fast.SetMode(next.fastPath)
	host, several := parts.host.(interface{ SetNames([]string) })
	if several = several && !c.allOf && !next.allOf; several {
		host.SetNames(next.networks)
	}
	var ignored []string
	next.declared.VisitAll(func(f *pflag.Flag) {
		if f.Value.String() != c.declared.Lookup(f.Name).Value.String() && !slices.Contains(live, f.Name) && !(several && f.Name == networksSetting) {
			ignored = append(ignored, f.Name)
		}
	})
	c.log.Info("the configuration is taken over")
	if len(ignored) > 0 {
		c.log.Warn("settings that need a restart have changed", "settings", ignored)
	}
	return nil
}
