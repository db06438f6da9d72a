package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

const (
	dockerPrefix  = "docker-"             // of the files that are ours
	dockerPause   = time.Second           // before Docker is asked again
	dockerResync  = time.Minute           // is how often all are listed in any case
	dockerCalm    = 20 * time.Millisecond // is what follows an event is waited for
	maxDockerList = 256 << 20
)

// follower has the records, and the files of what has none, say what Docker does.
type follower struct {
	*driver
	said  map[string]string    // what was warned of, by container
	stray map[string]time.Time // since when, of endpoints that may be left behind
}

func newFollower(d *driver) *follower { return &follower{d, map[string]string{}, nil} }

// run follows until ctx ends; then it returns nil, and the files stay: so do the containers. So do they while Docker is away.
func (f *follower) run(ctx context.Context) error {
	said := ""
	for ctx.Err() == nil {
		err := f.follow(ctx, func() {
			if said != "" {
				f.log.Info("Docker is there again")
			}
			said = ""
		})
		if ctx.Err() != nil {
			break
		}
		if err.Error() != said {
			f.log.Warn("cannot follow Docker: trying again", "err", err)
			said = err.Error()
		}
		select {
		case <-ctx.Done():
		case <-time.After(dockerPause):
		}
	}
	return nil
}

// follow lists all containers, and again after each event, until the events end. The stream is open before the first list is
// made, so that nothing gets lost between the two.
func (f *follower) follow(ctx context.Context, works func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := url.QueryEscape(`{"type":["container","network"],"event":["start","restart","die","destroy","rename","connect","disconnect"]}`)
	events, err := f.docker.get(ctx, "/events?filters="+filter)
	if err != nil {
		return err
	}
	defer events.Close()
	happened, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for d := json.NewDecoder(events); ; {
			var event struct{} // whatever it was, the list says it
			if err := d.Decode(&event); err != nil {
				ended <- fmt.Errorf("events of %s: %w", f.dockerSocket, err)
				return
			}
			select {
			case happened <- struct{}{}:
			default:
			}
		}
	}()
	for again := time.NewTicker(dockerResync); ; {
		if err := f.sync(ctx); err != nil {
			return err
		}
		works()
		select {
		case err := <-ended:
			return err
		case <-again.C:
		case <-happened:
			time.Sleep(dockerCalm)
		}
	}
}

// sync has the records and the files say which containers run now.
func (f *follower) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var all []container
	if err := f.docker.read(ctx, "/containers/json", &all); err != nil {
		return err
	}
	overlays, err := f.overlays()
	if err != nil {
		return err
	}
	if len(overlays) == 0 {
		return fmt.Errorf("%s: this host has no lease yet: is overlayd running? (systemctl status overlayd)", f.runDir)
	}
	var subnets []netip.Prefix
	for _, o := range overlays {
		subnets = append(subnets, o.Subnets...)
	}
	return errors.Join(f.records(ctx, all), f.write(all, subnets))
}

// records completes those of the driver's endpoints: by the namespace, which there was not when they joined, and by who the container
// is, which may have been renamed since.
func (f *follower) records(ctx context.Context, all []container) error {
	known, err := attachment.Read(attachment.DefaultDir, attachment.DockerNetwork)
	if err != nil {
		return err
	}
	of := map[string]container{}
	for _, c := range all {
		for _, n := range c.NetworkSettings.Networks {
			of[n.EndpointID] = c
		}
	}
	errs := []error{f.strays(ctx, known, of)}
	for _, a := range known.Usable {
		c, ok := of[a.ContainerID]
		if !ok || !f.complete(&a, c) {
			continue
		}
		errs = append(errs, f.change(ctx, a.Key(), func(a *attachment.Attachment) (bool, error) { return f.complete(a, c), nil }))
	}
	return errors.Join(errs...)
}

// complete says whether anything of the record has changed by it.
func (f *follower) complete(a *attachment.Attachment, c container) bool {
	id, notes := identity.Derive(c.given())
	f.note(c.ID, notes)
	id = identity.Relabel(id, a.Relabelled)
	netns := a.NetnsID
	if now, err := attachment.NetnsID(a.Netns); err == nil && netns == "" {
		netns = now
	}
	if a.Endpoint != nil && same(*a.Endpoint, id) && netns == a.NetnsID && a.Labels["DOCKER_CONTAINER_ID"] == c.ID {
		return false
	}
	a.Endpoint, a.EndpointNotes, a.NetnsID = &id, notes, netns
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	a.Labels["DOCKER_CONTAINER_ID"] = c.ID
	return true
}

// same says whether two identities are written alike.
func same(a, b policy.Identity) bool {
	one, err := json.Marshal(a)
	other, err2 := json.Marshal(b)
	return err == nil && err2 == nil && bytes.Equal(one, other)
}

// write has the directory hold the containers with addresses in the subnets, and no others of Docker's.
func (f *follower) write(all []container, subnets []netip.Prefix) error {
	dir := identity.Dir(f.runDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	known, err := attachment.Read(attachment.DefaultDir, attachment.DockerNetwork)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	var errs []error
	for _, c := range all {
		e := c.endpoint(subnets, known, func(notes []string) { f.note(c.ID, notes) })
		if len(e.IPs) == 0 || !policy.ValidName(c.ID) {
			continue
		}
		kept[dockerPrefix+c.ID+".json"] = true
		errs = append(errs, identity.WriteFile(dir, dockerPrefix+c.ID, e))
	}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, entry := range entries {
		id, isJSON := strings.CutSuffix(entry.Name(), ".json")
		if isJSON && strings.HasPrefix(id, dockerPrefix) && !kept[entry.Name()] {
			errs = append(errs, identity.RemoveFile(dir, id))
			delete(f.said, strings.TrimPrefix(id, dockerPrefix))
		}
	}
	return errors.Join(errs...)
}

// endpoint is the container as policies are to know it; without an address if it is not on the overlay.
func (c container) endpoint(subnets []netip.Prefix, known attachment.All, note func([]string)) (e policy.Endpoint) {
	for _, n := range c.NetworkSettings.Networks {
		if known.Have(n.EndpointID, ifName) { // the record says it
			continue
		}
		for _, text := range []string{n.IPAddress, n.GlobalIPv6Address} {
			addr, err := netip.ParseAddr(text)
			ours := func(p netip.Prefix) bool { return p.Masked().Contains(addr) }
			if err == nil && slices.ContainsFunc(subnets, ours) && len(e.IPs) < policy.MaxIPs {
				e.IPs = append(e.IPs, addr)
			}
		}
	}
	if len(e.IPs) == 0 {
		return e
	}
	slices.SortFunc(e.IPs, netip.Addr.Compare)
	id, dropped := identity.Derive(c.given())
	e.Identity = id
	note(dropped)
	return e
}

// note tells once of what was dropped of a container.
func (f *follower) note(id string, notes []string) {
	text := strings.Join(notes, "; ")
	if text != "" && f.said[id] != text {
		f.log.Warn("of a container not everything counts", "container", id, "notes", text)
		f.said[id] = text
	}
}
