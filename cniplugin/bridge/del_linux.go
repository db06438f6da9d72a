package bridge

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// Del detaches the container; what is gone already is no error. An address is free only once nothing uses it.
func (a *Attachment) Del(ctx context.Context) error {
	if err := a.unplug(); err != nil {
		return fmt.Errorf("%s: %w", a.IfName, err)
	}
	return a.release(ctx)
}

// unplug removes the container's interface, and with it its other end.
func (a *Attachment) unplug() error {
	if a.Netns == "" {
		return nil
	}
	err := ns.WithNetNSPath(a.Netns, func(ns.NetNS) error {
		err := ip.DelLinkByName(a.IfName)
		if errors.Is(err, ip.ErrLinkNotFound) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	})
	if _, gone := errors.AsType[ns.NSPathNotExistErr](err); gone {
		return nil
	}
	return err
}
