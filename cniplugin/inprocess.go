package main

import (
	"context"
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// inProcess is the delegate bridge with host-local where the configuration names neither: no plugin need be installed
// and no process started.
type inProcess struct {
	conf      json.RawMessage
	container bridge.Container
}

// inProcess says whether the delegate that was rendered is one that this process can stand for. A type that the
// configuration gives is run, so that whoever wants the reference plugins themselves has but to name them.
func (c *netConf) inProcess(rendered json.RawMessage) bool {
	if c.Delegate["type"] != nil || c.IPAM["type"] != nil {
		return false
	}
	var conf map[string]any
	return decode(rendered, &conf) == nil && bridge.Supports(conf)
}

func (d inProcess) ready() error {
	_, err := bridge.New(d.conf, d.container)
	return err
}

func (d inProcess) add(ctx context.Context) (result types.Result, waits bool, err error) {
	a, err := bridge.New(d.conf, d.container)
	if err == nil {
		if result, err = a.Add(ctx); err == nil {
			return result, a.Waits, nil
		}
	}
	return nil, false, delegateError(ctx, "bridge ADD", err)
}

func (d inProcess) run(ctx context.Context, command string) error {
	d.container.Args = "" // they say how to attach
	a, err := bridge.New(d.conf, d.container)
	if err == nil {
		switch command {
		case "DEL":
			err = a.Del(ctx)
		case "unplug":
			err = a.Unplug()
		case "CHECK":
			err = a.Check(ctx)
		}
	}
	if err != nil {
		return delegateError(ctx, "bridge "+command, err)
	}
	return nil
}
