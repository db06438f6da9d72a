package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
	"github.com/overlayd/overlayd/cniplugin/identity"
)

// add attaches a container. If there is no address for it those of dead containers are freed, and it is tried again.
func (p *plugin) add(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	cause := p.tryAdd(ctx, conf, args)
	if !bridge.NoAddress(cause) {
		return cause
	}
	freed, err := p.reclaim(ctx, conf, args)
	if freed {
		cause = p.tryAdd(ctx, conf, args)
	}
	if cause != nil && err != nil {
		return withDetail(cause, fmt.Errorf("dead containers: %w", err))
	}
	return cause
}

// tryAdd attaches a container. The attachment is on disk before the delegate runs, so that whatever happens from then
// on a DEL or a GC can undo it; if the delegate fails it is undone here.
func (p *plugin) tryAdd(ctx context.Context, conf netConf, args *skel.CmdArgs) error {
	att, err := p.newAttachment(conf, keyOf(conf.Name, args), args)
	if err != nil {
		return err
	}
	if att.NetnsID, err = p.containerNetns(args.Netns); err != nil {
		return err
	}

	if att.Delegate, err = withoutSecondDefault(att); err != nil {
		return err
	}
	if err := p.delegateOf(att, att.Netns, args.Path).ready(); err != nil {
		return err
	}
	if err := refuseUnseen(att); err != nil {
		return err
	}
	att.Endpoint, att.EndpointNotes = conf.identify(ctx, args)
	s, err := attachment.Create(ctx, conf.DataDir, attachment.Shared, attachment.GroupOf(conf.SubnetFile))
	if err != nil {
		return err
	}
	defer s.Close()

	if err := s.LockKey(ctx, att.Key()); err != nil {
		return err
	}
	if err := p.afresh(ctx, s, &att, conf.attachmentConf(), args); err != nil {
		return err
	}
	if other, err := elsewhere(s, att.Key()); err != nil || other != "" {
		return cmp.Or(err, failf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME: the container has an interface %s already, of network %s", att.IfName, other))
	}
	if err := refuseInterface(att); err != nil {
		return err
	}
	if err := s.Save(att); err != nil {
		return err
	}
	if err := p.attach(ctx, s, &att, conf.CNIVersion, args.Path); err != nil {
		return p.rollback(ctx, s, att, args.Path, err)
	}
	return nil
}

// afresh makes room for att. A second ADD means that the runtime forgot, or could not finish, the first: its leftovers are
// removed and the container is attached afresh, as if DEL had been called. Handing out the old result would need proof that
// all of it, the chained plugins' part too, is still in place. But the container keeps its addresses and MAC: what the chained
// plugins made of them may be left too. In this process they stay reserved meanwhile; plugins that are run are asked for them
// again. Another plugin's addresses than host-local's are its own to keep: static and dhcp do.
func (p *plugin) afresh(ctx context.Context, s *attachment.Store, att *attachment.Attachment, conf attachmentConf, args *skel.CmdArgs) error {
	old, err := p.recall(ctx, s, att.Key(), args)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if len(old.Relabelled) > 0 {
		relabelled := identity.Relabel(*att.Endpoint, old.Relabelled)
		att.Endpoint, att.Relabelled = &relabelled, old.Relabelled
	}
	same := err == nil && slices.Equal(old.Subnets, att.Subnets)
	if same && old.InProcess && att.InProcess {
		att.Again = true
		return p.delegateOf(old, p.netnsNow(old, args.Netns), args.Path).run(ctx, "unplug")
	}
	if _, known := poolDir(att.Delegate); same && known {
		if att.Delegate, err = keep(att.Delegate, att.Args, old); err != nil {
			return err
		}
	}
	return p.detach(ctx, s, conf, args)
}

// attach runs the delegate, saves what it has made and prints its result.
func (p *plugin) attach(ctx context.Context, s *attachment.Store, att *attachment.Attachment, cniVersion, path string) error {
	if err := settle(ctx, *att); err != nil {
		return err
	}
	if err := claimBridge(*att); err != nil {
		return err
	}
	result, waits, err := p.delegateOf(*att, att.Netns, path).add(ctx)
	if err != nil {
		if att.InProcess {
			att.Netns = "" // it has removed what it made there
		}
		return err
	}
	if result, err = withNames(result, *att); err != nil {
		return failf(types.ErrDecodingFailure, "the delegate's result: %v", err)
	}
	if result, err = result.GetAsVersion(cniVersion); err != nil {
		return failf(types.ErrIncompatibleCNIVersion, "the delegate's result: %v", err)
	}
	if *att, err = withResult(*att, result); err != nil {
		return err
	}
	if !att.InProcess {
		if waits, err = guardDelegated(*att); err != nil {
			return err
		}
	}
	if waits {
		addrs := att.PolicyEndpoint().IPs
		pending.Forget(att.RunDir, addrs)
		if linkLocal := att.LinkLocal(); linkLocal.IsValid() {
			addrs = append(addrs, linkLocal)
		}
		att.Untracked = pending.Untracked(addrs)
	}
	if err := s.Save(*att); err != nil {
		return err
	}
	if waits {
		if err := awaitPolicies(ctx, *att); err != nil {
			return err
		}
	}
	if err := result.PrintTo(p.stdout); err != nil {
		return failf(types.ErrIOFailure, "print the result: %v", err)
	}
	return nil
}

// rollback undoes an ADD that failed with cause, which it returns. It has time of its own: the cause may be that
// the time was up.
func (p *plugin) rollback(ctx context.Context, s *attachment.Store, att attachment.Attachment, path string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.undo)
	defer cancel()
	if err := p.release(ctx, s, att, att.Netns, path); err != nil {
		return withDetail(cause, err)
	}
	return cause
}

// del detaches a container, from what was saved at ADD alone. Nothing saved is success: the container was never
// attached, or is detached already, unless it has an address still.
func (p *plugin) del(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseAttachmentConf(args.StdinData)
	if err != nil {
		return err
	}
	known := false
	err = attachment.With(ctx, conf.DataDir, attachment.Shared, func(s *attachment.Store) error {
		if err := s.LockKey(ctx, keyOf(conf.Name, args)); err != nil {
			return err
		}
		err := p.detach(ctx, s, conf, args)
		if known = !errors.Is(err, fs.ErrNotExist); !known {
			var other string
			other, err = elsewhere(s, keyOf(conf.Name, args))
			known = other != ""
		}
		return err
	})
	if known || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.detachLost(ctx, conf, args)
}

// elsewhere names another network of ours that the interface k is attached to, in a namespace that is there; "" if it is to
// none. All networks of a lease take addresses from one pool, where they are the interface's.
func elsewhere(s *attachment.Store, k attachment.Key) (string, error) {
	networks, err := s.Networks()
	for _, network := range networks {
		if network == k.Network {
			continue
		}
		a, err := s.Load(attachment.Key{Network: network, ContainerID: k.ContainerID, IfName: k.IfName})
		if err == nil && a.NetnsIsThere() {
			return network, nil
		}
	}
	return "", err
}

// detach removes the attachment that the runtime names. The error is [fs.ErrNotExist] if there is none.
func (p *plugin) detach(ctx context.Context, s *attachment.Store, conf attachmentConf, args *skel.CmdArgs) error {
	att, err := p.recall(ctx, s, keyOf(conf.Name, args), args)
	if err != nil {
		return err
	}
	if conf.OnlyNetns != "" && conf.OnlyNetns != att.NetnsID {
		return nil
	}
	if att.Delegate, err = confNow(att, conf); err != nil {
		return err
	}
	return p.release(ctx, s, att, p.netnsNow(att, args.Netns), args.Path)
}

// release undoes an attachment and then forgets it. If the delegate fails the file stays, so that the next try has
// what it needs.
func (p *plugin) release(ctx context.Context, s *attachment.Store, att attachment.Attachment, netns, path string) error {
	if err := p.delegateOf(att, netns, path).run(ctx, "DEL"); err != nil {
		return err
	}
	if dir, ok := poolDir(att.Delegate); ok && att.NetnsID == "" { // it was made up: the address may be of another lease
		if err := bridge.Release(ctx, dir, poolsOf(dir, att.Network), att.ContainerID, att.IfName); err != nil {
			return err
		}
	}
	return s.Remove(att.Key())
}

// recall loads an attachment. If its file is unusable the attachment is made up again from the configuration and
// the lease as they are now, since a DEL that can never succeed would keep the runtime from ever removing the
// container: bridge and host-local find what to remove by the container's id, not by anything that is lost.
func (p *plugin) recall(ctx context.Context, s *attachment.Store, k attachment.Key, args *skel.CmdArgs) (attachment.Attachment, error) {
	att, err := s.Load(k)
	if err == nil {
		return upgrade(ctx, att)
	}
	if !errors.Is(err, attachment.ErrUnusable) {
		return att, err
	}
	conf, confErr := parseNetConf(args.StdinData)
	if confErr == nil {
		att, confErr = p.newAttachment(conf, k, args)
	}
	if confErr != nil {
		return attachment.Attachment{}, types.NewError(codeState, err.Error()+
			": start overlayd and try again, or remove the file, which may leave an address in use", confErr.Error())
	}
	return att, nil
}

// check says whether the attachment is as ADD left it. Nomad destroys an allocation's network when CHECK fails, so
// nothing else may fail it: neither the daemon, nor subnet.env, nor a mistake in the configuration, nor a plugin that is
// not installed, nor an attachment of which there is no record.
func (p *plugin) check(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseAttachmentConf(args.StdinData)
	if err != nil || conf.DisableCheck {
		return nil
	}
	s, err := attachment.Open(ctx, conf.DataDir, attachment.Shared)
	if err != nil {
		return nil
	}
	defer s.Close()
	att, err := p.recall(ctx, s, keyOf(conf.Name, args), args)
	if err != nil {
		return nil
	}
	if att.Delegate, err = confNow(att, conf); err != nil {
		return err
	}
	err = cmp.Or(p.delegateOf(att, args.Netns, args.Path).run(ctx, "CHECK"), checkMAC(att, conf.PrevResult))
	if code := codeOf(err, types.ErrInternal); code == types.ErrPluginNotAvailable || code == types.ErrTryAgainLater {
		return nil // it could not be looked at
	}
	return err
}
