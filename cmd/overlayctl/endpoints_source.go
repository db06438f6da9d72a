package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// endpoints are those that are meant, by name: this host's, or all in etcd.
func (a *app) endpoints(ctx context.Context, f *endpointFlags) (list []endpoint, err error) {
	if f.all {
		return a.publishedEndpoints(ctx)
	}
	of, daemon := a.daemonEndpoints(ctx)
	list, err = a.recordedEndpoints(ctx, &f.cniDirs)
	if errors.Is(err, fs.ErrPermission) && daemon == nil { // only root may read the records
		list, err = nil, nil
		for _, e := range of {
			list = append(list, endpoint{Endpoint: e.Endpoint, Network: e.Network, ContainerID: e.ContainerID, IfName: e.IfName})
		}
	}
	if err != nil {
		return nil, err
	}
	if daemon == nil {
		for i := range list {
			list[i].Isolated = isolatedAs(of, list[i])
		}
	}
	slices.SortFunc(list, compareEndpoints)
	return list, nil
}

// daemonEndpoints asks the daemon, which may be down.
func (a *app) daemonEndpoints(ctx context.Context) ([]api.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return api.Dial(settings.Socket(a.settings.RunDir)).Endpoints(ctx)
}

// isolatedAs says in which directions the daemon has it isolated; nil: it has not heard of it.
func isolatedAs(of []api.Endpoint, e endpoint) []string {
	i := slices.IndexFunc(of, func(o api.Endpoint) bool {
		return o.Network == e.Network && o.ContainerID == e.ContainerID && o.IfName == e.IfName
	})
	if i < 0 {
		return nil
	}
	isolated := []string{}
	for _, s := range []struct {
		is   bool
		name string
	}{{of[i].Ingress, "ingress"}, {of[i].Egress, "egress"}, {of[i].Pending, "pending"}} {
		if s.is {
			isolated = append(isolated, s.name)
		}
	}
	return isolated
}

// recordedEndpoints are those of the plugin's records, and of those who run containers without CNI.
func (a *app) recordedEndpoints(ctx context.Context, d *cniDirs) (list []endpoint, err error) {
	list = []endpoint{}
	networks, err := d.everyNetwork(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		if a.overlay != "" && n.subnetFile != a.subnetFile() {
			continue
		}
		all, err := n.attachments()
		if err != nil {
			return nil, err
		}
		for _, x := range all.Usable {
			if len(x.Addresses) == 0 || x.OfEarlierBoot() {
				continue
			}
			list = append(list, endpoint{
				Endpoint: x.PolicyEndpoint(), Network: x.Network, ContainerID: x.ContainerID, IfName: x.IfName,
				Notes: x.EndpointNotes, dataDir: n.dataDir,
			})
		}
	}
	if a.overlay != "" {
		return list, nil
	}
	others, unread, err := identity.ReadDir(identity.Dir(a.settings.RunDir))
	if err != nil {
		return nil, err
	}
	for id, e := range others {
		list = append(list, endpoint{Endpoint: e, ContainerID: id})
	}
	for _, err := range unread {
		a.warn([]string{err.Error()})
	}
	return list, nil
}

// publishedEndpoints are those in etcd.
func (a *app) publishedEndpoints(ctx context.Context) (list []endpoint, err error) {
	err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		listed := false
		following, stop := context.WithCancel(ctx)
		defer stop()
		s.FollowKeys(following, func(n etcdstore.News) {
			if !listed && n.Listed {
				list, listed = a.parsePublished(n.Put), true
			}
			err = n.Err
			stop()
		}, "endpoints/")
		if listed {
			return nil
		}
		return cmp.Or(err, ctx.Err())
	})
	slices.SortFunc(list, compareEndpoints)
	return list, err
}

// parsePublished reads endpoints/<namespace>/<host id>/<address>. Whether a host may say so, daemons judge.
func (a *app) parsePublished(kvs []etcdstore.KeyValue) []endpoint {
	list := []endpoint{}
	var skipped []string
	for _, kv := range kvs {
		e, err := parsePublished(kv)
		if err != nil {
			skipped = append(skipped, "skipped "+kv.Key+": "+err.Error())
			continue
		}
		list = append(list, e)
	}
	a.warn(skipped)
	return list
}

func parsePublished(kv etcdstore.KeyValue) (endpoint, error) {
	host, e, err := policy.ParsePublished(strings.TrimPrefix(kv.Key, "endpoints/"), kv.Value)
	return endpoint{Endpoint: e, Host: host}, err
}

// relabelEndpoint changes labels of a container's, as the plugin keeps them; nil takes one away.
func relabelEndpoint(ctx context.Context, e endpoint, changes map[string]*string) (after policy.Identity, err error) {
	err = attachment.With(ctx, e.dataDir, attachment.Shared, func(s *attachment.Store) error {
		key := attachment.Key{Network: e.Network, ContainerID: e.ContainerID, IfName: e.IfName}
		if err := s.LockKey(ctx, key); err != nil {
			return err
		}
		record, err := s.Load(key)
		if err != nil {
			return err
		}
		after = identity.Relabel(record.PolicyEndpoint().Identity, changes)
		if err := policy.ValidateLabels(after.Labels); err != nil {
			return err
		}
		if record.Relabelled == nil {
			record.Relabelled = map[string]*string{}
		}
		for key, value := range changes {
			record.Relabelled[key] = value
		}
		record.Endpoint = &after
		return s.Save(record)
	})
	return after, err
}
