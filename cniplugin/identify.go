package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// annotations is the capability by which containerd's CRI hands over the annotations of a pod.
const annotations = "io.kubernetes.cri.pod-annotations"

// identify finds out what the container is to policies. What cannot be found is not in it, and noted: nothing of that keeps it
// from being attached.
func (c *netConf) identify(ctx context.Context, args *skel.CmdArgs) (*policy.Identity, []string) {
	given := identity.Given{ContainerID: args.ContainerID, Args: args.Args}
	var notes []string
	note := func(err error) {
		if err != nil {
			notes = append(notes, err.Error())
		}
	}
	var err error
	given.Runtime, err = identity.Lookup(ctx, c.Containerd, args.ContainerID, args.Args)
	note(err)
	given.Conf, err = c.identity()
	note(err)
	id, dropped := identity.Derive(given)
	return &id, append(notes, dropped...)
}

// identity is what the configuration says of the container.
func (c *netConf) identity() (conf identity.Conf, err error) {
	conf.Namespaces = c.Namespaces
	var runtime struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	}
	if len(c.RuntimeConfig) > 0 {
		if err := json.Unmarshal(c.RuntimeConfig, &runtime); err != nil {
			return conf, fmt.Errorf("runtimeConfig: %w: dropped", err)
		}
	}
	conf.Annotations = runtime.Annotations
	var args struct {
		CNI struct {
			Namespace string `json:"namespace"`
			Labels    labels `json:"labels"`
		} `json:"cni"`
	}
	if len(c.Args) > 0 {
		if err := json.Unmarshal(c.Args, &args); err != nil {
			return conf, fmt.Errorf("args.cni: %w: dropped", err)
		}
	}
	conf.Namespace, conf.Labels = args.CNI.Namespace, args.CNI.Labels
	return conf, nil
}

// labels are read as an object, or as the list of keys and values that CNI's conventions have.
type labels map[string]string

// UnmarshalJSON reads either.
func (l *labels) UnmarshalJSON(data []byte) error {
	var list []struct{ Key, Value string }
	if json.Unmarshal(data, &list) != nil {
		return json.Unmarshal(data, (*map[string]string)(l))
	}
	*l = labels{}
	for _, pair := range list {
		(*l)[pair.Key] = pair.Value
	}
	return nil
}

// withoutAnnotations is a runtimeConfig without the annotations of the pod: no delegate needs them, and there may be secrets
// in them, which the record must not keep.
func withoutAnnotations(runtimeConfig json.RawMessage) json.RawMessage {
	var all map[string]json.RawMessage
	if json.Unmarshal(runtimeConfig, &all) != nil || all[annotations] == nil {
		return runtimeConfig
	}
	if delete(all, annotations); len(all) == 0 {
		return nil
	}
	rest, err := json.Marshal(all)
	if err != nil {
		return nil
	}
	return rest
}
