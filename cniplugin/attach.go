package main

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// add attaches a container. The attachment is on disk before the delegate runs, so that whatever happens from then
// on a DEL or a GC can undo it; if the delegate fails it is undone here.
func (p *plugin) add(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	att, err := p.newAttachment(conf, keyOf(conf.Name, args), args)
	if err != nil {
		return err
	}
	if att.NetnsID, err = p.containerNetns(args.Netns); err != nil {
		return err
	}

	if err := p.delegate(att.Delegate, att.invokeArgs(att.Netns, args.Path)).installed(); err != nil {
		return err
	}
	s, err := createStore(ctx, conf.DataDir, syscall.LOCK_SH)
	if err != nil {
		return err
	}
	defer s.close()

	// A second ADD means that the runtime forgot, or could not finish, the first: its leftovers are removed and the
	// container is attached afresh, as if DEL had been called. Handing out the old result would need proof that all
	// of it, the chained plugins' part too, is still in place.
	if err := p.detach(ctx, s, conf.attachmentConf(), args); err != nil {
		return err
	}
	if err := s.save(att); err != nil {
		return err
	}
	if err := p.attach(ctx, att, conf.CNIVersion, args.Path); err != nil {
		return p.rollback(ctx, s, att, args.Path, err)
	}
	return nil
}

// attach runs the delegate and prints its result.
func (p *plugin) attach(ctx context.Context, att attachment, cniVersion, path string) error {
	result, err := p.delegate(att.Delegate, att.invokeArgs(att.Netns, path)).add(ctx)
	if err != nil {
		return err
	}
	if result, err = result.GetAsVersion(cniVersion); err != nil {
		return failf(types.ErrIncompatibleCNIVersion, "the delegate's result: %v", err)
	}
	if err := result.PrintTo(p.stdout); err != nil {
		return failf(types.ErrIOFailure, "print the result: %v", err)
	}
	return nil
}

// rollback undoes an ADD that failed with cause, which it returns. It has time of its own: the cause may be that
// the time was up.
func (p *plugin) rollback(ctx context.Context, s *store, att attachment, path string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.undo)
	defer cancel()
	if err := p.release(ctx, s, att, att.Netns, path); err != nil {
		return withDetail(cause, err)
	}
	return cause
}

// del detaches a container, from what was saved at ADD alone. Nothing saved is success: the container was never
// attached, or is detached already.
func (p *plugin) del(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseAttachmentConf(args.StdinData)
	if err != nil {
		return err
	}
	s, err := openStore(ctx, conf.DataDir, syscall.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.close()
	return p.detach(ctx, s, conf, args)
}

// detach removes the attachment that the runtime names, if there is one.
func (p *plugin) detach(ctx context.Context, s *store, conf attachmentConf, args *skel.CmdArgs) error {
	att, err := p.recall(s, keyOf(conf.Name, args), args)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if att.Delegate, err = withPrevResult(att.Delegate, conf.CNIVersion, conf.PrevResult); err != nil {
		return err
	}
	return p.release(ctx, s, att, p.netnsNow(att, args.Netns), args.Path)
}

// release undoes an attachment and then forgets it. If the delegate fails the file stays, so that the next try has
// what it needs.
func (p *plugin) release(ctx context.Context, s *store, att attachment, netns, path string) error {
	if err := p.delegate(att.Delegate, att.invokeArgs(netns, path)).run(ctx, "DEL"); err != nil {
		return err
	}
	return s.remove(att.key())
}

// recall loads an attachment. If its file is unusable the attachment is made up again from the configuration and
// the lease as they are now, since a DEL that can never succeed would keep the runtime from ever removing the
// container: bridge and host-local find what to remove by the container's id, not by anything that is lost.
func (p *plugin) recall(s *store, k key, args *skel.CmdArgs) (attachment, error) {
	att, err := s.load(k)
	if !errors.Is(err, errUnusable) {
		return att, err
	}
	conf, confErr := parseNetConf(args.StdinData)
	if confErr == nil {
		att, confErr = p.newAttachment(conf, k, args)
	}
	if confErr != nil {
		return attachment{}, types.NewError(codeState, err.Error()+
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
	s, err := openStore(ctx, conf.DataDir, syscall.LOCK_SH)
	if err != nil {
		return nil
	}
	defer s.close()
	att, err := p.recall(s, keyOf(conf.Name, args), args)
	if err != nil {
		return nil
	}
	delegated, err := withPrevResult(att.Delegate, conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return err
	}
	err = p.delegate(delegated, att.invokeArgs(args.Netns, args.Path)).run(ctx, "CHECK")
	if code := codeOf(err, types.ErrInternal); code == types.ErrPluginNotAvailable || code == types.ErrTryAgainLater {
		return nil // it could not be looked at
	}
	return err
}

// newAttachment is the attachment k as it would be made now, but for NetnsID.
func (p *plugin) newAttachment(conf netConf, k key, args *skel.CmdArgs) (attachment, error) {
	if err := k.validate(); err != nil {
		return attachment{}, err
	}
	lease, err := readLease(conf.SubnetFile)
	if err != nil {
		return attachment{}, err
	}
	rendered, err := conf.render(lease)
	if err != nil {
		return attachment{}, err
	}
	return attachment{
		Version: stateVersion,
		Network: k.network, ContainerID: k.containerID, IfName: k.ifName,
		Netns:    args.Netns,
		Args:     args.Args,
		Labels:   labels(args.Args),
		Subnets:  lease.Subnets,
		Created:  p.now().UTC(),
		Delegate: rendered,
	}, nil
}

func keyOf(network string, args *skel.CmdArgs) key {
	return key{network, args.ContainerID, args.IfName}
}

// attachmentConf is the part of a configuration that undoing needs.
func (c *netConf) attachmentConf() attachmentConf {
	return attachmentConf{CNIVersion: c.CNIVersion, Name: c.Name, DataDir: c.DataDir}
}

// invokeArgs are what the delegate is run with: for every command the CNI_ARGS of ADD, which it has accepted once.
func (a attachment) invokeArgs(netns, path string) invoke.Args {
	return invoke.Args{
		ContainerID: a.ContainerID, NetNS: netns, IfName: a.IfName, PluginArgsStr: a.Args, Path: path,
	}
}
